package node

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/mattn/go-sqlite3"

	"github.com/uglyer/ha-sqlite/internal/localcluster"
	"github.com/uglyer/ha-sqlite/internal/testcluster"
)

// RULES B12.
func TestDeleteUnderOpenHandles(t *testing.T) {
	c := testcluster.Start(t, localcluster.Options{})
	ctx := testcluster.Context(t, 2*time.Minute)
	nodes := testcluster.LeaderFirst(t, c)
	old := testcluster.Open(t, nodes[1], "gone.db", patient...)
	testcluster.Exec(t, old, `CREATE TABLE t(v)`)
	testcluster.Exec(t, old, `INSERT INTO t VALUES('old')`)
	testcluster.Converged(t, c, "gone.db")
	bookmark := testcluster.Query(t, old, `PRAGMA hasqlite_position`)
	file := testcluster.DatabaseFile(t, nodes[1], "gone.db")

	for _, n := range nodes {
		var e *localcluster.APIError
		if err := n.Call(ctx, http.MethodDelete, "/v1/databases/gone.db", nil, nil); !errors.As(err, &e) || e.Code != http.StatusConflict {
			t.Fatalf("delete of an open database through %s: got %v, want 409", n.ID, err)
		}
	}
	if err := nodes[0].Call(ctx, http.MethodDelete, "/v1/databases/gone.db?force=1", nil, nil); err != nil {
		t.Fatal(err)
	}
	shown := -1
	err := localcluster.Poll(ctx, 20*time.Millisecond, func() (bool, error) {
		for i, s := range c.Statuses(ctx) {
			if s == nil {
				return false, fmt.Errorf("%s does not answer", c.Nodes()[i].ID)
			}
			if _, ok := s.Database("gone.db"); ok {
				return false, fmt.Errorf("%s still has the database", c.Nodes()[i].ID)
			}
		}
		err := old.QueryRowContext(ctx, `SELECT count(*) FROM t`).Scan(&shown)
		return err != nil, fmt.Errorf("the old handle reads %d rows", shown)
	})
	if err != nil {
		t.Fatal(err)
	}
	_, err = old.ExecContext(ctx, `INSERT INTO t VALUES('after')`)
	if err == nil {
		t.Error("the old handle wrote")
	}
	t.Logf("a write by the old handle gives: %v (%d)", err, code(err))

	fresh := testcluster.Open(t, nodes[1], "gone.db", patient...)
	insist(ctx, t, fresh, `CREATE TABLE t(v)`)
	insist(ctx, t, fresh, `INSERT INTO t VALUES('new')`)
	if err := old.QueryRowContext(ctx, `SELECT count(*) FROM t`).Scan(&shown); err == nil {
		t.Errorf("the old handle reads %d rows after the name is in use again", shown)
	}
	if next := testcluster.DatabaseFile(t, nodes[1], "gone.db"); next == file {
		t.Error("the new database has the id of the old one")
	}
	if _, err := fresh.ExecContext(ctx, fmt.Sprintf(`PRAGMA hasqlite_wait='%s'`, bookmark)); err == nil {
		t.Error("waiting for a bookmark of the deleted database gave no error")
	}
	testcluster.Converged(t, c, "gone.db")
	if err := old.Close(); err != nil {
		t.Error(err)
	}
	err = localcluster.Poll(ctx, 50*time.Millisecond, func() (bool, error) {
		_, err := os.Stat(filepath.Dir(file))
		return errors.Is(err, os.ErrNotExist), fmt.Errorf("%s is still there", filepath.Dir(file))
	})
	if err != nil {
		t.Error(err)
	}
}

