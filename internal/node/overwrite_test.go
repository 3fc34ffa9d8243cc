package node

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"sync/atomic"
	"testing"

	"github.com/uglyer/ha-sqlite/internal/api"
	"github.com/uglyer/ha-sqlite/replicate"
)

// longLog says that the log of the files has the size at which it is cut, again and again, while long is set.
type longLog struct {
	replicate.Files
	long *atomic.Bool
}

func (f longLog) Open(path string) (replicate.LiveFile, error) {
	live, err := f.Files.Open(path)
	if err != nil {
		return nil, err
	}
	return longLogFile{live, f.long}, nil
}

type longLogFile struct {
	replicate.LiveFile
	long *atomic.Bool
}

func (l longLogFile) WALSize() (int64, error) {
	if l.long.Load() {
		return 16 << 20, nil
	}
	return l.LiveFile.WALSize()
}

// A rollback that waits for a writer of another node is sent away when the log of the files is cut, as an application is,
// and comes back.
func TestRollbackComesBackWhenTheLogIsCut(t *testing.T) {
	long := new(atomic.Bool)
	former := wrapFiles
	wrapFiles = func(_ Config, f replicate.Files) replicate.Files { return longLog{f, long} }
	t.Cleanup(func() { wrapFiles = former })
	c := newCluster(t, 3, ownArchives)
	asked := c.follower()
	db := c.open(c.leader(), "shop.db", "_txlock=immediate")
	db.SetMaxOpenConns(1)
	exec(t, db, `CREATE TABLE t(a); INSERT INTO t VALUES(1)`)
	before, want := c.export(asked, "shop.db", api.Moment{})
	exec(t, db, `UPDATE t SET a = 2`)
	tx, err := db.Begin()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec(`UPDATE t SET a = 3`); err != nil {
		t.Fatal(err)
	}
	long.Store(true)
	done := make(chan error, 1)
	go func() {
		_, err := backend{c.nodes[asked]}.Rollback(t.Context(), api.RollbackRequest{Name: "shop.db", Moment: api.Moment{To: before.Commit.Bookmark}}, func(api.Progress) {})
		done <- err
	}()
	eventually(t, "the rollback is sent away", func() error {
		if n := c.nodes[asked].svc.Metrics().Begins["busy"]; n == 0 {
			return errors.New("it waits")
		}
		return nil
	})
	long.Store(false)
	if err := tx.Commit(); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if _, got := c.export(asked, "shop.db", api.Moment{}); !bytes.Equal(counters(got), counters(want)) {
		t.Error("it is not what it was")
	}
	if n := query[int](t, db, `SELECT a FROM t`); n != 1 {
		t.Error(n)
	}
	db.Close()
}

