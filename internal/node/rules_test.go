package node

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/uglyer/ha-sqlite/replicate"
	"github.com/uglyer/ha-sqlite/wal"
)

// prepared returns a cluster with a database that has a table of a few pages.
func prepared(t *testing.T, n int, change func(i int, cfg *Config)) *cluster {
	t.Helper()
	c := newCluster(t, n, change)
	db := c.open(c.leader(), "db")
	exec(t, db, `CREATE TABLE t(v TEXT)`)
	for range 4 {
		exec(t, db, `INSERT INTO t VALUES(?)`, strings.Repeat("x", 3000))
	}
	db.Close()
	c.equal("db")
	return c
}

// An application may end at any step of a commit: what was accepted is in the files of every node in the
// end, once, whether it had been published here or not, even if it changed no byte (RULES A1, A3, B5).
func TestApplicationEndsInACommit(t *testing.T) {
	c := prepared(t, 3, nil)
	for _, where := range []string{"leader", "follower"} {
		i := c.leader()
		if where == "follower" {
			i = c.follower()
		}
		version := uint32(i*100 + 1)
		steps := []struct {
			name string
			do   func(a *script) uint32
		}{
			{"before the commit", func(a *script) uint32 { return version - 1 }},
			{"accepted, not published", func(a *script) uint32 { a.accept(version + 1); return version + 1 }},
			{"accepted and published", func(a *script) uint32 { a.accept(version + 2); a.publish(); return version + 2 }},
			{"accepted and published, no byte changed", func(a *script) uint32 { a.accept(version + 2); a.publish(); return version + 2 }},
			{"accepted, not published, no byte changed", func(a *script) uint32 { a.accept(version + 2); return version + 2 }},
			{"published, and reported after slot 0 was free", func(a *script) uint32 {
				a.accept(version + 3)
				a.publish()
				a.release()
				a.end()
				return version + 3
			}},
		}
		first := c.script(i, "db")
		first.begin()
		first.accept(version - 1)
		first.publish()
		first.end()
		first.release()
		first.h.Close()
		for _, s := range steps {
			t.Run(where+": "+s.name, func(t *testing.T) {
				a := c.script(i, "db")
				a.begin()
				want := s.do(a)
				a.h.Close()
				a.release()
				c.wantVersion("db", int(want))
			})
		}
	}
	for i := range c.nodes {
		if n := c.fences(i); n != 0 {
			t.Errorf("node %d fenced its copy %d times", i, n)
		}
	}
}

// The report of an application's end may arrive when its node has healed the copy meanwhile: it is about a
// state that is gone, and must not move the position (invariant 4 of replica).
func TestEndOfACommitAfterAHeal(t *testing.T) {
	c := prepared(t, 3, nil)
	f := c.follower()
	a := c.script(f, "db")
	c.damage(f, "db", 3)
	a.begin()
	a.accept(7)
	// The damage is found while the application has not published.
	if err := c.nodes[f].svc.Scrub(t.Context(), "db"); !errors.Is(err, replicate.ErrFenced) {
		t.Fatalf("scrub of a damaged file: %v", err)
	}
	a.publish()
	a.release()
	eventually(t, "the copy is healed", func() error {
		if c.nodes[f].svc.Metrics().Heals == 0 {
			return errors.New("not healed")
		}
		return nil
	})
	a.end()
	a.h.Close()
	c.wantVersion("db", 7)
	exec(t, c.open(f, "db"), `PRAGMA user_version=8`)
	c.wantVersion("db", 8)
	if n := c.fences(f); n != 1 {
		t.Errorf("fenced %d times, want once", n)
	}
}

