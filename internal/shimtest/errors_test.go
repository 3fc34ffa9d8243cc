package shimtest

import (
	"context"
	"database/sql"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/uglyer/ha-sqlite/internal/link"
)

const (
	busySnapshot = 517
	ioerrWrite   = 778
	ioerrLock    = 3850
)

// eventually waits for a condition.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.After(10 * time.Second)
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("%s did not happen", what)
		}
	}
}

// shop is a node with one database of two rows and a handle on it.
func shop(t *testing.T, params ...string) (*Node, *Database, *sql.DB) {
	t.Helper()
	n := startNode(t)
	db := open(t, dsn(n, "shop.db", params...))
	mustExec(t, db, "PRAGMA busy_timeout=0", "CREATE TABLE a(x)", "INSERT INTO a VALUES(1)", "INSERT INTO a VALUES(2)")
	return n, n.Database("shop.db"), db
}

// TestVerdicts has each verdict meet an autocommit statement and an explicit
// COMMIT: the code is right, nothing is visible, and the next transaction works.
func TestVerdicts(t *testing.T) {
	for _, row := range []struct {
		name    string
		outcome link.Outcome
		want    int
	}{
		{"refused is BUSY_SNAPSHOT", link.Refused, busySnapshot},
		{"unknown is IOERR_WRITE", link.Unknown, ioerrWrite},
	} {
		for _, explicit := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, explicit=%v", row.name, explicit), func(t *testing.T) {
				n, d, db := shop(t)
				n.Set(func(h *Hooks) {
					h.Verdict = func(*Database, *link.Tx) (link.Outcome, string) { return row.outcome, "because" }
				})
				var err error
				if explicit {
					mustExec(t, db, "BEGIN", "INSERT INTO a VALUES(3)")
					_, err = db.Exec("COMMIT")
				} else {
					_, err = db.Exec("INSERT INTO a VALUES(3)")
				}
				if got := codeOf(err); got != row.want {
					t.Fatalf("code %d (%v), want %d", got, err, row.want)
				}
				if got := queryText(t, db, "PRAGMA hasqlite_error"); !strings.Contains(got, "because") || !strings.Contains(got, "shop.db") {
					t.Errorf("error text %q", got)
				}
				if _, err := db.Exec("ROLLBACK"); err == nil || !strings.Contains(err.Error(), "no transaction is active") {
					t.Errorf("the transaction stayed open: %v", err)
				}
				n.Set(func(h *Hooks) { h.Verdict = nil })
				mustExec(t, db, "INSERT INTO a VALUES(4)")
				if got := queryText(t, db, "SELECT group_concat(x) FROM a"); got != "1,2,4" {
					t.Errorf("rows %s", got)
				}
				f := &fuzzer{t: t, db: d}
				f.checkRecovered()
				f.check()
			})
		}
	}
}

func TestBeginErrors(t *testing.T) {
	for _, row := range []struct {
		name string
		code int32
	}{
		{"busy", 5}, {"read-only", 8}, {"no leader for now", ioerrLock}, {"any other", 10},
	} {
		t.Run(row.name, func(t *testing.T) {
			n, _, db := shop(t)
			n.Set(func(h *Hooks) {
				h.BeginError = func(*Database) error { return &link.Error{Code: row.code, Text: "no leader"} }
			})
			for _, q := range []string{"INSERT INTO a VALUES(3)", "BEGIN IMMEDIATE"} {
				if _, err := db.Exec(q); codeOf(err) != int(row.code) {
					t.Errorf("%s: code %d (%v)", q, codeOf(err), err)
				}
			}
			if got := queryText(t, db, "PRAGMA hasqlite_error"); !strings.Contains(got, "no leader") {
				t.Errorf("error text %q", got)
			}
			if got := queryText(t, db, "SELECT count(*) FROM a"); got != "2" {
				t.Errorf("reads do not go on: %s", got)
			}
			n.Set(func(h *Hooks) { h.BeginError = nil })
			mustExec(t, db, "INSERT INTO a VALUES(3)")
		})
	}
}

func TestBusyHandlerWaitsThroughRefusedBegins(t *testing.T) {
	n, _, db := shop(t)
	mustExec(t, db, "PRAGMA busy_timeout=5000")
	left := 3
	n.Set(func(h *Hooks) {
		h.BeginError = func(*Database) error {
			if left--; left >= 0 {
				return &link.Error{Code: link.CodeBusy, Text: "election"}
			}
			return nil
		}
	})
	mustExec(t, db, "INSERT INTO a VALUES(3)")
}

