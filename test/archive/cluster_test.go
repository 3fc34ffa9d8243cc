package archive

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	_ "github.com/mattn/go-sqlite3"

	"filippo.io/age"

	"github.com/uglyer/ha-sqlite/internal/localcluster"
	"github.com/uglyer/ha-sqlite/internal/testcluster"
	"github.com/uglyer/ha-sqlite/snapshot/store/storetest"
)

const (
	interval   = 200 * time.Millisecond
	caseLimit  = 2 * time.Minute
	databases  = 3
	recordRows = 20
)

// archived starts a cluster that archives.
func archived(t *testing.T, url string, more ...string) *localcluster.Cluster {
	t.Helper()
	args := append([]string{"--archive", url, "--archive-interval", interval.String()}, more...)
	return testcluster.Start(t, localcluster.Options{Args: args})
}

// hasqlite runs the command and returns what it prints on both streams.
func hasqlite(t *testing.T, args ...string) (string, error) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), testcluster.Binary(t, "hasqlite"), args...)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// complete waits until the leader knows that every commit is archived.
func complete(ctx context.Context, t *testing.T, c *localcluster.Cluster) *localcluster.Status {
	t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	var last string
	for {
		leader, err := c.WaitLeader(ctx)
		if err != nil {
			t.Fatal(err)
		}
		st, err := leader.Status(ctx)
		if err == nil {
			done := st.Archive.Open && st.Archive.Lagging == 0 && st.Archive.Error == ""
			for _, d := range st.Databases {
				done = done && d.Archived == d.Decided.TXID
			}
			if done {
				return st
			}
			last = fmt.Sprintf("%+v %+v", st.Archive, st.Databases)
		} else {
			last = err.Error()
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatalf("the archive is not complete: %s", last)
		}
	}
}

// restore restores a database with every node dead and opens it.
func restore(t *testing.T, archive, name string, more ...string) *sql.DB {
	t.Helper()
	file := filepath.Join(t.TempDir(), "restored.db")
	out, err := hasqlite(t, append([]string{"restore", "--db", name, "--archive", archive, "--output", file, "--verify"}, more...)...)
	if err != nil {
		t.Fatalf("restore %s: %v: %s", name, err, out)
	}
	db, err := sql.Open("sqlite3", "file:"+file)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	return db
}

func name(i int) string { return fmt.Sprintf("shop/%d.db", i) }

// TestEveryNodeDestroyed: what status showed as archived is restored from S3 alone.
func TestEveryNodeDestroyed(t *testing.T) {
	g := storetest.StartGateway(t)
	ctx := testcluster.Context(t, caseLimit)
	c := archived(t, g.URL("a"))
	nodes := testcluster.LeaderFirst(t, c)
	for i := range databases {
		db := testcluster.Open(t, nodes[i%len(nodes)], name(i))
		testcluster.Exec(t, db, `CREATE TABLE t(id INTEGER PRIMARY KEY, v)`)
		for range recordRows {
			testcluster.Exec(t, db, `INSERT INTO t(v) VALUES(randomblob(2000))`)
		}
	}
	st := complete(ctx, t, c)
	for _, n := range c.Nodes() {
		if err := n.Kill(); err != nil {
			t.Fatal(err)
		}
	}
	for i := range databases {
		db := restore(t, g.URL("a"), name(i))
		if got := testcluster.Query(t, db, `SELECT count(*) FROM t`); got != fmt.Sprint(recordRows) {
			t.Errorf("%s has %s rows, want %d", name(i), got, recordRows)
		}
		d, _ := st.Database(name(i))
		out, err := hasqlite(t, "restore", "--db", name(i), "--archive", g.URL("a"), "--dry-run", "--json")
		if err != nil || !strings.Contains(out, d.Decided.TXID+"/"+d.Decided.Checksum) {
			t.Errorf("%s is restored as %s (%v), decided was %s", name(i), out, err, d.Decided)
		}
	}
}

