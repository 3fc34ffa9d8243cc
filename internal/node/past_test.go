package node

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/uglyer/ha-sqlite/internal/api"
	"github.com/uglyer/ha-sqlite/internal/link"
	"github.com/uglyer/ha-sqlite/internal/moment"
	"github.com/uglyer/ha-sqlite/internal/testarchive"
	"github.com/uglyer/ha-sqlite/replicate"
	"github.com/uglyer/ha-sqlite/snapshot/archive"
	"github.com/uglyer/ha-sqlite/snapshot/store"
	"github.com/uglyer/ha-sqlite/snapshot/store/storetest"
)

// pastBench is a pasts with an archive of six commits, and no node.
type pastBench struct {
	*pasts
	t     *testing.T
	db    *testarchive.DB
	store *storetest.Faulty
	known atomic.Uint64                    // archived position as the cluster knows it
	last  atomic.Uint64                    // decided position
	gate  atomic.Pointer[func(key string)] // called before an object is read
	wg    sync.WaitGroup
}

func newPastBench(t *testing.T) *pastBench {
	t.Helper()
	dir, err := store.OpenDir(filepath.Join(t.TempDir(), "archive"))
	if err != nil {
		t.Fatal(err)
	}
	b := &pastBench{t: t, store: storetest.NewFaulty(dir, 5)}
	b.db = testarchive.New(t, &interfering{b.store, func(key string) {
		if f := b.gate.Load(); f != nil {
			(*f)(key)
		}
	}}, nil, "acme/shop.db")
	b.db.Exec("CREATE TABLE t(a, b)", "INSERT INTO t VALUES(1, randomblob(5000))", "INSERT INTO t VALUES(2, randomblob(50000))", "DELETE FROM t WHERE a = 1", "VACUUM", "INSERT INTO t VALUES(3, 3)")
	b.known.Store(6)
	b.last.Store(6)
	id, err := replicate.ParseDatabaseID(b.db.ID.Database)
	if err != nil {
		t.Fatal(err)
	}
	b.pasts = &pasts{
		dir: filepath.Join(t.TempDir(), "past"), files: files{fileMode: 0o660, gid: -1}, limit: 1 << 30, open: map[string]*pastFile{},
		free: func() (int64, error) { return 1 << 40, nil }, archive: func() *archive.Archive { return b.db.Archive },
		decided: func(string) (replicate.DatabaseState, bool) {
			return replicate.DatabaseState{ID: id, Position: replicate.Position{TXID: replicate.TXID(b.last.Load())}}, true
		},
		archived: func(replicate.DatabaseID) uint64 { return b.known.Load() },
		hurry:    func() {},
		lineage:  func() uint64 { return b.db.ID.Lineage },
		log:      func(msg string, args ...any) { t.Errorf("%s %v", msg, args) },
		run:      func(f func()) { b.wg.Go(f) },
	}
	if err := os.Mkdir(b.dir, 0o770); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.wg.Wait)
	return b
}

func (b *pastBench) ask(to string) (link.Past, error) {
	return b.Past(b.t.Context(), link.PastRequest{Name: "acme/shop.db", To: to}, func() {})
}

// empty fails the test unless no file is there and nothing is counted.
func (b *pastBench) empty(when string) {
	b.t.Helper()
	b.wg.Wait()
	left, err := os.ReadDir(b.dir)
	b.mu.Lock()
	defer b.mu.Unlock()
	if err != nil || len(left) != 0 || len(b.open) != 0 || b.bytes != 0 {
		b.t.Fatalf("%s: files %v, %d open, %d bytes, %v", when, left, len(b.open), b.bytes, err)
	}
}

