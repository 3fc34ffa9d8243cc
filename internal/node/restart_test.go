package node

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// A node's log may end in an entry that changes no database: a member that announced itself, a refused
// transaction. The node that restarts then in an idle cluster must still learn that its log is confirmed
// (RULES A3), or it is never ready and writes no database again.
func TestRestartInAnIdleClusterBecomesReady(t *testing.T) {
	c := newCluster(t, 3, nil)
	db := c.open(0, "db")
	exec(t, db, `CREATE TABLE t(v)`)
	c.equal("db")
	eventually(t, "all nodes are announced", func() error {
		for _, m := range c.nodes[0].svc.LocalStatus().Cluster.Members {
			if m.HTTP == "" {
				return errors.New(m.ID)
			}
		}
		return nil
	})
	f := c.follower()
	for range 2 {
		c.stop(f)
		c.start(f)
		c.ready(f)
	}
	exec(t, c.open(f, "db"), `INSERT INTO t VALUES(1)`)
	c.equal("db")
}

// A node that starts without a quorum does not know which of its log's entries are committed. It serves the
// databases that its files hold, read-only and marked stale, until a leader speaks (RULES A3).
func TestRestartWithoutQuorumServesReads(t *testing.T) {
	c := prepared(t, 3, nil)
	for i := range c.nodes {
		c.stop(i)
	}
	c.start(1)
	db := c.open(1, "db", "lock_timeout=300", "_busy_timeout=1")
	if got := query[int](t, db, `SELECT count(*) FROM t`); got != 4 {
		t.Errorf("%d rows, want 4", got)
	}
	if _, err := db.Exec(`INSERT INTO t VALUES('alone')`); !busyOrRefused(err) {
		t.Errorf("write without a quorum: %v", err)
	}
	if !c.nodes[1].svc.LocalStatus().Stale {
		t.Error("not marked stale")
	}
	c.start(0)
	c.start(2)
	for i := range c.nodes {
		c.ready(i)
	}
	eventually(t, "the same handle writes", func() error {
		_, err := db.Exec(`INSERT INTO t VALUES('together')`)
		return err
	})
	c.equal("db")
}

// What a killed node was fetching from a peer is thrown away at the next start.
func TestSpoolIsClearedAtStart(t *testing.T) {
	c := newCluster(t, 1, nil)
	c.stop(0)
	spool := filepath.Join(c.cfgs[0].Data, "spool")
	if err := os.MkdirAll(spool, 0o770); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(spool, "fetch-1"), []byte("half"), 0o660); err != nil {
		t.Fatal(err)
	}
	c.start(0)
	if left, err := os.ReadDir(spool); err == nil && len(left) > 0 {
		t.Errorf("%d files are left", len(left))
	}
}

// A node may stop between the verdict and the publication of an application's transaction. When it is back,
// the files show the transaction or they do not, and their position is found by their content, also where
// the content was the same at several positions (RULES A3).
func TestNodeRestartsUnderACommit(t *testing.T) {
	for _, k := range []struct {
		name     string
		versions []uint32 // the last one is in flight while the node stops
		publish  bool
	}{
		{"published while the node was down", []uint32{1, 2}, true},
		{"published, back to content of before", []uint32{1, 2, 1, 2, 1}, true},
		{"not published, back to content of before", []uint32{1, 2, 1, 2, 1}, false},
		{"not published, no byte changed", []uint32{1, 1}, false},
	} {
		t.Run(k.name, func(t *testing.T) {
			c := prepared(t, 3, nil)
			f := c.follower()
			a := c.script(f, "db")
			var last uint32
			for i, v := range k.versions {
				a.begin()
				a.accept(v)
				if last = v; i == len(k.versions)-1 {
					break
				}
				a.publish()
				a.end()
				a.release()
			}
			c.stop(f)
			if k.publish {
				a.publish()
			}
			a.release()
			exec(t, c.open(c.leader(), "db"), `INSERT INTO t VALUES('meanwhile')`)
			c.start(f)
			c.ready(f)
			c.wantVersion("db", int(last))
			if n := c.fences(f); n != 0 {
				t.Errorf("fenced %d times", n)
			}
			exec(t, c.open(f, "db"), `INSERT INTO t VALUES('after')`)
			c.equal("db")
		})
	}
}

