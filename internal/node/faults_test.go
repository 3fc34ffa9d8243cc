package node

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/uglyer/ha-sqlite/replicate"
	"github.com/uglyer/ha-sqlite/replicate/pagesums"
	"github.com/uglyer/ha-sqlite/wal"
)

// faults are the database files of one node, which fail on demand.
type faults struct {
	replicate.Files
	begin, sync, create, open atomic.Bool // the call fails while set
	read                      atomic.Bool // a transaction can read no page while set
	syncs                     atomic.Int64
	opened, closed            func(path string)
	stat                      atomic.Pointer[replicate.FileStat] // what Stat says while set
}

type faultyFile struct {
	replicate.LiveFile
	f    *faults
	path string
}

func (l faultyFile) Close() error {
	err := l.LiveFile.Close()
	if l.f.closed != nil {
		l.f.closed(l.path)
	}
	return err
}

func (f *faults) Stat(path string) (replicate.FileStat, error) {
	if st := f.stat.Load(); st != nil {
		return *st, nil
	}
	return f.Files.Stat(path)
}

func fault(on *atomic.Bool, what string) error {
	if on.Load() {
		return fmt.Errorf("%s: %w", what, syscall.EIO)
	}
	return nil
}

func (f *faults) Create(path string, pageSize uint32, autoVacuum uint8) error {
	if err := fault(&f.create, "create"); err != nil {
		return err
	}
	return f.Files.Create(path, pageSize, autoVacuum)
}

func (f *faults) Open(path string) (replicate.LiveFile, error) {
	if f.opened != nil {
		f.opened(path)
	}
	if err := fault(&f.open, "open"); err != nil {
		return nil, err
	}
	live, err := f.Files.Open(path)
	if err != nil {
		return nil, err
	}
	return faultyFile{live, f, path}, nil
}

func (l faultyFile) Begin(ctx context.Context) (*wal.Txn, error) {
	if err := fault(&l.f.begin, "begin"); err != nil {
		return nil, err
	}
	if l.f.read.Load() {
		return newUnreadable().Begin(ctx)
	}
	return l.LiveFile.Begin(ctx)
}

// unreadable is a database of which the device gives no page.
type unreadable struct{ index []byte }

func newUnreadable() *wal.Handle {
	u := unreadable{make([]byte, wal.RegionSize)}
	header := wal.IndexHeader{Change: 1 << 31, PageSize: 4096, PageCount: 3}
	header.Encode(u.index)
	header.Encode(u.index[48:])
	return wal.NewHandle(u, u, u, u, wal.Options{})
}

func (unreadable) ReadAt([]byte, int64) (int, error)     { return 0, syscall.EIO }
func (unreadable) WriteAt([]byte, int64) (int, error)    { return 0, syscall.EIO }
func (unreadable) Sync() error                           { return nil }
func (unreadable) Size() (int64, error)                  { return 3 * 4096, nil }
func (u unreadable) Map(int) ([]byte, error)             { return u.index, nil }
func (unreadable) Barrier()                              {}
func (unreadable) Lock(_, _ int, _ wal.LockMode) error   { return nil }
func (unreadable) Unlock(_, _ int, _ wal.LockMode) error { return nil }

func (l faultyFile) SyncWAL() error {
	l.f.syncs.Add(1)
	if err := fault(&l.f.sync, "sync"); err != nil {
		return err
	}
	return l.LiveFile.SyncWAL()
}

// faulty makes the files of a cluster's nodes fail on demand, by the node's id.
func faulty(t *testing.T) map[string]*faults {
	all := map[string]*faults{"n0": {}, "n1": {}, "n2": {}}
	former := wrapFiles
	wrapFiles = func(cfg Config, f replicate.Files) replicate.Files {
		k := all[cfg.ID]
		k.Files = f
		return k
	}
	t.Cleanup(func() { wrapFiles = former })
	return all
}