// RULES B13.
func TestIdleDatabaseCostsNoFileHandles(t *testing.T) {
	c := testcluster.Start(t, localcluster.Options{Args: []string{"--idle-close", "1s"}})
	ctx := testcluster.Context(t, time.Minute)
	db := testcluster.Open(t, c.Nodes()[0], "idle.db", patient...)
	testcluster.Exec(t, db, `CREATE TABLE t(v)`)
	testcluster.Converged(t, c, "idle.db")
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	for _, n := range c.Nodes() {
		file := testcluster.DatabaseFile(t, n, "idle.db")
		err := localcluster.Poll(ctx, 100*time.Millisecond, func() (bool, error) {
			return !testcluster.HasOpen(t, n, file), fmt.Errorf("%s has %s still open", n.ID, file)
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	for i, n := range c.Nodes() {
		insist(ctx, t, testcluster.Open(t, n, "idle.db", patient...), `INSERT INTO t VALUES(?)`, i)
	}
	testcluster.Converged(t, c, "idle.db")
}

// RULES A3, D2: applications stay attached over a restart of their node.
func TestNodeRestartsUnderItsApplications(t *testing.T) {
	for name, kill := range map[string]bool{"clean": false, "kill -9": true} {
		t.Run(name, func(t *testing.T) {
			c := testcluster.Start(t, localcluster.Options{})
			ctx := testcluster.Context(t, 2*time.Minute)
			n := testcluster.LeaderFirst(t, c)[1]
			writer := testcluster.Open(t, n, "attached.db", patient...)
			testcluster.Exec(t, writer, `CREATE TABLE t(v TEXT)`)
			testcluster.Exec(t, writer, `INSERT INTO t VALUES('before')`)
			reader := conn(t, testcluster.Open(t, n, "attached.db"))
			do(t, reader, `BEGIN`)
			count := func() (n int) {
				if err := reader.QueryRowContext(ctx, `SELECT count(*) FROM t`).Scan(&n); err != nil {
					t.Errorf("attached reader: %v", err)
				}
				return n
			}
			if got := count(); got != 1 {
				t.Fatalf("reader sees %d rows, want 1", got)
			}
			open := conn(t, writer)
			do(t, open, `BEGIN IMMEDIATE`, `INSERT INTO t VALUES('open')`)

			if kill {
				if err := n.Kill(); err != nil {
					t.Fatal(err)
				}
			} else if err := n.Shutdown(testcluster.Context(t, 30*time.Second)); err != nil {
				t.Fatal(err)
			}
			if got := count(); got != 1 {
				t.Errorf("while the node is down the reader sees %d rows, want 1", got)
			}
			// A new open waits for lock_timeout and then names the socket.
			late := testcluster.Open(t, n, "attached.db", "lock_timeout=300")
			err := late.PingContext(ctx)
			if err == nil {
				_, err = late.ExecContext(ctx, `SELECT count(*) FROM t`)
			}
			if code(err)&0xff != int(sqlite3.ErrCantOpen) {
				t.Errorf("open while the node is down: got %v, want SQLITE_CANTOPEN", err)
			}
			// Others write on meanwhile.
			for _, other := range c.Nodes() {
				if other != n {
					insist(ctx, t, testcluster.Open(t, other, "attached.db", patient...), `INSERT INTO t VALUES('meanwhile')`)
				}
			}
			if err := n.Start(); err != nil {
				t.Fatal(err)
			}
			if err := n.WaitReady(ctx); err != nil {
				t.Fatal(err)
			}
			if _, err := open.ExecContext(ctx, `COMMIT`); code(err)&0xff != int(sqlite3.ErrBusy) {
				t.Errorf("commit of the transaction that was open: got %v (%d), want SQLITE_BUSY or 517", err, code(err))
			}
			_, _ = open.ExecContext(ctx, `ROLLBACK`) // SQLite may have done it
			if err := open.Close(); err != nil {
				t.Error(err)
			}
			if got := count(); got != 1 {
				t.Errorf("after the restart the open read transaction sees %d rows, want 1", got)
			}
			do(t, reader, `COMMIT`)
			insist(ctx, t, writer, `INSERT INTO t VALUES('after')`)
			testcluster.Converged(t, c, "attached.db")
			if got := count(); got != 4 {
				t.Errorf("the same reader then sees %d rows, want 4", got)
			}
			if got := testcluster.Query(t, writer, `SELECT count(*) FROM t WHERE v = 'open'`); got != "0" {
				t.Error("the refused row is there")
			}
		})
	}
}

// RULES D2: a rolling restart under writers loses no commit and gives no error but BUSY.
func TestRollingRestartUnderWritersGivesNothingButBusy(t *testing.T) {
	c := testcluster.Start(t, localcluster.Options{})
	ctx := testcluster.Context(t, 3*time.Minute)
	testcluster.Exec(t, testcluster.Open(t, c.Nodes()[0], "roll.db", patient...), `CREATE TABLE t(writer INT, n INT, PRIMARY KEY(writer, n))`)
	testcluster.Converged(t, c, "roll.db")
	var stop atomic.Bool
	var wg sync.WaitGroup
	done := make([]atomic.Int64, len(c.Nodes()))
	for i, n := range c.Nodes() {
		db := testcluster.Open(t, n, "roll.db", patient...)
		wg.Go(func() {
			for begun := time.Now(); !stop.Load() && insist(ctx, t, db, `INSERT INTO t VALUES(?, ?)`, i, done[i].Load()); begun = time.Now() {
				done[i].Add(1)
				// The others take turns, and its busy handler sleeps for 100 ms by the time that its node is back.
				if waited := time.Since(begun); waited > 20*time.Second {
					t.Errorf("writer %d got no turn in %v, all the time of its busy handler", i, waited)
				}
			}
		})
	}
	progress := func() {
		for i := range done {
			from := done[i].Load()
			err := localcluster.Poll(ctx, 10*time.Millisecond, func() (bool, error) {
				return done[i].Load() > from+5 || t.Failed(), fmt.Errorf("writer %d stays at %d", i, from)
			})
			if err != nil {
				t.Error(err)
			}
		}
	}
	progress()
	for _, n := range c.Nodes() {
		if err := n.Restart(ctx); err != nil {
			t.Error(err)
		}
		progress()
	}
	// Once more as an upgrade is done by hand: leadership is moved away first, and each node is ready before the next.
	for _, n := range c.Nodes() {
		st, err := n.Status(ctx)
		if err == nil && st.State == "leader" {
			err = n.Call(ctx, http.MethodPost, "/v1/cluster/transfer", nil, nil)
		}
		if err == nil {
			err = n.Restart(ctx)
		}
		if err != nil {
			t.Error(err)
		}
		progress()
	}
	stop.Store(true)
	wg.Wait()
	testcluster.Converged(t, c, "roll.db")
	var want int64
	for i := range done {
		want += done[i].Load()
	}
	for _, n := range c.Nodes() {
		if got := testcluster.Query(t, testcluster.Open(t, n, "roll.db"), `SELECT count(*) FROM t`); got != fmt.Sprint(want) {
			t.Errorf("%s has %s rows, %d were acknowledged", n.ID, got, want)
		}
	}
}

// A first node needs nothing but a directory.
func TestSingleNodeStartsWithADirectoryOnly(t *testing.T) {
	data := filepath.Join(t.TempDir(), "data")
	app, err := testcluster.StartCommand(exec.Command(testcluster.Binary(t, "hasqlite-node"), "--data", data))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = app.Kill() })
	ready := func() string {
		var line string
		err := localcluster.Poll(testcluster.Context(t, 30*time.Second), 10*time.Millisecond, func() (bool, error) {
			for _, l := range app.Matching("") {
				if strings.Contains(l, "node ready") {
					line = l
				}
			}
			return line != "" || !app.Running(), errors.New("no line says ready")
		})
		if err != nil || line == "" {
			t.Fatalf("%v: %s", err, app.Output())
		}
		return line
	}()
	for _, want := range []string{"127.0.0.1:7440", "127.0.0.1:7441", "node.sock"} {
		if !strings.Contains(ready, want) {
			t.Errorf("%q lacks %q", ready, want)
		}
	}
	_, after, _ := strings.Cut(ready, "socket=")
	socket, _, _ := strings.Cut(after, " ")
	n := &localcluster.Node{ID: "single", HTTP: "127.0.0.1:7440", Socket: socket}
	db := testcluster.Open(t, n, "first.db", patient...)
	testcluster.Exec(t, db, `CREATE TABLE t(v)`)
	if err := db.Close(); err != nil {
		t.Error(err)
	}
	if err := app.Shutdown(testcluster.Context(t, 30*time.Second)); err != nil {
		t.Errorf("clean shutdown: %v: %s", err, app.Output())
	}
}

// A node does not start on what it cannot trust; each reason has its own words.
func TestDataDirectoriesAreRefused(t *testing.T) {
	c := testcluster.Start(t, localcluster.Options{Nodes: 1})
	n := c.Nodes()[0]
	if err := n.Call(t.Context(), http.MethodPost, "/v1/databases", map[string]any{"name": "a.db"}, nil); err != nil {
		t.Fatal(err)
	}
	binary := testcluster.Binary(t, "hasqlite-node")
	refusal := func(t *testing.T, args ...string) string {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		args = append([]string{"--http", "127.0.0.1:0", "--raft", "127.0.0.1:0", "--socket", filepath.Join(t.TempDir(), "s")}, args...)
		out, err := exec.CommandContext(ctx, binary, args...).CombinedOutput()
		if ctx.Err() != nil {
			t.Fatalf("the node started:\n%s", out)
		}
		if err == nil {
			t.Errorf("exit code 0:\n%s", out)
		}
		return string(out)
	}
	seen := make(map[string]string)
	expect := func(t *testing.T, out string, words ...string) {
		t.Helper()
		for _, w := range words {
			if !strings.Contains(out, w) {
				t.Errorf("the message lacks %q:\n%s", w, out)
			}
		}
		seen[t.Name()] = out
	}
	t.Run("held by a running node", func(t *testing.T) {
		expect(t, refusal(t, "--data", n.Data), n.Data)
	})
	if err := n.Shutdown(testcluster.Context(t, 30*time.Second)); err != nil {
		t.Fatal(err)
	}
	copied := func(t *testing.T) string {
		t.Helper()
		dir := filepath.Join(t.TempDir(), "data")
		if out, err := exec.Command("cp", "-a", n.Data, dir).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		return dir
	}
	t.Run("another log store", func(t *testing.T) {
		expect(t, refusal(t, "--data", copied(t), "--raft-log", "boltdb"), "boltdb", "wal")
	})
	t.Run("another node id", func(t *testing.T) {
		expect(t, refusal(t, "--data", copied(t), "--id", "other"), "other", n.ID)
	})
	t.Run("unknown format", func(t *testing.T) {
		dir := copied(t)
		record := filepath.Join(dir, "hasqlite.json")
		b, err := os.ReadFile(record)
		if err != nil {
			t.Fatal(err)
		}
		b2 := strings.Replace(strings.Replace(string(b), `"format": 1`, `"format": 9999`, 1), `"format":1`, `"format":9999`, 1)
		if err := os.WriteFile(record, []byte(b2), 0o644); err != nil {
			t.Fatal(err)
		}
		expect(t, refusal(t, "--data", dir), "9999")
	})
	t.Run("a record that is no JSON", func(t *testing.T) {
		dir := copied(t)
		if err := os.WriteFile(filepath.Join(dir, "hasqlite.json"), []byte("{"), 0o644); err != nil {
			t.Fatal(err)
		}
		expect(t, refusal(t, "--data", dir), "hasqlite.json")
	})
	t.Run("a bad flag", func(t *testing.T) {
		expect(t, refusal(t, "--data", copied(t), "--raft-log", "paper"), "paper")
	})
	t.Run("no directory given", func(t *testing.T) {
		expect(t, refusal(t), "--data")
	})
	for a, x := range seen {
		for b, y := range seen {
			if a < b && x == y {
				t.Errorf("%s and %s have the same message: %s", a, b, x)
			}
		}
	}
}

// The demonstration is the first thing that anybody runs.
func TestDemoEndsWithEqualNodesAndLeavesNothing(t *testing.T) {
	ctx := testcluster.Context(t, time.Minute)
	cmd := exec.CommandContext(ctx, testcluster.Binary(t, "hasqlite"), "demo")
	dir := t.TempDir()
	cmd.Env = append(os.Environ(), "TMPDIR="+dir)
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "Equal") {
		t.Fatalf("%v:\n%s", err, out)
	}
	t.Logf("\n%s", out)
	left, err := os.ReadDir(dir)
	if err != nil || len(left) > 0 {
		t.Errorf("the demo left %v, %v", left, err)
	}
}
