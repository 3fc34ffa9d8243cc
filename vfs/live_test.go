package vfs

import (
	"context"
	"database/sql"
	"errors"
	"os"
	"path/filepath"
	"testing"

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

func TestCreateImageKeepsWhatIsThere(t *testing.T) {
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

func TestAppendIsSeenByAnotherConnection(t *testing.T) {
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

var _ wal.Locks = liveLocks{}
