package node

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/uglyer/ha-sqlite/internal/api"
	"github.com/uglyer/ha-sqlite/internal/testarchive"
	"github.com/uglyer/ha-sqlite/replicate"
	"github.com/uglyer/ha-sqlite/snapshot/archive"
	"github.com/uglyer/ha-sqlite/snapshot/store"
	"github.com/uglyer/ha-sqlite/snapshot/store/storetest"
)

// newDrill is a driller with an archive of six commits, and no node.
func newDrill(t *testing.T) (*driller, *testarchive.DB, *storetest.Faulty) {
	t.Helper()
	dir, err := store.OpenDir(filepath.Join(t.TempDir(), "archive"))
	if err != nil {
		t.Fatal(err)
	}
	s := storetest.NewFaulty(dir, 5)
	db := testarchive.New(t, s, nil, "acme/shop.db")
	db.Exec("CREATE TABLE t(a, b)", "INSERT INTO t VALUES(1, randomblob(5000))", "INSERT INTO t VALUES(2, randomblob(50000))", "DELETE FROM t WHERE a = 1", "VACUUM", "INSERT INTO t VALUES(3, 3)")
	id, err := replicate.ParseDatabaseID(db.ID.Database)
	if err != nil {
		t.Fatal(err)
	}
	archived := uint64(0)
	return &driller{
		mark: func() (uint64, bool) { archived++; return archived, true }, tell: func(context.Context, replicate.DrillNote) {}, // more at each
		interval: time.Hour, dir: t.TempDir(), rate: 1 << 40, archive: func() *archive.Archive { return db.Archive }, lineage: func() uint64 { return 1 },
		sample: func(n func(int) int) (replicate.DatabaseState, bool) {
			return replicate.DatabaseState{ID: id, Name: "acme/shop.db"}, n(1) == 0
		},
		room: func(int64) error { return nil }, failed: func(string, ...any) {}, rand: rand.New(rand.NewPCG(3, 3)),
	}, db, s
}

func emptyDir(t *testing.T, dir string) {
	t.Helper()
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}

// Drills meet every state, find a damaged object, say which, and leave nothing.
func TestDrillsFindDamage(t *testing.T) {
	d, db, s := newDrill(t)
	seen := map[string]bool{}
	for range 60 {
		d.once(t.Context())
		st := d.status(time.Now())
		if st.Failures != 0 || st.Last == nil || st.Last.Error != "" || st.LastOK.IsZero() || st.Last.Name != "acme/shop.db" || st.Last.SizeBytes == 0 {
			t.Fatalf("%+v, %+v", st, st.Last)
		}
		seen[st.Last.Bookmark] = true
	}
	for txid := 1; txid <= 6; txid++ {
		if !seen[db.Bookmark(txid)] {
			t.Errorf("state %d was not drilled", txid)
		}
	}
	emptyDir(t, d.dir)
	ok := d.status(time.Now())
	if later := d.status(ok.LastOK.Add(time.Minute)); later.AgeMS != time.Minute.Milliseconds() {
		t.Errorf("age %d", later.AgeMS)
	}
	s.Hook(func(op, key string) error {
		if op == "get" && strings.Contains(key, "0000000000000003.ltx") {
			return errors.New("torn off")
		}
		return nil
	})
	said := ""
	d.failed = func(msg string, args ...any) { said = fmt.Sprint(msg, args) }
	for d.status(time.Now()).Failures == 0 {
		d.once(t.Context())
	}
	st := d.status(time.Now())
	if !strings.Contains(st.Last.Error, "0000000000000003.ltx") || !strings.Contains(said, "0000000000000003.ltx") || !strings.Contains(said, "archive verify") {
		t.Errorf("%+v, logged %q", st.Last, said)
	}
	emptyDir(t, d.dir)
	s.Hook(nil)
	d.once(t.Context())
	if st := d.status(time.Now()); st.Last.Error != "" || st.Failures == 0 {
		t.Errorf("%+v", st)
	}
}

// interfering calls a function before it reads an object.
type interfering struct {
	store.Store
	before func(key string)
}

// Get implements store.Store.
func (s *interfering) Get(ctx context.Context, key string, offset, length int64) (io.ReadCloser, error) {
	s.before(key)
	return s.Store.Get(ctx, key, offset, length)
}

// A state that retention removes in the middle is no damage.
func TestDrillsAndRetention(t *testing.T) {
	d, db, _ := newDrill(t)
	if _, err := db.Writer.Label(t.Context(), "kept"); err != nil {
		t.Fatal(err)
	}
	var began atomic.Bool
	s := &interfering{db.Archive.Store(), func(key string) {
		if !strings.HasSuffix(key, "0000000000000002.ltx") || !began.CompareAndSwap(false, true) {
			return
		}
		// With it all single commits go.
		far := testarchive.Start.Add(10000 * time.Hour)
		err := db.Writer.Compact(t.Context(), far)
		n := 0
		if err == nil {
			n, err = db.Writer.Retain(t.Context(), far)
		}
		if err != nil || n < 6 {
			t.Errorf("%d files went, %v", n, err)
		}
	}}
	a, err := archive.Open(t.Context(), s, archive.Options{})
	if err != nil {
		t.Fatal(err)
	}
	d.archive = func() *archive.Archive { return a }
	for range 50 {
		d.once(t.Context())
	}
	if st := d.status(time.Now()); st.Failures != 0 || !began.Load() || st.Runs < 40 {
		t.Errorf("began %v: %+v, %+v", began.Load(), st, st.Last)
	}
	emptyDir(t, d.dir)
}

