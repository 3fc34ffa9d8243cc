package logstore

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/hashicorp/raft"
	"github.com/hashicorp/raft-wal/fs"
	"github.com/hashicorp/raft-wal/metadb"
	"github.com/hashicorp/raft-wal/segment"
	"github.com/hashicorp/raft-wal/types"
)

// lastSegment returns the file of the last segment and what the metadata say of it.
func lastSegment(t testing.TB, dir string) (string, types.SegmentInfo) {
	t.Helper()
	dir = filepath.Join(dir, walDir)
	var meta metadb.BoltMetaDB
	state, err := meta.Load(dir)
	must(t, err)
	must(t, meta.Close())
	info := state.Segments[len(state.Segments)-1]
	return filepath.Join(dir, segment.FileName(info)), info
}

func openWALStore(t testing.TB, dir string) *Store {
	t.Helper()
	s, err := Open(dir, WAL, Options{SegmentBytes: testSegment})
	must(t, err)
	t.Cleanup(func() { s.Close() })
	return s
}

// A crash between the append that fills a segment and the note that it is full leaves a segment that raft-wal would
// never append to again.
func TestALogThatStoppedBeforeItsSegmentWasNotedAsFullGoesOn(t *testing.T) {
	dir := t.TempDir()
	s := openWALStore(t, dir)
	must(t, s.StoreLogs(entries(1, 10, 1)))
	must(t, s.Close())
	_, info := lastSegment(t, dir)
	w, err := segment.NewFiler(filepath.Join(dir, walDir), fs.New()).RecoverTail(info)
	must(t, err)
	if _, err := w.ForceSeal(); err != nil {
		t.Fatal(err)
	}
	must(t, w.Close())
	for i := range uint64(3) {
		s = openWALStore(t, dir)
		wantBounds(t, s, 1, 10+i, 1)
		must(t, s.StoreLogs(entries(11+i, 11+i, 1)))
		for j := uint64(1); j <= 11+i; j++ {
			l, err := s.Entry(j)
			must(t, err)
			if want := entries(j, j, 1)[0]; !bytes.Equal(l.Data, want.Data) {
				t.Fatalf("entry %d is %q", j, l.Data)
			}
		}
		must(t, s.Close())
	}
}

// Whatever part of the last batch is missing, the log ends with the batch before and goes on from there. That is so for
// the batch that fills the segment too.
func TestATornBatchIsClearedAndTheLogGoesOn(t *testing.T) {
	for name, last := range map[string][]*raft.Log{
		"in the middle of a segment":   entries(11, 15, 1),
		"as the last one of a segment": {entry(11, 1, string(bytes.Repeat([]byte("x"), testSegment)))},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			s := openWALStore(t, dir)
			must(t, s.StoreLogs(entries(1, 10, 1)))
			path, _ := lastSegmentOpen(t, s)
			before, err := os.ReadFile(path)
			must(t, err)
			end := s.backend.(walStore).fs.tail.end
			// A segment is noted as full only once all of it is on the disk.
			meta, err := os.ReadFile(filepath.Join(dir, walDir, metadb.FileName))
			must(t, err)
			must(t, s.StoreLogs(last))
			must(t, s.Close())
			after, err := os.ReadFile(path)
			must(t, err)
			// The pages of a batch reach the disk in any order.
			written := int64(len(bytes.TrimRight(after, "\x00"))+7) &^ 7
			step := max(8, (written-end)/20) &^ 7
			cuts := []int64{written - 8} // all but the commit frame: an index may be there
			for cut := end; cut < written; cut += step {
				cuts = append(cuts, cut)
			}
			for _, cut := range cuts {
				for _, tail := range []bool{false, true} {
					torn := bytes.Clone(after)
					if tail {
						copy(torn[end:min(cut+8, int64(len(torn)))], make([]byte, cut+8-end))
					} else {
						clear(torn[cut:])
					}
					if bytes.Equal(torn, after) || bytes.Equal(torn[:min(len(before), len(torn))], before) && tail {
						continue
					}
					crash := t.TempDir()
					sub := filepath.Join(crash, walDir)
					must(t, os.MkdirAll(sub, 0o700))
					must(t, os.WriteFile(filepath.Join(sub, metadb.FileName), meta, 0o600))
					must(t, os.WriteFile(filepath.Join(sub, filepath.Base(path)), torn, 0o600))
					s := openWALStore(t, crash)
					if _, last := s.Bounds(); last == 10 {
						must(t, s.StoreLogs(entries(11, 12, 2)))
						wantBounds(t, s, 1, 12, 2)
					} else if last < 10 {
						t.Fatalf("cut at %d: the log ends at %d", cut, last)
					}
					must(t, s.Close())
					s = openWALStore(t, crash)
					must(t, s.StoreLog(entry(func() uint64 { _, l := s.Bounds(); return l + 1 }(), 3, "on")))
					must(t, s.Close())
				}
			}
		})
	}
}

