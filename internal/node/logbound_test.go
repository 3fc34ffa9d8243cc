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

// bulk commits n transactions of about 400 KB, near the largest entry of the log, and returns the largest log
// that any running node had.
func (c *cluster) bulk(db *sql.DB, n int) (most int64) {
	c.t.Helper()
	for range n {
		exec(c.t, db, `UPDATE big SET v = randomblob(400000)`)
		for _, node := range c.nodes {
			if node != nil {
				most = max(most, node.store.Bytes())
			}
		}
	}
	return most
}

// Compaction goes by bytes: entries of half a megabyte must not fill the disk before their number is large.
func TestLogStaysWithinItsBytes(t *testing.T) {
	const limit = 8 << 20
	c := newCluster(t, 3, func(_ int, cfg *Config) { cfg.LogLimit, cfg.VerifyFull = limit, false })
	db := c.open(c.leader(), "db")
	exec(t, db, `CREATE TABLE big(v)`)
	exec(t, db, `INSERT INTO big VALUES(1)`)
	c.equal("db")
	if most := c.bulk(db, 60); most > limit {
		t.Errorf("the log had %d bytes, the limit is %d", most, limit)
	} else {
		t.Logf("24 MB of entries: the log had at most %d KiB of %d KiB", most>>10, limit>>10)
	}
	f := c.follower()
	c.stop(f)
	if most := c.bulk(db, 40); most > limit {
		t.Errorf("with a member down the log had %d bytes, the limit is %d", most, limit)
	}
	c.start(f)
	c.ready(f)
	if most := c.bulk(db, 20); most > limit {
		t.Errorf("with a member that catches up the log had %d bytes, the limit is %d", most, limit)
	}
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