// TestTooLarge: a transaction over the node's limit is refused before it is
// sent, whether it spilled or not.
func TestTooLarge(t *testing.T) {
	for _, cache := range []string{"PRAGMA cache_size=10", "PRAGMA cache_size=-100000"} {
		t.Run(cache, func(t *testing.T) {
			_, d, db := shop(t)
			mustExec(t, db, cache)
			before := d.Snapshot().Commits
			_, err := db.Exec("INSERT INTO a WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n+1 FROM c WHERE n<9000) SELECT randomblob(1000) FROM c")
			if got := codeOf(err); got != 13 {
				t.Fatalf("code %d (%v), want 13", got, err)
			}
			if got := queryText(t, db, "PRAGMA hasqlite_error"); !strings.Contains(got, "8388608 bytes") {
				t.Errorf("error text %q", got)
			}
			if d.Snapshot().Commits != before {
				t.Error("it was sent")
			}
			mustExec(t, db, "INSERT INTO a VALUES(3)")
			checkMirror(t, d)
			if got := queryText(t, db, "SELECT count(*) FROM a"); got != "3" {
				t.Errorf("%s rows", got)
			}
		})
	}
	_, d, db := shop(t)
	mustExec(t, db, "INSERT INTO a WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n+1 FROM c WHERE n<1900) SELECT randomblob(4000) FROM c")
	checkMirror(t, d)
}

// TestLocalErrorAfterAcceptance: a full disk between verdict and publication is
// not reported as one, and the node learns that it must finish the work.
func TestLocalErrorAfterAcceptance(t *testing.T) {
	n, d, db := shop(t)
	n.Set(func(h *Hooks) {
		h.Verdict = func(*Database, *link.Tx) (link.Outcome, string) {
			FailWrites(0)
			return link.Accepted, ""
		}
	})
	defer FailWrites(-1)
	_, err := db.Exec("INSERT INTO a VALUES(3)")
	FailWrites(-1)
	if got := codeOf(err); got != ioerrWrite {
		t.Fatalf("code %d (%v), want %d", got, err, ioerrWrite)
	}
	eventually(t, "END accepted, not published", func() bool { return d.Snapshot().Lost == 1 })
}

// TestFullDiskBeforeTheVerdict: it is met before the node is asked.
func TestFullDiskBeforeTheVerdict(t *testing.T) {
	n, d, db := shop(t)
	n.Set(func(h *Hooks) { h.BeginError = func(*Database) error { FailWrites(0); return nil } })
	defer FailWrites(-1)
	before := d.Snapshot().Commits
	_, err := db.Exec("INSERT INTO a VALUES(3)")
	FailWrites(-1)
	n.Set(func(h *Hooks) { h.BeginError = nil })
	if got := codeOf(err); got != 13 {
		t.Fatalf("code %d (%v), want 13", got, err)
	}
	if got := d.Snapshot().Commits; got != before {
		t.Error("the node was asked")
	}
	mustExec(t, db, "INSERT INTO a VALUES(4)")
	checkMirror(t, d)
}

func TestForeignWriterIsNoticed(t *testing.T) {
	_, d, db := shop(t)
	if err := d.Foreign("INSERT INTO a VALUES(99)"); err != nil {
		t.Fatal(err)
	}
	_, err := db.Exec("INSERT INTO a VALUES(3)")
	if got := codeOf(err); got != 5 {
		t.Fatalf("code %d (%v), want 5", got, err)
	}
	eventually(t, "MISMATCH", func() bool { return d.Snapshot().Mismatches > 0 })
	if got := d.Snapshot().Commits; got != 3 {
		t.Errorf("%d commits", got)
	}
	if got := queryText(t, db, "PRAGMA hasqlite_error"); !strings.Contains(got, "another program") {
		t.Errorf("error text %q", got)
	}
}

// TestEpoch: a change of the epoch word, or another epoch after a reconnect,
// ends a handle's use.
func TestEpoch(t *testing.T) {
	n, d, db := shop(t)
	if got := queryText(t, db, "SELECT count(*) FROM a"); got != "2" {
		t.Fatal(got)
	}
	shmWord(t, d, 132, 7)
	for _, q := range []string{"SELECT count(*) FROM a", "INSERT INTO a VALUES(3)"} {
		if _, err := db.Exec(q); codeOf(err) != 10 {
			t.Errorf("%s: code %d (%v)", q, codeOf(err), err)
		}
	}
	n.Set(func(h *Hooks) { h.Epoch = 7 })
	fresh := open(t, dsn(n, "shop.db"))
	mustExec(t, fresh, "INSERT INTO a VALUES(3)")

	n.Stop()
	n.Set(func(h *Hooks) { h.Epoch = 8 })
	if err := n.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := fresh.Exec("INSERT INTO a VALUES(4)"); codeOf(err) != 10 {
		t.Errorf("after a reconnect: code %d (%v)", codeOf(err), err)
	}
}