// A stopped application that holds native slot 0 makes its node's copy of that one database late. Readers
// open and read, other databases go on, and the node can be stopped (RULES A4, B3).
func TestStoppedApplicationDelaysNobodyElse(t *testing.T) {
	c := prepared(t, 3, func(_ int, cfg *Config) {
		cfg.SnapshotEntries, cfg.TrailingEntries, cfg.WriteLease = 20, 5, 200*time.Millisecond
	})
	f, l := c.follower(), c.leader()
	other := c.open(l, "other")
	exec(t, other, `CREATE TABLE t(v)`)
	a := c.script(f, "db")
	a.begin() // and is stopped
	w := c.open(l, "db")
	for i := range 60 { // enough for a snapshot
		exec(t, w, `INSERT INTO t VALUES(?)`, i)
	}
	exec(t, other, `INSERT INTO t VALUES(1)`)
	c.equal("other")
	eventually(t, "status names the holder", func() error {
		d, err := backend{c.nodes[f]}.Database(t.Context(), "db")
		if err == nil && (d.State != "late" || d.HolderPID != scriptPID) {
			err = fmt.Errorf("%s, held by %d", d.State, d.HolderPID)
		}
		return err
	})
	start := time.Now()
	if got := query[int](t, c.open(f, "db"), `SELECT count(*) FROM t`); got != 4 {
		t.Errorf("%d rows, want the 4 before", got)
	}
	if took := time.Since(start); took > 3*time.Second {
		t.Errorf("an open and a read took %v", took)
	}
	if got := a.commit(9); got != replicate.OutcomeRefused {
		t.Errorf("commit after the lease: %v, want refused", got)
	}
	// The node stops although the snapshot that is due waits for this application.
	n := c.nodes[f]
	c.nodes[f] = nil
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	start = time.Now()
	if err := n.Shutdown(ctx); err != nil {
		t.Error(err)
	}
	if took := time.Since(start); took > 10*time.Second {
		t.Errorf("the node took %v to stop", took)
	}
	// It starts again under the application, serves readers, and catches up when slot 0 is free.
	c.start(f)
	c.ready(f)
	r := c.open(f, "db")
	if got := query[int](t, r, `SELECT count(*) FROM t`); got != 4 {
		t.Errorf("%d rows after the restart, want 4", got)
	}
	a.release()
	c.equal("db")
	eventually(t, "the reader sees the rest", func() error {
		var got int
		err := r.QueryRow(`SELECT count(*) FROM t`).Scan(&got)
		if err == nil && got != 64 {
			err = fmt.Errorf("%d rows", got)
		}
		return err
	})
}

// A node with nobody to heal from keeps a foreign change readable, refuses writes, says what to do, and what
// it says works.
func TestLoneNodeAfterAForeignWrite(t *testing.T) {
	c := prepared(t, 1, nil)
	attached := c.open(0, "db", "lock_timeout=300", "_busy_timeout=1")
	query[int](t, attached, `SELECT count(*) FROM t`)
	plain := c.foreign(0, "db")
	exec(t, plain, `INSERT INTO t VALUES('foreign')`)
	plain.Close()
	eventually(t, "fenced, with advice", func() error {
		d, err := backend{c.nodes[0]}.Database(t.Context(), "db")
		if err == nil && (d.State != "fenced" || !strings.Contains(d.Detail, "--force")) {
			err = fmt.Errorf("%s: %s", d.State, d.Detail)
		}
		return err
	})
	fresh := c.open(0, "db")
	for what, db := range map[string]*sql.DB{"a handle from before": attached, "a new handle": fresh} {
		if got := query[int](t, db, `SELECT count(*) FROM t`); got != 5 {
			t.Errorf("%s reads %d rows, want 5", what, got)
		}
	}
	fresh.Close()
	if _, err := attached.Exec(`INSERT INTO t VALUES(1)`); !busyOrRefused(err) {
		t.Errorf("write to a fenced database: %v", err)
	}
	if err := (backend{c.nodes[0]}).DeleteDatabase(t.Context(), "db", true); err != nil {
		t.Fatal(err)
	}
	attached.Close()
	again := c.open(0, "db")
	exec(t, again, `CREATE TABLE u(v)`)
	eventually(t, "the fenced copy is gone", func() error {
		dirs, err := os.ReadDir(c.cfgs[0].Data + "/databases")
		if err == nil && len(dirs) != 1 {
			err = fmt.Errorf("%d directories", len(dirs))
		}
		return err
	})
}

// A snapshot names a database that its peers have deleted since: the node that restores it skips the pages
// nobody has, and decides the deletion afterwards (RULES A5).
func TestRestoreOfADatabaseThatIsDeletedByNow(t *testing.T) {
	c := prepared(t, 3, func(_ int, cfg *Config) { cfg.SnapshotEntries, cfg.TrailingEntries = 20, 5 })
	f, l := c.follower(), c.leader()
	c.stop(f)
	gone := c.open(l, "gone")
	exec(t, gone, `CREATE TABLE t(v)`)
	w := c.open(l, "db")
	for i := range 60 {
		exec(t, w, `INSERT INTO t VALUES(?)`, i)
	}
	gone.Close()
	c.compacted(50, f)
	if err := (backend{c.nodes[c.leader()]}).DeleteDatabase(t.Context(), "gone", true); err != nil {
		t.Fatal(err)
	}
	c.start(f)
	c.ready(f)
	c.equal("db")
	eventually(t, "the deletion is decided", func() error {
		dirs, err := os.ReadDir(c.cfgs[f].Data + "/databases")
		if err == nil && len(dirs) != 1 {
			err = fmt.Errorf("%d directories", len(dirs))
		}
		return err
	})
}

