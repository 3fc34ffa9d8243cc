package foreign

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/mattn/go-sqlite3"

	"github.com/uglyer/ha-sqlite/internal/localcluster"
	"github.com/uglyer/ha-sqlite/internal/testcluster"
)

const (
	database = "shop.db"
	// noticeLimit is what the node promises for a database on which nobody writes.
	noticeLimit = 10 * time.Second
)

func TestMain(m *testing.M) { testcluster.Main(m, nil) }

// fixture is a cluster with a database that was written through every node.
type fixture struct {
	*localcluster.Cluster
	t   *testing.T
	dbs map[*localcluster.Node]*sql.DB
}

func newFixture(t *testing.T, args ...string) *fixture {
	f := &fixture{Cluster: testcluster.Start(t, localcluster.Options{Args: args}), t: t, dbs: make(map[*localcluster.Node]*sql.DB)}
	for i, n := range f.Nodes() {
		f.dbs[n] = testcluster.Open(t, n, database, "_busy_timeout=20000")
		if i == 0 {
			testcluster.Exec(t, f.dbs[n], `CREATE TABLE item(id INTEGER PRIMARY KEY, name TEXT, luck INT DEFAULT (random()))`)
			testcluster.Converged(t, f.Cluster, database)
		}
		f.write(n, "by "+n.ID)
	}
	testcluster.Converged(t, f.Cluster, database)
	return f
}

// write inserts through a node, on a new handle when the old one was made invalid by a heal.
func (f *fixture) write(n *localcluster.Node, name string) {
	f.t.Helper()
	ctx := testcluster.Context(f.t, 45*time.Second)
	var err error
	pollErr := localcluster.Poll(ctx, 50*time.Millisecond, func() (bool, error) {
		_, err = f.dbs[n].ExecContext(ctx, `INSERT INTO item(name) VALUES(?)`, name)
		var e sqlite3.Error
		if errors.As(err, &e) && (e.Code == sqlite3.ErrBusy || e.Code == sqlite3.ErrIoErr) {
			if e.Code == sqlite3.ErrIoErr {
				f.dbs[n] = testcluster.Open(f.t, n, database, "_busy_timeout=20000")
			}
			return false, err
		}
		return true, nil
	})
	if err := errors.Join(pollErr, err); err != nil {
		f.t.Fatalf("write through %s: %v", n.ID, err)
	}
}

// foreignWrite runs SQL on the node's file with plain SQLite.
func (f *fixture) foreignWrite(n *localcluster.Node, query string) {
	f.t.Helper()
	path := testcluster.DatabaseFile(f.t, n, database)
	out, err := exec.Command("/usr/bin/sqlite3", "-bail", "-cmd", ".timeout 10000", path, query).CombinedOutput()
	if err != nil {
		f.t.Fatalf("plain sqlite3 on %s: %v: %s", path, err, out)
	}
}

// healed waits until the node has logged a fence and a heal, and all nodes are equal again.
func (f *fixture) healed(n *localcluster.Node) {
	f.t.Helper()
	ctx := testcluster.Context(f.t, noticeLimit+20*time.Second)
	begun := time.Now()
	err := localcluster.Poll(ctx, 50*time.Millisecond, func() (bool, error) {
		return n.LogContains("fenced"), errors.New("no fence in the log")
	})
	if err != nil {
		f.t.Fatalf("%s noticed nothing: %v", n.ID, err)
	}
	if took := time.Since(begun); took > noticeLimit+time.Second {
		f.t.Errorf("%s noticed after %v, want %v", n.ID, took, noticeLimit)
	}
	err = localcluster.Poll(ctx, 50*time.Millisecond, func() (bool, error) {
		return n.LogContains("healed"), errors.New("no heal in the log")
	})
	if err != nil {
		f.t.Fatalf("%s did not heal: %v", n.ID, err)
	}
	testcluster.Converged(f.t, f.Cluster, database)
}

// clean checks that no node has the foreign row, and that the files are sound.
func (f *fixture) clean(rows int) {
	f.t.Helper()
	for _, n := range f.Nodes() {
		db := testcluster.Open(f.t, n, database, "_busy_timeout=20000")
		if got := testcluster.Query(f.t, db, `SELECT count(*) FROM item WHERE name LIKE 'foreign%'`); got != "0" {
			f.t.Errorf("%s shows %s foreign rows", n.ID, got)
		}
		if got := testcluster.Query(f.t, db, `SELECT count(*) FROM item`); got != fmt.Sprint(rows) {
			f.t.Errorf("%s shows %s rows, want %d", n.ID, got, rows)
		}
		if got := testcluster.Query(f.t, db, `PRAGMA integrity_check`); got != "ok" {
			f.t.Errorf("%s: integrity_check: %s", n.ID, got)
		}
	}
}

// pick returns the leader, or a follower.
func (f *fixture) pick(leader bool) *localcluster.Node {
	f.t.Helper()
	find := f.Follower
	if leader {
		find = f.WaitLeader
	}
	n, err := find(testcluster.Context(f.t, 20*time.Second))
	if err != nil {
		f.t.Fatal(err)
	}
	return n
}

