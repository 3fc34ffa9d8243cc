package catchup

import (
	"context"
	"database/sql"
	"flag"
	"fmt"
	"hash/crc32"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/uglyer/ha-sqlite/internal/localcluster"
	"github.com/uglyer/ha-sqlite/internal/testcluster"
	"github.com/uglyer/ha-sqlite/vfs"
)

var (
	transactions = flag.Int("transactions", 400, "transactions that a follower misses")
	databases    = flag.Int("databases", 20, "databases of the cluster that a new node joins")
	megabytes    = flag.Int("megabytes", 8, "size of the largest of them")
	patience     = flag.Duration("patience", 2*time.Minute, "how long any step may take")
)

func TestMain(m *testing.M) {
	flag.Parse()
	testcluster.Main(m, nil)
}

func shipped(t testing.TB, c *localcluster.Cluster) (pages float64) {
	for _, n := range c.Nodes() {
		if n.Running() {
			pages += testcluster.Metric(t, n, "hasqlite_catchup_shipped_pages_total")
		}
	}
	return pages
}

// pages returns a checksum of every page that a node's files of a database show.
func pages(t testing.TB, path string) []uint32 {
	t.Helper()
	live, err := vfs.OpenLive(path)
	if err != nil {
		t.Fatal(err)
	}
	defer live.Close()
	if txn, err := live.Begin(t.Context()); err == nil { // recovers a wal-index that nobody has open
		txn.End()
	}
	snap, err := live.Pin()
	if err != nil {
		t.Fatal(err)
	}
	defer snap.Close()
	buf := make([]byte, snap.PageSize())
	sums := make([]uint32, snap.PageCount())
	for i := range sums {
		if err := snap.ReadPage(uint32(i)+1, buf); err != nil {
			t.Fatal(err)
		}
		sums[i] = crc32.ChecksumIEEE(buf)
	}
	return sums
}

func differing(a, b []uint32) (n int) {
	for i := range b {
		if i >= len(a) || a[i] != b[i] {
			n++
		}
	}
	return n
}

// write commits n transactions of one row each in the tables t of a database, from several connections.
func write(t testing.TB, n *localcluster.Node, database string, transactions int) {
	t.Helper()
	db := testcluster.Open(t, n, database, "_synchronous=NORMAL")
	for i := range transactions {
		if _, err := db.ExecContext(t.Context(), `INSERT INTO t(v) VALUES(?)`, i); err != nil {
			if !strings.Contains(err.Error(), "locked") {
				t.Fatal(err)
			}
		}
	}
}

func until(t testing.TB, what string, f func() error) {
	t.Helper()
	deadline := time.Now().Add(*patience)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		err := f()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: %v", what, err)
		}
		<-tick.C
	}
}

// atPosition waits until a node's files show what another's do.
func atPosition(t testing.TB, n, of *localcluster.Node, database string) {
	t.Helper()
	until(t, "node "+n.ID+" catches up", func() error {
		ctx := testcluster.Context(t, 10*time.Second)
		// A status lists a thousand databases, and not more.
		var want, got localcluster.Database
		if err := of.Call(ctx, "GET", "/v1/databases/"+database, nil, &want); err != nil {
			return err
		}
		if err := n.Call(ctx, "GET", "/v1/databases/"+database, nil, &got); err != nil {
			return err
		}
		if got.File != want.Decided {
			return fmt.Errorf("%+v, want %+v", got.File, want.Decided)
		}
		return nil
	})
}

type raftLog struct {
	FirstIndex uint64 `json:"first_index"`
	LastIndex  uint64 `json:"last_index"`
}

func logOf(t testing.TB, n *localcluster.Node) raftLog {
	t.Helper()
	var s struct {
		Log raftLog `json:"log"`
	}
	if err := n.Call(testcluster.Context(t, 10*time.Second), http.MethodGet, "/v1/status", nil, &s); err != nil {
		t.Fatal(err)
	}
	return s.Log
}

// compacted waits until no running node has the entries up to an index.
func compacted(t testing.TB, c *localcluster.Cluster, index uint64) {
	t.Helper()
	until(t, "the log is compacted", func() error {
		for _, n := range c.Nodes() {
			if n.Running() && logOf(t, n).FirstIndex <= index {
				return fmt.Errorf("node %s has entries from %d, want them after %d", n.ID, logOf(t, n).FirstIndex, index)
			}
		}
		return nil
	})
}

func pick(t testing.TB, c *localcluster.Cluster) (leader, follower *localcluster.Node) {
	t.Helper()
	leader, err := c.WaitLeader(testcluster.Context(t, 30*time.Second))
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range c.Nodes() {
		if n != leader {
			return leader, n
		}
	}
	return nil, nil
}

