package replicate

import (
	"bytes"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/uglyer/ha-sqlite/snapshot"
)

// begin makes a pending fork.
func (s *script) fork(source DatabaseID, name string, change func(*ForkBegin)) *Decision {
	s.t.Helper()
	id, n := s.f.NextID(testCluster, name)
	e := &ForkBegin{ID: id, Source: source, Incarnation: n, Name: name, CommitTime: 9000}
	if change != nil {
		change(e)
	}
	return s.apply(e)
}

func TestForkBeginsAtWhatIsDecidedThen(t *testing.T) {
	rec := &recorder{}
	s := newScript(t, rec)
	src := s.create("src")
	s.commit(src)
	at := s.commit(src)
	d := s.fork(src, "fork", nil)
	st, ok := s.f.Get(d.ID)
	if !d.Accepted || !ok || !st.Pending || st.Position != at.Post || st.PageCount != 2 || st.Source != src || st.CommitTime != at.CommitTime {
		t.Fatalf("%+v, %+v", d, st)
	}
	s.commit(src) // the source goes on
	tx := s.next(d.ID)
	if got := s.apply(tx); got.Accepted || !strings.Contains(got.Reason, "being made") {
		t.Errorf("a transaction in a pending fork: %+v", got)
	}
	part := &Part{DB: d.ID, ID: NewEntryID(), Term: s.term, Pre: tx.Pre, Count: 1, Number: 1, Data: tx.LTX}
	if got := s.apply(part); got.Accepted || !strings.Contains(got.Reason, "being made") {
		t.Errorf("a part in a pending fork: %+v", got)
	}
	if got := s.apply(&Delete{DB: src}); got.Accepted || !strings.Contains(got.Reason, "being forked") {
		t.Errorf("the source is deleted under the fork: %+v", got)
	}
	if got := s.fork(d.ID, "second", nil); got.Accepted {
		t.Errorf("a fork of a pending fork: %+v", got)
	}
	if got := s.apply(&ForkReady{ID: d.ID}); !got.Accepted {
		t.Fatalf("ready: %s", got.Reason)
	}
	if got := s.apply(&ForkReady{ID: d.ID}); got.Accepted {
		t.Error("ready twice")
	}
	if next := s.commit(d.ID); next.Pre != at.Post {
		t.Errorf("the fork goes on from %v", next.Pre)
	}
	if got := s.apply(&Delete{DB: src}); !got.Accepted {
		t.Errorf("the source cannot be deleted: %s", got.Reason)
	}
	if !slices.ContainsFunc(rec.events, func(e string) bool { return strings.HasPrefix(e, "fork begun fork of "+src.String()) }) ||
		!slices.Contains(rec.events, "fork ready fork") {
		t.Errorf("the sink heard %q", rec.events)
	}
}

func TestForkOfAPastState(t *testing.T) {
	rec := &recorder{}
	s := newScript(t, rec)
	src := s.create("src")
	early := s.commit(src)
	last := s.commit(src)
	past := func(p Position, pages uint32, at int64) func(*ForkBegin) {
		return func(e *ForkBegin) { e.At, e.PageCount, e.StateTime = p, pages, at }
	}
	for name, change := range map[string]func(*ForkBegin){
		"later than the source":   past(Position{last.Post.TXID + 1, 1 << 63}, 2, early.CommitTime),
		"another checksum":        past(Position{last.Post.TXID, 1<<63 | 77}, 2, early.CommitTime),
		"no checksum":             past(Position{early.Post.TXID, 5}, 2, early.CommitTime),
		"no pages":                past(early.Post, 0, early.CommitTime),
		"a later time":            past(early.Post, 2, last.CommitTime+1),
		"half a position":         past(Position{0, 1 << 63}, 0, 0),
		"not the empty image":     past(Position{1, 1 << 63}, 1, early.CommitTime),
		"another id":              func(e *ForkBegin) { e.ID[0] ^= 1 },
		"another incarnation":     func(e *ForkBegin) { e.Incarnation++ },
		"no such source":          func(e *ForkBegin) { e.Source[0] ^= 1 },
		"a name that cannot be":   func(e *ForkBegin) { e.Name = "../x" },
		"the name of the source":  func(e *ForkBegin) { e.Name = "src" },
		"the id of a deleted one": func(e *ForkBegin) { e.ID = src },
	} {
		if d := s.fork(src, "fork", change); d.Accepted || d.Reason == "" {
			t.Errorf("%s: %+v", name, d)
		}
	}
	d := s.fork(src, "fork", past(early.Post, 2, early.CommitTime))
	if st, _ := s.f.Get(d.ID); !d.Accepted || st.Position != early.Post || st.CommitTime != early.CommitTime || !st.Pending {
		t.Fatalf("%+v, %+v", d, st)
	}
	// Undone: the name is free again, with another id.
	if got := s.apply(&Delete{DB: d.ID}); !got.Accepted {
		t.Fatal(got.Reason)
	}
	if got := s.fork(src, "fork", nil); !got.Accepted || got.ID == d.ID {
		t.Errorf("%+v", got)
	}
}

