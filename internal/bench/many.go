package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/uglyer/ha-sqlite/internal/localcluster"
)

// Names of the measures with many databases.
const (
	manyCommits = "1-row transactions, a writer on each of many databases"
	manyCPU     = "CPU of nodes and application per such transaction"
	manyBusy    = "processors busy meanwhile"
)

// manyWriters writes to many databases of one node at once.
type manyWriters struct {
	cluster *localcluster.Cluster
	dbs     []*sql.DB
}

func openMany(ctx context.Context, cluster *localcluster.Cluster, node *localcluster.Node, count int) (*manyWriters, error) {
	m := &manyWriters{cluster: cluster}
	for i := range count {
		db := openOne(node.DSN(fmt.Sprintf("many/%d.db", i), "_synchronous=FULL&_busy_timeout=10000"))
		m.dbs = append(m.dbs, db)
		if _, err := db.ExecContext(ctx, `CREATE TABLE IF NOT EXISTS work(id INTEGER PRIMARY KEY, payload TEXT)`); err != nil {
			return nil, errors.Join(fmt.Errorf("prepare database %d of many: %w", i, err), m.close())
		}
	}
	return m, nil
}

func (m *manyWriters) close() error {
	var errs []error
	for _, db := range m.dbs {
		errs = append(errs, db.Close())
	}
	return errors.Join(errs...)
}

// write has every database written to until more says that it is enough, and returns the transactions.
func (m *manyWriters) write(ctx context.Context, more func(written int64) bool) (int64, error) {
	var written atomic.Int64
	errs := make([]error, len(m.dbs))
	var wg sync.WaitGroup
	for i, db := range m.dbs {
		wg.Go(func() {
			stmt, err := db.PrepareContext(ctx, insertRow)
			if err != nil {
				errs[i] = err
				return
			}
			defer stmt.Close()
			for ctx.Err() == nil && more(written.Load()) {
				if _, err := stmt.Exec(); err != nil {
					errs[i] = err
					return
				}
				written.Add(1)
			}
		})
	}
	wg.Wait()
	return written.Load(), errors.Join(append(errs, ctx.Err())...)
}

func (m *manyWriters) round(ctx context.Context, r *Report, length time.Duration) error {
	used, err := clusterCPU(m.cluster)
	if err != nil {
		return err
	}
	busy, total, err := machineCPU()
	if err != nil {
		return err
	}
	begun := time.Now()
	written, err := m.write(ctx, func(int64) bool { return time.Since(begun) < length })
	if err != nil {
		return fmt.Errorf("%s: %w", manyCommits, err)
	}
	took := time.Since(begun)
	used2, err := clusterCPU(m.cluster)
	if err != nil {
		return err
	}
	busy2, total2, err := machineCPU()
	if err != nil {
		return err
	}
	r.add(manyCommits, "1/s", float64(written)/took.Seconds())
	r.add(manyCPU, "µs", float64((used2-used).Microseconds())/float64(written))
	r.add(manyBusy, "%", 100*float64(busy2-busy)/float64(total2-total))
	return nil
}

// manyRow compares many writers with one. Where one is fast, the processors end before four times that: then they must be
// used up, and well.
func (b *bench) manyRow(r *Report) {
	cpu, busy := r.measure(manyCPU).Median, r.measure(manyBusy).Median
	r.ratio(fmt.Sprintf("1-row transactions: %d databases / one", len(b.many.dbs)), manyCommits, commitLeader, 4)
	row := &r.Rows[len(r.Rows)-1]
	row.Instead = row.Value < row.Want && busy >= 95 && cpu <= 250
	row.Note = fmt.Sprintf("%.0f µs of CPU per transaction over all processes, processors %.0f %% busy (≤ 250 µs at ≥ 95 %% counts as well)", cpu, busy)
}