// A device that fails for a while makes a node's copy late and says so. The copy is not wrong: it is not
// replaced, and goes on by itself (Arch 8, disk full on one node).
func TestDeviceErrorIsTriedAgain(t *testing.T) {
	all := faulty(t)
	c := prepared(t, 3, nil)
	f := c.follower()
	reader := c.open(f, "db")
	reader.SetMaxOpenConns(1)
	query[int](t, reader, `SELECT count(*) FROM t`)
	all[c.cfgs[f].ID].begin.Store(true)
	w := c.open(c.leader(), "db")
	for range 10 {
		exec(t, w, `INSERT INTO t VALUES('more')`)
	}
	eventually(t, "status says what is wrong", func() error {
		d, err := backend{c.nodes[f]}.Database(t.Context(), "db")
		if err == nil && (d.State != "late" || !strings.Contains(d.Detail, "input/output")) {
			err = fmt.Errorf("%s: %s", d.State, d.Detail)
		}
		return err
	})
	if got := query[int](t, reader, `SELECT count(*) FROM t`); got != 4 {
		t.Errorf("%d rows, want 4", got)
	}
	all[c.cfgs[f].ID].begin.Store(false)
	c.equal("db")
	if n := c.fences(f); n != 0 {
		t.Errorf("fenced %d times", n)
	}
	if got := query[int](t, reader, `SELECT count(*) FROM t`); got != 14 {
		t.Errorf("%d rows in the handle that was open, want 14", got)
	}
}

// late waits until a node says that it cannot read its copy.
func (c *cluster) late(i int) {
	c.t.Helper()
	eventually(c.t, "status says what is wrong", func() error {
		d, err := backend{c.nodes[i]}.Database(c.t.Context(), "db")
		if err == nil && (d.State != "late" || !strings.Contains(d.Detail, "input/output")) {
			err = fmt.Errorf("%s: %s", d.State, d.Detail)
		}
		return err
	})
}

// forget stops a node and takes its page checksums away: when it starts again it has to read all pages.
func (c *cluster) forget(i int) {
	c.t.Helper()
	c.stop(i)
	if err := os.RemoveAll(filepath.Join(c.cfgs[i].Data, "sums")); err != nil {
		c.t.Fatal(err)
	}
}

// Files that cannot be read now are no other files: they are read again, whatever they are read for.
func TestReadErrorIsTriedAgain(t *testing.T) {
	all := faulty(t)
	for _, k := range []struct {
		name string
		do   func(c *cluster, f int, read *atomic.Bool)
	}{
		{"for what the log says next", func(c *cluster, _ int, read *atomic.Bool) {
			read.Store(true)
			c.script(c.leader(), "db").write(7)
		}},
		{"for what an application has left", func(c *cluster, f int, read *atomic.Bool) {
			a := c.script(f, "db")
			a.begin()
			a.accept(7)
			a.publish()
			a.release()
			read.Store(true)
			a.h.Close()
		}},
		{"for the position after a start", func(c *cluster, f int, read *atomic.Bool) {
			c.script(c.leader(), "db").write(7)
			c.forget(f)
			read.Store(true)
			c.start(f)
			c.ready(f)
		}},
	} {
		t.Run(k.name, func(t *testing.T) {
			c := prepared(t, 3, nil)
			f := c.follower()
			read := &all[c.cfgs[f].ID].read
			k.do(c, f, read)
			c.late(f)
			read.Store(false)
			c.wantVersion("db", 7)
			if n := c.fences(f); n != 0 {
				t.Errorf("fenced %d times", n)
			}
		})
	}
}

// A node that has nobody to fetch from opens what it cannot read all of, and goes on when it can.
func TestReadErrorOfALoneNodePasses(t *testing.T) {
	all := faulty(t)
	c := prepared(t, 1, nil)
	read := &all["n0"].read
	c.forget(0)
	read.Store(true)
	c.start(0)
	c.ready(0)
	app := c.open(0, "db", "lock_timeout=300", "_busy_timeout=1")
	if got := query[int](t, app, `SELECT count(*) FROM t`); got != 4 {
		t.Errorf("%d rows, want 4", got)
	}
	if _, err := app.Exec(`INSERT INTO t VALUES('x')`); !busyOrRefused(err) {
		t.Errorf("a write that follows on what cannot be read: %v", err)
	}
	c.late(0)
	read.Store(false)
	eventually(t, "it is written again", func() error {
		_, err := app.Exec(`INSERT INTO t VALUES('x')`)
		return err
	})
	c.equal("db")
	if n := c.fences(0); n != 0 {
		t.Errorf("fenced %d times", n)
	}
}

