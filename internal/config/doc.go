// Package config reads the options of a node from the command line, the
// environment and a YAML file into a node.Config.
//
// Owns: the names of the options (one name serves as flag, as key of the file
// and, in capitals after HASQLITE_, as variable), their texts in the help, how
// a value is read, and which source wins: flag, then environment, then file,
// then default.
// Imports: internal/node for the Config.
// Invariant: every refusal names the source of the bad value: the flag, the
// variable, or file and line.
package config
