//go:build !linux

package datadir

import "os"

// allocate gives a file real blocks of its own.
func allocate(f *os.File, n int64) error { return fill(f, n) }