// Where nothing can be restored there is no drill, and that is no failure.
func TestDrillsThatHaveNothingToDo(t *testing.T) {
	d, db, _ := newDrill(t)
	sample := d.sample
	for i, tt := range []struct {
		says string
		set  func()
	}{
		{"not open", func() { d.archive = func() *archive.Archive { return nil } }},
		{"no database", func() {
			d.archive = func() *archive.Archive { return db.Archive }
			d.sample = func(func(int) int) (replicate.DatabaseState, bool) { return replicate.DatabaseState{}, false }
		}},
		{"nothing is archived", func() {
			d.sample = func(func(int) int) (replicate.DatabaseState, bool) {
				return replicate.DatabaseState{Name: "new.db"}, true
			}
		}},
		{"no room", func() {
			d.sample, d.room = sample, func(int64) error { return errors.New("no room") }
		}},
	} {
		tt.set()
		d.once(t.Context())
		if st := d.status(time.Now()); st.Runs != 0 || st.Skipped != uint64(i+1) || !strings.Contains(st.Reason, tt.says) || st.Last != nil {
			t.Errorf("%s: %+v", tt.says, st)
		}
	}
	d.room = func(int64) error { return nil }
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	d.once(gone)
	if st := d.status(time.Now()); st.Runs != 0 {
		t.Errorf("a node that stops: %+v", st)
	}
	// A rate is kept: nothing is read ahead of it.
	d.rate = 1 << 20
	began := time.Now()
	d.pace(t.Context(), began, 50<<10)
	if took := time.Since(began); took < 40*time.Millisecond {
		t.Errorf("50 KiB of 1 MiB a second took %v", took)
	}
	emptyDir(t, d.dir)
}

// Where nothing was archived since the last drill that went well there is none, on any node, and nothing is due; one that
// fails is made again, and is due all the while.
func TestDrillsOfWhatIsNew(t *testing.T) {
	d, _, s := newDrill(t)
	mark, writes := uint64(0), true
	var told []replicate.DrillNote
	d.mark = func() (uint64, bool) { return mark, writes }
	d.tell = func(_ context.Context, n replicate.DrillNote) { told = append(told, n) }
	step := func(what string, runs, failures uint64, due bool, reason string) {
		t.Helper()
		before := s.Calls("")
		former := d.status(time.Now())
		d.once(t.Context())
		st := d.status(time.Now().Add(time.Second))
		if st.Runs != runs || st.Failures != failures || (st.DueMS > 0) != due || !strings.Contains(st.Reason, reason) {
			t.Errorf("%s: %+v", what, st)
		}
		if n := s.Calls("") - before; (n > 0) != (st.Runs > former.Runs) {
			t.Errorf("%s: %d requests", what, n)
		}
	}
	step("nothing is archived", 0, 0, false, "nothing is archived")
	mark = 7
	step("something is", 1, 0, false, "")
	step("nothing is new", 1, 0, false, "nothing was archived since")
	if len(told) != 1 || told[0].Mark != 7 || !told[0].OK.Equal(d.status(time.Now()).LastOK) {
		t.Errorf("told %+v", told)
	}
	mark = 8
	s.Hook(func(op, _ string) error {
		if op == "get" {
			return errors.New("torn off")
		}
		return nil
	})
	step("it fails", 2, 1, true, "")
	step("it fails again", 3, 2, true, "")
	writes = false
	step("another node leads", 3, 2, false, "another node")
	writes = true
	step("this one again", 4, 3, true, "")
	s.Hook(nil)
	step("it goes well", 5, 3, false, "")
	if len(told) != 2 || told[1].Mark != 8 {
		t.Errorf("told %+v", told)
	}
	// What another node has restored need not be restored here, unless that is old.
	mark = 9
	d.told(replicate.DrillNote{OK: told[0].OK, Mark: 9})
	step("an old note", 6, 3, false, "")
	mark = 10
	later := time.Now().Add(time.Minute)
	d.told(replicate.DrillNote{OK: later, Mark: 10})
	step("another node has", 6, 3, false, "nothing was archived since")
	if st := d.status(later.Add(time.Hour)); !st.LastOK.Equal(later) || st.AgeMS != time.Hour.Milliseconds() {
		t.Errorf("%+v", st)
	}
}

// A node drills by schedule, and its status says so.
func TestNodesDrill(t *testing.T) {
	c := newCluster(t, 1, func(_ int, cfg *Config) {
		ownArchives(0, cfg)
		cfg.DrillInterval = 20 * time.Millisecond
	})
	db := c.open(0, "shop")
	exec(t, db, `CREATE TABLE t(v)`)
	eventually(t, "drills", func() error {
		exec(t, db, `INSERT INTO t VALUES(randomblob(500))`) // without more there is one
		st, err := backend{c.nodes[0]}.Status(t.Context(), api.DatabaseQuery{})
		d := st.Archive.Drill
		if err != nil || d.Runs < 3 || d.LastOK.IsZero() || d.Last.Name != "shop" {
			return fmt.Errorf("%+v, %w", d, err)
		}
		if d.Failures > 0 {
			t.Fatalf("%+v, %+v", d, d.Last)
		}
		return nil
	})
	if m := (backend{c.nodes[0]}).Metrics(); m.Archive.Drill.Runs < 3 || m.Archive.Drill.IntervalMS != 20 {
		t.Errorf("%+v", m.Archive.Drill)
	}
}
