package node

import (
	"database/sql"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/uglyer/ha-sqlite/replicate"
)

// Of files that are behind, the pages that a peer does not send are those that the node has: one that is not what the node
// remembers, or cannot be read, is found, and fetched (RULES A5, B8).
func TestADamagedPageOfACopyThatIsBehindIsFetched(t *testing.T) {
	c := prepared(t, 3, func(i int, cfg *Config) {
		small(i, cfg)
		cfg.WriteLease, cfg.VerifyFull = 200*time.Millisecond, false // that finds it elsewhere
	})
	c.big(400)
	f := c.follower()
	c.damage(f, "db", 100)
	c.blocked(f, func(db *sql.DB) { exec(t, db, `UPDATE t SET v = 'more' WHERE rowid = 1`) })
	eventually(t, "the damage is found", func() error {
		if n := c.fences(f); n != 1 {
			return fmt.Errorf("fenced %d times", n)
		}
		return nil
	})
	c.equal("db")
}

// blocked has an application on node f hold native slot 0 of db until the log does not have any more what others write
// meanwhile.
func (c *cluster) blocked(f int, write func(db *sql.DB)) {
	c.t.Helper()
	a := c.script(f, "db")
	a.begin()
	defer a.release()
	w := c.open(c.leader(), "db")
	defer w.Close()
	write(w)
	for range 2 { // the second snapshot finds that the log was cut off after the first
		_, last := c.nodes[f].store.Bounds()
		eventually(c.t, "the log is compacted", func() error {
			if _, err := w.Exec(`INSERT INTO t VALUES('more')`); err != nil {
				return err
			}
			if first, _ := c.nodes[f].store.Bounds(); first <= last {
				return fmt.Errorf("it has entries from %d", first)
			}
			return nil
		})
	}
}

// A large transaction that the applier has begun is in its hands: it is applied when the application that holds native
// slot 0 lets go, although neither the log nor anybody else has its parts any more.
func TestALargeTransactionIsAppliedAfterItsPartsAreCompacted(t *testing.T) {
	c := prepared(t, 3, func(i int, cfg *Config) {
		small(i, cfg)
		cfg.WriteLease = 200 * time.Millisecond
	})
	f := c.follower()
	c.blocked(f, func(db *sql.DB) {
		exec(t, db, `WITH RECURSIVE k(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM k WHERE i < 3000) INSERT INTO t SELECT randomblob(1000) FROM k`)
	})
	c.equal("db")
	if n := c.fences(f); n != 0 {
		t.Errorf("fenced %d times", n)
	}
}

// A database that an application blocks here does not keep the log of this node, if a majority of the members has its
// transactions durably in its files; if no majority has, it does (RULES A5). When the application lets go, the pages come
// from a peer, and no handle gets an error for it (RULES A4).
func TestBlockedDatabaseAndTheLog(t *testing.T) {
	c := prepared(t, 3, func(i int, cfg *Config) {
		small(i, cfg)
		cfg.WriteLease = 200 * time.Millisecond
	})
	l := c.leader()
	f, g := (l+1)%3, (l+2)%3
	reader := c.open(f, "db")
	reader.SetMaxOpenConns(1)
	query[int](t, reader, `SELECT count(*) FROM t`)
	a, b := c.script(f, "db"), c.script(g, "db")
	a.begin()
	w := c.open(l, "db")
	exec(t, w, `INSERT INTO t VALUES('waits for the lease of a')`)
	b.begin() // waits until its copy is at the position, then holds slot 0 there
	first, _ := c.nodes[f].store.Bounds()
	for range 40 { // more than an applier's queue keeps in memory, slowed by back pressure
		eventually(t, "insert", func() error {
			_, err := w.Exec(`INSERT INTO t VALUES(randomblob(300000))`)
			return err
		})
	}
	eventually(t, "the database is late on two nodes", func() error {
		for _, i := range []int{f, g} {
			if d, err := (backend{c.nodes[i]}).Database(t.Context(), "db"); err != nil || d.State != "late" {
				return fmt.Errorf("node %d: %s, %v", i, d.State, err)
			}
		}
		return nil
	})
	// One member of three has the transactions in its files: the log of the others stays.
	refused := time.Now()
	for time.Since(refused) < 4*time.Second {
		if now, _ := c.nodes[f].store.Bounds(); now != first && now > first+20 {
			t.Fatalf("the log begins at %d, it began at %d", now, first)
		}
		<-time.After(100 * time.Millisecond)
	}
	b.release()
	b.h.End(false, b.fp, true)
	// Two have.
	eventually(t, "the log goes on", func() error {
		exec(t, w, `INSERT INTO t VALUES('more')`)
		if now, _ := c.nodes[f].store.Bounds(); now < first+50 {
			return fmt.Errorf("it begins at %d", now)
		}
		return nil
	})
	rows := query[int](t, w, `SELECT count(*) FROM t`)
	if got := query[int](t, reader, `SELECT count(*) FROM t`); got >= rows {
		t.Errorf("%d rows while slot 0 is held, of %d", got, rows)
	}
	a.release()
	c.equal("db")
	if got := query[int](t, reader, `SELECT count(*) FROM t`); got != rows {
		t.Errorf("%d rows in the handle that was open, want %d", got, rows)
	}
	if n := c.fences(f) + c.fences(g); n != 0 {
		t.Errorf("fenced %d times", n)
	}
	if c.nodes[f].svc.Metrics().FetchedPages == 0 {
		t.Error("no page came from a peer")
	}
}

// Databases whose applications hold native slot 0 while their copies are healed keep no other one from that (RULES A4),
// as many as they are.
func TestHeldDatabasesDelayNoHeal(t *testing.T) {
	c := newCluster(t, 3, nil)
	f := c.follower()
	const held = 4
	var names []string
	for i := range held + 1 {
		names = append(names, fmt.Sprint("db", i))
		db := c.open(c.leader(), names[i])
		exec(t, db, `CREATE TABLE t(v)`)
		exec(t, db, `INSERT INTO t VALUES(zeroblob(30000))`)
		db.Close()
		c.equal(names[i])
	}
	var fetched atomic.Int32
	t.Cleanup(onSteps(func(cfg Config, _, step string) {
		if cfg.ID == c.cfgs[f].ID && step == "fetched" {
			fetched.Add(1)
		}
	}))
	damage := func(name string) {
		c.damage(f, name, 5)
		if err := c.nodes[f].svc.Scrub(t.Context(), name); !errors.Is(err, replicate.ErrFenced) {
			t.Errorf("scrub %s: %v", name, err)
		}
	}
	var apps []*script
	for _, name := range names[:held] {
		a := c.script(f, name)
		a.begin()
		apps = append(apps, a)
		damage(name)
	}
	eventually(t, "all of them wait for their applications", func() error {
		if n := fetched.Load(); n < held {
			return fmt.Errorf("%d do", n)
		}
		return nil
	})
	start := time.Now()
	damage(names[held])
	eventually(t, "the other one is healed", func() error {
		if n := c.nodes[f].svc.Metrics().Heals; n != 1 {
			return fmt.Errorf("%d healed", n)
		}
		return nil
	})
	if took := time.Since(start); took > 10*time.Second {
		t.Errorf("it took %v", took)
	}
	for _, a := range apps {
		a.release()
		a.h.End(false, a.fp, true)
	}
	for _, name := range names {
		c.equal(name)
	}
}
