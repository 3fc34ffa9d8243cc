package node

import (
	"database/sql"
	"errors"
	"flag"
	"fmt"
	"os"
	osexec "os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/uglyer/ha-sqlite/replicate"
)

// small makes a cluster's log so short that a node that was away cannot follow it.
func small(_ int, cfg *Config) { cfg.SnapshotEntries, cfg.TrailingEntries = 20, 5 }

// allSteps has TestKilledAtEachStepOfACatchUp go through all of them; it takes two minutes.
var allSteps = flag.Bool("steps", false, "kill a node at every step of a catch-up, not at two of them")

// onSteps has f hear of the steps of all nodes until the function that it returns is called.
func onSteps(f func(cfg Config, database, step string)) (end func()) {
	former := catchupStep.Swap(&f)
	return func() { catchupStep.Store(former) }
}

// atStep calls f at a step of a catch-up of database db on the node with the id, once; true once it
// has returned.
func atStep(t *testing.T, id, step string, f func()) *atomic.Bool {
	t.Helper()
	var once sync.Once
	happened := new(atomic.Bool)
	t.Cleanup(onSteps(func(cfg Config, database, now string) {
		if cfg.ID == id && database == "db" && now == step {
			once.Do(func() {
				f()
				happened.Store(true)
			})
		}
	}))
	return happened
}

// holdAt holds a step, as atStep finds it, until open is called.
func holdAt(t *testing.T, id, step string) (happened <-chan struct{}, open func()) {
	t.Helper()
	gate, there := make(chan struct{}), make(chan struct{})
	atStep(t, id, step, func() {
		close(there)
		<-gate
	})
	open = sync.OnceFunc(func() { close(gate) })
	t.Cleanup(open) // before the nodes stop
	return there, open
}

// left stops node f and has db be written until its log does not reach to what the others have. It returns db.
func (c *cluster) left(f int) *sql.DB {
	c.t.Helper()
	c.stop(f)
	w := c.open(c.leader(), "db")
	for i := range 60 {
		exec(c.t, w, `INSERT INTO t VALUES(?)`, i)
	}
	c.compacted(50, f)
	return w
}

func (c *cluster) shipped() (pages uint64) {
	for _, n := range c.nodes {
		if n != nil {
			pages += n.svc.Metrics().ShippedPages
		}
	}
	return pages
}

// big fills table t of db with n rows of about half a page each.
func (c *cluster) big(n int) {
	c.t.Helper()
	db := c.open(c.leader(), "db")
	exec(c.t, db, `WITH RECURSIVE k(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM k WHERE i < ?) INSERT INTO t SELECT hex(randomblob(1000)) FROM k`, n)
	db.Close()
	c.equal("db")
}

// A node that comes back behind the log gets the pages that differ and no others, while a reader on it stays open
// and keeps its snapshot (RULES A5).
func TestCatchUpShipsWhatDiffers(t *testing.T) {
	c := prepared(t, 3, small)
	c.big(2000)
	f := c.follower()
	r := c.open(f, "db")
	r.SetMaxOpenConns(1)
	tx, err := r.BeginTx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	var before int
	if err := tx.QueryRow(`SELECT count(*) FROM t`).Scan(&before); err != nil {
		t.Fatal(err)
	}
	c.stop(f)
	w := c.open(c.leader(), "db")
	for i := range 60 {
		exec(t, w, `UPDATE t SET v = ? WHERE rowid = 10`, strings.Repeat("x", i))
	}
	exec(t, w, `INSERT INTO t VALUES('new')`)
	c.compacted(50, f)
	c.start(f)
	c.ready(f)
	c.equal("db")
	if n := c.shipped(); n == 0 || n > 12 {
		t.Errorf("%d pages were shipped for about 5 that differ", n)
	}
	if n := c.fences(f); n != 0 {
		t.Errorf("fenced %d times", n)
	}
	var now int
	if err := tx.QueryRow(`SELECT count(*) FROM t`).Scan(&now); err != nil || now != before {
		t.Errorf("the reader that stayed open sees %d rows (%v), it saw %d", now, err, before)
	}
	if err := tx.Rollback(); err != nil {
		t.Fatal(err)
	}
	if got := query[int](t, r, `SELECT count(*) FROM t`); got != before+1 {
		t.Errorf("%d rows after its transaction, want %d", got, before+1)
	}
}

