package node

import (
	"context"
	"database/sql"
	"encoding/binary"
	"errors"
	"fmt"
	osexec "os/exec"
	"testing"
	"time"

	"github.com/uglyer/ha-sqlite/replicate"
	"github.com/uglyer/ha-sqlite/vfs"
	"github.com/uglyer/ha-sqlite/wal"
)

// script plays an application step by step: what the shim asks of the node, and what SQLite does to the
// files, in any order, and with an end at any step.
type script struct {
	t    *testing.T
	h    *replicate.Handle
	live *vfs.Live
	txn  *wal.Txn // native slot 0 is held
	page []byte   // page 1 as it was committed
	fp   wal.Fingerprint
}

const scriptPID = 4711

// script attaches an application to a database that exists on node i.
func (c *cluster) script(i int, name string) *script {
	c.t.Helper()
	return c.scriptWith(i, name, 10*time.Second)
}

func (c *cluster) scriptWith(i int, name string, lockTimeout time.Duration) *script {
	c.t.Helper()
	id, path, exists, err := c.nodes[i].svc.Resolve(name)
	if err != nil || !exists {
		c.t.Fatalf("resolve %s: %v, %v", name, exists, err)
	}
	h, _, err := c.nodes[i].svc.OpenHandle(c.t.Context(), id, replicate.HandleOptions{
		PID: scriptPID, LockTimeout: lockTimeout, CommitTimeout: 10 * time.Second,
	})
	if err != nil {
		c.t.Fatal(err)
	}
	live, err := vfs.OpenLive(path)
	if err != nil {
		c.t.Fatal(err)
	}
	a := &script{t: c.t, h: h, live: live}
	c.t.Cleanup(func() {
		a.release()
		live.Close()
	})
	return a
}

// begin is granted the write and takes slot 0.
func (a *script) begin() {
	a.t.Helper()
	eventually(a.t, "begin", func() error {
		_, base, err := a.h.Begin(a.t.Context())
		if err != nil {
			return err
		}
		if a.txn, err = a.live.Begin(a.t.Context()); err != nil {
			return err
		}
		if !a.txn.Fingerprint().Matches(base) {
			a.h.Mismatch(a.txn.Fingerprint())
			a.release()
			return errors.New("other files than granted")
		}
		return nil
	})
}

// commit asks for a transaction that sets PRAGMA user_version.
func (a *script) commit(version uint32) replicate.Outcome {
	a.t.Helper()
	size := a.txn.PageSize()
	a.page = make([]byte, size)
	if err := a.txn.ReadPage(1, a.page); err != nil {
		a.t.Fatal(err)
	}
	binary.BigEndian.PutUint32(a.page[60:], version)
	// The callee owns what it is given.
	given := append([]byte(nil), a.page...)
	outcome, text := a.h.Commit(a.t.Context(), size, a.txn.PageCount(), []wal.Page{{Pgno: 1, Data: given}})
	a.t.Log("commit:", outcome, text)
	return outcome
}

// accept is commit that must be accepted.
func (a *script) accept(version uint32) {
	a.t.Helper()
	if got := a.commit(version); got != replicate.OutcomeAccepted {
		a.t.Fatalf("outcome %v, want accepted", got)
	}
}

// publish makes what was committed visible in the local files.
func (a *script) publish() {
	a.t.Helper()
	fp, err := a.txn.Append([]wal.Page{{Pgno: 1, Data: a.page}}, a.txn.PageCount())
	if err != nil {
		a.t.Fatal(err)
	}
	a.fp = fp
}

// release gives slot 0 back, as the kernel does when the process ends.
func (a *script) release() {
	if a.txn != nil {
		if err := a.txn.End(); err != nil {
			a.t.Error(err)
		}
		a.txn = nil
	}
}

// end tells the node that a published transaction ended.
func (a *script) end() { a.h.End(true, a.fp, false) }

// write is a whole transaction.
func (a *script) write(version uint32) {
	a.t.Helper()
	a.begin()
	a.accept(version)
	a.publish()
	a.end()
	a.release()
}

// wantVersion waits until every node shows a user_version and all have the same bytes.
func (c *cluster) wantVersion(name string, want int) {
	c.t.Helper()
	c.equal(name)
	for i, n := range c.nodes {
		if n == nil {
			continue
		}
		db := c.open(i, name)
		eventually(c.t, fmt.Sprintf("node %d shows version %d", i, want), func() error {
			var got int
			err := db.QueryRow(`PRAGMA user_version`).Scan(&got)
			if err == nil && got != want {
				err = fmt.Errorf("version %d", got)
			}
			return err
		})
		db.Close()
	}
}

// path returns the file of a database on a node.
func (c *cluster) path(i int, name string) string {
	c.t.Helper()
	_, path, _, err := c.nodes[i].svc.Resolve(name)
	if err != nil {
		c.t.Fatal(err)
	}
	return path
}

// damage overwrites a page in the main file of a node's database. Another process does it: this one may open
// no such file (RULES A6).
func (c *cluster) damage(i int, name string, pgno int64) {
	c.t.Helper()
	path := c.path(i, name)
	live, err := vfs.OpenLive(path)
	if err != nil {
		c.t.Fatal(err)
	}
	defer live.Close()
	eventually(c.t, "everything is in the main file", func() error {
		frames, copied, err := live.Checkpoint(false)
		if err == nil && copied < frames {
			err = fmt.Errorf("%d of %d", copied, frames)
		}
		return err
	})
	ctx, cancel := context.WithTimeout(c.t.Context(), 10*time.Second)
	defer cancel()
	cmd := osexec.CommandContext(ctx, "dd", "if=/dev/urandom", "of="+path, "bs=64", "count=1", "conv=notrunc", "oflag=seek_bytes",
		fmt.Sprintf("seek=%d", (pgno-1)*4096+1024))
	if out, err := cmd.CombinedOutput(); err != nil {
		c.t.Fatalf("%v: %s", err, out)
	}
}

func (c *cluster) fences(i int) uint64 { return c.nodes[i].svc.Metrics().Fences }

// foreign opens a node's file as a program that knows nothing of the cluster.
func (c *cluster) foreign(i int, name string) *sql.DB {
	c.t.Helper()
	db, err := sql.Open("sqlite3", "file:"+c.path(i, name)+"?vfs=unix")
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() { db.Close() })
	return db
}

// compacted waits until the logs of all running nodes begin after an index.
func (c *cluster) compacted(index uint64, except int) {
	c.t.Helper()
	eventually(c.t, "the log is compacted", func() error {
		for i, n := range c.nodes {
			if i == except || n == nil {
				continue
			}
			if first, _ := n.store.Bounds(); first < index {
				return fmt.Errorf("node %d has entries from %d", i, first)
			}
		}
		return nil
	})
}
