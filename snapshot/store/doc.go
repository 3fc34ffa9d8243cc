// Package store says what an archive is kept in: a flat space of immutable
// objects. It has the client for a directory.
//
// Owns: the interface, its errors, and the files of a directory store.
// Imports: the standard library only.
// Invariant: a Put that has returned nil is whole and durable, one that has not
// leaves the object whole or absent; no object ever changes.
// Format: one file an object, its modification time the commit time, as stock
// litestream keeps its file replicas.
package store