// cutOff leaves what an import of several transactions leaves behind whose node ends in the middle of it.
func (c *cluster) cutOff(i int, name string, b []byte) replicate.DatabaseState {
	c.t.Helper()
	n := c.nodes[i]
	f, err := n.scratchFile()
	if err != nil {
		c.t.Fatal(err)
	}
	defer dropScratch(f)
	if _, err := f.Write(b); err != nil {
		c.t.Fatal(err)
	}
	content, err := checkedContent(c.t.Context(), f, int64(len(b)), func(api.Progress) {})
	if err != nil {
		c.t.Fatal(err)
	}
	st, _, err := n.svc.Create(c.t.Context(), name, replicate.DatabaseID{}, content.pageSize, content.info.AutoVacuum)
	if err != nil {
		c.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(c.t.Context())
	defer cancel()
	o := replicate.Overwrite{PageSize: content.pageSize, Import: st.Position, Wait: writerWait, Progress: func(string, int64, int64) {
		if now, _ := n.svc.Lookup(name); now.Position.TXID >= 3 {
			cancel()
		}
	}}
	if _, err := n.svc.Overwrite(ctx, st.ID, content, o); err == nil {
		c.t.Fatal("it was not cut off")
	}
	c.equal(name) // what was proposed is decided
	st, _ = n.svc.Lookup(name)
	return st
}

// What an import leaves behind whose node was killed is empty for everybody, and the same import, through any node, takes
// it; so does one of another file.
func TestImportTakesWhatAnotherLeftBehind(t *testing.T) {
	c := newCluster(t, 3, func(_ int, cfg *Config) { cfg.MaxTransaction, cfg.VerifyFull = 1<<20, false })
	dir := t.TempDir()
	large := makeFile(t, filepath.Join(dir, "large"), "PRAGMA page_size=4096; PRAGMA auto_vacuum=2", 12000)
	little := makeFile(t, filepath.Join(dir, "little"), "PRAGMA page_size=4096; PRAGMA auto_vacuum=2", 100)
	for name, want := range map[string][]byte{"again.db": large, "other.db": little} {
		left := c.cutOff(c.follower(), name, large)
		db := c.open(c.leader(), name)
		if n := query[int](t, db, `SELECT count(*) FROM sqlite_schema`); n != 0 {
			t.Errorf("%d tables", n)
		}
		r, err := c.importBytes(c.leader(), name, want, false)
		if err != nil {
			t.Fatal(err)
		}
		if r.ID != left.ID.String() || r.Replaced || r.Previous != nil || uint64(r.Commit.TXID) <= uint64(left.Position.TXID) {
			t.Errorf("%+v over %+v", r, left)
		}
		c.equal(name)
		if _, got := c.export(c.follower(), name, api.Moment{}); !bytes.Equal(got, header(want)) {
			t.Error("the export differs from the file")
		}
		if n := query[int](t, db, `SELECT count(*) FROM item`); n == 0 {
			t.Error("who had it open finds nothing in it")
		}
		db.Close()
		if _, err := c.importBytes(0, name, want, false); !errors.Is(err, api.ErrExists) {
			t.Errorf("%v, want ErrExists", err)
		}
	}
	// One that was made and never written is the same.
	if _, err := (backend{c.nodes[0]}).CreateDatabase(t.Context(), api.CreateDatabaseRequest{Name: "made.db", PageSize: 4096}); err != nil {
		t.Fatal(err)
	}
	if _, err := c.importBytes(1, "made.db", little, false); err != nil {
		t.Fatal(err)
	}
	if v := c.equal("made.db"); v.Position.TXID != 2 {
		t.Errorf("%+v", v.Position)
	}
}

// What somebody has written into is never taken, and never deleted: neither what an import was cut off in, nor what one
// made that then fails.
func TestImportLeavesWhatOthersWrote(t *testing.T) {
	c := newCluster(t, 1, func(_ int, cfg *Config) { cfg.MaxTransaction = 1 << 20 })
	want := makeFile(t, filepath.Join(t.TempDir(), "f"), "PRAGMA page_size=4096", 12000)
	for name, write := range map[string]string{
		"table.db": `CREATE TABLE mine(a); INSERT INTO mine VALUES(1)`, "version.db": `PRAGMA user_version = 7`, "dropped.db": `CREATE TABLE mine(a); DROP TABLE mine`,
	} {
		c.cutOff(0, name, want)
		db := c.open(0, name)
		exec(t, db, write)
		_, before := c.export(0, name, api.Moment{})
		db.Close()
		if _, err := c.importBytes(0, name, want, false); !errors.Is(err, api.ErrExists) {
			t.Errorf("%s: %v, want ErrExists", name, err)
		}
		if _, got := c.export(0, name, api.Moment{}); !bytes.Equal(got, before) {
			t.Errorf("%s has changed", name)
		}
	}

	// It moves on between the look and the end of the check.
	left := c.cutOff(0, "moves.db", want)
	db := c.open(0, "moves.db")
	_, err := backend{c.nodes[0]}.Import(t.Context(), api.ImportRequest{Name: "moves.db", Size: int64(len(want))}, bytes.NewReader(want), func(p api.Progress) {
		if p.Step == "check" {
			exec(t, db, `CREATE TABLE mine(a)`)
		}
	})
	if now, _ := c.nodes[0].svc.Lookup("moves.db"); !errors.Is(err, api.ErrExists) || now.Position.TXID != left.Position.TXID+1 {
		t.Errorf("%v, want ErrExists; it is at %v", err, now.Position)
	}
	db.Close()

	// An import that fails takes away the database that it made, but not what somebody has written into it meanwhile.
	why := errors.New("it failed")
	left = c.cutOff(0, "both.db", want)
	db = c.open(0, "both.db")
	exec(t, db, `CREATE TABLE mine(a)`)
	db.Close()
	if err := (backend{c.nodes[0]}).undoCreate(t.Context(), left, why); err != why { //nolint:errorlint // nothing is added to it
		t.Error(err)
	}
	if n := query[int](t, c.open(0, "both.db"), `SELECT count(*) FROM mine`); n != 0 {
		t.Error(n)
	}
	left = c.cutOff(0, "gone.db", want)
	if err := (backend{c.nodes[0]}).undoCreate(t.Context(), left, why); err != why { //nolint:errorlint // nothing is added to it
		t.Error(err)
	}
	if _, ok := c.nodes[0].svc.Lookup("gone.db"); ok {
		t.Error("it is left behind")
	}
}

// An import that is called off, also while the verdict of a transaction is awaited, takes away what it made.
func TestImportThatIsCalledOffLeavesNothingBehind(t *testing.T) {
	c := newCluster(t, 3, func(_ int, cfg *Config) { cfg.MaxTransaction, cfg.VerifyFull = 1<<20, false })
	b := makeFile(t, filepath.Join(t.TempDir(), "f"), "PRAGMA page_size=4096", 12000)
	asked := c.follower()
	for at := range replicate.TXID(4) {
		name := fmt.Sprint("off", at)
		ctx, cancel := context.WithCancel(t.Context())
		_, err := backend{c.nodes[asked]}.Import(ctx, api.ImportRequest{Name: name, Size: int64(len(b))}, bytes.NewReader(b), func(api.Progress) {
			if st, ok := c.nodes[asked].svc.Lookup(name); ok && st.Position.TXID >= at {
				cancel()
			}
		})
		cancel()
		if err == nil {
			t.Fatal("it was not called off")
		}
		if st, ok := c.nodes[asked].svc.Lookup(name); ok {
			t.Errorf("%s: left behind at %s: %v", name, st.Position, err)
		}
	}
}
