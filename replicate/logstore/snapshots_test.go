package logstore

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"testing"

	"github.com/hashicorp/raft"
)

var testConfiguration = raft.Configuration{Servers: []raft.Server{{ID: "n1", Address: "a"}}}

func openSnapshots(t *testing.T, dir string, retain int) *Snapshots {
	t.Helper()
	s, err := OpenSnapshots(dir, retain, nil)
	must(t, err)
	return s
}

// snapshot writes one and closes its sink.
func snapshot(t *testing.T, s *Snapshots, index uint64, here bool) string {
	t.Helper()
	_, trans := raft.NewInmemTransport("a")
	k, err := s.Create(1, index, 1, testConfiguration, 1, trans)
	must(t, err)
	if here {
		must(t, TakenHere(k))
	}
	_, err = io.WriteString(k, "state")
	must(t, err)
	must(t, k.Close())
	must(t, k.Close())
	return k.ID()
}

func wantList(t *testing.T, s *Snapshots, indexes ...uint64) {
	t.Helper()
	list, err := s.List()
	must(t, err)
	var got []uint64
	for _, m := range list {
		got = append(got, m.Index)
	}
	if len(got) != len(indexes) {
		t.Fatalf("snapshots at %v, want %v", got, indexes)
	}
	for i := range got {
		if got[i] != indexes[i] {
			t.Fatalf("snapshots at %v, want %v", got, indexes)
		}
	}
}

func onDisk(t *testing.T, dir string) int {
	t.Helper()
	entries, err := os.ReadDir(filepath.Join(dir, snapshotDir))
	must(t, err)
	return len(entries)
}

func TestASnapshotTakenHereCountsAtOnce(t *testing.T) {
	dir := t.TempDir()
	s := openSnapshots(t, dir, 2)
	for i := uint64(10); i <= 40; i += 10 {
		snapshot(t, s, i, true)
	}
	wantList(t, s, 40, 30)
	wantList(t, openSnapshots(t, dir, 2), 40, 30)
	if n := onDisk(t, dir); n != 2 {
		t.Fatalf("%d snapshots on disk", n)
	}
}

func TestAReceivedSnapshotCountsOnlyOnceItIsRestored(t *testing.T) {
	dir := t.TempDir()
	s := openSnapshots(t, dir, 1)
	snapshot(t, s, 10, true)
	id := snapshot(t, s, 50, false)
	wantList(t, s, 10)

	// The restore reads it by id, through whatever raft wraps around it.
	meta, rc, err := s.Open(id)
	must(t, err)
	given, ok := SnapshotOf(wrapped{rc})
	if !ok || given.ID != id || given.Complete || meta.Index != 50 {
		t.Fatalf("got %+v, %v", given, ok)
	}
	if !slices.Equal(given.Servers, testConfiguration.Servers) {
		t.Fatalf("members %v", given.Servers)
	}
	if b, err := io.ReadAll(rc); string(b) != "state" || err != nil {
		t.Fatalf("got %q, %v", b, err)
	}
	must(t, rc.Close())
	if _, ok := SnapshotOf(io.NopCloser(nil)); ok {
		t.Fatal("a foreign reader has an id")
	}
	covered := uint64(0)
	s.OnComplete(func(i, _ uint64) { covered = i })
	must(t, s.MarkComplete(id))
	wantList(t, s, 50)
	if covered != 50 {
		t.Fatalf("told %d", covered)
	}
	_, rc, err = s.Open(id)
	must(t, err)
	if given, ok := SnapshotOf(rc); !ok || !given.Complete {
		t.Fatal("a complete snapshot says that it is not")
	}
	must(t, rc.Close())
	wantList(t, openSnapshots(t, dir, 1), 50)
}

type wrapped struct{ io.ReadCloser }

func (w wrapped) WrappedReadCloser() io.ReadCloser { return w.ReadCloser }

