package node

import (
	"database/sql"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/mattn/go-sqlite3"

	"github.com/uglyer/ha-sqlite/internal/localcluster"
	"github.com/uglyer/ha-sqlite/internal/testcluster"
)

// RULES A1: from one base two writers make the same bytes; one entry must not count for both.
func TestIdenticalInsertsAreAllCounted(t *testing.T) {
	const each = 100
	c := testcluster.Start(t, localcluster.Options{})
	ctx := testcluster.Context(t, 2*time.Minute)
	testcluster.Exec(t, testcluster.Open(t, c.Nodes()[0], "same.db", patient...), `CREATE TABLE same(v)`)
	testcluster.Converged(t, c, "same.db")
	var wg sync.WaitGroup
	for _, n := range c.Nodes() {
		for range 2 {
			db := testcluster.Open(t, n, "same.db", patient...)
			wg.Go(func() {
				for range each {
					insist(ctx, t, db, `INSERT INTO same VALUES(1)`)
				}
			})
		}
	}
	wg.Wait()
	testcluster.Converged(t, c, "same.db")
	for _, n := range c.Nodes() {
		if got, want := testcluster.Query(t, testcluster.Open(t, n, "same.db"), `SELECT count(*) FROM same`), fmt.Sprint(6*each); got != want {
			t.Errorf("%s has %s rows, %s were acknowledged", n.ID, got, want)
		}
	}
}

// RULES E: nine writers on three nodes, and no one waits much longer than another.
func TestNineWritersGetTheirTurns(t *testing.T) {
	const (
		each  = 60
		limit = 3 // times the median
	)
	c := testcluster.Start(t, localcluster.Options{})
	ctx := testcluster.Context(t, 3*time.Minute)
	testcluster.Exec(t, testcluster.Open(t, c.Nodes()[0], "fair.db", patient...), `CREATE TABLE turn(writer INT, n INT, at INTEGER PRIMARY KEY)`)
	testcluster.Converged(t, c, "fair.db")
	waits := make([]time.Duration, 9)
	var stop atomic.Bool
	var wg sync.WaitGroup
	for i := range waits {
		db := testcluster.Open(t, c.Nodes()[i%3], "fair.db", patient...)
		wg.Go(func() {
			begun, done := time.Now(), 0
			for ; !stop.Load(); done++ {
				insist(ctx, t, db, `INSERT INTO turn(writer, n) VALUES(?, ?)`, i, done)
				if done == each {
					stop.Store(true) // the fastest ends the race: the others' mean wait is what counts
				}
			}
			waits[i] = time.Since(begun) / time.Duration(max(done, 1))
		})
	}
	wg.Wait()
	sorted := slices.Sorted(slices.Values(waits))
	t.Logf("mean waits of the writers: %v", sorted)
	if median := sorted[len(sorted)/2]; sorted[len(sorted)-1] > limit*median {
		t.Errorf("one writer waits %v, the median is %v", sorted[len(sorted)-1], median)
	}
	testcluster.Converged(t, c, "fair.db")
}