// Pages that are not sent, because the node that catches up has them, are read back at the peer all the same (RULES A5):
// one that is not what its table says is found, and nothing of it gets on.
func TestCatchUpReadsBackWhatItDoesNotSend(t *testing.T) {
	c := prepared(t, 3, small)
	c.big(400)
	f, l := c.follower(), c.leader()
	peer := 3 - f - l // it is asked before the leader
	c.stop(f)
	w := c.open(l, "db")
	for i := range 60 {
		exec(t, w, `INSERT INTO t VALUES(?)`, i)
	}
	c.compacted(50, f)
	c.equalBut(f, "db")
	c.damage(peer, "db", 100)
	c.start(f)
	c.ready(f)
	eventually(t, "the damage is found", func() error {
		if n := c.fences(peer); n != 1 {
			return fmt.Errorf("fenced %d times", n)
		}
		return nil
	})
	c.equal("db")
}

// A node may be killed at any step of a catch-up: it goes on where it was, and nothing half fetched is ever seen. The
// files as they are at the step are what a kill leaves behind; the node goes on with a copy of them.
func TestKilledAtEachStepOfACatchUp(t *testing.T) {
	c := prepared(t, 3, small)
	c.big(200)
	f := c.follower()
	w := c.open(c.leader(), "db")
	for n, k := range []struct {
		step  string
		empty bool // the node has no files of the database
	}{
		{"sums", false}, {"pages", false}, {"fetched", false}, {"target", false}, {"appended", false}, {"recorded", false},
		{"pages", true}, {"fetched", true}, {"verified", true}, {"placed", true}, {"recorded", true},
	} {
		name := fmt.Sprintf("%s empty=%v", k.step, k.empty)
		if !*allSteps && name != "pages empty=false" && name != "placed empty=true" {
			continue
		}
		c.stop(f)
		exec(t, w, `UPDATE t SET v = hex(randomblob(1000)) WHERE rowid % 3 = 0`)
		for i := range 40 {
			exec(t, w, `INSERT INTO t VALUES(?)`, i)
		}
		_, last := c.nodes[c.leader()].store.Bounds()
		c.compacted(last-30, f)
		if k.empty {
			command(t, "rm", "-rf", filepath.Join(c.cfgs[f].Data, "databases"), filepath.Join(c.cfgs[f].Data, "sums"))
		}
		killed := fmt.Sprintf("%s-%d", c.cfgs[f].Data, n)
		happened := atStep(t, c.cfgs[f].ID, k.step, func() { command(t, "cp", "-a", c.cfgs[f].Data, killed) })
		c.start(f)
		eventually(t, name, func() error {
			if !happened.Load() {
				return errors.New("did not happen")
			}
			return nil
		})
		c.stop(f)
		before := c.shipped()
		c.cfgs[f].Data = killed
		want := query[int](t, w, `SELECT count(*) FROM t`)
		c.start(f)
		if k.empty { // it opens as a whole or not at all
			r := c.open(f, "db", "lock_timeout=50", "_busy_timeout=1")
			var got int
			if err := r.QueryRow(`SELECT count(*) FROM t`).Scan(&got); err == nil && got < want {
				t.Errorf("%s: %d rows are seen of a database that is fetched", name, got)
			}
			r.Close()
		}
		c.ready(f)
		c.equal("db")
		shipped := c.shipped() - before
		t.Logf("%s: %d pages were shipped after the kill", name, shipped)
		if k.step != "sums" && k.step != "pages" && shipped > 10 {
			t.Errorf("%s: %d pages were shipped again", name, shipped)
		}
		if fences := c.fences(f); fences != 0 {
			t.Errorf("%s: fenced %d times", name, fences)
		}
		if got := query[int](t, c.open(f, "db"), `SELECT count(*) FROM t`); got != want {
			t.Errorf("%s: %d rows, want %d", name, got, want)
		}
	}
}