// A foreign writer is not made of somebody who is none because the files cannot be read, and is noticed when they can.
func TestForeignWriterIsNoticedWhenTheFilesCanBeRead(t *testing.T) {
	all := faulty(t)
	c := prepared(t, 3, nil)
	f := c.follower()
	query[int](t, c.open(f, "db"), `SELECT count(*) FROM t`)
	read := &all[c.cfgs[f].ID].read
	read.Store(true)
	plain := c.foreign(f, "db")
	exec(t, plain, `INSERT INTO t VALUES('foreign')`)
	plain.Close()
	c.late(f)
	if n := c.fences(f); n != 0 {
		t.Errorf("fenced %d times, and nobody has read it", n)
	}
	read.Store(false)
	eventually(t, "it is noticed, and healed", func() error {
		d, err := backend{c.nodes[f]}.Database(t.Context(), "db")
		if err == nil && (c.fences(f) == 0 || d.State != "ok") {
			err = fmt.Errorf("fenced %d times, %s: %s", c.fences(f), d.State, d.Detail)
		}
		return err
	})
	c.equal("db")
}

// What cannot be read is fetched from a peer, if there is one.
func TestWhatCannotBeReadIsFetched(t *testing.T) {
	all := faulty(t)
	c := prepared(t, 3, nil)
	f := c.follower()
	read := &all[c.cfgs[f].ID].read
	fetched := atStep(t, c.cfgs[f].ID, "fetched", func() { read.Store(false) })
	c.forget(f)
	read.Store(true)
	c.start(f)
	c.ready(f)
	if got := query[int](t, c.open(f, "db"), `SELECT count(*) FROM t`); got != 4 {
		t.Errorf("%d rows, want 4", got)
	}
	c.equal("db")
	if !fetched.Load() {
		t.Error("nothing was fetched for who opened it")
	}
	fetched = atStep(t, c.cfgs[f].ID, "fetched", func() { read.Store(false) })
	read.Store(true)
	exec(t, c.open(c.leader(), "db"), `INSERT INTO t VALUES('more')`)
	c.equal("db")
	if !fetched.Load() {
		t.Error("nothing was fetched for what the log says next")
	}
	if n := c.fences(f); n != 0 {
		t.Errorf("fenced %d times", n)
	}
}

// The log is kept while the files that a snapshot speaks of cannot be synced (RULES A5).
func TestLogIsKeptWhileTheFilesAreNotDurable(t *testing.T) {
	all := faulty(t)
	c := prepared(t, 1, func(_ int, cfg *Config) { cfg.SnapshotEntries, cfg.TrailingEntries = 20, 5 })
	all["n0"].sync.Store(true)
	w := c.open(0, "db")
	first, _ := c.nodes[0].store.Bounds()
	for i := range 100 {
		exec(t, w, `INSERT INTO t VALUES(?)`, i)
	}
	eventually(t, "snapshots failed", func() error {
		if n := all["n0"].syncs.Load(); n < 3 {
			return fmt.Errorf("%d tries", n)
		}
		return nil
	})
	if now, _ := c.nodes[0].store.Bounds(); now != first {
		t.Errorf("the log began at %d and begins at %d, though nothing could be synced", first, now)
	}
	all["n0"].sync.Store(false)
	c.compacted(90, -1)
}

