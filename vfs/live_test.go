package vfs

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/uglyer/ha-sqlite/wal"
)

// openTest creates a database and opens it.
func openTest(t testing.TB, pageSize uint32, autoVacuum uint8) *Live {
	t.Helper()
	path := filepath.Join(t.TempDir(), "db")
	if err := CreateImage(path, pageSize, autoVacuum, 0o640); err != nil {
		t.Fatal(err)
	}
	l, err := OpenLive(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	return l
}

// openSQL opens path with SQLite as any program would.
func openSQL(t testing.TB, path string) *sql.DB {
	t.Helper()
	db, err := sql.Open("sqlite3", path)
	if err != nil {
		t.Fatal(err)
	}
	db.SetMaxOpenConns(1)
	t.Cleanup(func() { db.Close() })
	return db
}

func TestLiveCreateImageKeepsWhatIsThere(t *testing.T) {
	path := filepath.Join(t.TempDir(), "db")
	if err := CreateImage(path, 1024, 0, 0o600); err != nil {
		t.Fatal(err)
	}
	before, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := string(before), string(Image(1024, 0)); got != want {
		t.Fatal("the file is not the image")
	}
	if err := CreateImage(path, 4096, 1, 0o666); !errors.Is(err, ErrExists) {
		t.Fatalf("got %v, want ErrExists", err)
	}
	after, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if string(before) != string(after) {
		t.Fatal("the file was changed")
	}
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := info.Mode().Perm(), os.FileMode(0o600); got != want && os.PathSeparator == '/' {
		t.Fatalf("got mode %v, want %v", got, want)
	}
}

func TestLiveCreateImageReplacesOneThatWasNeverSynced(t *testing.T) {
	path := filepath.Join(t.TempDir(), "db")
	if err := os.WriteFile(path, make([]byte, 70000), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := CreateImage(path, 4096, 0, 0o600); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(path); err != nil || string(got) != string(Image(4096, 0)) {
		t.Fatalf("got %d bytes, %v", len(got), err)
	}
}

func TestLiveAppendIsSeenByAnotherConnection(t *testing.T) {
	src := newSource(t, 4096, 0)
	l := openTest(t, 4096, 0)
	reader := openSQL(t, l.Path())
	for i, stmt := range []string{
		"CREATE TABLE t(a, b)",
		"INSERT INTO t VALUES(1, randomblob(9000))",
		"INSERT INTO t SELECT a + 1, randomblob(5000) FROM t",
	} {
		tx := src.exec(t, stmt)
		txn, err := l.Begin(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		f, err := txn.Append(tx.pages, tx.pageCount)
		if err != nil {
			t.Fatal(err)
		}
		if got, want := f.PageCount, tx.pageCount; got != want {
			t.Fatalf("transaction %d: got %d pages, want %d", i, got, want)
		}
		if err := txn.End(); err != nil {
			t.Fatal(err)
		}
		peek, size, _, err := l.Peek()
		if err != nil || peek != f || size != 4096 {
			t.Fatalf("transaction %d: got %v, %d, %v, want %v", i, peek, size, err, f)
		}
	}
	var n int
	if err := reader.QueryRow("SELECT count(*) FROM t").Scan(&n); err != nil || n != 2 {
		t.Fatalf("got %d rows, %v, want 2", n, err)
	}
	var ok string
	if err := reader.QueryRow("PRAGMA integrity_check").Scan(&ok); err != nil || ok != "ok" {
		t.Fatalf("integrity check: %s, %v", ok, err)
	}
	if frames, done, err := l.Checkpoint(false); err != nil || frames == 0 || done != frames {
		t.Fatalf("checkpoint: %d of %d frames, %v", done, frames, err)
	}
	reader.Close()
	if _, _, err := l.Checkpoint(true); err != nil {
		t.Fatal(err)
	}
	if size, err := l.WALSize(); err != nil || size != 0 {
		t.Fatalf("got a log of %d bytes, %v, want 0", size, err)
	}
}

// setUp applies a table with n rows.
func setUp(t testing.TB, l *Live, n int) *source {
	t.Helper()
	src := newSource(t, 4096, 0)
	apply(t, l, src.exec(t, "CREATE TABLE t(a)"))
	for range n {
		apply(t, l, src.exec(t, "INSERT INTO t VALUES(randomblob(3000))"))
	}
	return src
}

func within(t testing.TB, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), d)
	t.Cleanup(cancel)
	return ctx
}

func TestLiveAndApplicationExcludeEachOther(t *testing.T) {
	l := openTest(t, 4096, 0)
	setUp(t, l, 3)
	base, _, _, err := l.Peek()
	if err != nil {
		t.Fatal(err)
	}
	app := openSQL(t, l.Path()+"?_txlock=immediate&_busy_timeout=0")
	tx, err := app.Begin()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec("INSERT INTO t VALUES('foreign')"); err != nil {
		t.Fatal(err)
	}
	if _, err := l.Begin(within(t, 20*time.Millisecond)); !errors.Is(err, wal.ErrBusy) {
		t.Fatalf("while an application writes: got %v, want ErrBusy", err)
	}
	if err := tx.Commit(); err != nil {
		t.Fatal(err)
	}
	txn, err := l.Begin(within(t, time.Minute))
	if err != nil {
		t.Fatal(err)
	}
	if got := txn.Fingerprint(); got.Matches(base) || got.Change != base.Change+1 {
		t.Fatalf("a foreign transaction does not show: %v after %v", got, base)
	}
	if tx, err := app.Begin(); err == nil {
		_ = tx.Rollback()
		t.Fatal("an application writes while a transaction is open")
	}
	if err := txn.End(); err != nil {
		t.Fatal(err)
	}
	if tx, err = app.Begin(); err != nil {
		t.Fatal(err)
	}
	if err := tx.Rollback(); err != nil {
		t.Fatal(err)
	}
}

func TestLiveRecoversABrokenHeader(t *testing.T) {
	l := openTest(t, 4096, 0)
	src := setUp(t, l, 3)
	if err := l.SetEpoch(42); err != nil {
		t.Fatal(err)
	}
	base, _, _, err := l.Peek()
	if err != nil {
		t.Fatal(err)
	}
	mem, err := liveShm{l}.Map(0)
	if err != nil {
		t.Fatal(err)
	}
	mem[20]++ // as if a writer had died between the copies of the header
	if _, _, _, err := l.Peek(); !errors.Is(err, wal.ErrUnstable) {
		t.Fatalf("peek: got %v, want ErrUnstable", err)
	}
	txn, err := l.Begin(within(t, time.Minute))
	if err != nil {
		t.Fatal(err)
	}
	if got := txn.Fingerprint(); got.Change != 0 || !got.Matches(base) {
		t.Fatalf("after the recovery: %v, before: %v", got, base)
	}
	if err := txn.End(); err != nil {
		t.Fatal(err)
	}
	if epoch, err := l.Epoch(); err != nil || epoch != 42 {
		t.Fatalf("got epoch %d, %v, want 42", epoch, err)
	}
	apply(t, l, src.exec(t, "INSERT INTO t VALUES(1)"))
	var n int
	if err := openSQL(t, l.Path()).QueryRow("SELECT count(*) FROM t").Scan(&n); err != nil || n != 4 {
		t.Fatalf("got %d rows, %v, want 4", n, err)
	}
}

// A commit must not wait for the seconds that a checkpoint of a long log takes.
func TestLiveTryPinDoesNotWaitForACheckpoint(t *testing.T) {
	l := openTest(t, 4096, 0)
	setUp(t, l, 3)
	l.pins.Lock() // as a checkpoint does
	if _, err := l.TryPin(); !errors.Is(err, wal.ErrBusy) {
		t.Errorf("during a checkpoint: got %v, want ErrBusy", err)
	}
	l.pins.Unlock()
	snap, err := l.TryPin()
	if err != nil {
		t.Fatal(err)
	}
	if err := snap.Close(); err != nil {
		t.Fatal(err)
	}
	if _, _, err := l.Checkpoint(false); err != nil {
		t.Errorf("after the snapshot is closed: %v", err)
	}
}

// Truncate waits for a reader that ends in time; nobody else cuts the log under it.
func TestLiveTruncateWaitsForAReader(t *testing.T) {
	l := openTest(t, 4096, 0)
	setUp(t, l, 3)
	reader, err := openSQL(t, l.Path()).Begin()
	if err != nil {
		t.Fatal(err)
	}
	var n int
	if err := reader.QueryRow("SELECT count(*) FROM t").Scan(&n); err != nil || n != 3 {
		t.Fatalf("got %d rows, %v, want 3", n, err)
	}
	if m, err := l.Marks(); err != nil || m.MaxFrame == 0 {
		t.Errorf("marks %+v, %v", m, err)
	}
	if _, _, err := l.Truncate(0); !errors.Is(err, wal.ErrBusy) {
		t.Errorf("without waiting: got %v, want ErrBusy", err)
	}
	ended := make(chan error, 1)
	time.AfterFunc(50*time.Millisecond, func() { ended <- reader.Rollback() })
	if _, _, err := l.Truncate(10 * time.Second); err != nil {
		t.Errorf("with a reader that ends: %v", err)
	}
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if size, err := l.WALSize(); err != nil || size != 0 {
		t.Errorf("the log has %d bytes, %v", size, err)
	}
}

func TestLiveCheckpointAndWhatHoldsItBack(t *testing.T) {
	l := openTest(t, 4096, 0)
	src := setUp(t, l, 3)
	snap, err := l.Pin()
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := l.Checkpoint(false); !errors.Is(err, ErrPinned) {
		t.Fatalf("with a snapshot open: got %v, want ErrPinned", err)
	}
	if err := snap.Close(); err != nil {
		t.Fatal(err)
	}
	reader, err := openSQL(t, l.Path()).Begin()
	if err != nil {
		t.Fatal(err)
	}
	var n int
	if err := reader.QueryRow("SELECT count(*) FROM t").Scan(&n); err != nil || n != 3 {
		t.Fatalf("got %d rows, %v, want 3", n, err)
	}
	before, _, _, _ := l.Peek()
	apply(t, l, src.exec(t, "INSERT INTO t VALUES(1)"))
	frames, copied, err := l.Checkpoint(true)
	if !errors.Is(err, wal.ErrBusy) || copied != int(before.MaxFrame) || frames <= copied {
		t.Fatalf("with a reader: %d of %d frames, %v, want ErrBusy and %d frames", copied, frames, err, before.MaxFrame)
	}
	if _, _, backfilled, err := l.Peek(); err != nil || backfilled != before.MaxFrame {
		t.Fatalf("peek: %d frames copied, %v, want %d", backfilled, err, before.MaxFrame)
	}
	if err := reader.Rollback(); err != nil {
		t.Fatal(err)
	}
	txn, err := l.Begin(within(t, time.Minute))
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := l.Checkpoint(true); !errors.Is(err, wal.ErrBusy) {
		t.Fatalf("truncate in a transaction: got %v, want ErrBusy", err)
	}
	if frames, copied, err := l.Checkpoint(false); err != nil || frames != copied {
		t.Fatalf("in a transaction: %d of %d frames, %v", copied, frames, err)
	}
	if err := txn.End(); err != nil {
		t.Fatal(err)
	}
	if _, _, err := l.Checkpoint(true); err != nil {
		t.Fatal(err)
	}
	if size, err := l.WALSize(); err != nil || size != 0 {
		t.Fatalf("got a log of %d bytes, %v", size, err)
	}
	apply(t, l, src.exec(t, "INSERT INTO t VALUES(2)"))
	if err := l.SyncWAL(); err != nil {
		t.Fatal(err)
	}
}

func TestLiveKeepsLogAndIndexWhileApplicationsComeAndGo(t *testing.T) {
	l := openTest(t, 4096, 0)
	setUp(t, l, 1)
	for range 3 {
		app := openSQL(t, l.Path())
		var n int
		if err := app.QueryRow("SELECT count(*) FROM t").Scan(&n); err != nil {
			t.Fatal(err)
		}
		if err := app.Close(); err != nil {
			t.Fatal(err)
		}
		if err := CreateImage(l.Path(), 4096, 0, 0o600); !errors.Is(err, ErrExists) {
			t.Fatal(err)
		}
		for _, suffix := range []string{"-wal", "-shm"} {
			if _, err := os.Stat(l.Path() + suffix); err != nil {
				t.Fatal(err)
			}
		}
	}
}

func TestLiveNeedsNoSchema(t *testing.T) {
	path := filepath.Join(t.TempDir(), "db")
	if err := CreateImage(path, 4096, 0, 0o600); err != nil {
		t.Fatal(err)
	}
	db := openSQL(t, path)
	for _, stmt := range []string{"CREATE TABLE t(a)", "PRAGMA writable_schema=1", "UPDATE sqlite_schema SET sql = 'CREATE TABLE t AS NONSENSE'"} {
		if _, err := db.Exec(stmt); err != nil {
			t.Fatal(err)
		}
	}
	l, err := OpenLive(path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if _, _, err := l.Checkpoint(true); err != nil {
		t.Fatal(err)
	}
	txn, err := l.Begin(within(t, time.Minute))
	if err != nil {
		t.Fatal(err)
	}
	if err := txn.End(); err != nil {
		t.Fatal(err)
	}
}

func TestLiveOpenRefuses(t *testing.T) {
	dir := t.TempDir()
	rollback := filepath.Join(dir, "rollback")
	if _, err := openSQL(t, rollback).Exec("CREATE TABLE t(a)"); err != nil {
		t.Fatal(err)
	}
	noise := filepath.Join(dir, "noise")
	if err := os.WriteFile(noise, make([]byte, 5000), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, path := range map[string]string{
		"a missing file": filepath.Join(dir, "missing"), "a database with a rollback journal": rollback,
		"a file that is no database": noise, "a directory": dir,
	} {
		if l, err := OpenLive(path); err == nil {
			l.Close()
			t.Errorf("%s: no error", name)
		}
	}
	if err := CreateImage(filepath.Join(dir, "no", "such", "directory"), 4096, 0, 0o600); err == nil {
		t.Error("create in a missing directory: no error")
	}
	if err := CreateImage(filepath.Join(dir, "bad"), 1000, 0, 0o600); !errors.Is(err, wal.ErrPageSize) {
		t.Errorf("create with pages of 1000 bytes: got %v, want ErrPageSize", err)
	}
}

func TestLiveClosed(t *testing.T) {
	l := openTest(t, 4096, 0)
	for range 2 {
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
	}
	_, _, checkpointErr := l.Checkpoint(false)
	_, sizeErr := l.WALSize()
	_, beginErr := l.Begin(context.Background())
	_, pinErr := l.Pin()
	for name, err := range map[string]error{"checkpoint": checkpointErr, "wal size": sizeErr, "begin": beginErr, "pin": pinErr, "sync": l.SyncWAL()} {
		if !errors.Is(err, wal.ErrClosed) {
			t.Errorf("%s: got %v, want ErrClosed", name, err)
		}
	}
}

// TestLiveFromManyGoroutines applies, reads snapshots, checkpoints and syncs at
// once; each snapshot must be one state of the database.
func TestLiveFromManyGoroutines(t *testing.T) {
	const rounds, pages = 300, 20
	l := openTest(t, 512, 0)
	image := Image(512, 0)
	state := func(n int) []wal.Page { // all pages but the first say n
		out := []wal.Page{{Pgno: 1, Data: image}}
		for i := uint32(2); i <= pages; i++ {
			out = append(out, wal.Page{Pgno: i, Data: bytes.Repeat([]byte{byte(n)}, 512)})
		}
		return out
	}
	apply(t, l, transaction{state(0), pages})
	done := make(chan struct{})
	var wg sync.WaitGroup
	loop := func(f func() error) {
		wg.Go(func() {
			for {
				select {
				case <-done:
					return
				default:
				}
				if err := f(); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	snapshots, checkpoints := 0, 0 // of one goroutine
	loop(func() error {
		snap, err := l.Pin()
		if errors.Is(err, wal.ErrUnstable) {
			return nil
		}
		if err != nil {
			return err
		}
		snapshots++
		defer func() {
			// The next transaction may restart the log now.
			if err := snap.Close(); err != nil {
				t.Error(err)
			}
			if _, _, err := l.Checkpoint(snapshots%3 == 0); err == nil {
				checkpoints++
			}
		}()
		buf := make([]byte, 512)
		first := byte(0)
		for pgno := uint32(2); pgno <= pages; pgno++ {
			if err := snap.ReadPage(pgno, buf); err != nil {
				return err
			}
			if pgno == 2 {
				first = buf[0]
			}
			if buf[0] != first || buf[511] != first {
				return fmt.Errorf("page %d is of state %d, page 2 of %d", pgno, buf[0], first)
			}
		}
		return nil
	})
	loop(func() error {
		_, _, err := l.Checkpoint(false)
		if errors.Is(err, wal.ErrBusy) || errors.Is(err, ErrPinned) {
			return nil
		}
		return err
	})
	loop(func() error {
		if err := l.SyncWAL(); err != nil {
			return err
		}
		_, _, _, err := l.Peek()
		if errors.Is(err, wal.ErrUnstable) {
			return nil
		}
		return err
	})
	for n := 1; n <= rounds; n++ {
		apply(t, l, transaction{state(n), pages})
	}
	close(done)
	wg.Wait()
	t.Logf("%d snapshots, %d checkpoints", snapshots, checkpoints)
	f, _, _, err := l.Peek()
	if err != nil || f.Change <= rounds {
		t.Fatalf("got %v, %v", f, err)
	}
}