// A process that was killed in an append leaves a batch that only the kernel has. It is on the disk before it counts: before
// Open returns, and before the metadata say that the segment is full.
func TestWhatIsFoundAtStartIsSynced(t *testing.T) {
	former := fsync
	defer func() { fsync = former }()
	for _, sealed := range []bool{false, true} {
		dir := t.TempDir()
		s := openWALStore(t, dir)
		must(t, s.StoreLogs(entries(1, 10, 1)))
		must(t, s.Close())
		path, info := lastSegment(t, dir)
		if sealed {
			w, err := segment.NewFiler(filepath.Join(dir, walDir), fs.New()).RecoverTail(info)
			must(t, err)
			if _, err := w.ForceSeal(); err != nil {
				t.Fatal(err)
			}
			must(t, w.Close())
		}
		for _, failing := range []string{path, filepath.Dir(path)} {
			fsync = func(f *os.File) error {
				if f.Name() == failing {
					return syscall.EIO
				}
				return former(f)
			}
			s, err := Open(dir, WAL, Options{SegmentBytes: testSegment})
			if err == nil {
				s.Close()
			}
			fsync = former
			if !errors.Is(err, ErrSync) || !errors.Is(err, syscall.EIO) {
				t.Errorf("sealed %t, the sync of %s fails: got %v", sealed, failing, err)
			}
			if last, after := lastSegment(t, dir); last != path || !after.SealTime.IsZero() {
				t.Errorf("sealed %t, the sync of %s failed: the last segment is %s, sealed %v", sealed, failing, last, after.SealTime)
			}
		}
	}
}

func lastSegmentOpen(t *testing.T, s *Store) (string, int64) {
	t.Helper()
	tail := s.backend.(walStore).fs.tail
	return tail.f.Name(), tail.end
}

// A bad batch that good ones follow is not what a crash leaves.
func TestDamageBeforeTheLastBatchIsRefused(t *testing.T) {
	dir := t.TempDir()
	s := openWALStore(t, dir)
	must(t, s.StoreLogs(entries(1, 10, 1)))
	must(t, s.StoreLogs(entries(11, 20, 1)))
	path, _ := lastSegmentOpen(t, s)
	must(t, s.Close())
	b, err := os.ReadFile(path)
	must(t, err)
	b[100] ^= 1
	must(t, os.WriteFile(path, b, 0o600))
	if _, err := Open(dir, WAL, Options{SegmentBytes: testSegment}); !errors.Is(err, ErrDamaged) {
		t.Fatalf("got %v", err)
	}
}

func FuzzReadTail(f *testing.F) {
	dir := f.TempDir()
	s := openWALStore(f, dir)
	must(f, s.StoreLogs(entries(1, 3, 1)))
	must(f, s.StoreLogs(entries(4, 5, 1)))
	path := s.backend.(walStore).fs.tail.f.Name()
	must(f, s.Close())
	b, err := os.ReadFile(path)
	must(f, err)
	f.Add(b[:1024])
	f.Add(b[:100])
	f.Add([]byte{})
	f.Add(append(bytes.Clone(b[:32]), 1, 0, 0, 0, 255, 255, 255, 255))
	f.Fuzz(func(t *testing.T, b []byte) {
		got, err := readTail(bytes.NewReader(b), int64(len(b)))
		if err != nil && !errors.Is(err, ErrDamaged) {
			t.Fatal(err)
		}
		if got.end > int64(len(b)) || got.indexStart > got.end || got.entries < 0 {
			t.Fatalf("%+v of %d bytes", got, len(b))
		}
	})
}
