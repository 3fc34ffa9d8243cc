package logstore

import (
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// The file system, too, takes the blocks ahead of the last entry for written: those that are only reserved are a hole.
func TestNoHoleAheadOfSmallAppends(t *testing.T) {
	s, err := Open(t.TempDir(), WAL, Options{SegmentBytes: testSegment})
	must(t, err)
	defer s.Close()
	for i := uint64(1); i <= 100; i++ {
		must(t, s.StoreLog(entry(i, 1, string(make([]byte, 4000)))))
		f := tailOf(s)
		g, err := os.Open(f.f.Name()) // reads without moving the writer's offset
		must(t, err)
		hole, err := unix.Seek(int(g.Fd()), f.end, unix.SEEK_HOLE)
		g.Close()
		must(t, err)
		if hole < f.written {
			t.Fatalf("entry %d ends at %d, the file is written to %d, and has a hole at %d", i, f.end, f.written, hole)
		}
	}
}