// RULES B3: the lease ends when it has run out and another waits; the late commit is refused.
func TestExpiredLeaseMakesTheLateCommitRefused(t *testing.T) {
	const lease = time.Second
	c := testcluster.Start(t, localcluster.Options{Args: []string{"--write-lease", lease.String()}})
	nodes := testcluster.LeaderFirst(t, c)
	for name, pair := range map[string][2]*localcluster.Node{
		"holder on the leader":      {nodes[0], nodes[1]},
		"holder on a follower":      {nodes[1], nodes[0]},
		"holder and waiter there":   {nodes[1], nodes[1]},
		"holder and waiter on both": {nodes[1], nodes[2]},
	} {
		t.Run(name, func(t *testing.T) {
			database := "lease " + name
			slow := conn(t, testcluster.Open(t, pair[0], database, patient...))
			do(t, slow, `CREATE TABLE t(v TEXT)`)
			testcluster.Converged(t, c, database)
			do(t, slow, `BEGIN IMMEDIATE`, `INSERT INTO t VALUES('late')`)
			if pair[0] == pair[1] {
				// On one node the native lock is held too: nobody gets in before the holder gives up.
				_, err := testcluster.Open(t, pair[1], database, "_busy_timeout=1500", "lock_timeout=500").ExecContext(t.Context(), `INSERT INTO t VALUES('other')`)
				if code(err)&0xff != int(sqlite3.ErrBusy) {
					t.Fatalf("second writer on the node: got %v, want SQLITE_BUSY", err)
				}
				do(t, slow, `ROLLBACK`)
				return
			}
			begun := time.Now()
			insist(testcluster.Context(t, 30*time.Second), t, testcluster.Open(t, pair[1], database, patient...), `INSERT INTO t VALUES('in time')`)
			if took := time.Since(begun); took < lease/2 || took > 10*lease {
				t.Errorf("the waiter got the lock after %v, the lease is %v", took, lease)
			}
			if _, err := slow.ExecContext(t.Context(), `COMMIT`); code(err) != int(sqlite3.ErrBusySnapshot) {
				t.Errorf("late commit: got %v (%d), want SQLITE_BUSY_SNAPSHOT", err, code(err))
			}
			testcluster.Converged(t, c, database)
			for _, n := range c.Nodes() {
				if got := testcluster.Query(t, testcluster.Open(t, n, database), `SELECT group_concat(v) FROM t`); got != "in time" {
					t.Errorf("%s shows %q", n.ID, got)
				}
			}
			insist(testcluster.Context(t, 30*time.Second), t, testcluster.Open(t, pair[0], database, patient...), `INSERT INTO t VALUES('next')`)
		})
	}
	t.Run("nobody waits", func(t *testing.T) {
		slow := conn(t, testcluster.Open(t, nodes[1], "lease-alone", patient...))
		do(t, slow, `CREATE TABLE t(v TEXT)`, `BEGIN IMMEDIATE`, `INSERT INTO t VALUES('slow')`)
		timer := time.NewTimer(3 * lease)
		defer timer.Stop()
		<-timer.C
		do(t, slow, `COMMIT`)
	})
}

// RULES B2: lock_timeout counts once for a series of attempts of the busy handler.
func TestLockTimeoutIsSpentOncePerSeries(t *testing.T) {
	c := testcluster.Start(t, localcluster.Options{})
	nodes := testcluster.LeaderFirst(t, c)
	holder := conn(t, testcluster.Open(t, nodes[0], "busy.db", patient...))
	do(t, holder, `CREATE TABLE t(v)`)
	testcluster.Converged(t, c, "busy.db")
	do(t, holder, `BEGIN IMMEDIATE`, `INSERT INTO t VALUES(1)`)
	for _, n := range nodes[1:] {
		db := testcluster.Open(t, n, "busy.db", "_busy_timeout=1000", "lock_timeout=1000")
		begun := time.Now()
		_, err := db.ExecContext(t.Context(), `INSERT INTO t VALUES(2)`)
		if took := time.Since(begun); code(err)&0xff != int(sqlite3.ErrBusy) || took > 4*time.Second {
			t.Errorf("%s: got %v after %v, want SQLITE_BUSY within 2 s and some", n.ID, err, took)
		}
	}
	do(t, holder, `COMMIT`)
}

// RULES B6: linearizable readers see every acknowledged commit, whatever the write rate, and never SQLITE_PROTOCOL.
func TestLinearizableReadersSeeEveryAcknowledgedCommit(t *testing.T) {
	const load = 5 * time.Second
	c := testcluster.Start(t, localcluster.Options{})
	nodes := testcluster.LeaderFirst(t, c)
	ctx := testcluster.Context(t, 2*time.Minute)
	setup := testcluster.Open(t, nodes[0], "lin.db", patient...)
	testcluster.Exec(t, setup, `CREATE TABLE c(id INTEGER PRIMARY KEY, n INT)`)
	testcluster.Exec(t, setup, `INSERT INTO c VALUES(1, 0), (2, 0)`)
	testcluster.Converged(t, c, "lin.db")

	var stop atomic.Bool
	var acknowledged [2]atomic.Int64
	var reads atomic.Int64
	var wg sync.WaitGroup
	for w := range acknowledged {
		db := testcluster.Open(t, nodes[0], "lin.db", patient...)
		wg.Go(func() {
			for n := int64(1); !stop.Load(); n++ {
				insist(ctx, t, db, `UPDATE c SET n = ? WHERE id = ?`, n, w+1)
				acknowledged[w].Store(n)
			}
		})
	}
	for _, n := range nodes {
		db := testcluster.Open(t, n, "lin.db", "consistency=linearizable", "_busy_timeout=5000")
		wg.Go(func() {
			for !stop.Load() {
				a, b := acknowledged[0].Load(), acknowledged[1].Load()
				var x, y int64
				err := db.QueryRowContext(ctx, `SELECT (SELECT n FROM c WHERE id = 1), (SELECT n FROM c WHERE id = 2)`).Scan(&x, &y)
				if err != nil {
					t.Errorf("read on %s: %v (%d)", n.ID, err, code(err))
					return
				}
				if x < a || y < b {
					t.Errorf("%s read %d, %d after %d, %d were acknowledged", n.ID, x, y, a, b)
					return
				}
				reads.Add(1)
			}
		})
	}
	timer := time.NewTimer(load)
	defer timer.Stop()
	<-timer.C
	stop.Store(true)
	wg.Wait()
	commits := acknowledged[0].Load() + acknowledged[1].Load()
	t.Logf("%d commits/s, %d linearizable reads/s", commits/int64(load/time.Second), reads.Load()/int64(load/time.Second))
	if reads.Load() == 0 || commits == 0 {
		t.Error("nothing was read or written")
	}
	testcluster.Converged(t, c, "lin.db")
}

