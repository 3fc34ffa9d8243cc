package many

import (
	"context"
	"database/sql"
	"flag"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/uglyer/ha-sqlite/internal/localcluster"
	"github.com/uglyer/ha-sqlite/internal/testcluster"
)

var (
	active  = flag.Int("active", 60, "databases of TestActiveDatabasesGetTheirTurns, each open and written in turn")
	rounds  = flag.Int("rounds", 5, "transactions in each of them")
	writers = flag.Int("writers", 8, "how many of them are written at a time")
)

// fairness is how much longer than the median the writes of one database may take on average.
const fairness = 5

// All databases are open, and each is written in turn, by several at a time, from all nodes, while one more is filled
// without a pause. None waits much longer than the others, and no node falls behind.
func TestActiveDatabasesGetTheirTurns(t *testing.T) {
	c := testcluster.Start(t, localcluster.Options{})
	ctx := testcluster.Context(t, 15*time.Minute)
	leader, err := c.WaitLeader(ctx)
	if err != nil {
		t.Fatal(err)
	}
	dbs := make([]*sql.DB, *active)
	begun := time.Now()
	inParallel(t, *active, *writers, func(i int) error {
		if err := create(ctx, leader, name(i)); err != nil {
			return err
		}
		n := leader
		if i%4 == 3 { // most applications are where the leader is, some are not
			n = c.Nodes()[i%len(c.Nodes())]
		}
		db, err := sql.Open("sqlite3", n.DSN(name(i), "_busy_timeout=30000", "_synchronous=FULL"))
		if err != nil {
			return err
		}
		db.SetMaxOpenConns(1)
		dbs[i] = db
		_, err = db.ExecContext(ctx, `CREATE TABLE item(id INTEGER PRIMARY KEY, v TEXT)`)
		return err
	})
	t.Cleanup(func() {
		for _, db := range dbs {
			_ = db.Close() // what a connection has to say at its end is no part of the test
		}
	})
	t.Logf("%d databases created and opened in %v", *active, time.Since(begun).Round(time.Millisecond))

	stop := fill(ctx, t, leader)
	waits := make([][]time.Duration, *active)
	begun = time.Now()
	inParallel(t, *active**rounds, *writers, func(k int) error {
		i := k % *active
		one := time.Now()
		_, err := dbs[i].ExecContext(ctx, `INSERT INTO item(v) VALUES('a row of a transaction of its own')`)
		waits[i] = append(waits[i], time.Since(one))
		return err
	})
	took := time.Since(begun)
	bulk := stop()

	var all, means []time.Duration
	for _, w := range waits {
		var sum time.Duration
		for _, d := range w {
			sum += d
		}
		all, means = append(all, w...), append(means, sum/time.Duration(len(w)))
	}
	slices.Sort(all)
	slices.Sort(means)
	t.Logf("%d transactions in %d databases, %d at a time: %.0f/s; wait median %v, 99%% %v, most %v; beside %d transactions of 100 rows in one more",
		len(all), *active, *writers, float64(len(all))/took.Seconds(), all[len(all)/2].Round(time.Microsecond),
		all[len(all)*99/100].Round(time.Microsecond), all[len(all)-1].Round(time.Microsecond), bulk)
	if median, worst := means[len(means)/2], means[len(means)-1]; worst > fairness*median {
		t.Errorf("one database waits %v for a write on average, the median is %v", worst, median)
	}
	begun = time.Now()
	for _, n := range c.Nodes() {
		err := localcluster.Poll(ctx, 50*time.Millisecond, func() (bool, error) {
			s, err := n.Status(ctx)
			if err != nil {
				return false, err
			}
			return s.Totals.Lag == 0, fmt.Errorf("%s is %d transactions behind with one database, states %v", n.ID, s.Totals.Lag, s.Totals.States)
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("all nodes had applied everything %v later", time.Since(begun).Round(time.Millisecond))
	for _, n := range c.Nodes() {
		got, err := measure(ctx, n)
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("%s: %v", n.ID, got)
	}
	for i := 0; i < *active; i += max(1, *active/20) {
		if err := localcluster.Poll(ctx, 20*time.Millisecond, func() (bool, error) {
			_, err := leader.Verify(ctx, name(i), true)
			return err == nil, err
		}); err != nil {
			t.Error(err)
		}
	}
}

// fill writes one database as fast as it takes, until stop is called, which returns how many transactions those were.
func fill(ctx context.Context, t *testing.T, n *localcluster.Node) (stop func() int) {
	t.Helper()
	db := testcluster.Open(t, n, "bulk.db", "_busy_timeout=30000", "_synchronous=FULL")
	testcluster.Exec(t, db, `CREATE TABLE item(id INTEGER PRIMARY KEY, v BLOB)`)
	ctx, cancel := context.WithCancel(ctx)
	count := 0
	var wg sync.WaitGroup
	wg.Go(func() {
		for ctx.Err() == nil {
			_, err := db.ExecContext(context.WithoutCancel(ctx), `WITH RECURSIVE c(i) AS (VALUES(1) UNION ALL SELECT i + 1 FROM c WHERE i < 100)
				INSERT INTO item(v) SELECT randomblob(1000) FROM c`)
			if err != nil {
				t.Errorf("fill bulk.db: %v", err)
				return
			}
			count++
		}
	})
	return func() int {
		cancel()
		wg.Wait()
		return count
	}
}
