// Package snapshot turns the pages of a transaction into an LTX file and back.
//
// Owns: the guards that make an LTX file of one transaction safe to take from a
// disk or a network, and the page and database checksums.
// Imports: wal.
// Invariant: a decoder returns pages only after the checksum of the whole file
// was verified, and never allocates by a length that it did not check.
// Format: https://github.com/superfly/ltx#file-format with the flag NoChecksum,
// one transaction number, pages as LZ4 blocks with a size prefix.
package snapshot
