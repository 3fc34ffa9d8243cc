package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"syscall"
	"time"

	"github.com/uglyer/ha-sqlite/internal/localcluster"
)

// options are the flags.
type options struct {
	rounds    int
	commits   int
	selects   int
	rows      int
	databases int
	many      time.Duration
	failovers int
	catchup   int
	bulk      int
	idle      int
	restore   int
	compare   bool
	archive   bool
	dir       string
	node      string
	raftLog   string
	json      string
	rqlited   string
}

func main() {
	var o options
	flag.BoolVar(&o.compare, "compare", true, "compare with plain SQLite, and with -rqlited")
	flag.IntVar(&o.rounds, "rounds", 5, "interleaved `rounds`")
	flag.IntVar(&o.commits, "commits", 2000, "transactions in a round, on the leader and on a follower each")
	flag.IntVar(&o.selects, "selects", 300000, "point SELECTs in a turn, with and without the VFS each")
	flag.IntVar(&o.rows, "rows", 100_000, "rows of the table that is selected from")
	flag.IntVar(&o.databases, "databases", 64, "databases with a writer each; 0 leaves that out")
	flag.DurationVar(&o.many, "many", 3*time.Second, "`time` of a round with that many writers")
	flag.IntVar(&o.failovers, "failovers", 20, "how often the leader is killed")
	flag.IntVar(&o.catchup, "catchup", 30000, "transactions of one row that a stopped follower misses; 0 leaves that out")
	flag.IntVar(&o.bulk, "bulk", 400, "`MiB` that a stopped follower misses; 0 leaves that out")
	flag.IntVar(&o.idle, "idle", 10000, "idle databases that a node starts with; 0 leaves it out")
	flag.IntVar(&o.restore, "restore", 1024, "`MiB` of a database that is restored; 0 leaves that out")
	flag.BoolVar(&o.archive, "archive", true, "compare writers with and without an archive")
	flag.StringVar(&o.dir, "dir", os.TempDir(), "`directory` on the file system to measure on")
	flag.StringVar(&o.node, "node", "", "hasqlite-node `binary`; empty builds it")
	flag.StringVar(&o.raftLog, "raft-log", "wal", "log `store` of the nodes: wal or boltdb")
	flag.StringVar(&o.json, "json", "", "write the report as JSON to this `file` too, - for standard output instead of the tables")
	flag.StringVar(&o.rqlited, "rqlited", os.Getenv("RQLITED"), "rqlited `binary` to compare with, $RQLITED; empty leaves that out")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Stdout, o)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, out io.Writer, o options) (err error) {
	if o.rounds < 1 || o.commits < 1 || o.selects < 1 || o.rows < 1 {
		return errors.New("-rounds, -commits, -selects and -rows must be at least 1")
	}
	dir, err := os.MkdirTemp(o.dir, "hasqlite-bench-")
	if err != nil {
		return fmt.Errorf("make directory: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	if o.node == "" {
		o.node = filepath.Join(dir, "hasqlite-node")
		build := exec.CommandContext(ctx, "go", "build", "-o", o.node, "github.com/uglyer/ha-sqlite/cmd/hasqlite-node")
		if text, err := build.CombinedOutput(); err != nil {
			return fmt.Errorf("build the node: %w\n%s", err, text)
		}
	}
	r := &Report{
		Machine: fmt.Sprintf("%s/%s, %d processors, raft log %s", runtime.GOOS, runtime.GOARCH, runtime.NumCPU(), o.raftLog),
		Rounds:  o.rounds,
	}
	if err := measure(ctx, r, dir, o); err != nil {
		return err
	}
	if o.json == "-" {
		return r.writeJSON(out)
	}
	if o.json != "" {
		f, err := os.Create(o.json)
		if err != nil {
			return fmt.Errorf("create the report: %w", err)
		}
		if err := errors.Join(r.writeJSON(f), f.Close()); err != nil {
			return fmt.Errorf("write the report: %w", err)
		}
	}
	return r.print(out)
}

// measure runs all parts. Each part that follows the rounds has a cluster of its own, so that none inherits a state.
func measure(ctx context.Context, r *Report, dir string, o options) error {
	if o.compare {
		if err := o.withCluster(ctx, filepath.Join(dir, "rounds"), func(c *localcluster.Cluster) error { return rounds(ctx, r, dir, c, o) }); err != nil {
			return err
		}
	} else {
		r.Skipped = append(r.Skipped, "comparison with plain SQLite: -compare is false")
	}
	if o.failovers > 0 {
		if err := o.withNodes(ctx, filepath.Join(dir, "failover"), nil, func(c *localcluster.Cluster) error { return failovers(ctx, r, c, o.failovers) }); err != nil {
			return err
		}
	} else {
		r.Skipped = append(r.Skipped, "failover: -failovers is 0")
	}
	if o.catchup > 0 || o.bulk > 0 {
		if err := o.withCluster(ctx, filepath.Join(dir, "catchup"), func(c *localcluster.Cluster) error { return catchups(ctx, r, c, o) }); err != nil {
			return err
		}
	} else {
		r.Skipped = append(r.Skipped, "catch-up: -catchup and -bulk are 0")
	}
	if o.archive {
		if err := archives(ctx, r, filepath.Join(dir, "archive"), o); err != nil {
			return err
		}
	} else {
		r.Skipped = append(r.Skipped, "archive: -archive is false")
	}
	if o.restore > 0 {
		at := filepath.Join(dir, "restore")
		if err := errors.Join(os.Mkdir(at, 0o750), restores(ctx, r, at, o), os.RemoveAll(at)); err != nil {
			return err
		}
	} else {
		r.Skipped = append(r.Skipped, "restore: -restore is 0")
	}
	if o.idle > 0 {
		return o.withCluster(ctx, filepath.Join(dir, "idle"), func(c *localcluster.Cluster) error { return idles(ctx, r, c, o.idle) })
	}
	r.Skipped = append(r.Skipped, "idle databases: -idle is 0")
	return nil
}

// withCluster is for what is compared with programs that keep no history.
func (o options) withCluster(ctx context.Context, dir string, f func(*localcluster.Cluster) error) error {
	return o.withNodes(ctx, dir, []string{"--archive", "none"}, f)
}

func (o options) withNodes(ctx context.Context, dir string, args []string, f func(*localcluster.Cluster) error) (err error) {
	args = append([]string{"--raft-log", o.raftLog}, args...)
	cluster, err := localcluster.Start(ctx, localcluster.Options{Command: []string{o.node}, Dir: dir, Args: args})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, cluster.Close(), os.RemoveAll(dir)) }()
	return f(cluster)
}

