package replicate

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"

	"github.com/uglyer/ha-sqlite/snapshot"
	"github.com/uglyer/ha-sqlite/wal"
)

var testCluster = [16]byte{0xc1}

// recorder is a Sink that writes down what it hears.
type recorder struct {
	events  []string
	stopped error
	hook    func(event string)
}

func (r *recorder) add(format string, args ...any) {
	e := fmt.Sprintf(format, args...)
	r.events = append(r.events, e)
	if r.hook != nil {
		r.hook(e)
	}
}
func (r *recorder) Created(index uint64, d DatabaseState) { r.add("%d created %s", index, d.Name) }
func (r *recorder) Accepted(index uint64, t *Transaction) {
	r.add("%d accepted %d", index, t.Post.TXID)
}
func (r *recorder) Deleted(index uint64, _ DatabaseID) { r.add("%d deleted", index) }
func (r *recorder) Part(index uint64, before Running, data []byte) {
	r.add("%d part %d of %d, %d bytes at %d", index, before.Parts+1, before.Count, len(data), before.Bytes)
}
func (r *recorder) AcceptedLarge(index uint64, f *Final) { r.add("%d accepted %v", index, f.Post.TXID) }
func (r *recorder) Dropped(index uint64, ids []EntryID)  { r.add("%d dropped %d", index, len(ids)) }
func (r *recorder) TermStarted(index, term uint64)       { r.add("%d term %d", index, term) }
func (r *recorder) ForkBegun(_ uint64, st DatabaseState, past bool) {
	r.add("fork begun %s of %s at %v past=%v", st.Name, st.Source, st.Position.TXID, past)
}
func (r *recorder) ForkReady(_ uint64, st DatabaseState) { r.add("fork ready %s", st.Name) }
func (r *recorder) Archived(_ uint64, e *Archived)       { r.add("archived %d %v", e.Archive, e.Positions) }
func (r *recorder) MemberChanged(m Member)               { r.add("member %s removed=%v", m.ID, m.Removed) }
func (r *recorder) Stop(err error)                       { r.stopped = err; r.add("stop") }

// script feeds an FSM with entries.
type script struct {
	t     testing.TB
	f     *FSM
	index uint64
	term  uint64
}

func newScript(t testing.TB, sink Sink) *script {
	s := &script{t: t, f: NewFSM(sink, nil), term: 1}
	s.apply(&TermStart{Node: "n1", Cluster: testCluster})
	return s
}

func (s *script) applyBytes(b []byte) *Decision {
	s.index++
	return s.f.Apply(&raft.Log{Index: s.index, Term: s.term, Type: raft.LogCommand, Data: b}).(*Decision)
}

func (s *script) apply(e any) *Decision { return s.applyBytes(mustEncodeEntry(s.t, e)) }

func (s *script) startTerm() {
	s.term++
	s.apply(&TermStart{Node: "n2", Cluster: testCluster})
}

func (s *script) create(name string) DatabaseID {
	s.t.Helper()
	id, n := s.f.NextID(testCluster, name)
	d := s.apply(&Create{ID: id, Name: name, Incarnation: n, PageSize: 512, CommitTime: 1000})
	if !d.Accepted {
		s.t.Fatalf("create %q: %s", name, d.Reason)
	}
	return id
}

// next returns a transaction that will be accepted.
func (s *script) next(id DatabaseID) *Transaction {
	s.t.Helper()
	db, ok := s.f.Get(id)
	if !ok {
		s.t.Fatalf("no database %s", id)
	}
	t := &Transaction{
		DB: id, ID: NewEntryID(), Term: s.term, Pre: db.Position,
		Post:       Position{db.Position.TXID + 1, Checksum(snapshot.ChecksumFlag | uint64(db.Position.TXID)<<8 | uint64(id[0]))},
		CommitTime: db.CommitTime + 1000, PageSize: db.PageSize, PageCount: 2,
	}
	return s.withPayload(t)
}

func (s *script) withPayload(t *Transaction) *Transaction {
	s.t.Helper()
	b, err := snapshot.EncodeTransaction(nil, snapshot.Header{
		PageSize: t.PageSize, PageCount: t.PageCount, TXID: uint64(t.Post.TXID), CommitTimeMillis: t.CommitTime / 1000,
	}, nil)
	if err != nil {
		s.t.Fatal(err)
	}
	t.LTX = b
	return t
}

