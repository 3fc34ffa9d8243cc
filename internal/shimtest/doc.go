// Package shimtest tests the C shim from outside: through SQL, in this process
// and in others, against a node that keeps its databases in memory.
//
// Owns: the fake node, and every test that needs the shim and a node at once.
// Imports: internal/link and vfs.
// Invariant: the fake node speaks only link.Backend, so what passes here says
// nothing about raft and everything about the shim.
package shimtest