// A database that nobody has written is what its creation says: there is nothing to copy.
func TestForkOfAnEmptyDatabaseIsACreation(t *testing.T) {
	rec := &recorder{}
	s := newScript(t, rec)
	src := s.create("src")
	source, _ := s.f.Get(src)
	d := s.fork(src, "fork", nil)
	st, _ := s.f.Get(d.ID)
	if !d.Accepted || st.Pending || st.Position != source.Position || len(s.f.PendingForks()) != 0 || st.CommitTime != st.CreatedTime || st.CreatedTime <= source.CommitTime {
		t.Errorf("%+v, %+v", d, st)
	}
	s.commit(src)
	d = s.fork(src, "past", func(e *ForkBegin) { e.At, e.PageCount, e.StateTime = source.Position, 1, source.CommitTime })
	if st, _ := s.f.Get(d.ID); !d.Accepted || st.Pending || st.Position != source.Position {
		t.Errorf("%+v, %+v", d, st)
	}
}

func TestPendingForksAreBoundedAndInTheManifest(t *testing.T) {
	s := newScript(t, nil)
	src := s.create("src")
	s.commit(src)
	var last *Decision
	for i := range maxForks + 1 {
		last = s.fork(src, "fork"+string(rune('A'+i%26))+string(rune('a'+i/26)), nil)
		if want := i < maxForks; last.Accepted != want {
			t.Fatalf("fork %d: %+v", i, last)
		}
	}
	b := s.f.s.manifest().encode(nil)
	back, err := decodeManifest(b)
	if err != nil {
		t.Fatal(err)
	}
	if len(back.pending) != maxForks || !bytes.Equal(back.manifest().encode(nil), b) {
		t.Errorf("%d pending forks came back", len(back.pending))
	}
	if !reflect.DeepEqual(back.byName["forkAa"].DatabaseState, s.f.s.byName["forkAa"].DatabaseState) {
		t.Errorf("%+v", back.byName["forkAa"].DatabaseState)
	}
	// One without a source was written by nobody.
	for _, db := range s.f.s.pending {
		db.Source = DatabaseID{}
	}
	if _, err := decodeManifest(s.f.s.manifest().encode(nil)); err == nil {
		t.Error("a pending fork of nothing was read")
	}
}

func TestDifferingPages(t *testing.T) {
	lock := snapshot.LockPgno(65536)
	long := make(sumTable, lock+1)
	for i := range long {
		long[i] = uint64(i) + 1
	}
	long[lock-1] = 0
	for name, test := range map[string]struct {
		want, have sumTable
		pages      []uint32
	}{
		"equal":   {sumTable{1, 2, 3}, sumTable{1, 2, 3}, []uint32{1}},
		"changed": {sumTable{1, 9, 3}, sumTable{1, 2, 3}, []uint32{1, 2}},
		"grows":   {sumTable{1, 2, 3, 4}, sumTable{1, 2}, []uint32{1, 3, 4}},
		"shrinks": {sumTable{1, 2}, sumTable{1, 2, 3}, []uint32{1}},
		"lock":    {long, long[:lock-1], []uint32{1, lock + 1}},
	} {
		if got := differing(test.want, test.have); !slices.Equal(got, test.pages) {
			t.Errorf("%s: %v, want %v", name, got, test.pages)
		}
	}
}
