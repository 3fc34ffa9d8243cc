// Package archive keeps every commit of databases in a store, so that any of
// them can be restored: by this package, and by stock litestream v0.5.
//
// Owns: the layout of an archive, its manifests, the plan of a restore,
// compaction, retention, encryption, and the backlog of what is not archived.
// Imports: snapshot, snapshot/store.
// Invariants:
//
//  1. Objects never change. What an archive has is what its manifest lists, and
//     the manifest lists an object only after it was stored.
//  2. From every position that the manifest lists a plan exists: no step of
//     compaction or retention leaves a hole.
//  3. A restored database is the recorded one, by the checksum of all its pages,
//     or there is an error that names the object at fault and no file.
//
// Format: docs/history.md.
package archive