// A follower that was stopped for many transactions, with the log compacted meanwhile, gets the pages that differ and
// five of a hundred more at most. Readers on it stay open.
func TestFollowerComesBackBehindTheLog(t *testing.T) {
	c := testcluster.Start(t, localcluster.Options{Args: []string{
		"--snapshot-entries", strconv.Itoa(max(50, *transactions/150)), "--trailing-entries", "20"}})
	leader, away := pick(t, c)
	db := testcluster.Open(t, leader, "db")
	testcluster.Exec(t, db, `CREATE TABLE t(id INTEGER PRIMARY KEY, v)`)
	testcluster.Exec(t, db, `CREATE TABLE ballast(v)`)
	testcluster.Exec(t, db, `WITH RECURSIVE k(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM k WHERE i < 2000) INSERT INTO ballast SELECT randomblob(3000) FROM k`)
	testcluster.Converged(t, c, "db")
	r := testcluster.Open(t, away, "db")
	tx, err := r.BeginTx(t.Context(), &sql.TxOptions{ReadOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	var rows int
	if err := tx.QueryRow(`SELECT count(*) FROM ballast`).Scan(&rows); err != nil {
		t.Fatal(err)
	}
	path := testcluster.DatabaseFile(t, away, "db")
	if err := away.Kill(); err != nil {
		t.Fatal(err)
	}
	before := pages(t, path)
	at := logOf(t, leader).LastIndex
	start := time.Now()
	write(t, leader, "db", *transactions)
	t.Logf("%d transactions in %.1f s", *transactions, time.Since(start).Seconds())
	testcluster.Exec(t, db, `UPDATE ballast SET v = randomblob(3000) WHERE rowid % 100 = 0`)
	compacted(t, c, at)
	had := shipped(t, c)
	start = time.Now()
	if err := away.Start(); err != nil {
		t.Fatal(err)
	}
	if err := away.WaitReady(testcluster.Context(t, *patience)); err != nil {
		t.Fatal(err)
	}
	atPosition(t, away, leader, "db")
	took := time.Since(start)
	want := differing(before, pages(t, testcluster.DatabaseFile(t, leader, "db")))
	got := int(shipped(t, c) - had)
	t.Logf("%d pages shipped for %d that differ, in %.2f s with the start of the node", got, want, took.Seconds())
	if got == 0 || got > want+want/20+2 {
		t.Errorf("%d pages were shipped for %d that differ", got, want)
	}
	var still int
	if err := tx.QueryRow(`SELECT count(*) FROM ballast`).Scan(&still); err != nil || still != rows {
		t.Errorf("the reader that stayed open: %d rows, %v", still, err)
	}
	if err := tx.Rollback(); err != nil {
		t.Fatal(err)
	}
	if n := testcluster.Query(t, r, `SELECT count(*) FROM t`); n != strconv.Itoa(*transactions) {
		t.Errorf("%s rows, want %d", n, *transactions)
	}
	testcluster.Converged(t, c, "db")
}

// A follower that is behind by what the log still has writes it to its files at least so fast.
func TestFollowerCatchesUpByLog(t *testing.T) {
	c := testcluster.Start(t, localcluster.Options{Args: []string{"--snapshot-entries", "10000000"}})
	leader, away := pick(t, c)
	db := testcluster.Open(t, leader, "db")
	testcluster.Exec(t, db, `CREATE TABLE t(id INTEGER PRIMARY KEY, v)`)
	testcluster.Converged(t, c, "db")
	for _, k := range []struct {
		name  string
		write func() (transactions int, bytes float64)
	}{
		{"one row each", func() (int, float64) { write(t, leader, "db", *transactions); return *transactions, 0 }},
		{"bulk", func() (int, float64) {
			n := max(4, *transactions/200)
			testcluster.Exec(t, db, `CREATE TABLE bulk(v)`)
			for range n {
				testcluster.Exec(t, db, `WITH RECURSIVE k(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM k WHERE i < 100) INSERT INTO bulk SELECT randomblob(4000) FROM k`)
			}
			return n, float64(n) * 100 * 4096
		}},
	} {
		if err := away.Kill(); err != nil {
			t.Fatal(err)
		}
		n, bytes := k.write()
		start := time.Now()
		if err := away.Start(); err != nil {
			t.Fatal(err)
		}
		until(t, "the node answers", func() error {
			_, err := away.Status(t.Context())
			return err
		})
		// The leader tries a member that was away every few seconds only: the first entry that arrives starts the clock.
		was := logOf(t, away).LastIndex
		until(t, "the leader comes back to the node", func() error {
			if last := logOf(t, away).LastIndex; last == was && last < logOf(t, leader).LastIndex {
				return fmt.Errorf("nothing arrives")
			}
			return nil
		})
		first := time.Now()
		atPosition(t, away, leader, "db")
		took := time.Since(first)
		applying := testcluster.Metric(t, away, "hasqlite_apply_duration_seconds_sum")
		t.Logf("%s: %d transactions, %.0f MB in %.2f s, from %.2f s after the start: %.0f /s, %.0f MB/s; of it %.2f s in the files: %.0f /s, %.0f MB/s",
			k.name, n, bytes/1e6, took.Seconds(), first.Sub(start).Seconds(), float64(n)/took.Seconds(), bytes/1e6/took.Seconds(),
			applying, float64(n)/applying, bytes/1e6/applying)
	}
	testcluster.Converged(t, c, "db")
}

// A new empty node joins a cluster of many databases, one of them large, while they are written.
func TestNewNodeJoins(t *testing.T) {
	c := testcluster.Start(t, localcluster.Options{Args: []string{"--snapshot-entries", "500", "--trailing-entries", "50", "--idle-close", "5s"}})
	leader, gone := pick(t, c)
	large := testcluster.Open(t, leader, "large")
	testcluster.Exec(t, large, `CREATE TABLE t(id INTEGER PRIMARY KEY, v)`)
	testcluster.Exec(t, large, `CREATE TABLE bulk(v)`)
	for range *megabytes {
		testcluster.Exec(t, large, `WITH RECURSIVE k(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM k WHERE i < 250) INSERT INTO bulk SELECT randomblob(4000) FROM k`)
	}
	var wg sync.WaitGroup
	work := make(chan int)
	for range 4 {
		wg.Go(func() {
			for i := range work {
				db, err := sql.Open("sqlite3", leader.DSN(fmt.Sprintf("d/%d", i)))
				if err == nil {
					_, err = db.ExecContext(t.Context(), `CREATE TABLE t(id INTEGER PRIMARY KEY, v); INSERT INTO t(v) VALUES(1)`)
					db.Close()
				}
				if err != nil {
					t.Errorf("make database %d: %v", i, err)
				}
			}
		})
	}
	for i := range *databases {
		work <- i
	}
	close(work)
	wg.Wait()
	if err := gone.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := leader.Call(testcluster.Context(t, 30*time.Second), http.MethodDelete, "/v1/cluster/members/"+gone.ID, nil, nil); err != nil {
		t.Fatal(err)
	}
	at := logOf(t, leader).LastIndex
	for i := range 600 { // the log does not begin at its beginning any more
		testcluster.Exec(t, large, `INSERT INTO t(v) VALUES(?)`, i)
	}
	compacted(t, c, at)
	ctx, stop := context.WithCancel(t.Context())
	var load sync.WaitGroup
	written := make([]int, 4)
	for w := range written {
		name := "large"
		if w > 0 {
			name = fmt.Sprintf("d/%d", w)
		}
		db := testcluster.Open(t, leader, name)
		load.Go(func() {
			for ctx.Err() == nil {
				if _, err := db.ExecContext(ctx, `INSERT INTO t(v) VALUES(1)`); err == nil {
					written[w]++
				}
			}
		})
	}
	start := time.Now()
	fresh := filepath.Join(c.Dir, "fresh")
	if err := os.RemoveAll(gone.Data); err != nil {
		t.Fatal(err)
	}
	had := shipped(t, c)
	if err := gone.Start("--id", "fresh", "--data", fresh); err != nil {
		t.Fatal(err)
	}
	if err := gone.WaitReady(testcluster.Context(t, *patience)); err != nil {
		t.Fatal(err)
	}
	ready := time.Since(start)
	stop()
	load.Wait()
	atPosition(t, gone, leader, "large")
	t.Logf("%d databases and one of %d MB under load (%v transactions meanwhile): ready in %.1f s, %.0f pages shipped",
		*databases, *megabytes, written, ready.Seconds(), shipped(t, c)-had)
	for _, name := range []string{"large", "d/0", "d/1", fmt.Sprintf("d/%d", *databases-1)} {
		until(t, "the new node has the same bytes of "+name, func() error {
			_, err := leader.Verify(testcluster.Context(t, time.Minute), name, true)
			return err
		})
		db := testcluster.Open(t, gone, name)
		if got, want := testcluster.Query(t, db, `SELECT count(*) FROM t`), testcluster.Query(t, testcluster.Open(t, leader, name), `SELECT count(*) FROM t`); got != want {
			t.Errorf("%s: %s rows on the new node, want %s", name, got, want)
		}
	}
}
