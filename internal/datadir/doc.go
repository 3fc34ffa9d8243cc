// Package datadir is a node's data directory: who it belongs to, and that one
// process uses it.
//
// Owns: the record (hasqlite.json), the lock (hasqlite.lock), the modes of
// directories and files, and the refusals. The layout below raft/ and
// databases/ belongs to others.
// Imports: none of ours.
// Invariant: while a Dir is open no other process has it open, and its record
// on disk is always a whole one.
// Format: the record is JSON with a format number; see Record.
package datadir
