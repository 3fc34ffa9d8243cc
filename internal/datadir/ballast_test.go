package datadir

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

func TestTheReserveHasBlocksAndGivesThemBack(t *testing.T) {
	dir := t.TempDir()
	open := func() *Dir {
		t.Helper()
		d, err := Open(dir, Want{})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { d.Close() })
		return d
	}
	d := open()
	const size = 3 << 20
	s := d.Space(size)
	if s.Reserved() != 0 || s.Release() {
		t.Fatal("a new directory has a reserve")
	}
	for range 2 {
		if err := s.Reserve(); err != nil {
			t.Fatal(err)
		}
	}
	var st unix.Stat_t
	if err := unix.Stat(filepath.Join(dir, ballastFile), &st); err != nil || st.Blocks*512 < size || s.Reserved() != size {
		t.Fatalf("%d blocks of 512 bytes, reserved %d: %v", st.Blocks, s.Reserved(), err)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	d = open() // the reserve outlives the process
	if got := d.Space(size).Reserved(); got != size {
		t.Fatalf("after a restart %d bytes are reserved", got)
	}
	if got := d.Space(2 * size).Reserved(); got != 0 {
		t.Fatalf("a reserve of another size counts for %d bytes", got)
	}
	s = d.Space(size)
	if !s.Release() || s.Release() || s.Reserved() != 0 {
		t.Fatal("it is released once")
	}
	if _, err := os.Stat(filepath.Join(dir, ballastFile)); !os.IsNotExist(err) {
		t.Fatalf("the file is there: %v", err)
	}
	if free, err := s.Free(); err != nil || free <= 0 {
		t.Fatalf("free: %d %v", free, err)
	}
}
