package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/uglyer/ha-sqlite/internal/localcluster"
	"github.com/uglyer/ha-sqlite/snapshot/store/storetest"
)

// The kinds of archives that are compared.
var archiveKinds = []string{"none", "in files of each node", "in S3"}

const (
	archiveWarmUp = 1500 * time.Millisecond // an upload is under way when the time begins
	archiveIdle   = 1000                    // databases that are idle
	archiveBusy   = 16                      // databases with a writer each, at most
)

func archiveMeasure(kind string, writers int) string {
	return fmt.Sprintf("1-row transactions, %d writers, archive %s", writers, kind)
}

// archived is a cluster with an archive of a kind.
type archived struct {
	kind    string
	cluster *localcluster.Cluster
	one     *sql.DB
	many    *manyWriters
}

func (a *archived) close() error {
	var errs []error
	if a.one != nil {
		errs = append(errs, a.one.Close())
	}
	if a.many != nil {
		errs = append(errs, a.many.close())
	}
	if a.cluster != nil {
		errs = append(errs, a.cluster.Close())
	}
	return errors.Join(errs...)
}

// archives compares the throughput of writers with and without an archive, and counts the requests of idle databases.
// The S3 server runs on the same machine and takes its processors too.
func archives(ctx context.Context, r *Report, dir string, o options) (err error) {
	for name, value := range storetest.Environment(dir) {
		if err := os.Setenv(name, value); err != nil {
			return err
		}
	}
	server, err := storetest.NewServer(filepath.Join(dir, "s3"))
	if err != nil {
		return err
	}
	if err := server.Launch(); err != nil {
		return err
	}
	defer server.Stop()
	busy := min(archiveBusy, o.databases)
	var all []*archived
	defer func() {
		for _, a := range all {
			err = errors.Join(err, a.close())
		}
	}()
	for i, url := range []string{"none", "", server.URL("throughput")} {
		args := []string{"--raft-log", o.raftLog}
		if url != "" {
			args = append(args, "--archive", url)
		}
		a := &archived{kind: archiveKinds[i]}
		all = append(all, a)
		if a.cluster, err = localcluster.Start(ctx, localcluster.Options{Command: []string{o.node}, Dir: filepath.Join(dir, fmt.Sprint("archive", i)), Args: args}); err != nil {
			return err
		}
		leader, err := a.cluster.WaitLeader(ctx)
		if err != nil {
			return err
		}
		a.one = openOne(leader.DSN(database, "_synchronous=FULL&_busy_timeout=10000"))
		if _, err := a.one.ExecContext(ctx, `CREATE TABLE work(id INTEGER PRIMARY KEY, payload TEXT)`); err != nil {
			return err
		}
		if a.many, err = openMany(ctx, a.cluster, leader, busy); err != nil {
			return err
		}
	}
	for round := range o.rounds {
		for i := range all {
			a := all[(round+i)%len(all)]
			one := &manyWriters{cluster: a.cluster, dbs: []*sql.DB{a.one}}
			for _, w := range []*manyWriters{one, a.many} {
				if len(w.dbs) == 0 {
					continue
				}
				if err := a.round(ctx, r, w, o.many); err != nil {
					return err
				}
			}
		}
	}
	for _, writers := range []int{1, busy} {
		for _, kind := range archiveKinds[1:] {
			if writers > 0 {
				r.paired(fmt.Sprintf("write throughput, %d writers: archive %s / none", writers, kind), archiveMeasure(kind, writers), archiveMeasure("none", writers), 0.9)
			}
		}
	}
	return idleRequests(ctx, r, filepath.Join(dir, "requests"), server, o)
}

// round writes for a time, and then waits until all of it is archived, so that the next one is not burdened with it.
func (a *archived) round(ctx context.Context, r *Report, w *manyWriters, length time.Duration) error {
	until := time.Now().Add(archiveWarmUp)
	if _, err := w.write(ctx, func(int64) bool { return time.Now().Before(until) }); err != nil {
		return err
	}
	used, err := clusterCPU(a.cluster)
	if err != nil {
		return err
	}
	begun := time.Now()
	until = begun.Add(length)
	n, err := w.write(ctx, func(int64) bool { return time.Now().Before(until) })
	if err != nil {
		return err
	}
	now, err := clusterCPU(a.cluster)
	if err != nil {
		return err
	}
	r.add("CPU per such transaction, "+fmt.Sprintf("%d writers, archive %s", len(w.dbs), a.kind), "µs", float64((now-used).Microseconds())/float64(n))
	r.add(archiveMeasure(a.kind, len(w.dbs)), "1/s", float64(n)/time.Since(begun).Seconds())
	begun = time.Now()
	if err := a.wait(ctx); err != nil {
		return err
	}
	if a.kind != archiveKinds[0] {
		r.add(fmt.Sprintf("until all is archived, %d writers, %s", len(w.dbs), a.kind), "s", time.Since(begun).Seconds())
	}
	return nil
}

// wait waits until nothing lags on any node.
func (a *archived) wait(ctx context.Context) error {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		done := true
		for _, st := range a.cluster.Statuses(ctx) {
			done = done && st != nil && st.Archive.Lagging == 0
		}
		if done {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// idleRequests counts what a store is asked for databases that nobody writes, once their last commits are merged.
func idleRequests(ctx context.Context, r *Report, dir string, server *storetest.Server, o options) (err error) {
	proxy, err := storetest.NewProxy(server.Endpoint)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, proxy.Close()) }()
	c, err := localcluster.Start(ctx, localcluster.Options{Command: []string{o.node}, Dir: dir, Args: []string{
		"--raft-log", o.raftLog, "--archive", server.URLAt(proxy.Endpoint, "idle"), "--archive-levels", "1s,1s,1s",
	}})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	leader, err := c.WaitLeader(ctx)
	if err != nil {
		return err
	}
	a := &archived{cluster: c}
	made := 0
	for _, count := range []int{1, archiveIdle} {
		for ; made < count; made++ {
			db := openOne(leader.DSN(fmt.Sprintf("idle/%d.db", made), "_synchronous=FULL&_busy_timeout=10000"))
			_, err := db.ExecContext(ctx, `CREATE TABLE work(id INTEGER PRIMARY KEY, payload TEXT)`)
			if err = errors.Join(err, db.Close()); err != nil {
				return err
			}
		}
		if err := a.wait(ctx); err != nil {
			return err
		}
		// The last windows close; then nothing may come.
		last, quiet := proxy.Requests(), time.Now()
		tick := time.NewTicker(100 * time.Millisecond)
		for begun := time.Now(); time.Since(quiet) < 10*time.Second && time.Since(begun) < 3*time.Minute && ctx.Err() == nil; <-tick.C {
			if n := proxy.Requests(); n != last {
				last, quiet = n, time.Now()
			}
		}
		before := proxy.Requests()
		for begun := time.Now(); time.Since(begun) < 10*time.Second && ctx.Err() == nil; {
			<-tick.C
		}
		tick.Stop()
		r.Rows = append(r.Rows, Row{
			Name: fmt.Sprintf("requests to S3 for %d idle databases", count), Value: float64(proxy.Requests()-before) * 360, Unit: "1/h", Want: 0.5, Most: true,
		})
	}
	return ctx.Err()
}