// The record of an idle database is gone before its files can change (RULES B13): one that came back after a
// power failure could describe files that changed under the same times.
func TestRecordIsGoneBeforeTheFilesChange(t *testing.T) {
	all := faulty(t)
	var left atomic.Bool
	data := ""
	all["n0"].opened = func(path string) {
		if data == "" {
			return
		}
		id, err := replicate.ParseDatabaseID(filepath.Base(filepath.Dir(path)))
		if err == nil && closedOnDisk(data, id) {
			left.Store(true)
		}
	}
	c := prepared(t, 1, func(_ int, cfg *Config) { cfg.IdleClose, data = time.Millisecond, cfg.Data })
	for range 2 {
		c.idle(0, "db")
		st, _ := c.nodes[0].svc.Lookup("db")
		eventually(t, "an idle database has a record", func() error {
			if !closedOnDisk(data, st.ID) {
				return errors.New("none")
			}
			return nil
		})
		db := c.open(0, "db")
		exec(t, db, `INSERT INTO t VALUES(1)`)
		db.Close()
	}
	if left.Load() {
		t.Error("the files were opened while their record was there")
	}
	c.equal("db")
}

// closedOnDisk reports that the page checksums on disk, as another start would read them, call a database closed.
func closedOnDisk(data string, id replicate.DatabaseID) bool {
	dir, err := os.MkdirTemp("", "hs")
	if err != nil {
		return false
	}
	defer os.RemoveAll(dir)
	if os.CopyFS(dir, os.DirFS(filepath.Join(data, "sums"))) != nil {
		return false
	}
	s, err := pagesums.Open(dir)
	if err != nil {
		return false
	}
	defer s.Close()
	rec, ok := s.Find(id)
	return ok && rec.Closed != nil
}

// Files that somebody wrote while they were idle are checked before they are used, and by themselves within
// ten seconds (RULES B13).
func TestForeignWriteToAnIdleDatabase(t *testing.T) {
	c := prepared(t, 3, func(_ int, cfg *Config) { cfg.IdleClose = time.Millisecond })
	f := c.follower()
	for _, opens := range []bool{true, false} {
		before := c.fences(f)
		c.idle(f, "db")
		plain := c.foreign(f, "db")
		exec(t, plain, `INSERT INTO t VALUES('foreign')`)
		plain.Close()
		if opens {
			db := c.open(f, "db")
			db.SetMaxOpenConns(1)
			var n int
			if err := db.QueryRow(`SELECT count(*) FROM t WHERE v = 'foreign'`).Scan(&n); err == nil && n != 0 && c.fences(f) == before {
				t.Error("foreign rows were read before anything was checked")
			}
			db.Close()
		}
		eventually(t, "the change is noticed", func() error {
			if c.fences(f) == before {
				return errors.New("no fence")
			}
			return nil
		})
		c.equal("db")
		after := c.open(f, "db")
		if n := query[int](t, after, `SELECT count(*) FROM t WHERE v = 'foreign'`); n != 0 {
			t.Error("the foreign row is still there")
		}
		after.Close()
	}
}

// idle waits until a node has closed a database.
func (c *cluster) idle(i int, name string) {
	c.t.Helper()
	eventually(c.t, "the database is idle", func() error {
		d, err := backend{c.nodes[i]}.Database(c.t.Context(), name)
		if err == nil && d.State != "idle" {
			err = fmt.Errorf("state %s, %d handles", d.State, d.Handles)
		}
		return err
	})
}

// A file that cannot be opened for now (no descriptors, no permission) is not damaged: it is neither fenced nor
// thrown away, and its node goes on when it opens again.
func TestFileThatDoesNotOpenForNowIsKept(t *testing.T) {
	all := faulty(t)
	c := prepared(t, 3, nil)
	f := c.follower()
	path := c.path(f, "db")
	before, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	c.stop(f)
	all[c.cfgs[f].ID].open.Store(true)
	c.start(f)
	c.ready(f)
	exec(t, c.open(c.leader(), "db"), `INSERT INTO t VALUES('meanwhile')`)
	eventually(t, "status says what is wrong", func() error {
		d, err := backend{c.nodes[f]}.Database(t.Context(), "db")
		if err == nil && (d.State != "late" || !strings.Contains(d.Detail, "input/output")) {
			err = fmt.Errorf("%s: %s", d.State, d.Detail)
		}
		return err
	})
	all[c.cfgs[f].ID].open.Store(false)
	c.equal("db")
	if n := c.fences(f); n != 0 {
		t.Errorf("fenced %d times", n)
	}
	if after, err := os.Stat(path); err != nil || !os.SameFile(before, after) {
		t.Errorf("the file was replaced (%v)", err)
	}
}

