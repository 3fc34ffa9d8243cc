package history

import (
	"context"
	"database/sql"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/uglyer/ha-sqlite/internal/api"
	"github.com/uglyer/ha-sqlite/internal/localcluster"
	"github.com/uglyer/ha-sqlite/internal/testcluster"
)

var (
	forkMegabytes = flag.Int("fork-megabytes", 16, "size of the database that is forked")
	forkDisk      = flag.String("fork-disk", "", "file system that the nodes get for the fork, xfs or ext4; needs root; empty: the one that is there")
)

func TestMain(m *testing.M) { testcluster.Main(m, nil) }

// makeDatabase makes a SQLite file of about so many MiB.
func makeDatabase(t *testing.T, path string, megabytes int) {
	t.Helper()
	db, err := sql.Open("sqlite3", path)
	if err != nil {
		t.Fatal(err)
	}
	testcluster.Exec(t, db, `PRAGMA synchronous=off`)
	testcluster.Exec(t, db, `CREATE TABLE t(id INTEGER PRIMARY KEY, b BLOB)`)
	testcluster.Exec(t, db, `WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i < ?) INSERT INTO t SELECT i, randomblob(3800) FROM n`, megabytes*256)
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
}

func importFile(t *testing.T, ctx context.Context, c *api.Client, name, path string) api.ImportReport {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	r, err := c.Import(ctx, api.ImportRequest{Name: name, Size: st.Size()}, f, func(api.Progress) {})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func clientOf(t *testing.T, n *localcluster.Node) *api.Client {
	t.Helper()
	c, err := api.NewClient("http://"+n.HTTP, nil)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// A fork takes next to nothing of the raft log, and where files can be cloned no time either; then source and fork
// diverge, and the fork outlives its source.
func TestForkCostsNothingButItsCopies(t *testing.T) {
	ctx := testcluster.Context(t, 30*time.Minute)
	opts := localcluster.Options{Args: []string{"--log-limit", "512MiB", "--archive", "none"}}
	if *forkDisk != "" {
		disk, err := testcluster.NewDisk(t, filepath.Join(t.TempDir(), "disk"), *forkDisk, int64(max(2048, 18**forkMegabytes+4096))<<20)
		if err != nil {
			t.Fatal(err)
		}
		opts.Dir = filepath.Join(disk.Dir, "cluster") // removed before the disk goes
	}
	c := testcluster.Start(t, opts)
	file := filepath.Join(t.TempDir(), "src.db")
	makeDatabase(t, file, *forkMegabytes)
	nodes := testcluster.LeaderFirst(t, c)
	leader := clientOf(t, nodes[0])
	imported := importFile(t, ctx, leader, "src.db", file)
	testcluster.Converged(t, c, "src.db") // or the other node may not have the table yet
	src := testcluster.Open(t, nodes[1], "src.db")
	testcluster.Exec(t, src, `UPDATE t SET b = randomblob(3800) WHERE id % 1000 = 1`) // some of it is in the log of the file only
	testcluster.Converged(t, c, "src.db")

	logBytes := func() (all []int64) {
		for _, n := range nodes {
			st, err := clientOf(t, n).Status(ctx, api.DatabaseQuery{})
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, st.Log.Bytes)
		}
		return all
	}
	// Once to have everything warm that has nothing to do with the size, then three that count.
	var took []time.Duration
	for k := range 4 {
		before := logBytes()
		began := time.Now()
		r, err := leader.Fork(ctx, api.ForkRequest{Source: "src.db", Name: fmt.Sprint("fork", k)}, func(api.Progress) {})
		if err != nil {
			t.Fatal(err)
		}
		if k > 0 {
			took = append(took, time.Since(began))
		}
		testcluster.Converged(t, c, fmt.Sprint("fork", k))
		for i, b := range logBytes() {
			if n := b - before[i]; n >= 4096 {
				t.Errorf("the raft log of node %s grew by %d bytes", nodes[i].ID, n)
			} else {
				t.Logf("fork %d of %d MiB in %v: the log of node %s grew by %d bytes", k, r.SizeBytes>>20, time.Since(began).Round(time.Millisecond), nodes[i].ID, n)
			}
		}
	}
	t.Logf("%d MiB, %s: forks took %v; imported in %v", imported.SizeBytes>>20, *forkDisk, took, time.Duration(imported.DurationMS)*time.Millisecond)
	if best := min(took[0], took[1], took[2]); *forkDisk == "xfs" && best > 100*time.Millisecond {
		t.Errorf("the fastest fork took %v", best)
	}

	fork := testcluster.Open(t, nodes[2], "fork0")
	testcluster.Exec(t, fork, `DELETE FROM t WHERE id > ?`, *forkMegabytes*128)
	testcluster.Exec(t, src, `INSERT INTO t(b) VALUES('only in the source')`)
	half, all := testcluster.Query(t, fork, `SELECT count(*) FROM t`), testcluster.Query(t, src, `SELECT count(*) FROM t`)
	if half != fmt.Sprint(*forkMegabytes*128) || all != fmt.Sprint(*forkMegabytes*256+1) {
		t.Errorf("%s rows in the fork, %s in its source", half, all)
	}
	src.Close()
	if err := leader.DeleteDatabase(ctx, "src.db", true); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"fork0", "fork3"} {
		v, err := leader.Verify(ctx, name, true)
		if err != nil || !v.Equal {
			t.Errorf("%s after its source was deleted: %+v, %v", name, v, err)
		}
	}
	if got := testcluster.Query(t, fork, `PRAGMA integrity_check`); got != "ok" {
		t.Error(got)
	}
	fork.Close()
	if *forkDisk != "" {
		out, err := exec.CommandContext(ctx, "df", "-h", opts.Dir).CombinedOutput()
		t.Logf("%s%v", out, err)
	}
}
