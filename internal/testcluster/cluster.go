package testcluster

import (
	"bufio"
	"context"
	"database/sql"
	"errors"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/uglyer/ha-sqlite/internal/localcluster"
	_ "github.com/uglyer/ha-sqlite/vfs" // registers the VFS "hasqlite"
)

// Start starts a cluster of real nodes that ends with the test.
func Start(t testing.TB, opts localcluster.Options) *localcluster.Cluster {
	t.Helper()
	if len(opts.Command) == 0 {
		opts.Command = []string{Binary(t, "hasqlite-node")}
	}
	opts.KeepDir = true // removed below, after the logs were read
	c, err := localcluster.Start(context.Background(), opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { finish(t, c) })
	return c
}

// finish ends the cluster, looks for what no node may ever log, and removes the directory unless it is wanted.
func finish(t testing.TB, c *localcluster.Cluster) {
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	for _, n := range c.Nodes() {
		if line := crashLine(n.LogPath); line != "" {
			t.Errorf("node %s crashed, see %s: %s", n.ID, n.LogPath, line)
		}
		if t.Failed() {
			t.Logf("end of the log of %s:\n%s", n.ID, n.LogTail(25))
		}
	}
	if t.Failed() || os.Getenv(envKeep) != "" {
		t.Logf("the cluster's files are in %s", c.Dir)
		return
	}
	if err := os.RemoveAll(c.Dir); err != nil {
		t.Error(err)
	}
}

// crashLine returns the first line of a log that shows a bug whatever the test looked for.
func crashLine(path string) string {
	f, err := os.Open(path)
	if err != nil {
		return err.Error()
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		for _, bad := range []string{"panic: ", "fatal error: ", "WARNING: DATA RACE", "SIGSEGV", "SIGBUS", "SIGABRT"} {
			if strings.HasPrefix(lines.Text(), bad) {
				return lines.Text()
			}
		}
	}
	return ""
}

// Context returns a context that ends with the test or after d, whichever is first.
func Context(t testing.TB, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

// Open opens a database through a node with one connection, closed with the test.
func Open(t testing.TB, n *localcluster.Node, database string, params ...string) *sql.DB {
	t.Helper()
	db, err := sql.Open("sqlite3", n.DSN(database, params...))
	if err != nil {
		t.Fatal(err)
	}
	db.SetMaxOpenConns(1)
	t.Cleanup(func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
	return db
}

// Exec runs a statement that has to work.
func Exec(t testing.TB, db *sql.DB, query string, args ...any) {
	t.Helper()
	if _, err := db.ExecContext(t.Context(), query, args...); err != nil {
		t.Fatalf("%s: %v", query, err)
	}
}

// Query returns the first column of the first row, as text.
func Query(t testing.TB, db *sql.DB, query string, args ...any) string {
	t.Helper()
	var s string
	if err := db.QueryRowContext(t.Context(), query, args...).Scan(&s); err != nil {
		t.Fatalf("%s: %v", query, err)
	}
	return s
}

// Converged waits until all nodes show the same position, compares them page by page, and returns the position.
func Converged(t testing.TB, c *localcluster.Cluster, database string) localcluster.Position {
	t.Helper()
	ctx := Context(t, 2*time.Minute)
	pos, err := c.WaitConverged(ctx, database)
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range c.Nodes() {
		// The checkpoint of a large transaction may take longer than a node is waited for.
		if err := localcluster.Poll(ctx, 100*time.Millisecond, func() (bool, error) {
			_, err := n.Verify(ctx, database, true)
			if err != nil && !errors.Is(err, localcluster.ErrUnreachable) {
				t.Error(err)
			}
			return !errors.Is(err, localcluster.ErrUnreachable), err
		}); err != nil {
			t.Error(err)
		}
	}
	return pos
}

// LeaderFirst returns the nodes with the leader in front.
func LeaderFirst(t testing.TB, c *localcluster.Cluster) []*localcluster.Node {
	t.Helper()
	leader, err := c.WaitLeader(Context(t, 30*time.Second))
	if err != nil {
		t.Fatal(err)
	}
	nodes := []*localcluster.Node{leader}
	for _, n := range c.Nodes() {
		if n != leader {
			nodes = append(nodes, n)
		}
	}
	return nodes
}

// DatabaseFile returns the path of the node's file of a database.
func DatabaseFile(t testing.TB, n *localcluster.Node, database string) string {
	t.Helper()
	s, err := n.Status(Context(t, 10*time.Second))
	if err != nil {
		t.Fatal(err)
	}
	d, ok := s.Database(database)
	if !ok {
		t.Fatalf("node %s has no database %s", n.ID, database)
	}
	return filepath.Join(n.Data, "databases", d.ID, "db")
}

// CopyFile copies a file by a process of its own. This one may hold the database open, and closing any descriptor of a file
// drops all POSIX locks that a process has on it.
func CopyFile(t testing.TB, from, to string) {
	t.Helper()
	if out, err := exec.Command("cp", from, to).CombinedOutput(); err != nil {
		t.Fatalf("copy %s: %v: %s", from, err, out)
	}
}

// HasOpen reports whether the node's process has a descriptor of a file.
func HasOpen(t testing.TB, n *localcluster.Node, path string) bool {
	t.Helper()
	fds := filepath.Join("/proc", strconv.Itoa(n.Process().PID()), "fd")
	entries, err := os.ReadDir(fds)
	if err != nil {
		t.Fatalf("list open files of %s: %v", n.ID, err)
	}
	for _, e := range entries {
		// A descriptor that was closed meanwhile has no link.
		if target, err := os.Readlink(filepath.Join(fds, e.Name())); err == nil && target == path {
			return true
		}
	}
	return false
}

// Metric reads one number of a node, of a metric without labels.
func Metric(t testing.TB, n *localcluster.Node, name string) float64 {
	t.Helper()
	resp, err := http.Get("http://" + n.HTTP + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	lines := bufio.NewScanner(resp.Body)
	for lines.Scan() {
		if rest, ok := strings.CutPrefix(lines.Text(), name+" "); ok {
			v, err := strconv.ParseFloat(rest, 64)
			if err != nil {
				t.Fatal(err)
			}
			return v
		}
	}
	t.Fatalf("node %s has no metric %s", n.ID, name)
	return 0
}
