package node

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/mattn/go-sqlite3"

	"github.com/uglyer/ha-sqlite/internal/api"
)

// bulk commits n transactions of about 400 KB, near the largest entry of the log. The leader's log must stay
// within limit, the others' near it.
func (c *cluster) bulk(db *sql.DB, n int, limit int64) {
	c.t.Helper()
	leader := c.leader()
	var own, others int64
	for range n {
		exec(c.t, db, `UPDATE big SET v = randomblob(400000)`)
		for i, node := range c.nodes {
			switch {
			case i == leader:
				own = max(own, node.store.Bytes())
			case node != nil:
				others = max(others, node.store.Bytes())
			}
		}
	}
	c.t.Logf("%d transactions of 400 KB: the leader's log had at most %d KiB, another %d KiB, the limit is %d KiB", n, own>>10, others>>10, limit>>10)
	if own > limit || others > limit+limit/4 {
		c.t.Errorf("the leader's log had %d bytes, another %d, the limit is %d", own, others, limit)
	}
}

// Compaction goes by bytes: entries of half a megabyte must not fill the disk before their number is large.
func TestLogStaysWithinItsBytes(t *testing.T) {
	const limit = 8 << 20
	c := newCluster(t, 3, func(_ int, cfg *Config) { cfg.LogLimit, cfg.VerifyFull = limit, false })
	db := c.open(c.leader(), "db")
	exec(t, db, `CREATE TABLE big(v)`)
	exec(t, db, `INSERT INTO big VALUES(1)`)
	c.equal("db")
	c.bulk(db, 60, limit)
	f := c.follower()
	c.stop(f)
	c.bulk(db, 40, limit)
	c.start(f)
	c.ready(f)
	c.bulk(db, 20, limit)
	c.equal("db")
}

// A log that cannot be compacted fills up to its limit, not further: writers get BUSY with the reason, status
// says it, and all goes on by itself when what blocked it is gone.
func TestFullLogRefusesWritesAndSaysWhy(t *testing.T) {
	const limit = 8 << 20
	all := faulty(t)
	c := prepared(t, 1, func(_ int, cfg *Config) { cfg.LogLimit, cfg.VerifyFull = limit, false })
	db := c.open(0, "db", "lock_timeout=300", "_busy_timeout=1")
	exec(t, db, `CREATE TABLE big(v)`)
	exec(t, db, `INSERT INTO big VALUES(1)`)
	all["n0"].sync.Store(true)
	var err error
	for n := 0; err == nil && n < 200; n++ {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		_, err = db.ExecContext(ctx, `UPDATE big SET v = randomblob(400000)`)
		cancel()
	}
	if !busyOrRefused(err) {
		t.Fatalf("writes end with %v, want SQLITE_BUSY", err)
	}
	if n := c.nodes[0].store.Bytes(); n > limit || n < limit/2 {
		t.Errorf("writes end with a log of %d bytes, the limit is %d", n, limit)
	}
	st, err := backend{c.nodes[0]}.Status(t.Context(), api.DatabaseQuery{})
	if err != nil || !strings.Contains(st.Log.Blocked, "sync the log of database \"db\"") || st.Log.LimitBytes != limit || st.Log.Bytes == 0 {
		t.Errorf("status says %+v, %v", st.Log, err)
	}
	if m := (backend{c.nodes[0]}).Metrics(); m.LogBlockedSeconds == 0 || m.LogSizeBytes != st.Log.Bytes || m.LogLimitBytes != limit {
		t.Errorf("metrics say %d of %d bytes, blocked for %v s", m.LogSizeBytes, m.LogLimitBytes, m.LogBlockedSeconds)
	}
	query[int](t, db, `SELECT count(*) FROM big`)
	all["n0"].sync.Store(false)
	eventually(t, "the log is compacted", func() error {
		if n := c.nodes[0].store.Bytes(); n > limit/2 {
			return fmt.Errorf("%d bytes", n)
		}
		return nil
	})
	exec(t, c.open(0, "db"), `UPDATE big SET v = 2`)
	eventually(t, "nothing is blocked", func() error {
		if st := c.nodes[0].svc.LocalStatus(); st.Log.Blocked != "" {
			return errors.New(st.Log.Blocked)
		}
		return nil
	})
}

