package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/hashicorp/raft"
	"golang.org/x/sys/unix"

	"github.com/uglyer/ha-sqlite/internal/localcluster"
	"github.com/uglyer/ha-sqlite/replicate/logstore"
	_ "github.com/uglyer/ha-sqlite/vfs" // registers the VFS "hasqlite"
)

// Names of the measures.
const (
	selectPlain    = "point SELECT, plain SQLite"
	selectVFS      = "point SELECT, VFS"
	commitLeader   = "1-row transactions on the leader"
	commitFollower = "1-row transactions on a follower"
	commitCPU      = "CPU of nodes and application per such transaction, one writer"
	commitPlain    = "1-row transactions, plain SQLite"
	rowsLeader     = "rows in transactions of 100 on the leader"
	rqliteOne      = "1-row inserts, rqlite"
	rqliteRows     = "rows in batches of 100, rqlite"
	reference      = "R: two appends of 4 KiB with fdatasync"
	storeLogs      = "two StoreLogs of the raft log"
	p50            = ", median latency"
	p99            = ", 99th percentile"
)

const (
	blockBytes = 4096
	database   = "bench.db"
	batchRows  = 100
	// insertRow is what every writer writes, here and on rqlite.
	insertRow = `INSERT INTO work(payload) VALUES('one row of a transaction of its own')`
)

// bench is what the rounds work on.
type bench struct {
	options
	dir      string
	cluster  *localcluster.Cluster
	plainURI string
	vfsURI   string
	leader   *sql.DB
	follower *sql.DB
	plain    *sql.DB
	log      *logstore.Store
	logIndex uint64
	growing  *os.File
	many     *manyWriters // nil: left out
	rqlite   *rqlite      // nil: left out
}

// prepare makes the tables on both sides and opens everything.
func prepare(ctx context.Context, dir string, cluster *localcluster.Cluster, o options) (b *bench, err error) {
	leader, err := cluster.WaitLeader(ctx)
	if err != nil {
		return nil, err
	}
	follower, err := cluster.Follower(ctx)
	if err != nil {
		return nil, err
	}
	b = &bench{
		options: o, dir: dir, cluster: cluster,
		plainURI: "file:" + filepath.Join(dir, "plain.db"),
		vfsURI:   leader.DSN(database),
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, b.close())
		}
	}()
	const params = "_journal_mode=WAL&_synchronous=FULL&_busy_timeout=10000"
	b.plain = openOne(b.plainURI + "?" + params)
	b.leader = openOne(leader.DSN(database, params))
	b.follower = openOne(follower.DSN(database, params))
	for _, db := range []*sql.DB{b.plain, b.leader} {
		if err := fill(ctx, db, o.rows); err != nil {
			return nil, err
		}
	}
	// As the node does by itself: later reads find the pages in the database file.
	if _, err := b.plain.ExecContext(ctx, "PRAGMA wal_checkpoint(PASSIVE)"); err != nil {
		return nil, fmt.Errorf("checkpoint the plain database: %w", err)
	}
	if _, err := cluster.WaitConverged(ctx, database); err != nil {
		return nil, err
	}
	if b.log, err = logstore.Open(filepath.Join(dir, "raft"), logstore.Kind(o.raftLog), logstore.Options{}); err != nil {
		return nil, err
	}
	if b.growing, err = os.Create(filepath.Join(dir, "growing")); err != nil {
		return nil, fmt.Errorf("create the reference file: %w", err)
	}
	if o.databases > 0 {
		if b.many, err = openMany(ctx, cluster, leader, o.databases); err != nil {
			return nil, err
		}
	}
	if o.rqlited != "" {
		if b.rqlite, err = startRqlite(ctx, o.rqlited, filepath.Join(dir, "rqlite")); err != nil {
			return nil, err
		}
	}
	return b, nil
}

func openOne(dsn string) *sql.DB {
	db, err := sql.Open("sqlite3", dsn)
	if err != nil {
		panic(fmt.Sprintf("the driver is linked in: %v", err)) // sql.Open fails only for an unknown driver
	}
	db.SetMaxOpenConns(1)
	return db
}

// fill makes the table to select from, in transactions of a size that every node takes, and the table to write to.
func fill(ctx context.Context, db *sql.DB, rows int) error {
	if _, err := db.ExecContext(ctx, `CREATE TABLE item(id INTEGER PRIMARY KEY, payload BLOB);
		CREATE TABLE work(id INTEGER PRIMARY KEY, payload TEXT)`); err != nil {
		return fmt.Errorf("create tables: %w", err)
	}
	const step = 5000
	for from := 1; from <= rows; from += step {
		_, err := db.ExecContext(ctx, `WITH RECURSIVE c(i) AS (VALUES(?) UNION ALL SELECT i + 1 FROM c WHERE i < ?)
			INSERT INTO item SELECT i, zeroblob(100) FROM c`, from, min(from+step-1, rows))
		if err != nil {
			return fmt.Errorf("fill the table: %w", err)
		}
	}
	return nil
}

func (b *bench) close() error {
	var errs []error
	for _, db := range []*sql.DB{b.plain, b.leader, b.follower} {
		if db != nil {
			errs = append(errs, db.Close())
		}
	}
	if b.log != nil {
		errs = append(errs, b.log.Close())
	}
	if b.growing != nil {
		errs = append(errs, b.growing.Close())
	}
	if b.many != nil {
		errs = append(errs, b.many.close())
	}
	if b.rqlite != nil {
		errs = append(errs, b.rqlite.close())
	}
	return errors.Join(errs...)
}

