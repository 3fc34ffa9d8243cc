package main

import (
	"context"
	"fmt"
	"time"

	"github.com/uglyer/ha-sqlite/internal/localcluster"
)

const (
	idleStart  = "start of a node with many idle databases"
	idleMemory = "resident memory of that node"
)

// idles creates many databases, lets them be, and starts a node that has them.
func idles(ctx context.Context, r *Report, c *localcluster.Cluster, count int) error {
	leader, err := c.WaitLeader(ctx)
	if err != nil {
		return err
	}
	for i := range count {
		db := openOne(leader.DSN(fmt.Sprintf("idle/%d.db", i), "_synchronous=FULL&_busy_timeout=10000"))
		_, err := db.ExecContext(ctx, `CREATE TABLE work(id INTEGER PRIMARY KEY, payload TEXT)`)
		if cerr := db.Close(); err == nil {
			err = cerr
		}
		if err != nil {
			return fmt.Errorf("create database %d of %d: %w", i, count, err)
		}
	}
	f, err := c.Follower(ctx)
	if err != nil {
		return err
	}
	for range 5 {
		if err := f.Shutdown(ctx); err != nil {
			return err
		}
		begun := time.Now()
		if err := f.Start(); err != nil {
			return err
		}
		if err := f.WaitReady(ctx); err != nil {
			return err
		}
		r.add(idleStart, "s", time.Since(begun).Seconds())
		bytes, err := resident(f.Process().PID())
		if err != nil {
			return err
		}
		r.add(idleMemory, "MiB", float64(bytes)/(1<<20))
	}
	r.Rows = append(r.Rows,
		Row{Name: fmt.Sprintf("%d idle databases: start of a node", count), Value: r.measure(idleStart).Median, Unit: "s", Want: 3, Most: true},
		Row{Name: fmt.Sprintf("%d idle databases: resident memory", count), Value: r.measure(idleMemory).Median, Unit: "MiB", Want: 200, Most: true})
	return nil
}