// TestAWholeClusterIsRestoredFromItsArchive: all nodes are destroyed, a new cluster has every database as the archive has
// it, and its own archive elsewhere.
func TestAWholeClusterIsRestoredFromItsArchive(t *testing.T) {
	g := storetest.StartGateway(t)
	ctx := testcluster.Context(t, caseLimit)
	c := archived(t, g.URL("a"))
	for i, n := range c.Nodes() {
		db := testcluster.Open(t, n, name(i))
		testcluster.Exec(t, db, `CREATE TABLE t(id INTEGER PRIMARY KEY, v)`)
		for range recordRows {
			testcluster.Exec(t, db, `INSERT INTO t(v) VALUES(randomblob(2000))`)
		}
	}
	before := complete(ctx, t, c)
	for _, n := range c.Nodes() {
		if err := n.Kill(); err != nil {
			t.Fatal(err)
		}
	}
	fresh := archived(t, g.URL("b"))
	nodes := testcluster.LeaderFirst(t, fresh)
	st, err := nodes[0].Status(ctx)
	if err != nil {
		t.Fatal(err)
	}
	into := []string{"restore", "--all", "--into-cluster", "--archive", g.URL("a"), "--node", "http://" + st.Node.HTTP, "--verify"}
	if out, err := hasqlite(t, append(into, "--dry-run")...); err != nil || strings.Count(out, "planned") != len(nodes) {
		t.Fatalf("dry run: %v: %s", err, out)
	}
	// One that is damaged does not keep the others from it.
	bad := filepath.Join(g.Dir, "a", "_databases", "bad.json")
	if err := os.WriteFile(bad, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := hasqlite(t, into...); err == nil || !strings.Contains(fmt.Sprint(out, err), "_databases/bad.json") || strings.Count(out, "restored") != len(nodes) {
		t.Fatalf("restore: %v: %s", err, out)
	}
	if err := os.Remove(bad); err != nil {
		t.Fatal(err)
	}
	for i := range nodes {
		pos, err := fresh.WaitConverged(ctx, name(i))
		if err != nil {
			t.Fatal(err)
		}
		if d, _ := before.Database(name(i)); pos.Checksum != d.Decided.Checksum {
			t.Errorf("%s is at %s, before it was at %s", name(i), pos, d.Decided)
		}
		if got := testcluster.Query(t, testcluster.Open(t, nodes[i], name(i)), `SELECT count(*) FROM t`); got != fmt.Sprint(recordRows) {
			t.Errorf("%s has %s rows, want %d", name(i), got, recordRows)
		}
	}
	if out, err := hasqlite(t, into...); err != nil || strings.Count(out, "present") != len(nodes) {
		t.Errorf("once more: %v: %s", err, out)
	}
	complete(ctx, t, fresh)
	testcluster.Exec(t, testcluster.Open(t, nodes[0], name(0)), `DELETE FROM t`)
	if out, err := hasqlite(t, into...); err == nil || !strings.Contains(out, "--replace") || strings.Count(out, "present") != len(nodes)-1 {
		t.Errorf("one has moved on: %v: %s", err, out)
	}
	// What was replaced is found to be there the next time, although the counters in its header are others.
	into = append(into, "--replace")
	if out, err := hasqlite(t, into...); err != nil || strings.Count(out, "restored") != 1 || strings.Count(out, "present") != len(nodes)-1 {
		t.Errorf("replace: %v: %s", err, out)
	}
	replaced, err := fresh.WaitConverged(ctx, name(0))
	if err != nil {
		t.Fatal(err)
	}
	if out, err := hasqlite(t, into...); err != nil || strings.Count(out, "present") != len(nodes) {
		t.Errorf("replace once more: %v: %s", err, out)
	}
	if now, err := fresh.WaitConverged(ctx, name(0)); err != nil || now != replaced {
		t.Errorf("it is at %s, %v, it was at %s", now, err, replaced)
	}
}

// TestEncryptedArchive: nothing in the store can be read without the key.
func TestEncryptedArchive(t *testing.T) {
	g := storetest.StartGateway(t)
	ctx := testcluster.Context(t, caseLimit)
	dir := t.TempDir()
	key := func(name string) string {
		id, err := age.GenerateX25519Identity()
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(id.String()+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	right, wrong := key("right"), key("wrong")
	c := archived(t, g.URL("a"), "--archive-key", right)
	db := testcluster.Open(t, c.Nodes()[0], name(0))
	testcluster.Exec(t, db, `CREATE TABLE t(v)`)
	for range recordRows {
		testcluster.Exec(t, db, `INSERT INTO t(v) VALUES('a secret that nobody may read')`)
	}
	complete(ctx, t, c)
	files := 0
	if err := filepath.WalkDir(g.Dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		files++
		if filepath.Base(path) != "_archive.json" && !strings.HasPrefix(string(b), "age-encryption.org/v1") {
			return fmt.Errorf("%s is not encrypted", path)
		}
		return nil
	}); err != nil || files < 5 {
		t.Fatalf("%d files: %v", files, err)
	}
	for _, n := range c.Nodes() {
		if err := n.Kill(); err != nil {
			t.Fatal(err)
		}
	}
	if got := testcluster.Query(t, restore(t, g.URL("a"), name(0), "--identity", right), `SELECT count(*) FROM t`); got != fmt.Sprint(recordRows) {
		t.Errorf("%s rows, want %d", got, recordRows)
	}
	for what, more := range map[string][]string{"no identity was given": nil, "wrong key": {"--identity", wrong}} {
		file := filepath.Join(t.TempDir(), "x.db")
		out, err := hasqlite(t, append([]string{"restore", "--db", name(0), "--archive", g.URL("a"), "-o", file}, more...)...)
		if _, statErr := os.Stat(file); err == nil || !strings.Contains(out, what) || !errors.Is(statErr, os.ErrNotExist) {
			t.Errorf("want %q: %v: %s", what, err, out)
		}
	}
	// A node that cannot read what the others wrote, or would write plain text beside it, does not start.
	for what, more := range map[string][]string{
		"no identity was given": {"--archive", g.URL("a")},
		"wrong key":             {"--archive", g.URL("b"), "--archive-key", wrong, "--archive-recipients", right},
		"no such file":          {"--archive", g.URL("a"), "--archive-key", filepath.Join(dir, "none")},
	} {
		args := append([]string{"--data", t.TempDir(), "--http", "127.0.0.1:0", "--raft", "127.0.0.1:0", "--socket", filepath.Join(os.TempDir(), fmt.Sprintf("hs%d.sock", os.Getpid()))}, more...)
		out, err := exec.CommandContext(ctx, testcluster.Binary(t, "hasqlite-node"), args...).CombinedOutput()
		if err == nil || ctx.Err() != nil {
			t.Errorf("want %q: %v: %s", what, err, out)
		}
	}
}

// TestTwoClustersNeverWriteOnePlace: the second one stops, and what the first one wrote stays as it was.
func TestTwoClustersNeverWriteOnePlace(t *testing.T) {
	g := storetest.StartGateway(t)
	ctx := testcluster.Context(t, caseLimit)
	first := testcluster.Start(t, localcluster.Options{Nodes: 1, Args: []string{"--archive", g.URL("a"), "--archive-interval", interval.String()}})
	testcluster.Exec(t, testcluster.Open(t, first.Nodes()[0], name(0)), `CREATE TABLE t(v)`)
	complete(ctx, t, first)
	args := []string{
		"--data", t.TempDir(), "--http", "127.0.0.1:0", "--raft", "127.0.0.1:0", "--archive", g.URL("a"),
		"--socket", filepath.Join(os.TempDir(), fmt.Sprintf("hs%d.sock", os.Getpid())),
	}
	out, err := exec.CommandContext(ctx, testcluster.Binary(t, "hasqlite-node"), args...).CombinedOutput()
	if err == nil || ctx.Err() != nil || !strings.Contains(string(out), "it is that of cluster") {
		t.Fatalf("the second cluster: %v: %s", err, out)
	}
	if out, err := hasqlite(t, "archive", "verify", name(0), "--archive", g.URL("a")); err != nil {
		t.Errorf("verify: %v: %s", err, out)
	}
}
