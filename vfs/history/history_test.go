package history

import (
	"database/sql"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mattn/go-sqlite3"

	"github.com/uglyer/ha-sqlite/internal/moment"
	"github.com/uglyer/ha-sqlite/internal/testarchive"
	"github.com/uglyer/ha-sqlite/snapshot/archive"
)

// example has a table t with n rows after commit n+1.
func example(t testing.TB, commits int, pragmas ...string) (*testarchive.DB, string) {
	t.Helper()
	d, root := testarchive.InDir(t, "acme/shop.db", pragmas...)
	texts := []string{"CREATE TABLE t(id INTEGER PRIMARY KEY, name TEXT, pad BLOB)"}
	for i := range commits - 1 {
		texts = append(texts, fmt.Sprintf("INSERT INTO t(name, pad) VALUES('row %d', randomblob(900))", i))
	}
	d.Exec(texts...)
	return d, root
}

func uri(root, state string) string {
	return "file:acme/shop.db?vfs=hasqlite-history&archive=" + root + "&" + state
}

// open opens one connection.
func open(t *testing.T, dsn string) *sql.DB {
	t.Helper()
	db, err := sql.Open("sqlite3", dsn)
	if err != nil {
		t.Fatal(err)
	}
	db.SetMaxOpenConns(1)
	t.Cleanup(func() { db.Close() })
	return db
}

func text(t *testing.T, db *sql.DB, query string) string {
	t.Helper()
	var s string
	if err := db.QueryRow(query).Scan(&s); err != nil {
		t.Fatalf("%s: %v: %v, %v", query, err, LastError(), lastOf(db))
	}
	return s
}

func lastOf(db *sql.DB) string {
	var s string
	_ = db.QueryRow("PRAGMA hasqlite_error").Scan(&s) // it is for a message
	return s
}

// Every state of a database opens by its time, its number and its bookmark,
// and is the recorded one, byte for byte but for the mode in the header.
func TestEveryStateOpens(t *testing.T) {
	for _, pragmas := range [][]string{{"PRAGMA page_size=512"}, {"PRAGMA page_size=4096"}, {"PRAGMA page_size=65536", "PRAGMA auto_vacuum=1"}} {
		d, root := example(t, 12, pragmas...)
		d.Exec("DELETE FROM t WHERE id > 3", "VACUUM", "INSERT INTO t(name) VALUES('last')")
		for txid := 1; txid <= len(d.Images); txid++ {
			want := d.Images[txid-1]
			for _, state := range []string{
				"at=" + d.Time(txid).Format(time.RFC3339), fmt.Sprintf("to=%016x", txid), "to=" + d.Bookmark(txid),
				"at=" + strings.ReplaceAll(d.Time(txid).Add(time.Second-time.Microsecond).Format("2006-01-02 15:04:05.999999Z"), " ", "+"),
			} {
				db := open(t, uri(root, state))
				if got := text(t, db, "PRAGMA hasqlite_position"); got != d.Bookmark(txid) {
					t.Fatalf("%s is %s, want commit %d", state, got, txid)
				}
				if got := text(t, db, "PRAGMA integrity_check"); got != "ok" {
					t.Fatalf("%s: %s", state, got)
				}
				if got := text(t, db, "PRAGMA hasqlite_time"); got != moment.TimeText(d.Time(txid)) {
					t.Fatalf("%s is of %s", state, got)
				}
			}
			m, err := moment.Parse("", d.Bookmark(txid), time.Now())
			if err != nil {
				t.Fatal(err)
			}
			found, err := m.Find(t.Context(), d.Archive, d.ID.Name)
			if err != nil {
				t.Fatal(err)
			}
			db, err := Open(t.Context(), found, 0)
			if err != nil {
				t.Fatal(err)
			}
			got := make([]byte, len(want))
			if n, err := db.readAt(got, 0); n != len(want) || err != nil || want[18] != 2 || got[18] != 1 || got[19] != 1 {
				t.Fatalf("commit %d: %d bytes, %v, mode %d", txid, n, err, got[18])
			}
			got[18], got[19] = 2, 2
			if string(got) != string(want) {
				t.Fatalf("commit %d is another", txid)
			}
			db.Close()
		}
	}
}