func (s *script) commit(id DatabaseID) *Transaction {
	s.t.Helper()
	t := s.next(id)
	if d := s.apply(t); !d.Accepted {
		s.t.Fatalf("commit: %s", d.Reason)
	}
	return t
}

func TestCreatedDatabaseIsTheEmptyImageAtTransaction1(t *testing.T) {
	rec := &recorder{}
	s := newScript(t, rec)
	id := s.create("acme/shop.db")
	db, ok := s.f.Lookup("acme/shop.db")
	image, err := wal.EmptyDatabase(512, 0)
	if err != nil {
		t.Fatal(err)
	}
	sum := snapshot.Roll(snapshot.ChecksumFlag, snapshot.PageSum(1, image))
	want := DatabaseState{
		ID: id, Name: "acme/shop.db", PageSize: 512, PageCount: 1, Position: Position{1, Checksum(sum)},
		CommitTime: 1000, LastIndex: 2, CreatedIndex: 2, CreatedTime: 1000,
	}
	if !ok || db != want {
		t.Fatalf("got %+v, want %+v", db, want)
	}
	if want := []string{"1 term 1", "2 created acme/shop.db"}; !slices.Equal(rec.events, want) {
		t.Fatalf("sink heard %q, want %q", rec.events, want)
	}
}

func TestSecondCreateOfANameFindsTheFirst(t *testing.T) {
	s := newScript(t, nil)
	id := s.create("shop.db")
	s.commit(id)
	d := s.apply(&Create{ID: id, Name: "shop.db", PageSize: 4096, CommitTime: 9})
	if d.Accepted || d.ID != id || d.Position.TXID != 2 || !strings.Contains(d.Reason, "exists") {
		t.Fatalf("got %+v", d)
	}
}

func TestCreateRefuses(t *testing.T) {
	s := newScript(t, nil)
	other := s.create("other")
	gone := s.create("gone")
	s.apply(&Delete{DB: gone})
	right := Create{ID: NewDatabaseID(testCluster, "shop.db", 0), Name: "shop.db", PageSize: 4096}
	for _, test := range []struct {
		name string
		edit func(*Create)
	}{
		{"a bad name", func(c *Create) { c.Name = "../x" }},
		{"a page size that SQLite does not know", func(c *Create) { c.PageSize = 1000 }},
		{"an auto_vacuum that SQLite does not know", func(c *Create) { c.AutoVacuum = 3 }},
		{"the id of another database", func(c *Create) { c.ID = other }},
		{"the id of a deleted database", func(c *Create) { c.ID = gone }},
		{"the id of a deleted database under its name", func(c *Create) { c.ID, c.Name = gone, "gone" }},
		{"an incarnation too low", func(c *Create) { c.ID, c.Name = NewDatabaseID(testCluster, "gone", 0), "gone" }},
		{"an incarnation too high", func(c *Create) { c.ID, c.Incarnation = NewDatabaseID(testCluster, "shop.db", 1), 1 }},
		{"an id of another cluster", func(c *Create) { c.ID = NewDatabaseID([16]byte{1}, "shop.db", 0) }},
		{"no id", func(c *Create) { c.ID = DatabaseID{} }},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := right
			test.edit(&c)
			if d := s.apply(&c); d.Accepted || d.Reason == "" || !d.ID.IsZero() {
				t.Fatalf("got %+v", d)
			}
		})
	}
	if d := s.apply(&right); !d.Accepted {
		t.Fatal(d.Reason)
	}
}

func TestDeleteAtAPositionThatIsPast(t *testing.T) {
	s := newScript(t, nil)
	id := s.create("shop.db")
	first := s.commit(id)
	last := s.commit(id)
	for _, at := range []Position{first.Post, {last.Post.TXID, last.Post.Checksum ^ 1}} {
		if d := s.apply(&Delete{DB: id, At: at}); d.Accepted || d.Position != last.Post {
			t.Errorf("deleted at %s: %+v", at, d)
		}
	}
	if d := s.apply(&Delete{DB: id, At: last.Post}); !d.Accepted {
		t.Error(d.Reason)
	}
}

