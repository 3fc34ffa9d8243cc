package shimtest

import (
	"database/sql"
	"errors"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/mattn/go-sqlite3"

	"github.com/uglyer/ha-sqlite/internal/link"
	_ "github.com/uglyer/ha-sqlite/vfs"
)

// startNode runs a fake node for one test.
func startNode(t *testing.T) *Node {
	t.Helper()
	n := NewNode(shortDir(t))
	if err := n.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(n.Close)
	return n
}

// shortDir is a directory whose path leaves room for a socket.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "shim")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

// dsn names a replicated database of n, with more URI parameters if any.
func dsn(n *Node, name string, params ...string) string {
	q := url.Values{"vfs": {"hasqlite"}, "node": {n.Socket}}
	s := "file:" + name + "?" + q.Encode()
	for _, p := range params {
		s += "&" + p
	}
	return s
}

// open opens one connection.
func open(t *testing.T, dsn string) *sql.DB {
	t.Helper()
	db, err := sql.Open("sqlite3", dsn)
	if err != nil {
		t.Fatal(err)
	}
	db.SetMaxOpenConns(1)
	t.Cleanup(func() { _ = db.Close() })
	return db
}

func mustExec(t *testing.T, db *sql.DB, queries ...string) {
	t.Helper()
	for _, q := range queries {
		if _, err := db.Exec(q); err != nil {
			t.Fatalf("%s: %v", q, err)
		}
	}
}

func queryText(t *testing.T, db *sql.DB, q string) string {
	t.Helper()
	var s string
	if err := db.QueryRow(q).Scan(&s); err != nil {
		t.Fatalf("%s: %v", q, err)
	}
	return s
}

// codeOf is the extended result code of err, -1 if it has none.
func codeOf(err error) int {
	var e sqlite3.Error
	if errors.As(err, &e) {
		if e.ExtendedCode != 0 {
			return int(e.ExtendedCode)
		}
		return int(e.Code)
	}
	return -1
}

// checkMirror compares the file with what the commits say.
func checkMirror(t *testing.T, d *Database) {
	t.Helper()
	if err := d.Checkpoint("TRUNCATE"); err != nil {
		t.Fatal(err)
	}
	want, err := d.Mirror()
	if err != nil {
		t.Fatal(err)
	}
	got, err := readWhole(d.Path)
	if err != nil {
		t.Fatal(err)
	}
	size, _ := d.Created()
	if diff := firstDifference(got, want, int(size)); diff != "" {
		t.Fatalf("file and mirror differ: %s", diff)
	}
}

func TestInsertReadRefuse(t *testing.T) {
	n := startNode(t)
	db := open(t, dsn(n, "shop.db"))
	mustExec(t, db, "CREATE TABLE a(x)", "INSERT INTO a VALUES(1)")

	n.Set(func(h *Hooks) {
		h.Verdict = func(*Database, *link.Tx) (link.Outcome, string) { return link.Refused, "another entry won" }
	})
	_, err := db.Exec("INSERT INTO a VALUES(2)")
	if got, want := codeOf(err), 517; got != want {
		t.Fatalf("refused insert: code %d, want %d (%v)", got, want, err)
	}
	if got := queryText(t, db, "PRAGMA hasqlite_error"); !strings.Contains(got, "another entry won") {
		t.Errorf("PRAGMA hasqlite_error = %q", got)
	}
	n.Set(func(h *Hooks) { h.Verdict = nil })
	mustExec(t, db, "INSERT INTO a VALUES(3)")
	if got, want := queryText(t, db, "SELECT group_concat(x) FROM a"), "1,3"; got != want {
		t.Errorf("rows = %s, want %s", got, want)
	}
	other := open(t, dsn(n, "shop.db"))
	if got, want := queryText(t, other, "SELECT group_concat(x) FROM a"), "1,3"; got != want {
		t.Errorf("rows by another handle = %s, want %s", got, want)
	}
	if got := queryText(t, db, "SELECT file FROM pragma_database_list"); got != n.Database("shop.db").Path {
		t.Errorf("database_list shows %s", got)
	}
	checkMirror(t, n.Database("shop.db"))
}

func TestPlainPathsPassThrough(t *testing.T) {
	n := startNode(t)
	path := filepath.Join(t.TempDir(), "plain.db")
	db := open(t, "file:"+path+"?vfs=hasqlite&node="+n.Socket)
	mustExec(t, db, "CREATE TABLE a(x)", "INSERT INTO a VALUES(1)")
	if got := queryText(t, db, "PRAGMA journal_mode"); got != "delete" {
		t.Errorf("journal_mode = %s", got)
	}
	if names := n.Names(); len(names) != 0 {
		t.Errorf("node made %v", names)
	}
}