func TestNothingIsWritten(t *testing.T) {
	_, root := example(t, 5)
	before := listing(t, root)
	work := t.TempDir()
	t.Chdir(work)
	db := open(t, uri(root, "to=0000000000000005&mode=rwc"))
	for _, stmt := range []string{
		"INSERT INTO t(name) VALUES('x')", "DELETE FROM t", "CREATE TABLE u(a)", "DROP TABLE t", "PRAGMA user_version=7", "ALTER TABLE t ADD COLUMN x",
	} {
		_, err := db.Exec(stmt)
		var se sqlite3.Error
		if !errors.As(err, &se) || se.Code != sqlite3.ErrReadonly {
			t.Errorf("%s: got %v, want SQLITE_READONLY", stmt, err)
		}
	}
	for _, mode := range []string{"", "=wal", "=delete", "=memory"} {
		if got := text(t, db, "PRAGMA journal_mode"+mode); got != "off" {
			t.Errorf("journal_mode%s is %s", mode, got)
		}
	}
	// What is temporary works, and so does what spills to temporary files.
	for _, stmt := range []string{
		"PRAGMA temp_store=FILE", "PRAGMA cache_size=5", "PRAGMA temp.cache_size=5", "CREATE TEMP TABLE mine(a)",
		"WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i<20000) INSERT INTO mine SELECT randomblob(100) FROM n",
		"UPDATE mine SET a = randomblob(90)", "CREATE INDEX temp.mine_a ON mine(a)", "SAVEPOINT s", "DELETE FROM mine WHERE rowid % 2", "ROLLBACK TO s",
	} {
		if _, err := db.Exec(stmt); err != nil {
			t.Fatalf("%s: %v", stmt, err)
		}
	}
	if got := text(t, db, "SELECT count(*) FROM (SELECT a FROM mine ORDER BY a DESC)"); got != "20000" {
		t.Errorf("%s rows", got)
	}
	db.Close()
	if after := listing(t, root); after != before {
		t.Errorf("the archive has changed: %s, before %s", after, before)
	}
	if left := listing(t, work); left != "" {
		t.Errorf("files are left: %s", left)
	}
}

