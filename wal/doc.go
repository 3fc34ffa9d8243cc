// Package wal turns SQLite's write-ahead log and wal-index into Go values and
// back, and appends whole transactions to a live log.
//
// Owns: the WAL and frame headers, salts, the rolling checksum, where the valid
// log ends; the wal-index header, its hash tables and its checkpoint block; the
// order of the steps that make a transaction visible to every attached process.
// Imports: the standard library only. It opens no files: a [Handle] works over
// [File], [Shm] and [Locks], which package vfs implements with SQLite's own
// methods and tests implement with byte slices.
// Invariants:
//  1. A [Reader] never returns a frame beyond the last valid commit frame.
//  2. A reader of the database, in any process and at any time (also after the
//     appender was killed), sees all of a transaction given to [Txn.Append] or
//     nothing of it.
//  3. Nothing is written to the log or the wal-index but under the write lock.
//
// Formats: https://sqlite.org/fileformat2.html#walformat and
// https://sqlite.org/walformat.html
package wal
