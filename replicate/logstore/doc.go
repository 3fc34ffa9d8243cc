// Package logstore keeps what raft has to keep: its log, its few stable values,
// and its snapshots.
//
// Owns: the raft directory. Store wraps raft-wal (or raft-boltdb) with a cache
// bounded by bytes and knows what is durable; Snapshots wraps raft's file
// snapshots so that one counts only once this node really has what it stands
// for.
// Imports: none of ours.
// Invariant: Durable returns nil only for an entry that a crash of this machine
// does not take away.
// Format: those of github.com/hashicorp/raft-wal, raft-boltdb/v2 and raft's
// FileSnapshotStore; plus a file named "complete" in a snapshot's directory.
package logstore