func TestPastFilesAreSharedAndGoAway(t *testing.T) {
	b := newPastBench(t)
	var all []link.Past
	for round := range 2 {
		for txid := 1; txid <= 6; txid++ {
			p, err := b.ask(fmt.Sprintf("%016x", txid))
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, p)
			got, err := os.ReadFile(p.Path)
			if err != nil || !bytes.Equal(got, b.db.Images[txid-1]) || p.Bookmark != b.db.Bookmark(txid) {
				t.Fatalf("commit %d is another: %v, %s", txid, err, p.Bookmark)
			}
			if i, err := os.Stat(p.Path); err != nil || i.Mode().Perm() != 0o440 {
				t.Errorf("mode %v, %v", i.Mode(), err)
			}
			if round == 1 && p.Path != all[txid-1].Path {
				t.Errorf("commit %d was made twice", txid)
			}
		}
	}
	for i, p := range all {
		p.Close()
		p.Close() // the second one does nothing
		if _, err := os.Stat(p.Path); (err == nil) != (i < 6) {
			t.Errorf("close %d: %v", i, err)
		}
	}
	b.empty("all closed")
	p, err := b.Past(t.Context(), link.PastRequest{Name: "acme/shop.db", At: b.db.Time(3).Format(time.RFC3339)}, func() {})
	if err != nil || p.Bookmark != b.db.Bookmark(3) {
		t.Fatalf("by time: %s, %v", p.Bookmark, err)
	}
	p.Close()
	b.empty("by time")
}

func TestPastsAreBounded(t *testing.T) {
	b := newPastBench(t)
	refused := func(what, says string) {
		t.Helper()
		_, err := b.ask("0000000000000003")
		var e *link.Error
		if !errors.As(err, &e) || e.Code != link.CodeCantOpen || !strings.Contains(e.Text, says) {
			t.Errorf("%s: %v", what, err)
		}
	}
	first, err := b.ask("0000000000000002")
	if err != nil {
		t.Fatal(err)
	}
	b.limit = int64(len(b.db.Images[1]) + len(b.db.Images[2]) - 1)
	refused("bytes", "are in use")
	first.Close()
	p, err := b.ask("0000000000000003")
	if err != nil {
		t.Fatal(err)
	}
	p.Close()
	b.limit, b.keepFree = 1<<30, 1<<40-10
	refused("disk", "of the disk are free")
	b.keepFree = 0
	b.free = func() (int64, error) { return 0, errors.New("no such disk") }
	refused("no disk", "no such disk")
	b.free = func() (int64, error) { return 1 << 40, nil }
	for i := range maxPastFiles {
		b.open[fmt.Sprint(i)] = &pastFile{}
	}
	refused("files", "64 past states are open")
	clear(b.open)
	b.pasts.archive = func() *archive.Archive { return nil }
	refused("no archive", "no archive")
	b.empty("refusals")
}

// Damage, and a user that goes away, leave nothing.
func TestPastsThatFailLeaveNothing(t *testing.T) {
	b := newPastBench(t)
	b.store.Hook(func(op, key string) error {
		if op == "get" && strings.Contains(key, "0000000000000003.ltx") {
			return errors.New("torn off")
		}
		return nil
	})
	for range 3 {
		if _, err := b.ask("0000000000000003"); err == nil || !strings.Contains(err.Error(), "0000000000000003.ltx") || !strings.Contains(err.Error(), "torn off") {
			t.Fatalf("got %v", err)
		}
		b.empty("failed")
	}
	// One that is being made while its users leave, and come again.
	inside, leave := make(chan struct{}, 16), make(chan struct{})
	b.store.Hook(nil)
	gate := func(key string) {
		if strings.Contains(key, "0000000000000003.ltx") {
			inside <- struct{}{}
			<-leave
		}
	}
	b.gate.Store(&gate)
	ctx, cancel := context.WithCancel(t.Context())
	errs := make(chan error, 2)
	for range 2 {
		go func() {
			_, err := b.Past(ctx, link.PastRequest{Name: "acme/shop.db", To: "0000000000000003"}, func() {})
			errs <- err
		}()
	}
	<-inside
	cancel()
	for range 2 {
		if err := <-errs; err == nil {
			t.Fatal("there is a file")
		}
	}
	close(leave)
	p, err := b.ask("0000000000000003")
	if err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(p.Path); err != nil || !bytes.Equal(got, b.db.Images[2]) {
		t.Errorf("it is another: %v", err)
	}
	p.Close()
	b.empty("left and came again")
}

