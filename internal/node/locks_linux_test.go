package node

import (
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"

	"github.com/uglyer/ha-sqlite/internal/api"
	"github.com/uglyer/ha-sqlite/replicate"
)

// wantLocks checks that this process holds POSIX locks on the main file and the wal-index of a database.
func (c *cluster) wantLocks(i int, name, after string) {
	c.t.Helper()
	b, err := os.ReadFile("/proc/locks")
	if err != nil {
		c.t.Fatal(err)
	}
	for _, suffix := range []string{"", "-shm"} {
		st, err := os.Stat(c.path(i, name) + suffix)
		if err != nil {
			c.t.Fatalf("after %s: %v", after, err)
		}
		inode := fmt.Sprintf(":%d ", st.Sys().(*syscall.Stat_t).Ino)
		found := false
		for line := range strings.Lines(string(b)) {
			found = found || strings.Contains(line, "POSIX") && strings.Contains(line, fmt.Sprintf(" %d ", os.Getpid())) && strings.Contains(line, inode)
		}
		if !found {
			c.t.Errorf("after %s node %d holds no lock on db%s:\n%s", after, i, suffix, b)
		}
	}
}

// Closing any descriptor of a database file drops every POSIX lock that the process holds on it. No command of
// the node may do that while the files are in use (RULES A6).
func TestLocksSurviveEveryCommand(t *testing.T) {
	c := prepared(t, 3, func(_ int, cfg *Config) { cfg.SnapshotEntries, cfg.TrailingEntries = 20, 5 })
	l, f := c.leader(), c.follower()
	for _, i := range []int{l, f} {
		db := c.open(i, "db")
		db.SetMaxOpenConns(1)
		query[int](t, db, `SELECT count(*) FROM t`)
	}
	b := backend{c.nodes[l]}
	for _, k := range []struct {
		name string
		do   func() error
	}{
		{"nothing", func() error { return nil }},
		{"a write on each node", func() error {
			for i := range c.nodes {
				exec(t, c.open(i, "db"), `INSERT INTO t VALUES(1)`)
			}
			return nil
		}},
		{"verify", func() error { _, err := b.Verify(t.Context(), "db", true); return err }},
		{"status", func() error { _, err := b.Status(t.Context(), api.DatabaseQuery{}); return err }},
		{"create again", func() error {
			_, _, err := c.nodes[l].svc.Create(t.Context(), "db", replicate.DatabaseID{}, 0, 0)
			return err
		}},
		{"scrub", func() error { return c.nodes[l].svc.Scrub(t.Context(), "db") }},
		{"a refused delete", func() error {
			if b.DeleteDatabase(t.Context(), "db", false) == nil {
				return fmt.Errorf("it was not refused")
			}
			return nil
		}},
		{"another database created and deleted", func() error {
			if _, _, err := c.nodes[l].svc.Create(t.Context(), "other", replicate.DatabaseID{}, 0, 0); err != nil {
				return err
			}
			return b.DeleteDatabase(t.Context(), "other", true)
		}},
		{"a snapshot", func() error {
			w := c.open(l, "db")
			for i := range 60 {
				exec(t, w, `INSERT INTO t VALUES(?)`, i)
			}
			c.compacted(30, -1)
			return nil
		}},
		{"a change of leader", func() error {
			if err := b.TransferLeadership(t.Context(), api.TransferRequest{ID: c.cfgs[f].ID}); err != nil {
				return err
			}
			eventually(t, "the other leads", func() error {
				if c.leader() != f {
					return fmt.Errorf("node %d leads", c.leader())
				}
				return nil
			})
			return nil
		}},
	} {
		if err := k.do(); err != nil {
			t.Fatalf("%s: %v", k.name, err)
		}
		c.wantLocks(l, "db", k.name)
		c.wantLocks(f, "db", k.name)
	}
	// Files that catch-up and forks put in place: they were written by descriptors of the node's.
	c.fork(l, "db", "forked", api.Moment{})
	c.equal("forked")
	for i := range c.nodes {
		c.wantLocks(i, "forked", "a fork")
	}
	joined := c.join("n3", func(cfg *Config) { cfg.NonVoter = true })
	c.ready(joined)
	for _, name := range []string{"db", "forked"} {
		eventually(t, name+" is on the node that joined", func() error { _, err := os.Stat(c.path(joined, name) + "-shm"); return err })
	}
	c.equal("db")
	c.equal("forked")
	c.wantLocks(joined, "db", "it was joined by catch-up")
	c.wantLocks(joined, "forked", "the fork was joined by catch-up")
	if c.nodes[joined].svc.Metrics().FetchedPages == 0 {
		t.Error("the node that joined has fetched no page")
	}
	// A plain program that opens and closes the file leaves -wal and -shm where they are.
	plain := c.foreign(f, "db")
	query[int](t, plain, `SELECT count(*) FROM t`)
	plain.Close()
	c.wantLocks(f, "db", "a plain program")
	exec(t, c.open(f, "db"), `INSERT INTO t VALUES('last')`)
	c.equal("db")
}
