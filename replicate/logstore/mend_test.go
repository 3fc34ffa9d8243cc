package logstore

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
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

// That is so where a frame cannot be told from the end of the log, too.
func TestDamagedHeadsBeforeTheLastBatchAreRefused(t *testing.T) {
	dir := t.TempDir()
	s := openWALStore(t, dir)
	must(t, s.StoreLogs(entries(1, 3, 1)))
	must(t, s.StoreLog(entry(4, 1, strings.Repeat("large", 2000))))
	must(t, s.StoreLogs(entries(5, 6, 1)))
	must(t, s.StoreLog(entry(7, 1, "before the last")))
	path, last := lastSegmentOpen(t, s)
	must(t, s.StoreLogs(entries(8, 9, 2)))
	must(t, s.Close())
	meta, err := os.ReadFile(filepath.Join(dir, walDir, metadb.FileName))
	must(t, err)
	whole, err := os.ReadFile(path)
	must(t, err)
	refused := func(b []byte, what string, at int64) {
		crash := t.TempDir()
		sub := filepath.Join(crash, walDir)
		must(t, os.MkdirAll(sub, 0o700))
		must(t, os.WriteFile(filepath.Join(sub, metadb.FileName), meta, 0o600))
		must(t, os.WriteFile(filepath.Join(sub, filepath.Base(path)), b, 0o600))
		s, err := Open(crash, WAL, Options{SegmentBytes: testSegment})
		if err == nil {
			s.Close()
		}
		if !errors.Is(err, ErrDamaged) {
			t.Errorf("%s at offset %d: got %v", what, at, err)
		}
		if after, err := os.ReadFile(filepath.Join(sub, filepath.Base(path))); err != nil || !bytes.Equal(after, b) {
			t.Errorf("%s at offset %d: the file has changed, %v", what, at, err)
		}
	}
	heads := 0
	for off := int64(segmentHeader); off < last; heads++ {
		for _, i := range []int64{0, 4, 5, 7} { // the others mean nothing
			for _, flip := range []byte{1, 0x80} {
				b := bytes.Clone(whole)
				b[off+i] ^= flip
				refused(b, fmt.Sprintf("byte %d ^ %d of the head", i, flip), off)
			}
		}
		b := bytes.Clone(whole)
		clear(b[off : off+frameHead])
		refused(b, "zeros for the head", off)
		b = bytes.Clone(whole)
		clear(b[off:last])
		if off+frameHead < last {
			copy(b[last-frameHead:], whole[last-frameHead:last])
		}
		refused(b, "zeros up to the last commit frame before the last batch", off)
		if whole[off] == frameEntry {
			off += (int64(binary.LittleEndian.Uint32(whole[off+4:])) + frameHead - 1) / frameHead * frameHead
		}
		off += frameHead
	}
	if heads != 7+4 {
		t.Fatalf("%d heads", heads)
	}
}

// Whatever a power failure leaves of the batch that was in flight, it is no damage: not where whole sectors or parts of them
// are missing, and not where the entries hold parts of this very log.
func TestATornBatchIsNoDamage(t *testing.T) {
	dir := t.TempDir()
	s := openWALStore(t, dir)
	must(t, s.StoreLogs(entries(1, 3, 1)))
	for i := range uint64(20) {
		must(t, s.StoreLog(entry(4+i, 1, "small")))
	}
	path, end := lastSegmentOpen(t, s)
	log, err := os.ReadFile(path)
	must(t, err)
	var batch []*raft.Log
	for i := range uint64(16) { // at every place that it can have between frames
		batch = append(batch, entry(24+i, 1, strings.Repeat("-", int(i))+string(log[:end])))
	}
	must(t, s.StoreLogs(batch))
	_, to := lastSegmentOpen(t, s)
	must(t, s.Close())
	whole, err := os.ReadFile(path)
	must(t, err)
	whole = whole[:to+4096]
	seed := uint64(1)
	rng := rand.New(rand.NewPCG(seed, 0))
	for round := range 3000 {
		unit, torn := []int64{8, 512, 4096}[round%3], bytes.Clone(whole)
		kept := rng.Float64()
		for at := end &^ (unit - 1); at < to; at += unit {
			if at <= end || rng.Float64() > kept { // the first one is missing, or all may be well
				clear(torn[max(at, end):min(at+unit, to)])
			}
		}
		got, err := readTail(bytes.NewReader(torn), int64(len(torn)))
		if err != nil || got.end != end || got.entries != 23 {
			t.Fatalf("seed %d, round %d, blocks of %d: %+v, %v", seed, round, unit, got, err)
		}
		if behind, err := batchBehind(bytes.NewReader(torn), got, 24); behind != 0 || err != nil {
			t.Fatalf("seed %d, round %d, blocks of %d: a good batch at %d, %v", seed, round, unit, behind, err)
		}
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