// A member that cannot compact its log keeps all that it is sent. As long as there is a majority without it that is its own
// affair; once there is none, writers get BUSY before its log is over its limit.
func TestLogOfABlockedMemberIsBoundedWhereItIsNeeded(t *testing.T) {
	const limit = 8 << 20
	all := faulty(t)
	c := prepared(t, 3, func(_ int, cfg *Config) { cfg.LogLimit, cfg.VerifyFull = limit, false })
	leader, blocked := c.leader(), c.follower()
	db := c.open(leader, "db", "lock_timeout=300", "_busy_timeout=1")
	exec(t, db, `CREATE TABLE big(v)`)
	exec(t, db, `INSERT INTO big VALUES(1)`)
	c.equal("db")
	all[c.cfgs[blocked].ID].sync.Store(true)
	c.stop(3 - leader - blocked)
	var err error
	for n := 0; err == nil && n < 100; n++ {
		_, err = db.ExecContext(t.Context(), `UPDATE big SET v = randomblob(400000)`)
	}
	if !busyOrRefused(err) {
		t.Fatalf("writes end with %v, want SQLITE_BUSY", err)
	}
	if n := c.nodes[blocked].store.Bytes(); n > limit || n < limit/2 {
		t.Errorf("writes end with %d bytes in the log of the member, the limit is %d", n, limit)
	}
	all[c.cfgs[blocked].ID].sync.Store(false)
	exec(t, c.open(leader, "db", "_busy_timeout=30000"), `UPDATE big SET v = 2`)
	c.start(3 - leader - blocked)
	c.equal("db")
}

// A grant says that the log is not full; a large transaction of the size that one may have needs more than that leaves. It
// waits, is refused as one that may be repeated, and is taken once the log was compacted.
func TestLargeTransactionHasRoomInTheLogBeforeItIsSent(t *testing.T) {
	const limit = 16 << 20
	all := faulty(t)
	c := prepared(t, 1, func(_ int, cfg *Config) { cfg.LogLimit, cfg.VerifyFull = limit, false })
	db := c.open(0, "db")
	exec(t, db, `CREATE TABLE big(v)`)
	exec(t, db, `INSERT INTO big VALUES(1)`)
	large := c.open(0, "large")
	exec(t, large, `CREATE TABLE big(id INTEGER PRIMARY KEY, b BLOB)`)
	all["n0"].sync.Store(true)
	for c.nodes[0].store.Bytes() < limit*3/4 {
		exec(t, db, `UPDATE big SET v = randomblob(400000)`)
	}
	_, err := large.Exec(insertBig, 4600)
	if !busyOrRefused(err) {
		t.Errorf("a transaction that does not fit now: %v, want SQLITE_BUSY", err)
	}
	if n := c.nodes[0].store.Bytes(); n > limit {
		t.Errorf("%d bytes in the log, the limit is %d", n, limit)
	}
	exec(t, db, `UPDATE big SET v = 3`) // nothing stays reserved for it
	all["n0"].sync.Store(false)
	for range 20 { // each waits for a snapshot
		if _, err = large.Exec(insertBig, 4600); err == nil {
			break
		}
		if !busyOrRefused(err) {
			t.Fatal(err)
		}
	}
	if err != nil {
		t.Errorf("once the log can be compacted: %v", err)
	}
	if n := c.nodes[0].store.Bytes(); n > limit {
		t.Errorf("%d bytes in the log, the limit is %d", n, limit)
	}
}

// What the leader's own limits refuse does so for transactions of other nodes too, as one that never fits.
func TestLeadersLimitsHoldForOtherNodes(t *testing.T) {
	for name, change := range map[string]func(cfg *Config){
		"transaction": func(cfg *Config) { cfg.MaxTransaction = 1 << 20 },
		"log":         func(cfg *Config) { cfg.LogLimit = 4 << 20 },
	} {
		t.Run(name, func(t *testing.T) {
			c := prepared(t, 3, func(i int, cfg *Config) {
				if cfg.BootstrapExpect = 0; i == 0 {
					change(cfg)
					cfg.Join = nil
				} else {
					cfg.NonVoter = true
				}
			})
			db := c.open(1, "db")
			exec(t, db, `CREATE TABLE big(id INTEGER PRIMARY KEY, b BLOB)`)
			_, err := db.Exec(insertBig, 6000)
			if resultCode(err) != int(sqlite3.ErrFull) {
				t.Errorf("6 MB: %v, want SQLITE_FULL", err)
			}
			exec(t, db, insertBig, 100)
		})
	}
}
