// Package link is the node's end of the socket between a node and the SQLite
// shim inside an application's process.
//
// Owns: the frame codec, the order of messages on one connection, the listening
// socket, and when a peer counts as gone.
// Imports: the standard library and golang.org/x/sys; nothing of this module.
// Invariant: whatever bytes a peer sends, only its own connection ends, and no
// length is trusted before it was compared with a limit.
// Format: docs/protocol.md, which is the specification.
package link