func TestNameCreatedAgainIsAnotherDatabase(t *testing.T) {
	rec := &recorder{}
	s := newScript(t, rec)
	first := s.create("shop.db")
	late := s.next(first)
	if d := s.apply(&Delete{DB: first}); !d.Accepted {
		t.Fatal(d.Reason)
	}
	if name, index, ok := s.f.Tombstone(first); !ok || name != "shop.db" || index != s.index {
		t.Fatalf("tombstone: %q %d %v", name, index, ok)
	}
	if d := s.apply(&Delete{DB: first}); d.Accepted {
		t.Fatal("deleted twice")
	}
	if d := s.apply(&Delete{DB: DatabaseID{9}}); d.Accepted {
		t.Fatal("deleted what never was")
	}
	second := s.create("shop.db")
	if first == second {
		t.Fatal("the id came back")
	}
	if d := s.apply(late); d.Accepted || !strings.Contains(d.Reason, "deleted") {
		t.Fatalf("got %+v", d)
	}
	if list := s.f.List(); len(list) != 1 || list[0].ID != second || list[0].Incarnation != 1 {
		t.Fatalf("got %+v", list)
	}
}

func TestTransactionIsAcceptedOnTheDecidedPositionOnly(t *testing.T) {
	rec := &recorder{}
	s := newScript(t, rec)
	id := s.create("shop.db")
	s.commit(id)
	s.startTerm()
	for _, test := range []struct {
		name string
		edit func(*Transaction)
	}{
		{"of an unknown database", func(t *Transaction) { t.DB = DatabaseID{9} }},
		{"of an older term", func(t *Transaction) { t.Term-- }},
		{"of a newer term", func(t *Transaction) { t.Term++ }},
		{"on an older transaction", func(t *Transaction) { t.Pre.TXID--; t.Post.TXID-- }},
		{"on a later transaction", func(t *Transaction) { t.Pre.TXID++; t.Post.TXID++ }},
		{"on other content", func(t *Transaction) { t.Pre.Checksum ^= 1 }},
		{"that skips a number", func(t *Transaction) { t.Post.TXID++ }},
		{"that repeats a number", func(t *Transaction) { t.Post.TXID-- }},
		{"without a checksum", func(t *Transaction) { t.Post.Checksum = 5 }},
		{"of another page size", func(t *Transaction) { t.PageSize = 1024 }},
		{"at the time of the one before", func(t *Transaction) { t.CommitTime -= 1000 }},
		{"without an id", func(t *Transaction) { t.ID = EntryID{} }},
	} {
		t.Run("refuses one "+test.name, func(t *testing.T) {
			before, _ := s.f.Get(id)
			tx := s.next(id)
			test.edit(tx)
			s.withPayload(tx)
			if d := s.apply(tx); d.Accepted || d.Reason == "" || d.Index != s.index || d.Term != s.term {
				t.Fatalf("got %+v", d)
			}
			if after, _ := s.f.Get(id); after != before {
				t.Fatalf("state changed from %+v to %+v", before, after)
			}
		})
	}
	for name, edit := range map[string]func(*Transaction){
		"of a database of no pages":   func(t *Transaction) { t.PageCount = 0 },
		"whose payload is no LTX":     func(t *Transaction) { t.LTX = []byte("junk") },
		"whose payload is of another": func(t *Transaction) { t.PageCount++ },
	} {
		t.Run("refuses one "+name, func(t *testing.T) {
			tx := s.next(id)
			edit(tx)
			if d := s.apply(tx); d.Accepted {
				t.Fatalf("got %+v", d)
			}
		})
	}
	refused := s.next(id)
	refused.Pre.Checksum ^= 1
	s.apply(refused)
	again := s.next(id)
	again.ID = refused.ID
	if d := s.apply(again); d.Accepted {
		t.Fatal("an entry that was rejected is accepted under the same id")
	}

	tx := s.next(id)
	tx.PageCount = 9
	d := s.apply(s.withPayload(tx))
	want := &Decision{Kind: KindTransaction, DB: id, Accepted: true, Position: tx.Post, Index: s.index, Term: s.term}
	if !reflect.DeepEqual(d, want) {
		t.Fatalf("got %+v, want %+v", d, want)
	}
	if db, _ := s.f.Get(id); db.Position != tx.Post || db.PageCount != 9 || db.LastIndex != s.index || db.CommitTime != tx.CommitTime {
		t.Fatalf("got %+v", db)
	}
	if sum, ok := s.f.ChecksumAt(id, tx.Post.TXID-1); !ok || sum != tx.Pre.Checksum {
		t.Fatalf("checksum before: %v %v", sum, ok)
	}
	if got := rec.events[len(rec.events)-1]; got != fmt.Sprintf("%d accepted 3", s.index) {
		t.Fatalf("sink heard %q last", got)
	}
}