// rounds measures everything that is compared by ratios.
func rounds(ctx context.Context, r *Report, dir string, cluster *localcluster.Cluster, o options) (err error) {
	b, err := prepare(ctx, dir, cluster, o)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.close()) }()
	for round := range o.rounds {
		if err := b.round(ctx, r, uint32(round)); err != nil {
			return fmt.Errorf("round %d: %w", round+1, err)
		}
	}
	r.ratio("1-row transactions: leader / reference R", commitLeader, reference, 0.7)
	if o.rqlited != "" {
		r.ratio("1-row transactions: leader / rqlite, one client", commitLeader, rqliteOne, 2.5)
		r.ratio("rows in transactions of 100: leader / rqlite, batches of 100", rowsLeader, rqliteRows, 3)
	} else {
		r.Skipped = append(r.Skipped, "rqlite: name its binary with RQLITED")
	}
	if o.databases > 0 {
		b.manyRow(r)
	}
	r.ratio("1-row transactions: follower / leader", commitFollower, commitLeader, 0.5)
	r.ratio("point SELECTs by CPU time: VFS / plain SQLite", selectVFS, selectPlain, 0.95)
	r.ratio("1-row transactions: leader / two StoreLogs", commitLeader, storeLogs, 0)
	r.ratio("1-row transactions: leader / plain SQLite with synchronous=FULL", commitLeader, commitPlain, 0)
	return nil
}
