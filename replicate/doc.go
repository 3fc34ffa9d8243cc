// Package replicate turns transactions of many SQLite databases into entries of
// one raft log and back.
//
// Owns: positions and bookmarks, database names, the entry codec, the state
// machine that decides each entry (FSM), its snapshot (the manifest), and the
// leader's write locks (LockTable).
// Imports: wal, snapshot, replicate/peer, replicate/logstore.
// Invariant: what the FSM decides is a function of the log alone; it takes no
// clock, file or network, so every node decides the same.
// Formats: entries in entry.go, manifests in manifest.go, the payload of a
// transaction in package snapshot.
package replicate