// The leader sends a snapshot to a node whose application holds native slot 0: the restore waits for it, and
// nothing is doubled or lost when it ends (RULES A5).
func TestSnapshotArrivesWhileAnApplicationHoldsTheFile(t *testing.T) {
	for _, again := range []bool{false, true} {
		t.Run(fmt.Sprintf("restart=%v", again), func(t *testing.T) {
			c := prepared(t, 3, func(_ int, cfg *Config) { cfg.SnapshotEntries, cfg.TrailingEntries = 20, 5 })
			exec(t, c.open(0, "other"), `CREATE TABLE o(v)`)
			c.equal("other")
			f := c.follower()
			reader := c.open(f, "db")
			reader.SetMaxOpenConns(1)
			query[int](t, reader, `SELECT count(*) FROM t`)
			a := c.script(f, "db")
			a.begin()
			c.stop(f)
			w := c.open(c.leader(), "db")
			for i := range 60 {
				exec(t, w, `INSERT INTO t VALUES(?)`, i)
			}
			exec(t, c.open(c.leader(), "other"), `INSERT INTO o VALUES(1)`)
			c.compacted(50, f)
			c.start(f)
			exec(t, w, `INSERT INTO t VALUES('while it restores')`)
			// The database that is held is late; it delays nothing else on this node (RULES A3, A4).
			c.ready(f)
			other := c.open(f, "other", "consistency=linearizable")
			if got := query[int](t, other, `SELECT count(*) FROM o`); got != 1 {
				t.Errorf("%d rows in another database, want 1", got)
			}
			other.Close()
			if got := query[int](t, reader, `SELECT count(*) FROM t`); got != 4 {
				t.Errorf("%d rows while slot 0 is held, want 4", got)
			}
			if again { // what was fetched is not lost with the node
				c.stop(f)
				c.start(f)
				c.ready(f)
			}
			a.release()
			c.equal("db")
			if got := query[int](t, reader, `SELECT count(*) FROM t`); got != 65 {
				t.Errorf("%d rows in the handle that was open, want 65", got)
			}
			exec(t, reader, `INSERT INTO t VALUES('after')`)
			c.equal("db")
			if left, err := os.ReadDir(filepath.Join(c.cfgs[f].Data, "spool")); err != nil || len(left) != 0 {
				t.Errorf("the spool holds %v, %v", left, err)
			}
		})
	}
}

// A node stops while an import comes in that does not end. It is no reason for a writer to hear of anything but
// SQLITE_BUSY (RULES D2).
func TestALongRequestKeepsNoCommitFromItsVerdict(t *testing.T) {
	c := prepared(t, 3, nil)
	i := c.leader()
	long, err := net.Dial("tcp", c.nodes[i].httpAddr)
	if err != nil {
		t.Fatal(err)
	}
	defer long.Close()
	if _, err := io.WriteString(long, "POST /v1/import/long.db HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the import has begun", func() error {
		if found, err := filepath.Glob(filepath.Join(c.cfgs[i].Data, "spool", "content-*")); err != nil || len(found) == 0 {
			return errors.Join(err, errors.New("no file"))
		}
		return nil
	})
	db := c.open(i, "db", "lock_timeout=100", "_busy_timeout=1")
	down, wrote := make(chan struct{}), make(chan error, 1)
	go func() {
		for {
			select {
			case <-down:
				wrote <- nil
				return
			default:
			}
			if _, err := db.Exec(`INSERT INTO t VALUES('on')`); err != nil && !busyOrRefused(err) {
				wrote <- err
				return
			}
		}
	}()
	n := c.nodes[i]
	c.nodes[i] = nil
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if err := n.Shutdown(ctx); err != nil {
		t.Errorf("it does not stop cleanly: %v", err)
	}
	close(down)
	if err := <-wrote; err != nil {
		t.Errorf("a writer heard of the restart: %v", err)
	}
}