func TestFSMStopsAtAnEntryThatItCannotDecide(t *testing.T) {
	damaged := mustEncodeEntry(t, &Version{Cluster: 1})
	damaged[3] ^= 1
	for _, test := range []struct {
		name  string
		entry []byte
		want  error
	}{
		{"damaged", damaged, ErrCorruptEntry},
		{"empty", nil, ErrCorruptEntry},
		{"of a newer codec", []byte{CodecVersion + 1, 0, 0, 0, 0, 0, 0}, ErrNewerVersion},
		{"that raises the cluster over this program", mustEncodeEntry(t, &Version{Cluster: CodecVersion + 1}), ErrNewerVersion},
	} {
		t.Run(test.name, func(t *testing.T) {
			rec := &recorder{}
			s := newScript(t, rec)
			id := s.create("shop.db")
			tx := s.next(id)
			applied := s.f.Applied()
			if d := s.applyBytes(test.entry); d.Accepted || d.Reason == "" {
				t.Fatalf("got %+v", d)
			}
			if !errors.Is(rec.stopped, test.want) || !strings.Contains(rec.stopped.Error(), "log entry 3") {
				t.Fatalf("stopped by %v, want %v with the index", rec.stopped, test.want)
			}
			if d := s.apply(tx); d.Accepted {
				t.Fatal("decided an entry after the one it could not decide")
			}
			if n := len(rec.events); rec.events[n-1] != "stop" || rec.events[n-2] == "stop" {
				t.Fatalf("sink heard %q", rec.events)
			}
			if got := s.f.Applied(); got != applied || s.f.Err() == nil {
				t.Fatalf("applied %d, want %d", got, applied)
			}
			if _, err := s.f.Snapshot(); !errors.Is(err, ErrStopped) {
				t.Fatalf("snapshot: %v", err)
			}
		})
	}
}

func TestMembersAndClusterVersion(t *testing.T) {
	rec := &recorder{}
	s := newScript(t, rec)
	for _, m := range []Member{{ID: "b", RaftAddr: "x:1", CodecVersion: 1}, {ID: "a", CodecVersion: 1}, {ID: "b", RaftAddr: "x:2", CodecVersion: 1}} {
		if d := s.apply(&m); !d.Accepted {
			t.Fatal(d.Reason)
		}
	}
	if got := s.f.Members(); len(got) != 2 || got[0].ID != "a" || got[1].RaftAddr != "x:2" {
		t.Fatalf("got %+v", got)
	}
	for name, e := range map[string]any{
		"a member without id":         &Member{CodecVersion: 1},
		"a member that is too old":    &Member{ID: "c"},
		"the removal of nobody":       &Member{ID: "c", Removed: true},
		"the version that runs":       &Version{Cluster: 1},
		"a version that went by":      &Version{Cluster: 0},
		"a term that started already": &TermStart{Node: "n1"},
	} {
		if d := s.apply(e); d.Accepted {
			t.Errorf("accepted %s", name)
		}
	}
	if d := s.apply(&Member{ID: "a", Removed: true}); !d.Accepted || len(s.f.Members()) != 1 {
		t.Fatalf("got %+v", d)
	}
	if s.f.ClusterVersion() != 1 || s.f.Cluster() != testCluster {
		t.Fatal("cluster version or id")
	}
}