// A node that is killed when the pages that it fetched have become the database file, and before they are nothing else
// any more, fetches what comes next beside that file and not into it: whoever reads it sees one state and then another.
func TestNothingIsFetchedIntoAPlacedFile(t *testing.T) {
	c := prepared(t, 3, small)
	c.big(200)
	f := c.follower()
	w := c.open(c.leader(), "db")
	// cutOff has the log of the others begin after all that f knows, which is changed.
	cutOff := func() {
		exec(t, w, `UPDATE t SET v = hex(randomblob(1000)) WHERE rowid % 3 = 0`)
		for i := range 40 {
			exec(t, w, `INSERT INTO t VALUES(?)`, i)
		}
		_, last := c.nodes[c.leader()].store.Bounds()
		c.compacted(last-30, f)
	}
	content := func() string { // by another process (RULES A6)
		out, err := osexec.Command("sha256sum", c.path(f, "db")).Output()
		if err != nil {
			t.Error(err)
		}
		return string(out)
	}
	c.stop(f)
	cutOff()
	command(t, "rm", "-rf", filepath.Join(c.cfgs[f].Data, "databases"), filepath.Join(c.cfgs[f].Data, "sums"))
	killed := c.cfgs[f].Data + "-killed"
	happened := atStep(t, c.cfgs[f].ID, "placed", func() { command(t, "cp", "-a", c.cfgs[f].Data, killed) })
	c.start(f)
	eventually(t, "the step", func() error {
		if !happened.Load() {
			return errors.New("did not happen")
		}
		return nil
	})
	c.stop(f)
	cutOff()
	c.cfgs[f].Data = killed
	var before, after string
	t.Cleanup(onSteps(func(cfg Config, database, step string) {
		switch {
		case cfg.ID != c.cfgs[f].ID || database != "db":
		case step == "sums" && before == "":
			before = content()
		case step == "fetched":
			after = content()
		}
	}))
	c.start(f)
	c.ready(f)
	c.equal("db")
	if before == "" || before != after {
		t.Errorf("the file had checksum %q before pages were fetched, and %q when they were here", before, after)
	}
	c.stop(f)
	c.start(f)
	c.ready(f)
	c.equal("db")
	if n := c.fences(f); n != 0 {
		t.Errorf("fenced %d times", n)
	}
}

func command(t *testing.T, name string, args ...string) {
	if out, err := osexec.Command(name, args...).CombinedOutput(); err != nil {
		t.Errorf("%s %v: %v %s", name, args, err, out)
	}
}

// A restore from the leader waits only for the lock of an application, and not for what it does with it.
func TestAnInstallTakesAsLongAsItTakes(t *testing.T) {
	c := prepared(t, 3, small)
	f := c.follower()
	c.left(f)
	var kept atomic.Bool
	t.Cleanup(onSteps(func(cfg Config, _, step string) {
		switch {
		case cfg.ID == c.cfgs[f].ID && step == "target":
			<-time.After(2500 * time.Millisecond) // longer than it waits for an application
		case step == "kept":
			kept.Store(true)
		}
	}))
	c.start(f)
	c.ready(f)
	c.equal("db")
	if kept.Load() {
		t.Error("the pages were kept for later, with nobody in the way")
	}
}

// A file that is empty is none: nobody opens it before what was fetched is in it (RULES A5).
func TestAnEmptyFileIsNotReadWhileItIsFilled(t *testing.T) {
	c := prepared(t, 3, small)
	f := c.follower()
	path := c.path(f, "db")
	w := c.left(f)
	want := query[int](t, w, `SELECT count(*) FROM t`)
	if err := os.Truncate(path, 0); err != nil {
		t.Fatal(err)
	}
	happened, open := holdAt(t, c.cfgs[f].ID, "target")
	c.start(f)
	<-happened
	r := c.open(f, "db", "lock_timeout=6000", "_busy_timeout=1")
	var got int
	if err := r.QueryRow(`SELECT count(*) FROM sqlite_schema`).Scan(&got); err == nil {
		t.Errorf("a file that was empty has a schema of %d", got)
	}
	open()
	c.ready(f)
	c.equal("db")
	if got := query[int](t, c.open(f, "db"), `SELECT count(*) FROM t`); got != want {
		t.Errorf("%d rows, want %d", got, want)
	}
}