func listing(t *testing.T, dir string) string {
	t.Helper()
	var b strings.Builder
	if err := filepath.WalkDir(dir, func(path string, e os.DirEntry, err error) error {
		if err == nil && !e.IsDir() {
			i, err := e.Info()
			if err != nil {
				return err
			}
			fmt.Fprintf(&b, "%s %d %v\n", path, i.Size(), i.ModTime())
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func TestOpensThatAreRefused(t *testing.T) {
	_, root := example(t, 5)
	for state, says := range map[string]string{
		"at=soon":                         "write for example",
		"":                                "give at= or to=",
		"at=now&to=0000000000000001":      "two states",
		"at=2026-11-22T10:00:00Z":         "2026-11-22T10:00:01.000000Z to 2026-11-22T10:00:05.000000Z",
		"to=0000000000000009":             "0000000000000005 before it and nothing behind it",
		"to=1":                            "16 hex digits",
		"at=now&identity=/nowhere":        "read identities",
		"open=77":                         "not open",
		"to=0000000000000001&archive=x:y": "", // the first one counts
	} {
		db := open(t, uri(root, state))
		err := db.Ping()
		if says == "" {
			if err != nil {
				t.Errorf("%s: %v", state, err)
			}
			continue
		}
		var se sqlite3.Error
		if !errors.As(err, &se) || se.Code != sqlite3.ErrCantOpen || LastError() == nil || !strings.Contains(LastError().Error(), says) {
			t.Errorf("%s: got %v, %v, want %q", state, err, LastError(), says)
		}
	}
	t.Setenv("HASQLITE_ARCHIVE", "")
	db := open(t, "file:acme/shop.db?vfs=hasqlite-history&at=now")
	if err := db.Ping(); err == nil || !strings.Contains(LastError().Error(), "HASQLITE_ARCHIVE") {
		t.Errorf("no archive: %v, %v", err, LastError())
	}
	t.Setenv("HASQLITE_ARCHIVE", root)
	db = open(t, "file:acme/shop.db?vfs=hasqlite-history&at=now")
	if got := text(t, db, "SELECT count(*) FROM t"); got != "4" {
		t.Errorf("got %s rows", got)
	}
	db = open(t, "file:other.db?vfs=hasqlite-history&at=now")
	if err := db.Ping(); err == nil || !errors.Is(LastError(), archive.ErrNoDatabase) {
		t.Errorf("another name: %v, %v", err, LastError())
	}
}

// Connections of different times, with a shared cache, in one process, at once
// and attached to each other, each see their own.
func TestTimesDoNotMix(t *testing.T) {
	_, root := example(t, 30)
	var wg sync.WaitGroup
	for worker := range 4 {
		wg.Go(func() {
			for txid := worker + 2; txid <= 30; txid += 4 {
				db, err := sql.Open("sqlite3", uri(root, fmt.Sprintf("to=%016x&cache=shared", txid)))
				if err != nil {
					t.Error(err)
					return
				}
				defer db.Close() // all stay open to the end
				for range 3 {
					var n int
					if err := db.QueryRow("SELECT count(*) FROM t").Scan(&n); err != nil || n != txid-1 {
						t.Errorf("commit %d has %d rows, %v", txid, n, err)
						return
					}
				}
			}
		})
	}
	wg.Wait()
	db := open(t, uri(root, "to=0000000000000003"))
	if _, err := db.Exec("ATTACH ? AS later", uri(root, "to=0000000000000014")); err != nil {
		t.Fatal(err)
	}
	if got := text(t, db, "SELECT (SELECT count(*) FROM main.t) || ',' || (SELECT count(*) FROM later.t)"); got != "2,19" {
		t.Errorf("got %s", got)
	}
	if got := text(t, db, "SELECT group_concat(id) FROM (SELECT id FROM later.t EXCEPT SELECT id FROM main.t ORDER BY id LIMIT 3)"); got != "3,4,5" {
		t.Errorf("got %s", got)
	}
}

// FuzzReadAt reads any range of a state: it is that of the file, up to its end.
func FuzzReadAt(f *testing.F) {
	d, root := testarchive.InDir(f, "acme/shop.db")
	d.Exec("CREATE TABLE t(a)", "INSERT INTO t VALUES(randomblob(20000))", "INSERT INTO t VALUES(randomblob(9000))")
	file, err := openURI("acme/shop.db", map[string]string{"at": "now", "archive": root})
	if err != nil {
		f.Fatal(err)
	}
	want := append([]byte{}, d.Images[2]...)
	want[18], want[19] = 1, 1
	f.Add(int64(0), uint32(100))
	f.Add(int64(24), uint32(16))
	f.Add(int64(4090), uint32(5000))
	f.Add(int64(len(want)-1), uint32(2))
	f.Add(int64(len(want)), uint32(1))
	f.Fuzz(func(t *testing.T, off int64, n uint32) {
		if off < 0 || n > 1<<20 {
			return // SQLite asks for no such thing
		}
		p := make([]byte, n)
		got, err := file.ReadAt(p, off)
		expect := 0
		if off < int64(len(want)) {
			expect = copy(make([]byte, n), want[off:])
		}
		if got != expect || (got < len(p)) != (err == io.EOF) || err != nil && err != io.EOF || off < int64(len(want)) && string(p[:got]) != string(want[off:off+int64(got)]) {
			t.Errorf("%d bytes from %d: got %d, want %d, %v", n, off, got, expect, err)
		}
	})
}