func TestForeignWriteIsNoticedFencedAndHealed(t *testing.T) {
	for name, row := range map[string]struct {
		leader  bool // the file of the leader, else of a follower
		commit  string
		foreign string
	}{
		"on the leader, by the next commit there":         {true, "there", `INSERT INTO item(name) VALUES('foreign')`},
		"on the leader, by a commit of another node":      {true, "elsewhere", `INSERT INTO item(name) VALUES('foreign')`},
		"on the leader, with no commit":                   {true, "", `INSERT INTO item(name) VALUES('foreign')`},
		"on a follower, by the next commit there":         {false, "there", `INSERT INTO item(name) VALUES('foreign')`},
		"on a follower, by a commit of another node":      {false, "elsewhere", `INSERT INTO item(name) VALUES('foreign')`},
		"on a follower, with no commit":                   {false, "", `INSERT INTO item(name) VALUES('foreign')`},
		"a schema change on a follower, with no commit":   {false, "", `CREATE TABLE alien(a); INSERT INTO alien VALUES(1)`},
		"many pages and a checkpoint, by the next commit": {false, "there", `WITH RECURSIVE c(i) AS (VALUES(1) UNION ALL SELECT i+1 FROM c WHERE i < 5000) INSERT INTO item(name) SELECT 'foreign ' || i FROM c; PRAGMA wal_checkpoint`},
		"a delete of everything on the leader":            {true, "there", `DELETE FROM item; VACUUM`},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t)
			n := f.pick(row.leader)
			rows := len(f.Nodes())
			stop := f.watchOthers(n)
			f.foreignWrite(n, row.foreign)
			switch row.commit {
			case "there":
				f.write(n, "after")
				rows++
			case "elsewhere":
				for _, other := range f.Nodes() {
					if other != n {
						f.write(other, "after")
						rows++
						break
					}
				}
			}
			f.healed(n)
			f.clean(rows)
			stop()
			f.write(n, "after the heal")
			testcluster.Converged(t, f.Cluster, database)
			f.clean(rows + 1)
		})
	}
}

// watchOthers reads on the other nodes until the returned function is called, and complains about every sight of foreign rows.
func (f *fixture) watchOthers(not *localcluster.Node) func() {
	ctx, cancel := context.WithCancel(f.t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = localcluster.Poll(ctx, 5*time.Millisecond, func() (bool, error) {
			for _, n := range f.Nodes() {
				if n == not {
					continue
				}
				var foreign, tables int
				db, err := sql.Open("sqlite3", n.DSN(database, "mode=ro", "_busy_timeout=5000"))
				if err == nil {
					err = db.QueryRowContext(ctx, `SELECT (SELECT count(*) FROM item WHERE name LIKE 'foreign%'),
						(SELECT count(*) FROM sqlite_schema WHERE name = 'alien')`).Scan(&foreign, &tables)
					err = errors.Join(err, db.Close())
				}
				if err == nil && (foreign > 0 || tables > 0) {
					f.t.Errorf("%s shows %d foreign rows and %d foreign tables", n.ID, foreign, tables)
				}
				if err != nil && ctx.Err() == nil && !strings.Contains(err.Error(), "locked") {
					f.t.Errorf("read on %s: %v", n.ID, err)
				}
			}
			return false, nil
		})
	}()
	return func() { cancel(); <-done }
}

func TestHandlesThatMayHaveSeenAForeignSchemaAreInvalid(t *testing.T) {
	f := newFixture(t)
	n := f.pick(false)
	f.foreignWrite(n, `CREATE INDEX alien ON item(name)`)
	// This handle caches the foreign schema, if it gets to see it before the fence.
	_, err := f.dbs[n].ExecContext(t.Context(), `SELECT * FROM item WHERE name = 'x'`)
	seen := err == nil
	f.healed(n)
	_, err = f.dbs[n].ExecContext(t.Context(), `SELECT count(*) FROM item`)
	var e sqlite3.Error
	if seen && (!errors.As(err, &e) || e.Code != sqlite3.ErrIoErr) {
		t.Errorf("a handle from before the heal: got %v, want an I/O error", err)
	}
	f.clean(len(f.Nodes()))
}

func TestForeignWriteOnAnIdleDatabaseIsNoticed(t *testing.T) {
	f := newFixture(t, "--idle-close", "1s")
	n := f.pick(false)
	for _, db := range f.dbs {
		if err := db.Close(); err != nil {
			t.Fatal(err)
		}
	}
	path := testcluster.DatabaseFile(t, n, database)
	err := localcluster.Poll(testcluster.Context(t, 30*time.Second), 100*time.Millisecond, func() (bool, error) {
		return !testcluster.HasOpen(t, n, path), fmt.Errorf("%s has %s still open", n.ID, path)
	})
	if err != nil {
		t.Fatal(err)
	}
	f.foreignWrite(n, `INSERT INTO item(name) VALUES('foreign')`)
	f.healed(n)
	f.clean(len(f.Nodes()))
}