// RULES B16: a WAL cannot commit two files at once, and says so.
func TestTwoReplicatedDatabasesInOneTransactionAreRefused(t *testing.T) {
	c := testcluster.Start(t, localcluster.Options{Nodes: 1})
	n := c.Nodes()[0]
	for _, name := range []string{"one.db", "two.db"} {
		testcluster.Exec(t, testcluster.Open(t, n, name, patient...), `CREATE TABLE t(v)`)
	}
	attach := func(t *testing.T, params ...string) *sql.Conn {
		k := conn(t, testcluster.Open(t, n, "one.db", patient...))
		do(t, k, fmt.Sprintf(`ATTACH '%s' AS two`, n.DSN("two.db", params...)))
		return k
	}
	t.Run("write both", func(t *testing.T) {
		k := attach(t)
		do(t, k, `BEGIN`, `INSERT INTO main.t VALUES(1)`)
		_, err := k.ExecContext(t.Context(), `INSERT INTO two.t VALUES(1)`)
		if err == nil || code(err)&0xff == int(sqlite3.ErrBusy) {
			t.Errorf("second database: got %v, want a refusal that a busy handler does not repeat", err)
		}
		do(t, k, `ROLLBACK`)
	})
	t.Run("BEGIN IMMEDIATE", func(t *testing.T) {
		k := attach(t)
		if _, err := k.ExecContext(t.Context(), `BEGIN IMMEDIATE`); err == nil {
			t.Error("BEGIN IMMEDIATE took two replicated databases")
		}
	})
	t.Run("read one, write the other", func(t *testing.T) {
		k := attach(t)
		do(t, k, `BEGIN`, `INSERT INTO main.t SELECT count(*) FROM two.t`, `COMMIT`)
		do(t, k, `INSERT INTO two.t VALUES(5)`)
	})
	t.Run("BEGIN IMMEDIATE with the second read-only", func(t *testing.T) {
		k := attach(t, "mode=ro")
		do(t, k, `BEGIN IMMEDIATE`, `INSERT INTO main.t SELECT count(*) FROM two.t`, `COMMIT`)
	})
}

// A writer that comes back at once keeps its lock, and does not keep it: when it pauses, others get it without being told
// to wait. RULES B1.
func TestAKeptLockIsGivenBack(t *testing.T) {
	c := testcluster.Start(t, localcluster.Options{})
	ctx := testcluster.Context(t, time.Minute)
	nodes := testcluster.LeaderFirst(t, c)
	var dbs []*sql.DB
	for _, n := range []int{0, 1, 1, 2} { // two on one node
		dbs = append(dbs, testcluster.Open(t, nodes[n], "kept.db", "_busy_timeout=0", "_synchronous=FULL"))
	}
	insist(ctx, t, dbs[0], `CREATE TABLE t(v)`)
	for round := range 5 {
		for i, db := range dbs {
			for range 10 {
				insist(ctx, t, db, `INSERT INTO t VALUES(?)`, 10*round+i)
			}
		}
	}
	if got := testcluster.Query(t, dbs[3], `SELECT count(*) FROM t`); got != "200" {
		t.Errorf("%s rows, want 200", got)
	}
	testcluster.Converged(t, c, "kept.db")
}
