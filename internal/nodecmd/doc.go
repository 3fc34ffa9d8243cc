// Package nodecmd is the command that runs a node: hasqlite-node, and the
// hidden subcommand of hasqlite by which the demo starts its nodes.
//
// Owns: the life of the process: options, log, signals, exit code.
// Imports: internal/config, internal/exit, internal/node.
// Invariant: a first SIGTERM or SIGINT ends the node cleanly within the
// shutdown time; a second one ends the process at once.
package nodecmd