func TestACrashBeforeTheMarkFallsBackToTheFormerSnapshot(t *testing.T) {
	for name, crash := range map[string]func(t *testing.T, snap string){
		"before the mark": func(*testing.T, string) {},
		"mark without its text": func(t *testing.T, snap string) {
			must(t, os.WriteFile(filepath.Join(snap, completeFile), nil, 0o600))
		},
		"mark of another": func(t *testing.T, snap string) {
			must(t, os.WriteFile(filepath.Join(snap, completeFile), []byte("complete 1-1-1\n"), 0o600))
		},
		"before the rename": func(t *testing.T, snap string) { must(t, os.Rename(snap, snap+".tmp")) },
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			s := openSnapshots(t, dir, 1)
			snapshot(t, s, 10, true)
			id := snapshot(t, s, 50, false)
			crash(t, filepath.Join(dir, snapshotDir, id))
			s = openSnapshots(t, dir, 1)
			wantList(t, s, 10)
			if n := onDisk(t, dir); n != 1 {
				t.Fatalf("%d snapshots on disk, want the former one", n)
			}
			if err := s.MarkComplete(id); !errors.Is(err, ErrNoSnapshot) {
				t.Fatalf("mark what is gone: %v", err)
			}
		})
	}
	s := openSnapshots(t, t.TempDir(), 1)
	for _, id := range []string{"", "..", "a/b", "../raft", "."} {
		if err := s.MarkComplete(id); !errors.Is(err, ErrNoSnapshot) {
			t.Fatalf("mark %q: %v", id, err)
		}
	}
}

func TestFailedRestoresDoNotPileUp(t *testing.T) {
	dir := t.TempDir()
	s := openSnapshots(t, dir, 1)
	snapshot(t, s, 5, true)
	var last string
	for i := uint64(10); i < 20; i++ {
		last = snapshot(t, s, i, false)
	}
	if n := onDisk(t, dir); n > 5 {
		t.Fatalf("%d snapshots on disk", n)
	}
	must(t, s.MarkComplete(last))
	wantList(t, s, 19)
}

func TestCheckRefusesALostLogAndMendsAnOldOne(t *testing.T) {
	const self = "10.0.0.1:7441"
	tests := map[string]struct {
		prepare func(t *testing.T, s *Store, sn *Snapshots)
		want    error
		first   uint64
		last    uint64
	}{
		"new": {prepare: func(*testing.T, *Store, *Snapshots) {}},
		"voted for another before its first entry": {prepare: func(t *testing.T, s *Store, _ *Snapshots) {
			must(t, s.SetUint64(keyCurrentTerm, 3))
			must(t, s.Set(keyLastVoteCand, []byte("10.0.0.2:7441")))
		}},
		"voted for itself without a log": {want: ErrLogLost, prepare: func(t *testing.T, s *Store, _ *Snapshots) {
			must(t, s.SetUint64(keyCurrentTerm, 3))
			must(t, s.Set(keyLastVoteCand, []byte(self)))
		}},
		"had entries": {want: ErrLogLost, prepare: func(t *testing.T, s *Store, _ *Snapshots) {
			must(t, s.SetUint64(keyCurrentTerm, 3))
			must(t, s.StoreLogs(entries(1, 5, 1)))
			must(t, s.DeleteRange(1, 5))
		}},
		"log removed by a snapshot": {prepare: func(t *testing.T, s *Store, sn *Snapshots) {
			must(t, s.StoreLogs(entries(1, 5, 1)))
			must(t, s.DeleteRange(1, 5))
			snapshot(t, sn, 5, true)
		}},
		"log": {first: 1, last: 5, prepare: func(t *testing.T, s *Store, _ *Snapshots) {
			must(t, s.StoreLogs(entries(1, 5, 1)))
		}},
		"log around a snapshot": {first: 3, last: 9, prepare: func(t *testing.T, s *Store, sn *Snapshots) {
			must(t, s.StoreLogs(entries(1, 9, 1)))
			must(t, s.DeleteRange(1, 2))
			snapshot(t, sn, 5, true)
		}},
		"log right after a snapshot": {first: 6, last: 9, prepare: func(t *testing.T, s *Store, sn *Snapshots) {
			must(t, s.StoreLogs(entries(6, 9, 1)))
			snapshot(t, sn, 5, true)
		}},
		"log before a restored snapshot": {prepare: func(t *testing.T, s *Store, sn *Snapshots) {
			must(t, s.StoreLogs(entries(1, 9, 1)))
			must(t, sn.MarkComplete(snapshot(t, sn, 50, false)))
		}},
		"gap after the snapshot": {want: ErrLogGap, first: 7, last: 9, prepare: func(t *testing.T, s *Store, sn *Snapshots) {
			must(t, s.StoreLogs(entries(7, 9, 1)))
			snapshot(t, sn, 5, true)
		}},
		"no snapshot of what was removed": {want: ErrLogGap, first: 3, last: 9, prepare: func(t *testing.T, s *Store, sn *Snapshots) {
			must(t, s.StoreLogs(entries(1, 9, 1)))
			must(t, s.DeleteRange(1, 2))
			snapshot(t, sn, 8, false)
		}},
	}
	each(t, func(t *testing.T, _ string, _ func() *Store) {
		kind := WAL
		if filepath.Base(t.Name()) == string(BoltDB) {
			kind = BoltDB
		}
		for name, test := range tests {
			t.Run(name, func(t *testing.T) {
				dir := t.TempDir()
				opt := Options{SegmentBytes: testSegment}
				s, err := Open(dir, kind, opt)
				must(t, err)
				test.prepare(t, s, openSnapshots(t, dir, 2))
				must(t, s.Close())
				s, err = Open(dir, kind, opt)
				must(t, err)
				defer s.Close()
				sn := openSnapshots(t, dir, 2)
				if err := Check(s, sn, self); !errors.Is(err, test.want) {
					t.Fatalf("got %v, want %v", err, test.want)
				}
				if first, last := s.Bounds(); first != test.first || last != test.last {
					t.Fatalf("log is %d to %d, want %d to %d", first, last, test.first, test.last)
				}
			})
		}
	})
}