// A file that is no database any more is not taken from under a program that had it open before the node started, and of
// which the node does not know. When that closes it, the copy is healed.
func TestUnusableFileThatIsInUseIsNotReplaced(t *testing.T) {
	c := prepared(t, 3, nil)
	f := c.follower()
	path := c.path(f, "db")
	app := c.foreign(f, "db")
	app.SetMaxOpenConns(1)
	query[int](t, app, `SELECT count(*) FROM t`)
	before, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	c.stop(f)
	exec(t, app, `PRAGMA wal_checkpoint`)
	command(t, "dd", "if=/dev/urandom", "of="+path, "bs=64", "count=1", "conv=notrunc", "status=none")
	var fetched atomic.Int32
	t.Cleanup(onSteps(func(cfg Config, _, step string) {
		if cfg.ID == c.cfgs[f].ID && step == "fetched" {
			fetched.Add(1)
		}
	}))
	c.start(f)
	c.ready(f)
	exec(t, c.open(c.leader(), "db"), `INSERT INTO t VALUES('meanwhile')`)
	eventually(t, "the node has tried, and tries again", func() error {
		if n := fetched.Load(); n < 2 {
			return fmt.Errorf("fetched %d times", n)
		}
		return nil
	})
	if after, err := os.Stat(path); err != nil || !os.SameFile(before, after) {
		t.Errorf("the file was replaced (%v)", err)
	}
	if d, err := (backend{c.nodes[f]}).Database(t.Context(), "db"); err != nil || !strings.Contains(d.Detail, "must close first") {
		t.Errorf("status says %q, %v", d.Detail, err)
	}
	app.Close()
	c.equal("db")
	if after, err := os.Stat(path); err != nil || os.SameFile(before, after) {
		t.Errorf("the file is the same (%v)", err)
	}
}

// A database that nobody uses is read too, again and again, and is not kept open for that: a page that went bad under an
// unchanged file is found and healed, and so is a file that is gone (RULES B8).
func TestIdleDatabasesAreScrubbed(t *testing.T) {
	scrubInterval.Store(int64(3 * time.Second))
	t.Cleanup(func() { scrubInterval.Store(0) })
	all := faulty(t)
	c := prepared(t, 3, func(_ int, cfg *Config) { cfg.IdleClose, cfg.VerifyFull = time.Second, false })
	f := c.follower()
	k, path := all[c.cfgs[f].ID], c.path(f, "db")
	c.idle(f, "db")
	c.stop(f)
	var mu sync.Mutex
	var since time.Time
	var least time.Duration // of the times that it was open
	times := 0
	k.opened = func(string) {
		mu.Lock()
		defer mu.Unlock()
		since = time.Now()
	}
	k.closed = func(string) {
		mu.Lock()
		defer mu.Unlock()
		if took := time.Since(since); times == 0 || took < least {
			least = took
		}
		times++
	}
	c.start(f)
	c.ready(f)
	eventually(t, "it was opened and closed", func() error {
		mu.Lock()
		defer mu.Unlock()
		if times < 2 {
			return fmt.Errorf("%d times", times)
		}
		return nil
	})
	mu.Lock()
	if least > 900*time.Millisecond {
		t.Errorf("it was open for %v", least)
	}
	mu.Unlock()
	c.idle(f, "db")
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	st := fileStat(info)
	k.stat.Store(&st)
	command(t, "dd", "if=/dev/urandom", "of="+path, "bs=64", "count=1", "conv=notrunc", "status=none", "oflag=seek_bytes", "seek=9000")
	fenced := func(want uint64) {
		t.Helper()
		eventually(t, "it is fenced", func() error {
			if n := c.fences(f); n != want {
				return fmt.Errorf("fenced %d times", n)
			}
			return nil
		})
		k.stat.Store(nil)
		c.equal("db")
	}
	fenced(1)
	c.idle(f, "db")
	command(t, "rm", "-r", filepath.Dir(path))
	fenced(2)
}