// What was committed a moment ago is waited for, not rounded away.
func TestPastWaitsForTheArchive(t *testing.T) {
	b := newPastBench(t)
	b.last.Store(7)
	asked := make(chan struct{}, 1)
	done := make(chan link.Past, 2)
	for _, req := range []link.PastRequest{{Name: "acme/shop.db", At: "now"}, {Name: "acme/shop.db", To: "0000000000000007"}} {
		go func() {
			p, err := b.Past(t.Context(), req, func() {
				select {
				case asked <- struct{}{}:
				default:
				}
			})
			if err != nil {
				t.Errorf("%+v: %v", req, err)
			}
			done <- p
		}()
	}
	<-asked
	b.db.Exec("INSERT INTO t VALUES(7, 7)")
	b.known.Store(7)
	for range 2 {
		if p := <-done; p.Bookmark != b.db.Bookmark(7) {
			t.Errorf("got %s", p.Bookmark)
		} else {
			p.Close()
		}
	}
	b.empty("waited")
	// Nor is a database that nothing is archived of yet.
	young := newPastBench(t)
	young.known.Store(0)
	if _, err := young.Past(t.Context(), link.PastRequest{Name: "none.db", At: "now"}, func() { young.known.Store(6) }); err == nil || !strings.Contains(err.Error(), "none.db") || young.known.Load() != 6 {
		t.Errorf("a database that is not there yet: %v, %d", err, young.known.Load())
	}
	// A time before the last archived commit needs no waiting; nothing is said of what does not come.
	b.last.Store(9)
	if p, err := b.Past(t.Context(), link.PastRequest{Name: "acme/shop.db", At: b.db.Time(4).Format(time.RFC3339)}, func() {}); err != nil {
		t.Error(err)
	} else {
		p.Close()
	}
	ctx, cancel := context.WithCancel(t.Context())
	if _, err := b.Past(ctx, link.PastRequest{Name: "acme/shop.db", At: "now"}, cancel); err == nil {
		t.Error("a state was given that leaves commits out")
	}
	if _, err := b.ask("00000000000000ff"); err == nil || !strings.Contains(err.Error(), "0000000000000007 before it") {
		t.Errorf("one that nobody knows: %v", err)
	}
	b.empty("end")
}

// retire merges everything and removes single commits, as retention does in time.
func retire(ctx context.Context, w *archive.Writer) error {
	far := time.Now().Add(10000 * time.Hour)
	if err := w.Compact(ctx, far); err != nil {
		return err
	}
	if n, err := w.Retain(ctx, far); err != nil || n < 4 {
		return fmt.Errorf("%d files went: %w", n, err)
	}
	return nil
}

// A past state whose files retention removes while it is restored is read from what there is then.
func TestPastStatesAndRetention(t *testing.T) {
	b := newPastBench(t)
	var begun atomic.Bool // retention reads, too
	removes := func(key string) {
		if strings.HasSuffix(key, ".ltx") && begun.CompareAndSwap(false, true) {
			if err := retire(t.Context(), b.db.Writer); err != nil {
				t.Error(err)
			}
		}
	}
	b.gate.Store(&removes)
	past, err := b.ask(b.db.Bookmark(6))
	if err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(past.Path); err != nil || !bytes.Equal(got, b.db.Images[5]) {
		t.Errorf("the file has %d bytes, %v", len(got), err)
	}
	past.Close()
	b.empty("after retention")
}

// The same for a state that a rollback goes back to.
func TestRestoresOfANodeAndRetention(t *testing.T) {
	c := newCluster(t, 1, ownArchives)
	db := c.open(0, "db")
	exec(t, db, `CREATE TABLE t(v)`)
	for range 5 {
		exec(t, db, `INSERT INTO t VALUES(randomblob(40000))`) // a file each
	}
	v := c.archived(0, "db", 0)
	n := c.nodes[0]
	st, _ := n.svc.Lookup("db")
	if err := n.svc.ArchiveWriter(t.Context(), st.ID, retire); err != nil {
		t.Fatal(err)
	}
	f, err := n.scratchFile()
	if err != nil {
		t.Fatal(err)
	}
	defer dropScratch(f)
	state, err := n.restore(t.Context(), &wanted{found: moment.Found{View: v, Point: v.Last()}}, f, func(api.Progress) {})
	if err != nil || state.pageCount != st.PageCount {
		t.Errorf("%+v, %v", state, err)
	}
	db.Close()
}