// shmWord writes a word of the wal-index as another process would.
func shmWord(t *testing.T, d *Database, offset int, v byte) {
	t.Helper()
	script := fmt.Sprintf("f=open(%q,'r+b'); f.seek(%d); f.write(bytes([%d,0,0,0])); f.close()", d.Path+"-shm", offset, v)
	run(t, nil, "/usr/bin/python3", "-c", script)
}

func TestNodeRestart(t *testing.T) {
	n, d, db := shop(t)
	reader := open(t, dsn(n, "shop.db"))
	mustExec(t, reader, "BEGIN", "SELECT * FROM a")
	mustExec(t, db, "BEGIN IMMEDIATE", "INSERT INTO a VALUES(3)")
	n.Stop()
	if got := queryText(t, reader, "SELECT count(*) FROM a"); got != "2" {
		t.Errorf("an open reader sees %s rows", got)
	}
	if _, err := db.Exec("COMMIT"); codeOf(err) != busySnapshot {
		t.Errorf("commit that was not sent: code %d (%v)", codeOf(err), err)
	}
	if _, err := db.Exec("INSERT INTO a VALUES(3)"); codeOf(err) != 5 {
		t.Errorf("begin without a node: code %d (%v)", codeOf(err), err)
	}
	if got := queryText(t, db, "PRAGMA hasqlite_error"); !strings.Contains(got, n.Socket) {
		t.Errorf("error text %q", got)
	}
	if err := n.Start(); err != nil {
		t.Fatal(err)
	}
	mustExec(t, reader, "COMMIT")
	mustExec(t, db, "INSERT INTO a VALUES(4)")
	mustExec(t, reader, "INSERT INTO a VALUES(5)")
	checkMirror(t, d)
}

// TestNodeDiesWhileACommitIsOut: the outcome is unknown.
func TestNodeDiesWhileACommitIsOut(t *testing.T) {
	n, _, db := shop(t)
	stopped := make(chan struct{})
	n.Set(func(h *Hooks) {
		h.BeforeVerdict = func(ctx context.Context) {
			go func() {
				n.Stop()
				close(stopped)
			}()
			<-ctx.Done()
		}
	})
	_, err := db.Exec("INSERT INTO a VALUES(3)")
	<-stopped
	if code := codeOf(err); code != ioerrWrite {
		t.Errorf("code %d (%v), want %d", code, err, ioerrWrite)
	}
}

