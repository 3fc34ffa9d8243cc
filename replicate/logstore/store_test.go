package logstore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/hashicorp/raft"
)

var kinds = []Kind{WAL, BoltDB}

const testSegment = 1 << 20

// each runs a test against both kinds of log.
func each(t *testing.T, f func(t *testing.T, dir string, open func() *Store)) {
	for _, kind := range kinds {
		t.Run(string(kind), func(t *testing.T) {
			dir := t.TempDir()
			var s *Store
			t.Cleanup(func() {
				if s != nil {
					s.Close()
				}
			})
			f(t, dir, func() *Store {
				t.Helper()
				if s != nil {
					if err := s.Close(); err != nil {
						t.Fatal(err)
					}
				}
				var err error
				if s, err = Open(dir, kind, Options{SegmentBytes: testSegment}); err != nil {
					t.Fatal(err)
				}
				return s
			})
		})
	}
}

func entry(index, term uint64, data string) *raft.Log {
	return &raft.Log{Index: index, Term: term, Type: raft.LogCommand, Data: []byte(data), AppendedAt: time.Unix(int64(index), 0)}
}

func entries(first, last, term uint64) []*raft.Log {
	var logs []*raft.Log
	for i := first; i <= last; i++ {
		logs = append(logs, entry(i, term, fmt.Sprintf("entry %d of term %d", i, term)))
	}
	return logs
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func wantBounds(t *testing.T, s *Store, first, last, term uint64) {
	t.Helper()
	gotFirst, gotLast := s.Bounds()
	i, gotTerm := s.Last()
	if gotFirst != first || gotLast != last || i != last || gotTerm != term {
		t.Fatalf("log is %d to %d of term %d, want %d to %d of term %d", gotFirst, gotLast, gotTerm, first, last, term)
	}
}

func TestEntriesAndStableValuesSurviveReopening(t *testing.T) {
	each(t, func(t *testing.T, _ string, open func() *Store) {
		s := open()
		wantBounds(t, s, 0, 0, 0)
		if _, err := s.Entry(1); !errors.Is(err, raft.ErrLogNotFound) {
			t.Fatalf("entry of an empty log: %v", err)
		}
		if v, err := s.GetUint64([]byte("CurrentTerm")); v != 0 || err != nil {
			t.Fatalf("unset number: %d, %v", v, err)
		}
		if v, err := s.Get([]byte("LastVoteCand")); len(v) != 0 || err != nil {
			t.Fatalf("unset text: %q, %v", v, err)
		}
		must(t, s.SetUint64([]byte("CurrentTerm"), 7))
		must(t, s.Set([]byte("LastVoteCand"), []byte("n1")))
		must(t, s.StoreLogs(entries(1, 10, 1)))
		must(t, s.StoreLog(entry(11, 2, "x")))
		for range 2 {
			wantBounds(t, s, 1, 11, 2)
			if v, err := s.GetUint64([]byte("CurrentTerm")); v != 7 || err != nil {
				t.Fatalf("number: %d, %v", v, err)
			}
			if v, err := s.Get([]byte("LastVoteCand")); string(v) != "n1" || err != nil {
				t.Fatalf("text: %q, %v", v, err)
			}
			for i := uint64(1); i <= 10; i++ {
				l, err := s.Entry(i)
				must(t, err)
				if want := entries(i, i, 1)[0]; l.Index != i || l.Term != 1 || !bytes.Equal(l.Data, want.Data) || !l.AppendedAt.Equal(want.AppendedAt) {
					t.Fatalf("entry %d is %+v", i, l)
				}
			}
			var l raft.Log
			if err := s.GetLog(12, &l); err != raft.ErrLogNotFound { //nolint:errorlint // raft compares so
				t.Fatalf("entry past the end: %v", err)
			}
			s = open()
		}
	})
}

func TestLargeEntriesFitWhateverTheSegmentSize(t *testing.T) {
	each(t, func(t *testing.T, _ string, open func() *Store) {
		s := open()
		big := bytes.Repeat([]byte("x"), 9<<20) // nine segments
		var index uint64
		for range 3 {
			index++
			must(t, s.StoreLogs([]*raft.Log{entry(index, 1, "small"), {Index: index + 1, Term: 1, Data: big}}))
			index++
		}
		s = open()
		l, err := s.Entry(index)
		must(t, err)
		if !bytes.Equal(l.Data, big) {
			t.Fatal("large entry differs")
		}
	})
}

func TestBatchesThatDoNotFollowAreRefusedAndHarmless(t *testing.T) {
	each(t, func(t *testing.T, _ string, open func() *Store) {
		s := open()
		must(t, s.StoreLogs(entries(1, 3, 1)))
		for name, batch := range map[string][]*raft.Log{
			"gap before": {entry(5, 1, "")},
			"repeated":   {entry(3, 1, "")},
			"gap inside": {entry(4, 1, ""), entry(6, 1, "")},
			"zero":       {entry(0, 1, "")},
		} {
			if err := s.StoreLogs(batch); err == nil {
				t.Fatalf("%s: stored", name)
			}
		}
		must(t, s.StoreLogs(entries(4, 5, 1)))
		wantBounds(t, s, 1, 5, 1)
		if s.Failed() != nil {
			t.Fatal(s.Failed())
		}
	})
}

func TestDeleteRangeMovesTheBounds(t *testing.T) {
	type step struct {
		lo, hi            uint64
		first, last, term uint64
	}
	tests := map[string][]step{
		"head":                    {{1, 4, 5, 20, 2}},
		"head further than begun": {{1, 4, 5, 20, 2}, {1, 9, 10, 20, 2}},
		"tail":                    {{15, 20, 1, 14, 2}},
		"tail into an older term": {{8, 20, 1, 7, 1}},
		"tail past the end":       {{18, 99, 1, 17, 2}},
		"all":                     {{1, 20, 0, 0, 0}},
		"head then tail":          {{1, 4, 5, 20, 2}, {6, 20, 5, 5, 1}},
		"nothing":                 {{30, 40, 1, 20, 2}, {4, 3, 1, 20, 2}},
	}
	each(t, func(t *testing.T, _ string, open func() *Store) {
		for name, steps := range tests {
			t.Run(name, func(t *testing.T) {
				s := open()
				first, last := s.Bounds()
				must(t, s.DeleteRange(first, last))
				must(t, s.StoreLogs(entries(1, 10, 1)))
				must(t, s.StoreLogs(entries(11, 20, 2)))
				for _, st := range steps {
					must(t, s.DeleteRange(st.lo, st.hi))
					wantBounds(t, s, st.first, st.last, st.term)
					for i := uint64(1); i <= 20; i++ {
						_, err := s.Entry(i)
						if kept := i >= st.first && i <= st.last; kept != (err == nil) || !kept && !errors.Is(err, raft.ErrLogNotFound) {
							t.Fatalf("entry %d of %d to %d: %v", i, st.first, st.last, err)
						}
					}
				}
				end := steps[len(steps)-1]
				s = open()
				wantBounds(t, s, end.first, end.last, end.term)
				if _, err := s.Entry(end.first - 1); err == nil {
					t.Fatal("an entry before the first is still there")
				}
				must(t, s.StoreLogs(entries(end.last+1, end.last+1, 3)))
				l, err := s.Entry(end.last + 1)
				must(t, err)
				if l.Term != 3 {
					t.Fatalf("appended entry has term %d", l.Term)
				}
			})
		}
		s := open()
		first, last := s.Bounds()
		must(t, s.DeleteRange(first, last))
		must(t, s.StoreLogs(entries(1, 10, 1)))
		if err := s.DeleteRange(4, 5); err == nil {
			t.Fatal("a hole was made")
		}
	})
}

// durable starts a Durable and returns its result's channel once it waits.
func durable(t *testing.T, s *Store, index, term uint64) chan error {
	t.Helper()
	s.mu.Lock()
	before := len(s.waiters)
	s.mu.Unlock()
	c := make(chan error, 1)
	go func() { c <- s.Durable(t.Context(), index, term) }()
	tick := time.NewTicker(100 * time.Microsecond)
	defer tick.Stop()
	for {
		s.mu.Lock()
		n := len(s.waiters)
		s.mu.Unlock()
		if n > before {
			return c
		}
		<-tick.C
	}
}

func TestDurableAnswersForTheEntryOfThatTermOnly(t *testing.T) {
	each(t, func(t *testing.T, _ string, open func() *Store) {
		s := open()
		early := durable(t, s, 3, 1)
		must(t, s.StoreLogs(entries(1, 2, 1)))
		select {
		case err := <-early:
			t.Fatalf("answered before the entry came: %v", err)
		default:
		}
		must(t, s.StoreLogs(entries(3, 5, 1)))
		must(t, <-early)
		must(t, s.Durable(t.Context(), 5, 1))

		// Index 5 of term 2 replaces that of term 1.
		wait := durable(t, s, 5, 2)
		must(t, s.DeleteRange(5, 5))
		gone := durable(t, s, 5, 1) // what was durable is not any more
		must(t, s.StoreLogs(entries(5, 6, 2)))
		must(t, <-wait)
		if err := <-gone; !errors.Is(err, ErrReplaced) {
			t.Fatalf("entry of the older term: %v", err)
		}
		must(t, s.Durable(t.Context(), 4, 1))

		s = open() // terms are looked up now
		must(t, s.Durable(t.Context(), 4, 1))
		must(t, s.Durable(t.Context(), 6, 2))
		if err := s.Durable(t.Context(), 5, 1); !errors.Is(err, ErrReplaced) {
			t.Fatalf("entry of the older term: %v", err)
		}

		must(t, s.DeleteRange(1, 4)) // after a snapshot
		must(t, s.Durable(t.Context(), 2, 1))

		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := s.Durable(ctx, 7, 2); !errors.Is(err, context.Canceled) {
			t.Fatalf("ended wait: %v", err)
		}
		snap := durable(t, s, 50, 2)
		s.Covered(60, 1)
		must(t, <-snap)
		last := durable(t, s, 99, 2)
		must(t, s.Close())
		if err := <-last; !errors.Is(err, ErrClosed) {
			t.Fatalf("wait on a closed log: %v", err)
		}
	})
}

func TestTheCacheStaysWithinItsBytes(t *testing.T) {
	dir := t.TempDir()
	s, err := Open(dir, WAL, Options{SegmentBytes: testSegment, CacheBytes: 10_000})
	must(t, err)
	defer s.Close()
	check := func() {
		t.Helper()
		c := &s.cache
		size := 0
		for i := range c.n {
			l := *c.at(i)
			if l.Index != c.first+uint64(i) {
				t.Fatalf("cache has %d at place %d after %d", l.Index, i, c.first)
			}
			size += cost(l)
		}
		if size != c.size || size > c.limit {
			t.Fatalf("cache of %d bytes says %d, limit %d", size, c.size, c.limit)
		}
	}
	index := uint64(0)
	for i := range 205 {
		size := i * 37 % 3000
		if i%50 == 49 {
			size = 20_000 // more than all of it
		}
		index++
		must(t, s.StoreLog(&raft.Log{Index: index, Term: 1, Data: make([]byte, size)}))
		check()
		if i%31 == 30 {
			must(t, s.DeleteRange(index-3, index))
			index -= 4
			check()
		}
		if i%67 == 66 {
			must(t, s.DeleteRange(1, index-2))
			check()
		}
	}
	if s.cache.n == 0 {
		t.Fatal("cache is empty")
	}
	first, last := s.Bounds()
	for i := first; i <= last; i++ {
		if l, err := s.Entry(i); err != nil || l.Index != i {
			t.Fatalf("entry %d: %v", i, err)
		}
	}
}

// failing makes the next write of a backend fail.
type failing struct {
	backend
	err error
}

func (f *failing) StoreLogs(l []*raft.Log) error {
	if f.err != nil {
		return f.err
	}
	return f.backend.StoreLogs(l)
}

func TestAfterAFailedWriteNothingIsWritten(t *testing.T) {
	each(t, func(t *testing.T, _ string, open func() *Store) {
		s := open()
		must(t, s.StoreLogs(entries(1, 3, 1)))
		disk := errors.New("input/output error")
		f := &failing{s.backend, disk}
		s.backend = f
		if err := s.StoreLogs(entries(4, 4, 1)); !errors.Is(err, disk) {
			t.Fatalf("got %v", err)
		}
		f.err = nil
		if err := s.StoreLogs(entries(4, 4, 1)); !errors.Is(err, ErrFailed) || !errors.Is(err, disk) {
			t.Fatalf("second write: %v", err)
		}
		if err := s.DeleteRange(1, 2); !errors.Is(err, ErrFailed) {
			t.Fatalf("delete: %v", err)
		}
		wantBounds(t, s, 1, 3, 1)
		if _, err := s.Entry(2); err != nil {
			t.Fatalf("reads go on: %v", err)
		}
		s = open()
		must(t, s.StoreLogs(entries(4, 4, 1)))
	})
}

func TestMigrateKeepsEverything(t *testing.T) {
	for _, from := range kinds {
		to := WAL
		if from == WAL {
			to = BoltDB
		}
		for name, fill := range map[string]func(*Store){
			"empty":     func(*Store) {},
			"full":      func(s *Store) { must(t, s.StoreLogs(entries(1, 300, 4))) },
			"compacted": func(s *Store) { must(t, s.StoreLogs(entries(1, 300, 4))); must(t, s.DeleteRange(1, 100)) },
		} {
			t.Run(fmt.Sprintf("%s to %s %s", from, to, name), func(t *testing.T) {
				dir := t.TempDir()
				opt := Options{SegmentBytes: testSegment}
				s, err := Open(dir, from, opt)
				must(t, err)
				fill(s)
				must(t, s.SetUint64(keyCurrentTerm, 1<<40+7))
				must(t, s.SetUint64(keyLastVoteTerm, 5))
				must(t, s.Set(keyLastVoteCand, []byte("10.0.0.1:7")))
				first, last := s.Bounds()
				_, term := s.Last()
				must(t, s.Close())

				crash := errors.New("crash before the record")
				if err := Migrate(dir, from, to, opt, func() error { return crash }); !errors.Is(err, crash) {
					t.Fatal(err)
				}
				s, err = Open(dir, from, opt) // still whole
				must(t, err)
				wantBounds(t, s, first, last, term)
				must(t, s.Close())

				recorded := false
				must(t, Migrate(dir, from, to, opt, func() error { recorded = true; return nil }))
				if !recorded {
					t.Fatal("kind not recorded")
				}
				p, _ := path(dir, from)
				if _, err := os.Stat(p); !errors.Is(err, os.ErrNotExist) {
					t.Fatalf("old log is still there: %v", err)
				}
				s, err = Open(dir, to, Options{SegmentBytes: testSegment, MustExist: true})
				must(t, err)
				defer s.Close()
				wantBounds(t, s, first, last, term)
				if v, err := s.GetUint64(keyCurrentTerm); v != 1<<40+7 || err != nil {
					t.Fatalf("term %d, %v", v, err)
				}
				if v, err := s.Get(keyLastVoteCand); string(v) != "10.0.0.1:7" || err != nil {
					t.Fatalf("vote %q, %v", v, err)
				}
				if s.started != (last > 0) {
					t.Fatalf("started is %v", s.started)
				}
			})
		}
	}
	if err := Migrate(t.TempDir(), WAL, BoltDB, Options{}, func() error { return nil }); !errors.Is(err, ErrLogLost) {
		t.Fatalf("nothing to migrate: %v", err)
	}
	if err := Migrate(t.TempDir(), WAL, "paper", Options{}, nil); !errors.Is(err, ErrUnknownKind) {
		t.Fatalf("unknown kind: %v", err)
	}
}

func TestOpenRefusesALogThatHasToBeThere(t *testing.T) {
	for _, kind := range kinds {
		dir := t.TempDir()
		if _, err := Open(dir, kind, Options{MustExist: true}); !errors.Is(err, ErrLogLost) {
			t.Fatalf("%s: %v", kind, err)
		}
		if left, _ := filepath.Glob(filepath.Join(dir, "*")); len(left) != 0 {
			t.Fatalf("%s: left %v", kind, left)
		}
	}
	if _, err := Open(t.TempDir(), "paper", Options{}); !errors.Is(err, ErrUnknownKind) {
		t.Fatalf("unknown kind: %v", err)
	}
}

func BenchmarkStoreLogs(b *testing.B) {
	for _, kind := range kinds {
		b.Run(string(kind), func(b *testing.B) {
			s, err := Open(b.TempDir(), kind, Options{})
			must(b, err)
			defer s.Close()
			data := make([]byte, 4300)
			var lat []time.Duration
			var index uint64
			for b.Loop() {
				index++
				start := time.Now()
				must(b, s.StoreLogs([]*raft.Log{{Index: index, Term: 1, Data: data}}))
				lat = append(lat, time.Since(start))
			}
			report(b, lat)
		})
	}
}

func BenchmarkDurable(b *testing.B) {
	s, err := Open(b.TempDir(), WAL, Options{})
	must(b, err)
	defer s.Close()
	must(b, s.StoreLogs(entries(1, 100, 1)))
	for b.Loop() {
		must(b, s.Durable(b.Context(), 100, 1))
	}
}
