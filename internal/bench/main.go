package main

import (
	"context"
	"encoding/json"
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

	"github.com/uglyer/ha-sqlite/internal/localcluster"
)

// options are the flags.
type options struct {
	rounds  int
	commits int
	selects int
	rows    int
	dir     string
	node    string
	raftLog string
	json    bool
}

func main() {
	var o options
	flag.IntVar(&o.rounds, "rounds", 5, "interleaved `rounds`")
	flag.IntVar(&o.commits, "commits", 1000, "transactions in a round, on the leader and on a follower each")
	flag.IntVar(&o.selects, "selects", 300000, "point SELECTs in a round, with and without the VFS each")
	flag.IntVar(&o.rows, "rows", 100_000, "rows of the table that is selected from")
	flag.StringVar(&o.dir, "dir", os.TempDir(), "`directory` on the file system to measure on")
	flag.StringVar(&o.node, "node", "", "hasqlite-node `binary`; empty builds it")
	flag.StringVar(&o.raftLog, "raft-log", "wal", "log `store` of the nodes: wal or boltdb")
	flag.BoolVar(&o.json, "json", false, "print the report as JSON")
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
	cluster, err := localcluster.Start(ctx, localcluster.Options{
		Command: []string{o.node}, Dir: filepath.Join(dir, "cluster"), Args: []string{"--raft-log", o.raftLog},
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, cluster.Close()) }()

	r := Report{
		Machine: fmt.Sprintf("%s/%s, %d processors, raft log %s", runtime.GOOS, runtime.GOARCH, runtime.NumCPU(), o.raftLog),
		Rounds:  o.rounds,
	}
	b, err := prepare(ctx, dir, cluster, o)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.close()) }()
	for round := range o.rounds {
		if err := b.round(ctx, &r, uint32(round)); err != nil {
			return fmt.Errorf("round %d: %w", round+1, err)
		}
	}
	r.ratio("point SELECTs by CPU time, VFS / plain SQLite", selectVFS, selectPlain, 0.95)
	r.ratio("transactions on the leader / reference R", commitLeader, reference, 0.5)
	r.ratio("transactions on a follower / on the leader", commitFollower, commitLeader, 0.5)
	r.ratio("transactions on the leader / two StoreLogs", commitLeader, storeLogs, 0)
	r.ratio("transactions on the leader / plain SQLite with synchronous=FULL", commitLeader, commitPlain, 0)
	if o.json {
		enc := json.NewEncoder(out)
		enc.SetIndent("", "  ")
		return enc.Encode(r)
	}
	return r.print(out)
}