// TestSilentNode: a node that answers nothing, as one that was stopped, costs
// a bounded time.
func TestSilentNode(t *testing.T) {
	path := filepath.Join(shortDir(t), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	db := open(t, "file:shop.db?vfs=hasqlite&lock_timeout=300&node="+path)
	start := time.Now()
	if _, err := db.Exec("SELECT 1"); codeOf(err) != 14 {
		t.Errorf("open: code %d (%v)", codeOf(err), err)
	}
	if d := time.Since(start); d < 250*time.Millisecond || d > 5*time.Second {
		t.Errorf("open took %v", d)
	}
}

// TestNodeStopsAnswering: likewise with a handle that is open already. The
// series of attempts that a busy handler makes waits once.
func TestNodeStopsAnswering(t *testing.T) {
	n, _, db := shop(t, "lock_timeout=200")
	mustExec(t, db, "PRAGMA busy_timeout=1000")
	var asked atomic.Int32
	release := make(chan struct{})
	n.Set(func(h *Hooks) { h.BeginError = func(*Database) error { asked.Add(1); <-release; return nil } })
	n.Set(func(h *Hooks) { h.Greeting = func() { <-release } })
	start := time.Now()
	_, err := db.Exec("INSERT INTO a VALUES(3)")
	close(release)
	if code := codeOf(err); code != 5 {
		t.Errorf("code %d (%v), want 5", code, err)
	}
	if d := time.Since(start); d < 5*time.Second || d > 9*time.Second || asked.Load() != 1 {
		t.Errorf("took %v, asked %d times", d, asked.Load())
	}
	if got := queryText(t, db, "SELECT count(*) FROM a"); got != "2" {
		t.Errorf("%s rows", got)
	}
	eventually(t, "the next insert", func() bool {
		_, err := db.Exec("INSERT INTO a VALUES(4)")
		return err == nil
	})
}

// TestLinearizableUnderLoad: no read fails, and each waits once.
func TestLinearizableUnderLoad(t *testing.T) {
	n, d, db := shop(t)
	stop, done := make(chan struct{}), make(chan int)
	go func() {
		writes := 0
		for {
			select {
			case <-stop:
				done <- writes
				return
			default:
			}
			if _, err := db.Exec("UPDATE a SET x=x+1"); err == nil {
				writes++
			}
		}
	}()
	reader := open(t, dsn(n, "shop.db", "consistency=linearizable"))
	mustExec(t, reader, "SELECT count(*) FROM a")
	before := d.Snapshot().Reads
	const reads = 2000
	start := time.Now()
	for range reads {
		queryText(t, reader, "SELECT sum(x) FROM a")
	}
	took := time.Since(start)
	close(stop)
	writes := <-done
	waits := d.Snapshot().Reads - before
	t.Logf("%d reads, %d waits, %d writes in %v", reads, waits, writes, took)
	if waits < reads || waits > reads+reads/100 {
		t.Errorf("%d reads waited %d times", reads, waits)
	}
}

func TestCommitTimeout(t *testing.T) {
	n, _, db := shop(t, "commit_timeout=300")
	release := make(chan struct{})
	defer close(release)
	n.Set(func(h *Hooks) {
		h.Verdict = func(*Database, *link.Tx) (link.Outcome, string) {
			<-release
			return link.Accepted, ""
		}
	})
	start := time.Now()
	_, err := db.Exec("INSERT INTO a VALUES(3)")
	if code := codeOf(err); code != ioerrWrite {
		t.Errorf("code %d (%v), want %d", code, err, ioerrWrite)
	}
	if d := time.Since(start); d < 250*time.Millisecond || d > 5*time.Second {
		t.Errorf("took %v", d)
	}
}

func TestOpenWithoutNode(t *testing.T) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	path := filepath.Join(shortDir(t), "nobody.sock")
	db := open(t, "file:shop.db?vfs=hasqlite&lock_timeout=200&node="+path)
	start := time.Now()
	if err := db.Ping(); codeOf(err) != 14 {
		t.Errorf("code %d (%v)", codeOf(err), err)
	}
	if d := time.Since(start); d < 150*time.Millisecond {
		t.Errorf("did not wait: %v", d)
	}
	if got := LastError(); !strings.Contains(got, path) || !strings.Contains(got, "No such file") {
		t.Errorf("error text %q", got)
	}
}

// TestLinearizable: one wait per read transaction, under write load, and what
// was committed before the wait ended is seen.
func TestLinearizable(t *testing.T) {
	n, d, db := shop(t)
	reader := open(t, dsn(n, "shop.db", "consistency=linearizable"))
	mustExec(t, reader, "SELECT count(*) FROM a")
	n.Set(func(h *Hooks) {
		h.ReadDelay = func(context.Context) error {
			if _, err := db.Exec("INSERT INTO a VALUES(3)"); err != nil {
				return err
			}
			return nil
		}
	})
	for i := range 200 {
		before := d.Snapshot().Reads
		if got, want := queryText(t, reader, "SELECT count(*) FROM a"), fmt.Sprint(3+i); got != want {
			t.Fatalf("read %d sees %s rows, want %s", i, got, want)
		}
		if waits := d.Snapshot().Reads - before; waits != 1 {
			t.Fatalf("read %d waited %d times", i, waits)
		}
	}
	n.Set(func(h *Hooks) {
		h.ReadDelay = func(context.Context) error { return &link.Error{Code: link.CodeBusy, Text: "no leader"} }
	})
	if _, err := reader.Exec("SELECT count(*) FROM a"); codeOf(err) != ioerrLock {
		t.Errorf("unconfirmed read: code %d (%v)", codeOf(err), err)
	}
	n.Set(func(h *Hooks) { h.ReadDelay = nil })
	mustExec(t, reader, "SELECT count(*) FROM a")
}

// TestHandlesCloseOnce: nothing is left over on the node.
func TestHandlesCloseOnce(t *testing.T) {
	n, d, db := shop(t)
	other := open(t, dsn(n, "shop.db"))
	mustExec(t, other, "SELECT * FROM a")
	mustExec(t, db, "BEGIN IMMEDIATE", "INSERT INTO a VALUES(3)")
	for _, c := range []*sql.DB{db, other} {
		if err := c.Close(); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "all handles closed", func() bool {
		s := d.Snapshot()
		return s.Closes == s.Opens && s.Ends == s.Begins
	})
	if _, err := os.Stat(d.Path + "-wal"); err != nil {
		t.Errorf("the WAL is gone: %v", err)
	}
}