func TestStartedTerm(t *testing.T) {
	s := newScript(t, nil)
	s.startTerm()
	if got := s.f.StartedTerm(); got != 2 {
		t.Fatalf("got %d, want 2", got)
	}
	if index, ok := s.f.TermStartIndex(2); !ok || index != 2 {
		t.Fatalf("got %d %v", index, ok)
	}
	if _, ok := s.f.TermStartIndex(3); ok {
		t.Fatal("a term that did not start has an index")
	}
}

func TestSinkMayAskTheFSMAndHearsBeforeThoseWhoWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rec := &recorder{}
		s := newScript(t, rec)
		id := s.create("shop.db")
		tx := s.next(id)
		var early []string
		check := func(who string, done <-chan error) {
			synctest.Wait()
			select {
			case <-done:
				early = append(early, who)
			default:
			}
		}
		indexDone, verdictDone, lateDone := make(chan error, 1), make(chan error, 1), make(chan error, 1)
		wait := func(done chan<- error) {
			v, _, _, err := s.f.Wait(t.Context(), id, tx.Pre.TXID, tx.ID, tx.Term)
			if v != VerdictAccepted {
				err = fmt.Errorf("verdict %v, %v", v, err)
			}
			done <- err
		}
		go func() { indexDone <- s.f.WaitIndex(t.Context(), s.index+1) }()
		go wait(verdictDone)
		synctest.Wait()
		rec.hook = func(string) {
			if db, ok := s.f.Get(id); !ok || db.Position != tx.Post {
				t.Errorf("the sink is told of %v and sees %v", tx.Post, db.Position)
			}
			go wait(lateDone) // asks while the sink is told
			check("index", indexDone)
			check("verdict", verdictDone)
			check("late verdict", lateDone)
		}
		s.apply(tx)
		if len(early) > 0 {
			t.Fatalf("answered before the sink had heard: %v", early)
		}
		if err := errors.Join(<-indexDone, <-verdictDone, <-lateDone); err != nil {
			t.Fatal(err)
		}
	})
}

func TestIdleDatabasesStaySmall(t *testing.T) {
	var before, after runtime.MemStats
	s := newScript(t, nil)
	runtime.GC()
	runtime.ReadMemStats(&before)
	const n = 10000
	for i := range n {
		id := s.create(fmt.Sprintf("tenant/%d", i))
		s.commit(id)
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	each := (int64(after.HeapAlloc) - int64(before.HeapAlloc)) / n
	t.Logf("%d bytes per database", each)
	if each > 1024 {
		t.Fatalf("%d bytes per database", each)
	}
	if s.f.Applied() != s.index { // keeps the FSM alive
		t.Fatal("applied")
	}
}

func TestWaitIndex(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScript(t, nil)
		if err := s.f.WaitIndex(t.Context(), 1); err != nil {
			t.Fatal(err)
		}
		done := make(chan error, 1)
		go func() { done <- s.f.WaitIndex(t.Context(), 3) }()
		synctest.Wait()
		s.create("a")
		select {
		case <-done:
			t.Fatal("answered too early")
		default:
		}
		s.index++
		s.f.StoreConfiguration(s.index, raft.Configuration{}) // counts too
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := s.f.WaitIndex(ctx, 99); !errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("got %v", err)
		}
		if len(s.f.wait.indexes) != 0 {
			t.Fatal("who gave up is still waited for")
		}
	})
}

func BenchmarkApplyTransaction(b *testing.B) {
	s := newScript(b, nil)
	id := s.create("shop.db")
	tx := s.next(id)
	var entry []byte
	b.ReportAllocs()
	for b.Loop() {
		tx.Term = s.term
		tx.LTX, _ = snapshot.EncodeTransaction(tx.LTX[:0], snapshot.Header{PageSize: 512, PageCount: 2, TXID: uint64(tx.Post.TXID), CommitTimeMillis: tx.CommitTime / 1000}, nil)
		entry, _ = EncodeTransaction(entry[:0], tx)
		if d := s.applyBytes(entry); !d.Accepted {
			b.Fatal(d.Reason)
		}
		tx.Pre = tx.Post
		tx.Post.TXID++
		tx.CommitTime += 1000
		tx.ID[0]++
	}
}