// Files that are gone, cut or damaged while the node was down are noticed at the start or the first use, and
// healed under the same name (RULES A3).
func TestFilesLostWhileTheNodeWasDown(t *testing.T) {
	c := prepared(t, 3, nil)
	for _, k := range []struct {
		name string
		do   func(path string) error
	}{
		{"main file gone", func(p string) error { return os.Remove(p) }},
		{"main file empty", func(p string) error { return os.Truncate(p, 0) }},
		{"main file cut", func(p string) error { return os.Truncate(p, 4096) }},
		{"main file is no database", func(p string) error { return os.WriteFile(p, []byte(strings.Repeat("no database ", 1000)), 0o660) }},
		{"directory gone", func(p string) error { return os.RemoveAll(strings.TrimSuffix(p, "/db")) }},
		{"page checksums gone", func(p string) error {
			return os.RemoveAll(filepath.Join(filepath.Dir(filepath.Dir(filepath.Dir(p))), "sums"))
		}},
	} {
		t.Run(k.name, func(t *testing.T) {
			f := c.follower()
			path := c.path(f, "db")
			c.stop(f)
			if err := k.do(path); err != nil {
				t.Fatal(err)
			}
			exec(t, c.open(c.leader(), "db"), `INSERT INTO t VALUES('meanwhile')`)
			c.start(f)
			c.ready(f)
			c.equal("db")
			// An application that stays attached holds a lock on the file: one that is empty cannot be written
			// before it lets go.
			after := c.open(f, "db")
			exec(t, after, `INSERT INTO t VALUES('after')`)
			after.Close()
			c.equal("db")
		})
	}
}

// The old image of every page that a transaction replaces is compared with the table on the node of the
// application, follower or leader (RULES B8).
func TestDamagedPageIsFoundWhenItIsReplaced(t *testing.T) {
	for _, where := range []string{"leader", "follower"} {
		t.Run(where, func(t *testing.T) {
			c := prepared(t, 3, nil)
			i := c.leader()
			if where == "follower" {
				i = c.follower()
			}
			db := c.open(i, "db")
			db.SetMaxOpenConns(1)
			query[int](t, db, `SELECT sum(length(v)) FROM t`) // SQLite caches the pages as they were
			c.damage(i, "db", 2)
			exec(t, db, `UPDATE t SET v = v || 'y' WHERE rowid = 1`)
			eventually(t, "the damage is found", func() error {
				if c.fences(i) == 0 {
					return errors.New("no fence")
				}
				return nil
			})
			c.equal("db")
		})
	}
}

// A database that was deleted answers who waits for one of its transactions.
func TestWaitForADeletedDatabaseEnds(t *testing.T) {
	c := prepared(t, 1, nil)
	a := c.script(0, "db")
	pos, _ := a.h.Position()
	pos.TXID += 5
	done := make(chan error, 1)
	go func() { done <- a.h.WaitPosition(t.Context(), replicate.Bookmark{Position: pos}) }()
	if err := (backend{c.nodes[0]}).DeleteDatabase(t.Context(), "db", true); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-done:
		if !errors.Is(err, replicate.ErrDeleted) {
			t.Errorf("wait ended with %v", err)
		}
	case <-time.After(10 * time.Second):
		t.Error("the wait goes on")
	}
	a.h.Close()
}

// A bookmark of another history is an error however far the database is (RULES B12).
func TestOldBookmarkOfAnotherHistory(t *testing.T) {
	c := prepared(t, 1, nil)
	db := c.open(0, "db")
	mark := query[string](t, db, `PRAGMA hasqlite_position`)
	exec(t, db, `INSERT INTO t VALUES('later')`)
	query[string](t, db, `PRAGMA hasqlite_wait='`+mark+`'`)
	other := mark[:17] + "8000000000000001" + mark[33:]
	if _, err := db.Exec(`PRAGMA hasqlite_wait='` + other + `'`); err == nil || !strings.Contains(err.Error(), "history") {
		t.Errorf("a bookmark of another history: %v", err)
	}
}

// lock_timeout is spent once per series of attempts; then a begin answers at once (RULES B2). An application
// that retries without a pause gets the lock when it is free all the same, on every node.
func TestLockTimeoutIsSpentOncePerSeries(t *testing.T) {
	c := prepared(t, 3, nil)
	l := c.leader()
	holder := c.script(l, "db")
	for _, i := range []int{l, c.follower()} {
		holder.begin()
		a := c.scriptWith(i, "db", 400*time.Millisecond)
		attempt := func() (time.Duration, error) {
			start := time.Now()
			_, _, err := a.h.Begin(t.Context())
			return time.Since(start), err
		}
		took, err := attempt()
		var busy *replicate.BusyError
		if !errors.As(err, &busy) || took < 300*time.Millisecond {
			t.Fatalf("first attempt: %v after %v", err, took)
		}
		for range 5 {
			if took, err = attempt(); !errors.As(err, &busy) || took > 200*time.Millisecond {
				t.Errorf("attempt after lock_timeout: %v after %v", err, took)
			}
		}
		holder.h.End(false, wal.Fingerprint{}, true)
		holder.release()
		eventually(t, "the lock that is free is granted", func() error {
			_, err := attempt()
			return err
		})
		a.h.Close()
	}
}
