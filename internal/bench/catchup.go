package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/uglyer/ha-sqlite/internal/localcluster"
)

// Names of the measures of a follower that was away.
const (
	catchupOne  = "catch-up of a follower, 1-row transactions"
	catchupMany = "catch-up of a follower, 1-row transactions, many databases"
	catchupBulk = "catch-up of a follower, bulk"
	bulkDisk    = "the disk: one file of as much, written and synced"
)

// catchups stops a follower, writes meanwhile, and measures from the start of its process until its files show everything.
func catchups(ctx context.Context, r *Report, c *localcluster.Cluster, o options) error {
	if o.catchup > 0 {
		if err := smallCatchups(ctx, r, c, catchupOne, 1, o, 20000); err != nil {
			return err
		}
		if o.databases > 1 {
			if err := smallCatchups(ctx, r, c, catchupMany, o.databases, o, 0); err != nil {
				return err
			}
		}
	}
	if o.bulk > 0 {
		return bulkCatchups(ctx, r, c, o)
	}
	return nil
}

// smallCatchups measures as many rounds as all else of transactions of one row, a writer to each database.
func smallCatchups(ctx context.Context, r *Report, c *localcluster.Cluster, name string, databases int, o options, want float64) error {
	for range o.rounds {
		if err := smallCatchup(ctx, r, c, name, databases, o.catchup); err != nil {
			return err
		}
	}
	r.Rows = append(r.Rows, Row{
		Name: name, Value: r.measure(name).Median, Unit: "1/s", Want: want,
		Note: fmt.Sprintf("%d transactions in %d databases, from the start of the process", o.catchup, databases),
	})
	return nil
}

func smallCatchup(ctx context.Context, r *Report, c *localcluster.Cluster, name string, databases, transactions int) error {
	leader, err := c.WaitLeader(ctx)
	if err != nil {
		return err
	}
	m, err := openMany(ctx, c, leader, databases)
	if err != nil {
		return err
	}
	names := make([]string, len(m.dbs))
	for i := range names {
		names[i] = fmt.Sprintf("many/%d.db", i)
	}
	took, err := catchup(ctx, c, names, func() error {
		_, err := m.write(ctx, func(written int64) bool { return written < int64(transactions) })
		return err
	})
	if err := errors.Join(err, m.close()); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	r.add(name, "1/s", float64(transactions)/took.Seconds())
	return nil
}

// bulkCatchups measures as many rounds as all else, each with a database of its own, and the disk beside each.
func bulkCatchups(ctx context.Context, r *Report, c *localcluster.Cluster, o options) error {
	megabytes := float64(o.bulk) * 1.048576
	for round := range o.rounds {
		name := fmt.Sprintf("bulk-%d.db", round)
		took, err := bulkCatchup(ctx, c, name, o.bulk)
		if err != nil {
			return fmt.Errorf("%s: %w", catchupBulk, err)
		}
		r.add(catchupBulk, "MB/s", megabytes/took.Seconds())
		if took, err = diskWrite(c.Dir, o.bulk); err != nil {
			return fmt.Errorf("%s: %w", bulkDisk, err)
		}
		r.add(bulkDisk, "MB/s", megabytes/took.Seconds())
		leader, err := c.WaitLeader(ctx)
		if err != nil {
			return err
		}
		if err := leader.Call(ctx, "DELETE", "/v1/databases/"+name+"?force=true", nil, nil); err != nil {
			return fmt.Errorf("delete %s: %w", name, err)
		}
	}
	r.Rows = append(r.Rows, Row{
		Name: catchupBulk, Value: r.measure(catchupBulk).Median, Unit: "MB/s", Want: 200,
		Note: fmt.Sprintf("%d MiB in one database, from the start of the process; the disk takes %.0f MB/s", o.bulk, r.measure(bulkDisk).Median),
	})
	return nil
}

// diskWrite is one file written from its beginning to its end, and synced: the least that as much can take.
func diskWrite(dir string, mebibytes int) (took time.Duration, err error) {
	f, err := os.Create(filepath.Join(dir, "disk"))
	if err != nil {
		return 0, fmt.Errorf("create the file: %w", err)
	}
	defer func() { err = errors.Join(err, f.Close(), os.Remove(f.Name())) }()
	data := make([]byte, 1<<20)
	for i := range data {
		data[i] = byte(i * i >> 8)
	}
	begun := time.Now()
	for range mebibytes {
		if _, err := f.Write(data); err != nil {
			return 0, fmt.Errorf("write the file: %w", err)
		}
	}
	if err := f.Sync(); err != nil {
		return 0, fmt.Errorf("sync the file: %w", err)
	}
	return time.Since(begun), nil
}

func bulkCatchup(ctx context.Context, c *localcluster.Cluster, name string, mebibytes int) (took time.Duration, err error) {
	leader, err := c.WaitLeader(ctx)
	if err != nil {
		return 0, err
	}
	db := openOne(leader.DSN(name, "_synchronous=FULL&_busy_timeout=10000"))
	defer func() { err = errors.Join(err, db.Close()) }()
	if _, err := db.ExecContext(ctx, `CREATE TABLE item(id INTEGER PRIMARY KEY, payload BLOB)`); err != nil {
		return 0, fmt.Errorf("prepare: %w", err)
	}
	if _, err := c.WaitConverged(ctx, name); err != nil {
		return 0, err
	}
	const step = 4
	return catchup(ctx, c, []string{name}, func() error {
		for done := 0; done < mebibytes; done += step {
			// Pages that no compression makes smaller, eight rows each.
			_, err := db.ExecContext(ctx, `WITH RECURSIVE c(i) AS (VALUES(1) UNION ALL SELECT i + 1 FROM c WHERE i < ?)
				INSERT INTO item(payload) SELECT randomblob(500) FROM c`, step*256*8)
			if err != nil {
				return fmt.Errorf("write: %w", err)
			}
		}
		return nil
	})
}

func catchup(ctx context.Context, c *localcluster.Cluster, names []string, write func() error) (time.Duration, error) {
	f, err := c.Follower(ctx)
	if err != nil {
		return 0, err
	}
	if err := f.Shutdown(ctx); err != nil {
		return 0, err
	}
	if err := write(); err != nil {
		return 0, err
	}
	leader, err := c.WaitLeader(ctx)
	if err != nil {
		return 0, err
	}
	want, err := positions(ctx, leader, names)
	if err != nil {
		return 0, err
	}
	begun := time.Now()
	if err := f.Start(); err != nil {
		return 0, err
	}
	err = localcluster.Poll(ctx, 25*time.Millisecond, func() (bool, error) { // the answer costs the node some milliseconds
		got, err := positions(ctx, f, names)
		if err != nil {
			return false, err
		}
		for i := range want {
			if got[i] != want[i] {
				return false, fmt.Errorf("%s is at %v of %v", names[i], got[i], want[i])
			}
		}
		return true, nil
	})
	return time.Since(begun), err
}

// positions are what a node's files show.
func positions(ctx context.Context, n *localcluster.Node, names []string) ([]localcluster.Position, error) {
	s, err := n.Status(ctx)
	if err != nil {
		return nil, err
	}
	all := make(map[string]localcluster.Position, len(s.Databases))
	for _, d := range s.Databases {
		all[d.Name] = d.File
	}
	out := make([]localcluster.Position, len(names))
	for i, name := range names {
		p, ok := all[name]
		if !ok {
			return nil, fmt.Errorf("%s: no database %s", n.ID, name)
		}
		out[i] = p
	}
	return out, nil
}
