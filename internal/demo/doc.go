// Package demo shows in under a minute what HA-Sqlite does, on one machine: three nodes, a writer on each, the leader killed.
//
// Owns: nothing that outlives Run.
// Imports: localcluster, and vfs for its name "hasqlite" in SQLite.
// Invariant: Run gives no error only if the three nodes ended with the same rows and the same checksum at the same transaction.
package demo
