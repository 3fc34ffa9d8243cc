package node

import (
	"context"
	"database/sql"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/mattn/go-sqlite3"

	"github.com/uglyer/ha-sqlite/replicate"
	"github.com/uglyer/ha-sqlite/wal"
)

const insertBig = `INSERT INTO big(b) WITH RECURSIVE c(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM c WHERE i<?) SELECT randomblob(1024) FROM c`

// largeCluster has an empty table big in big.db.
func largeCluster(t *testing.T, n int, change func(i int, cfg *Config)) *cluster {
	t.Helper()
	c := newCluster(t, n, func(i int, cfg *Config) {
		cfg.VerifyFull = false
		if change != nil {
			change(i, cfg)
		}
	})
	db := c.open(0, "big.db")
	defer db.Close()
	exec(t, db, `CREATE TABLE big(id INTEGER PRIMARY KEY, b BLOB)`)
	c.equal("big.db")
	return c
}

// wantRows waits until all nodes are equal, and compares the rows on each. No copy may have been fenced, and no
// parts may be left.
func (c *cluster) wantRows(want int) {
	c.t.Helper()
	c.equal("big.db")
	for i, n := range c.nodes {
		if n == nil {
			continue
		}
		db := c.open(i, "big.db")
		var rows, bytes int
		if err := db.QueryRow(`SELECT count(*), ifnull(sum(length(b)), 0) FROM big`).Scan(&rows, &bytes); err != nil {
			c.t.Error(err)
		}
		if rows != want || bytes != want*1024 {
			c.t.Errorf("node %d: %d rows of %d bytes, want %d rows", i, rows, bytes, want)
		}
		db.Close()
		if f := c.fences(i); f != 0 {
			c.t.Errorf("node %d was fenced %d times", i, f)
		}
		eventually(c.t, fmt.Sprintf("node %d keeps no parts", i), func() error {
			left, err := os.ReadDir(filepath.Join(c.cfgs[i].Data, "parts"))
			if len(left) > 0 {
				return fmt.Errorf("%d files", len(left))
			}
			if os.IsNotExist(err) {
				err = nil
			}
			return err
		})
	}
}

// gate stops the leader before it proposes a part.
type gate struct {
	at      atomic.Uint32
	reached chan struct{}
	open    chan struct{}
}

func newGate(t *testing.T) *gate {
	g := &gate{reached: make(chan struct{}), open: make(chan struct{})}
	onPart(t, func(number uint32) {
		if g.at.CompareAndSwap(number, 0) {
			g.reached <- struct{}{}
			<-g.open
		}
	})
	return g
}

func onPart(t *testing.T, f func(number uint32)) {
	beforePart.Store(&f)
	t.Cleanup(func() { beforePart.Store(nil) })
}

// insert runs the statement and stops the transaction before a part; the channel has its error once it may go on.
func (g *gate) insert(t *testing.T, db *sql.DB, rows int, before uint32) chan error {
	t.Helper()
	g.at.Store(before)
	done := make(chan error, 1)
	go func() {
		_, err := db.Exec(insertBig, rows)
		done <- err
	}()
	select {
	case <-g.reached:
	case err := <-done:
		t.Fatalf("the transaction ended before part %d: %v", before, err)
	}
	return done
}

func resultCode(err error) int {
	if e, ok := err.(sqlite3.Error); ok {
		return int(e.ExtendedCode)
	}
	return 0
}

// A transaction of many parts commits from every node, and all have the same bytes; so does the VACUUM that
// writes all of it once more. Every copy is read in full after each commit.
func TestLargeTransactionFromEveryNode(t *testing.T) {
	c := largeCluster(t, 3, func(_ int, cfg *Config) { cfg.VerifyFull = true })
	for i := range c.nodes {
		db := c.open(i, "big.db")
		exec(t, db, insertBig, 3000)
		exec(t, db, `DELETE FROM big WHERE id%3=0`)
		exec(t, db, `VACUUM`)
		db.Close()
	}
	db := c.open(0, "big.db")
	var rows int
	if err := db.QueryRow(`SELECT count(*) FROM big`).Scan(&rows); err != nil || rows < 3000 {
		t.Fatalf("%d rows, %v", rows, err)
	}
	db.Close()
	c.wantRows(rows)
}

// A large transaction that compresses well is one entry.
func TestLargeTransactionOfFewBytes(t *testing.T) {
	c := largeCluster(t, 1, nil)
	var parts atomic.Int32
	onPart(t, func(uint32) { parts.Add(1) })
	db := c.open(0, "big.db")
	exec(t, db, `INSERT INTO big(b) VALUES(zeroblob(4000000))`)
	if n := parts.Load(); n != 0 {
		t.Errorf("%d parts for 4 MB of zeros", n)
	}
	exec(t, db, `INSERT INTO big(b) VALUES(zeroblob(20000000))`) // whoever applies a single entry has its pages in memory
	if n := parts.Load(); n == 0 {
		t.Error("20 MB in one entry")
	}
	db.Close()
	c.equal("big.db")
}

