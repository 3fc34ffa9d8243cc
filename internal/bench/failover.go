package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/mattn/go-sqlite3"

	"github.com/uglyer/ha-sqlite/internal/localcluster"
)

const failoverTime = "failover: kill -9 of the leader to the first acknowledged commit"

// failovers kills the leader again and again, and measures how long a writer on a surviving node waits for its next commit.
func failovers(ctx context.Context, r *Report, c *localcluster.Cluster, count int) error {
	for i := range count {
		took, err := failover(ctx, c, i)
		if err != nil {
			return fmt.Errorf("failover %d: %w", i+1, err)
		}
		r.add(failoverTime, "ms", float64(took.Microseconds())/1000)
	}
	m := r.measure(failoverTime)
	r.Rows = append(r.Rows,
		Row{Name: fmt.Sprintf("failover, median of %d", count), Value: m.Median / 1000, Unit: "s", Want: 1, Most: true},
		Row{Name: fmt.Sprintf("failover, worst of %d", count), Value: slices.Max(m.Rounds) / 1000, Unit: "s", Want: 2, Most: true})
	return nil
}

func failover(ctx context.Context, c *localcluster.Cluster, number int) (took time.Duration, err error) {
	leader, err := c.WaitLeader(ctx)
	if err != nil {
		return 0, err
	}
	// Both surviving nodes take their turn as the writer's.
	var alive []*localcluster.Node
	for _, n := range c.Nodes() {
		if n != leader {
			alive = append(alive, n)
		}
	}
	db := openOne(alive[number%len(alive)].DSN("failover.db", "_synchronous=FULL&_busy_timeout=10000"))
	defer func() { err = errors.Join(err, db.Close()) }()
	if _, err := db.ExecContext(ctx, `CREATE TABLE IF NOT EXISTS work(id INTEGER PRIMARY KEY, payload TEXT)`); err != nil {
		return 0, fmt.Errorf("prepare: %w", err)
	}
	for range 50 { // it is in the middle of its work
		if _, err := db.ExecContext(ctx, insertRow); err != nil {
			return 0, fmt.Errorf("before the kill: %w", err)
		}
	}
	begun := time.Now()
	if err := leader.Kill(); err != nil {
		return 0, err
	}
	if err := insertAgain(ctx, db); err != nil {
		return 0, err
	}
	took = time.Since(begun)
	if err := leader.Start(); err != nil {
		return 0, err
	}
	if err := leader.WaitReady(ctx); err != nil {
		return 0, err
	}
	_, err = c.WaitConverged(ctx, "failover.db")
	return took, err
}

// insertAgain does what a program does: where SQLite says busy although its busy handler has waited, it begins again.
func insertAgain(ctx context.Context, db *sql.DB) error {
	for {
		_, err := db.ExecContext(ctx, insertRow)
		var e sqlite3.Error
		if err == nil || ctx.Err() != nil || !errors.As(err, &e) || e.Code != sqlite3.ErrBusy {
			return err
		}
	}
}
