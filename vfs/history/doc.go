// Package history makes SQLite of this process open databases as they were,
// from an archive, fetching only the pages that a query touches.
//
// Importing it registers the SQLite VFS "hasqlite-history":
//
//	import _ "github.com/uglyer/ha-sqlite/vfs/history"
//
//	db, err := sql.Open("sqlite3", "file:shop.db?vfs=hasqlite-history&at=10+minutes+ago&archive=s3://backup/cluster1")
//
// Owns: the VFS, the files that SQLite asks it for, and the temporary ones.
// Imports: internal/moment and internal/storeurl to find a state, snapshot for
// where a database has no page, snapshot/archive to read it.
// Invariants:
//
//  1. A page is the one of the commit that was chosen, verified, or the read is
//     an error that [LastError] and PRAGMA hasqlite_error explain.
//  2. Nothing is ever written to an archive, and no -wal, -shm or -journal is
//     looked for: a write is SQLITE_READONLY.
//  3. Two connections share nothing that SQLite caches, so that one never reads
//     the other's time.
//
// Format: docs/history.md.
//
// # URI parameters
//
//	at=TIME        as it was then: 2026-11-22T10:00:00Z, 10+minutes+ago, yesterday+18:00, now
//	to=BOOKMARK    after a transaction: a bookmark, or a transaction number
//	archive=URL    a directory, file:///path or s3://bucket/prefix; else HASQLITE_ARCHIVE
//	identity=FILE  age identities of an encrypted archive; else HASQLITE_IDENTITY
//
// A relative time is counted from when each connection is opened. The
// connections of one sql.DB are of one state with to=, or with [Open].
//
// # PRAGMAs
//
// hasqlite_position gives the bookmark of the state, hasqlite_time the time of
// its commit, hasqlite_error why the last read failed.
//
// The VFS is made with github.com/psanford/sqlite3vfs; quirks.go says what of it
// is worked round.
package history