// A database that is still fetched is opened when it is here, within lock_timeout: then the open says what is missing. One
// that is deleted meanwhile is not opened (RULES A5).
func TestAnOpenWaitsForWhatIsFetched(t *testing.T) {
	for _, deleted := range []bool{false, true} {
		c := prepared(t, 3, small)
		f := c.follower()
		c.stop(f)
		w := c.open(c.leader(), "db")
		for i := range 40 {
			exec(t, w, `INSERT INTO t VALUES(?)`, i)
		}
		_, last := c.nodes[c.leader()].store.Bounds()
		c.compacted(last-30, f)
		want := query[int](t, w, `SELECT count(*) FROM t`)
		w.Close()
		var paths []string
		for i := range c.nodes {
			if i != f {
				paths = append(paths, c.path(i, "db"))
			}
		}
		command(t, "rm", "-rf", filepath.Join(c.cfgs[f].Data, "databases"), filepath.Join(c.cfgs[f].Data, "sums"))
		happened, open := holdAt(t, c.cfgs[f].ID, "sums")
		c.start(f)
		<-happened
		start := time.Now()
		var got int
		err := c.open(f, "db", "lock_timeout=300", "_busy_timeout=1").QueryRow(`SELECT count(*) FROM t`).Scan(&got)
		if err == nil || time.Since(start) < 300*time.Millisecond {
			t.Errorf("an open of what is not here: %d rows, %v after %v", got, err, time.Since(start))
		}
		if text := openError(c, f, "db"); !strings.Contains(text, "no copy of the database yet") {
			t.Errorf("it says %q", text)
		}
		came := make(chan error)
		go func() {
			came <- c.open(f, "db", "lock_timeout=30000").QueryRow(`SELECT count(*) FROM t`).Scan(&got)
		}()
		if deleted {
			if err := (backend{c.nodes[c.leader()]}).DeleteDatabase(t.Context(), "db", true); err != nil {
				t.Fatal(err)
			}
			for _, path := range paths {
				eventually(t, "the peers have deleted it", func() error {
					if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
						return fmt.Errorf("%s: %v", path, err)
					}
					return nil
				})
			}
		}
		open()
		switch err := <-came; {
		case deleted && err == nil:
			t.Errorf("a database that is deleted was opened, with %d rows", got)
		case !deleted && (err != nil || got != want):
			t.Errorf("%d rows, want %d (%v)", got, want, err)
		}
		if n := c.fences(f); n != 0 {
			t.Errorf("fenced %d times", n)
		}
		for i := range c.nodes {
			c.stop(i)
		}
	}
}

// openError returns what a node says of an open that fails.
func openError(c *cluster, i int, name string) string {
	id, _, _, err := c.nodes[i].svc.Resolve(name)
	if err != nil {
		c.t.Fatal(err)
	}
	h, _, err := c.nodes[i].svc.OpenHandle(c.t.Context(), id, replicate.HandleOptions{LockTimeout: time.Millisecond})
	if err == nil {
		h.Close()
		return ""
	}
	return err.Error()
}

