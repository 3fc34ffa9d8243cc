package node

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

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
