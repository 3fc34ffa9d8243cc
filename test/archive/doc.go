// Package archive has tests of archives with programs of others: stock
// litestream restores what we keep.
//
// Owns: the tests.
// Imports: nothing.
// Invariant: litestream is built unmodified, from the module that
// tools/litestream/go.mod pins.
package archive