// round measures everything once. Every other round goes the other way, so that a machine that gets slower or faster
// favours no side.
func (b *bench) round(ctx context.Context, r *Report, number uint32) error {
	steps := []func() error{
		func() error { return b.selectRound(r, number) },
		func() error { return b.referenceRound(r) },
		func() error { return b.leaderRound(ctx, r) },
		func() error { return b.commitRound(ctx, r, commitFollower, b.follower) },
		func() error { return b.storeRound(r) },
		func() error { return b.commitRound(ctx, r, commitPlain, b.plain) },
		func() error { return b.batchRound(ctx, r) },
	}
	if b.rqlite != nil {
		steps = append(steps,
			func() error {
				return timed(r, rqliteOne, max(b.commits/4, 1), func() error { return b.rqlite.execute(ctx, 1) })
			},
			func() error { return b.rqlite.batches(ctx, r, max(b.commits/50, 1)) })
	}
	if b.many != nil {
		steps = append(steps, func() error { return b.many.round(ctx, r, b.options.many) })
	}
	if number%2 == 1 {
		slices.Reverse(steps)
	}
	for _, step := range steps {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

// selectRound takes turns between both sides: what the machine does besides changes within a round, and the difference that
// is looked for is a few percent.
func (b *bench) selectRound(r *Report, seed uint32) error {
	const turns = 6
	sides := []struct {
		name, uri string
		cpu       time.Duration
	}{{name: selectPlain, uri: b.plainURI}, {name: selectVFS, uri: b.vfsURI}}
	for turn := range turns {
		for i := range sides {
			s := &sides[(i+turn)%len(sides)]
			cpu, err := selects(s.uri, b.rows, b.selects, seed*turns+uint32(turn))
			if err != nil {
				return err
			}
			s.cpu += cpu
		}
	}
	for _, s := range sides {
		r.add(s.name, "1/s of CPU", float64(turns*b.selects)/s.cpu.Seconds())
	}
	return nil
}

func (b *bench) commitRound(ctx context.Context, r *Report, name string, db *sql.DB) error {
	stmt, err := db.PrepareContext(ctx, insertRow)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	defer stmt.Close()
	return timed(r, name, b.commits, func() error {
		if err := ctx.Err(); err != nil {
			return err
		}
		_, err := stmt.Exec() // with a context the driver starts a goroutine for each statement
		return err
	})
}

// leaderRound also says what a transaction costs in processor time.
func (b *bench) leaderRound(ctx context.Context, r *Report) error {
	used, err := clusterCPU(b.cluster)
	if err != nil {
		return err
	}
	if err := b.commitRound(ctx, r, commitLeader, b.leader); err != nil {
		return err
	}
	now, err := clusterCPU(b.cluster)
	if err != nil {
		return err
	}
	r.add(commitCPU, "µs", float64((now-used).Microseconds())/float64(b.commits))
	return nil
}

// batchRound writes transactions of many rows on the leader.
func (b *bench) batchRound(ctx context.Context, r *Report) error {
	stmt, err := b.leader.PrepareContext(ctx, insertRow)
	if err != nil {
		return fmt.Errorf("%s: %w", rowsLeader, err)
	}
	defer stmt.Close()
	count := max(b.commits/10, 1)
	begun := time.Now()
	for range count {
		if err := ctx.Err(); err != nil {
			return err
		}
		tx, err := b.leader.Begin()
		if err != nil {
			return fmt.Errorf("%s: %w", rowsLeader, err)
		}
		one := tx.Stmt(stmt)
		for range batchRows {
			if _, err = one.Exec(); err != nil {
				break
			}
		}
		if err != nil {
			return fmt.Errorf("%s: %w", rowsLeader, errors.Join(err, tx.Rollback()))
		}
		if err := tx.Commit(); err != nil {
			return fmt.Errorf("%s: %w", rowsLeader, err)
		}
	}
	r.add(rowsLeader, "rows/s", float64(count*batchRows)/time.Since(begun).Seconds())
	return nil
}

// referenceRound writes what a commit cannot avoid on a single machine: two appends, one after the other, both synced.
func (b *bench) referenceRound(r *Report) error {
	block := make([]byte, blockBytes)
	return timed(r, reference, b.commits, func() error {
		for range 2 {
			if _, err := b.growing.Write(block); err != nil {
				return err
			}
			if err := unix.Fdatasync(int(b.growing.Fd())); err != nil {
				return err
			}
		}
		return nil
	})
}

// storeRound does the same with the nodes' log store.
func (b *bench) storeRound(r *Report) error {
	data := make([]byte, blockBytes)
	return timed(r, storeLogs, b.commits, func() error {
		for range 2 {
			b.logIndex++
			if err := b.log.StoreLogs([]*raft.Log{{Index: b.logIndex, Term: 1, Type: raft.LogCommand, Data: data}}); err != nil {
				return err
			}
		}
		return nil
	})
}

// timed runs something count times and records how often a second it ran, and how long one took.
func timed(r *Report, name string, count int, f func() error) error {
	took := make([]time.Duration, count)
	begun := time.Now()
	for i := range took {
		one := time.Now()
		if err := f(); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		took[i] = time.Since(one)
	}
	r.add(name, "1/s", float64(count)/time.Since(begun).Seconds())
	slices.Sort(took)
	r.add(name+p50, "µs", float64(took[count/2].Microseconds()))
	r.add(name+p99, "µs", float64(took[count*99/100].Microseconds()))
	return nil
}