// The connection to the peer breaks in the middle: the next attempt goes on with what came.
func TestCatchUpGoesOnAfterItsPeerIsGone(t *testing.T) {
	c := prepared(t, 3, func(i int, cfg *Config) {
		small(i, cfg)
		cfg.CatchupRate = 4 << 20
	})
	f, l := c.follower(), c.leader()
	peer := 3 - f - l
	c.stop(f)
	w := c.open(c.leader(), "db")
	exec(t, w, `WITH RECURSIVE k(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM k WHERE i < 3000) INSERT INTO t SELECT hex(randomblob(1000)) FROM k`)
	for i := range 60 {
		exec(t, w, `INSERT INTO t VALUES(?)`, i)
	}
	w.Close()
	c.compacted(50, f)
	pages := query[int](t, c.open(l, "db"), `PRAGMA page_count`)
	var restart sync.WaitGroup
	happened := atStep(t, c.cfgs[f].ID, "pages", func() {
		restart.Go(func() {
			c.stop(peer)
			c.start(peer)
		})
	})
	c.start(f)
	eventually(t, "the step", func() error {
		if !happened.Load() {
			return errors.New("did not happen")
		}
		return nil
	})
	restart.Wait()
	for i := range c.nodes {
		c.ready(i)
	}
	c.equal("db")
	fetched := c.nodes[f].svc.Metrics().FetchedPages
	if fetched > uint64(pages)*105/100 {
		t.Errorf("%d pages were fetched of %d", fetched, pages)
	}
}

// After a crash the position is found by the record and the pages that later entries touch, and every page is read
// later. What a foreign program wrote meanwhile into other pages is found before anything is built on it (RULES B8, B9).
func TestForeignWriteWhileANodeWasDead(t *testing.T) {
	for name, write := range map[string]string{
		"one piece":   `UPDATE t SET v = v || '!' WHERE rowid = 2`,
		"many pieces": `UPDATE t SET v = v || CASE rowid WHEN 2 THEN '!' ELSE hex(randomblob(20000)) END`,
	} {
		t.Run(name, func(t *testing.T) { foreignWriteWhileDead(t, write) })
	}
}

func foreignWriteWhileDead(t *testing.T, write string) {
	c := prepared(t, 3, func(i int, cfg *Config) {
		small(i, cfg)
		cfg.VerifyFull = false
	})
	f := c.follower()
	w := c.open(c.leader(), "db")
	for i := range 60 {
		exec(t, w, `INSERT INTO t VALUES(?)`, i)
	}
	c.compacted(50, -1)
	c.equal("db")
	w.Close()
	killed := c.cfgs[f].Data + "-killed"
	command(t, "cp", "-a", c.cfgs[f].Data, killed)
	c.stop(f)
	c.cfgs[f].Data = killed
	st, _ := c.nodes[c.leader()].svc.Lookup("db")
	path := filepath.Join(killed, "databases", st.ID.String(), "db")
	plain, err := sql.Open("sqlite3", "file:"+path+"?vfs=unix")
	if err != nil {
		t.Fatal(err)
	}
	exec(t, plain, `UPDATE t SET v = 'foreign' WHERE rowid = 2`)
	plain.Close()
	c.start(f)
	c.ready(f)
	db := c.open(f, "db")
	for range 3 {
		if _, err := db.Exec(write); err != nil && !busyOrRefused(err) && !strings.Contains(err.Error(), "disk I/O") {
			t.Error(err)
		}
	}
	db.Close()
	c.equal("db")
	for i := range c.nodes {
		if got := query[int](t, c.open(i, "db"), `SELECT count(*) FROM t WHERE v LIKE 'foreign%'`); got != 0 {
			t.Errorf("node %d has the foreign row", i)
		}
	}
}

// What is found to be wrong when a heal has lifted the fence, and has not ended, is healed too.
func TestFenceAtTheEndOfAHealIsHealed(t *testing.T) {
	c := prepared(t, 3, nil)
	f := c.follower()
	lifted, found := make(chan struct{}), make(chan struct{})
	atStep(t, c.cfgs[f].ID, "recorded", func() {
		close(lifted)
		<-found
	})
	scrub := func() {
		t.Helper()
		c.damage(f, "db", 3)
		if err := c.nodes[f].svc.Scrub(t.Context(), "db"); !errors.Is(err, replicate.ErrFenced) {
			t.Errorf("scrub of a damaged file: %v", err)
		}
	}
	scrub()
	select {
	case <-lifted:
		scrub()
	case <-time.After(10 * time.Second):
		t.Error("not healed")
	}
	close(found)
	c.equal("db")
	if n := c.fences(f); n != 2 {
		t.Errorf("fenced %d times, want twice", n)
	}
}
