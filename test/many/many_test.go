package many

import (
	"context"
	"database/sql"
	"flag"
	"fmt"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/uglyer/ha-sqlite/internal/localcluster"
	"github.com/uglyer/ha-sqlite/internal/testcluster"
)

var (
	databases = flag.Int("databases", 300, "idle databases of TestIdleDatabasesCostLittle")
	nodes     = flag.Int("nodes", 1, "nodes of TestIdleDatabasesCostLittle")
	idleClose = flag.Duration("idle", time.Second, "after how long without use a node closes a database")
)

// What is promised for 10 000 idle databases; fewer cost less.
const (
	startLimit  = 3 * time.Second
	memoryLimit = 200 // MiB, resident
)

func TestMain(m *testing.M) { testcluster.Main(m, nil) }

func name(i int) string { return fmt.Sprintf("tenant-%03d/db-%05d", i%100, i) }

// inParallel runs f for 0 to n-1 in a few goroutines.
func inParallel(t *testing.T, n, workers int, f func(i int) error) {
	t.Helper()
	var next atomic.Int64
	var wg sync.WaitGroup
	for range workers {
		wg.Go(func() {
			for {
				i := int(next.Add(1)) - 1
				if i >= n || t.Failed() {
					return
				}
				if err := f(i); err != nil {
					t.Errorf("%s: %v", name(i), err)
				}
			}
		})
	}
	wg.Wait()
	if t.Failed() {
		t.FailNow()
	}
}

func create(ctx context.Context, n *localcluster.Node, database string) error {
	return n.Call(ctx, http.MethodPost, "/v1/databases", map[string]string{"name": database}, nil)
}

// use opens a database as an application does, runs a statement and closes it.
func use(ctx context.Context, n *localcluster.Node, database, statement string) error {
	db, err := sql.Open("sqlite3", n.DSN(database, "_busy_timeout=20000"))
	if err != nil {
		return err
	}
	defer db.Close()
	_, err = db.ExecContext(ctx, statement)
	return err
}

// openDatabases asks a node how many databases it has open.
func openDatabases(ctx context.Context, n *localcluster.Node) (open, all int, err error) {
	s, err := n.Status(ctx)
	if err != nil {
		return 0, 0, err
	}
	return s.Totals.Databases - s.Totals.States["idle"], s.Totals.Databases, nil
}

func waitIdle(ctx context.Context, t *testing.T, c *localcluster.Cluster) {
	t.Helper()
	err := localcluster.Poll(ctx, 500*time.Millisecond, func() (bool, error) {
		for _, n := range c.Nodes() {
			if open, all, err := openDatabases(ctx, n); err != nil || open > 0 {
				return false, fmt.Errorf("%s has %d of %d databases open: %v", n.ID, open, all, err)
			}
		}
		return true, nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// restart measures a node's start: until it is ready, and until an application has read from one of its databases.
func restart(ctx context.Context, t *testing.T, n *localcluster.Node, how string) {
	t.Helper()
	begun := time.Now()
	if err := n.Start(); err != nil {
		t.Fatal(err)
	}
	if err := n.WaitReady(ctx); err != nil {
		t.Fatal(err)
	}
	ready := time.Since(begun)
	if err := use(ctx, n, name(*databases/2), `SELECT count(*) FROM item`); err != nil {
		t.Fatal(err)
	}
	opened := time.Since(begun)
	c, err := measure(ctx, n)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%s, %s: ready after %v, a database opened after %v; %v", n.ID, how, ready.Round(time.Millisecond), opened.Round(time.Millisecond), c)
	if ready > startLimit {
		t.Errorf("%s was ready after %v, %v is promised", n.ID, ready, startLimit)
	}
}

func TestIdleDatabasesCostLittle(t *testing.T) {
	c := testcluster.Start(t, localcluster.Options{Nodes: *nodes, Args: []string{"--idle-close", idleClose.String()}})
	ctx := testcluster.Context(t, 20*time.Minute)
	leader, err := c.WaitLeader(ctx)
	if err != nil {
		t.Fatal(err)
	}
	begun := time.Now()
	inParallel(t, *databases, 8, func(i int) error { return create(ctx, leader, name(i)) })
	took := time.Since(begun)
	t.Logf("%d databases created in %v: %.0f/s", *databases, took.Round(time.Millisecond), float64(*databases)/took.Seconds())
	begun = time.Now()
	inParallel(t, *databases, 8, func(i int) error {
		return use(ctx, leader, name(i), `CREATE TABLE item(id INTEGER PRIMARY KEY, v TEXT); INSERT INTO item(v) VALUES('one')`)
	})
	took = time.Since(begun)
	t.Logf("each opened, written twice and closed in %v: %.0f/s", took.Round(time.Millisecond), float64(*databases)/took.Seconds())
	waitIdle(ctx, t, c)
	cost := func(when string) {
		for _, n := range c.Nodes() {
			got, err := measure(ctx, n)
			if err != nil {
				t.Fatal(err)
			}
			t.Logf("%s, %s: %v", n.ID, when, got)
			if got.residentMiB > memoryLimit {
				t.Errorf("%s has %.0f MiB resident with %d idle databases, %d are promised", n.ID, got.residentMiB, *databases, memoryLimit)
			}
		}
	}
	cost("idle")
	for _, n := range c.Nodes() {
		if err := n.Shutdown(ctx); err != nil {
			t.Fatal(err)
		}
		restart(ctx, t, n, "after a clean stop")
	}
	waitIdle(ctx, t, c)
	cost("idle after a clean stop")
	for _, n := range c.Nodes() {
		if err := n.Kill(); err != nil {
			t.Fatal(err)
		}
		restart(ctx, t, n, "after kill -9")
	}
	waitIdle(ctx, t, c)
	cost("idle after kill -9")
}