// Snapshots and compaction between the parts: a node that restarts takes up what it has, one that was away is sent
// the state and fetches the parts, and all decide the same (RULES A8).
func TestSnapshotBetweenPartsOfALargeTransaction(t *testing.T) {
	g := newGate(t)
	c := largeCluster(t, 3, func(_ int, cfg *Config) { cfg.SnapshotEntries, cfg.TrailingEntries = 20, 3 })
	away := c.follower()
	c.stop(away)
	leader := c.leader()
	db := c.open(leader, "big.db", "commit_timeout=60000")
	done := g.insert(t, db, 6000, 8)
	other := c.open(leader, "other.db")
	exec(t, other, `CREATE TABLE t(a)`)
	_, last := c.nodes[leader].store.Bounds()
	small := func() error {
		_, err := other.Exec(`INSERT INTO t VALUES(1)`) // other databases go on, and make the log be compacted
		return err
	}
	eventually(t, "the parts are compacted away", func() error {
		for i, n := range c.nodes {
			if n == nil {
				continue
			}
			if first, _ := n.store.Bounds(); first <= last {
				return fmt.Errorf("node %d has entries from %d, the parts end at %d: %w", i, first, last, small())
			}
		}
		return nil
	})
	c.start(away)
	eventually(t, "the node that was away has the parts", func() error {
		var size int64
		files, err := os.ReadDir(filepath.Join(c.cfgs[away].Data, "parts"))
		for _, f := range files {
			if info, err := f.Info(); err == nil {
				size += info.Size()
			}
		}
		if size < 6*replicate.PartBytes {
			return fmt.Errorf("%d bytes in %d files, %v, %w", size, len(files), err, small())
		}
		return nil
	})
	c.ready(away)
	restarts := 3 - leader - away // the third one, which has them from the log
	c.stop(restarts)
	c.start(restarts)
	c.ready(restarts)
	for range 5 {
		if err := small(); err != nil {
			t.Fatal(err)
		}
	}
	close(g.open)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	db.Close()
	other.Close()
	c.wantRows(6000)
}

// The leader changes at any point before the final entry: refused, nothing of it is visible anywhere or left
// behind, and the writer can do it again.
func TestLeaderChangesBetweenParts(t *testing.T) {
	c := largeCluster(t, 3, nil)
	rows := 0
	for _, before := range []uint32{1, 4, 7} { // 7: the final entry, after 6 parts
		for _, app := range []string{"leader", "follower"} {
			g := newGate(t)
			i := c.leader()
			if app == "follower" {
				i = c.follower()
			}
			db := c.open(i, "big.db", "_busy_timeout=10000")
			done := g.insert(t, db, 2900, before)
			c.transfer((c.leader() + 1) % 3)
			close(g.open)
			if err := <-done; resultCode(err) != 517 {
				t.Fatalf("before part %d, an application of the %s: got %v, want a refusal", before, app, err)
			}
			c.wantRows(rows)
			if n, err := db.Exec(insertBig, 10); err != nil {
				t.Fatalf("afterwards: %v, %v", n, err)
			}
			rows += 10
			db.Close()
		}
	}
	g := newGate(t)
	db := c.open(c.leader(), "big.db")
	close(g.open)
	exec(t, db, insertBig, 2900)
	db.Close()
	c.wantRows(rows + 2900)
}

// An application ends in the middle: while it sends, or while its parts are proposed. Nothing of it is left, and the
// next writer has its turn at once.
func TestApplicationEndsInALargeTransaction(t *testing.T) {
	c := largeCluster(t, 3, nil)
	rows := 0
	for _, app := range []string{"leader", "follower"} {
		for _, proposed := range []bool{false, true} {
			g := newGate(t)
			i := c.leader()
			if app == "follower" {
				i = c.follower()
			}
			a := c.script(i, "big.db")
			a.begin()
			size, count := a.txn.PageSize(), a.txn.PageCount()
			var pages [][]wal.Page
			for n := range uint32(24) {
				var piece []wal.Page
				for k := range uint32(100) {
					piece = append(piece, wal.Page{Pgno: count + n*100 + k + 1, Data: noise(size, n*100+k)})
				}
				pages = append(pages, piece)
			}
			total := count + 2400
			for _, piece := range pages[:23] {
				if err := a.h.Part(t.Context(), size, total, piece); err != nil {
					t.Fatal(err)
				}
			}
			if proposed {
				ctx, cancel := context.WithCancel(t.Context())
				g.at.Store(9)
				done := make(chan replicate.Outcome, 1)
				go func() {
					outcome, _ := a.h.CommitParts(ctx, size, total, pages[23], nil)
					done <- outcome
				}()
				<-g.reached
				cancel()
				close(g.open)
				if got := <-done; got == replicate.OutcomeAccepted {
					t.Fatal("accepted")
				}
			}
			a.h.Close()
			a.release()
			db := c.open(i, "big.db", "_busy_timeout=10000")
			exec(t, db, insertBig, 10)
			rows += 10
			db.Close()
			c.wantRows(rows)
		}
	}
}

// noise is a page that does not compress.
func noise(size, seed uint32) []byte {
	b := make([]byte, size)
	x := uint64(seed)*2654435761 + 1
	for i := range b {
		x ^= x << 13
		x ^= x >> 7
		x ^= x << 17
		b[i] = byte(x)
	}
	return b
}

// A transaction over the limit is refused while it grows, with the size and the limit, and nothing of it stays.
func TestTransactionOverTheLimit(t *testing.T) {
	c := largeCluster(t, 1, func(_ int, cfg *Config) { cfg.MaxTransaction = 2 << 20 })
	db := c.open(0, "big.db")
	_, err := db.Exec(insertBig, 6000)
	if resultCode(err) != int(sqlite3.ErrFull) {
		t.Fatalf("got %v", err)
	}
	var text string
	if err := db.QueryRow(`PRAGMA hasqlite_error`).Scan(&text); err != nil || !strings.Contains(text, "over the node's limit of 2097152 bytes") {
		t.Errorf("%q, %v", text, err)
	}
	exec(t, db, insertBig, 1000)
	db.Close()
	c.wantRows(1000)
}
