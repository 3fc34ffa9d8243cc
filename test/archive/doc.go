// Package archive has tests of archives with real processes: clusters that
// archive into S3 and are lost, stores in trouble, and stock litestream, which
// restores what we keep.
//
// Owns: the tests.
// Imports: nothing.
// Invariant: litestream is built unmodified, from the module that
// tools/litestream/go.mod pins.
package archive
