// Package pagesums keeps the page checksums of all databases of a node on disk: for each database the position at
// which its files are known to be durable, and the checksum of every page there.
//
// Owns: the directory it is given, with the segments in it: append-only files of records, of which the newest of a
// database counts. A record holds all checksums, or those that changed since the record before it.
// Imports: the standard library only.
// Invariant: a record that is returned was written whole, and Closed is set only if nobody has called Opened since.
// A damaged record costs its database the record, never the node its start.
// Format: format.go.
package pagesums