// TestARestoreAheadOfTheLogGoesOn is the crash, or the missed call, between the
// restore of a snapshot and raft's removal of the entries before it.
func TestARestoreAheadOfTheLogGoesOn(t *testing.T) {
	each(t, func(t *testing.T, dir string, open func() *Store) {
		s := open()
		must(t, s.StoreLogs(entries(1, 9, 1)))
		sn := openSnapshots(t, dir, 2)
		must(t, Check(s, sn, ""))
		must(t, sn.MarkComplete(snapshot(t, sn, 50, false)))
		must(t, s.Durable(t.Context(), 44, 7))
		if err := s.StoreLogs(entries(52, 52, 2)); err == nil {
			t.Fatal("an entry was left out")
		}
		must(t, s.StoreLogs(entries(51, 52, 2)))
		wantBounds(t, s, 51, 52, 2)
	})
}

// A sync of a snapshot that fails is told at once, whichever it is: raft itself only takes another snapshot.
func TestFailedSyncOfASnapshotIsTold(t *testing.T) {
	former := fsync
	defer func() { fsync = former }()
	for n := range 3 { // the snapshot's directory, the mark, the directory of that
		sn, err := OpenSnapshots(t.TempDir(), 2, nil)
		if err != nil {
			t.Fatal(err)
		}
		var told error
		sn.OnBroken(func(err error) { told = err })
		_, trans := raft.NewInmemTransport("")
		k, err := sn.Create(1, 7, 1, testConfiguration, 1, trans)
		must(t, err)
		must(t, TakenHere(k))
		calls := 0
		fsync = func(f *os.File) error {
			if calls++; calls == n+1 {
				return syscall.EIO
			}
			return former(f)
		}
		if err := k.Close(); !errors.Is(err, ErrSync) || told == nil || !errors.Is(told, syscall.EIO) {
			t.Errorf("sync %d fails: close says %v, told is %v", n, err, told)
		}
		fsync = former
		if list, err := sn.List(); err != nil || n < 1 && len(list) != 0 {
			t.Errorf("sync %d fails: %v, %v", n, list, err)
		}
	}
}
