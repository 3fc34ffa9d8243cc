package compat

import (
	"database/sql"
	"database/sql/driver"
	"errors"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/mattn/go-sqlite3"

	"github.com/uglyer/ha-sqlite/internal/localcluster"
	"github.com/uglyer/ha-sqlite/internal/testcluster"
)

func TestMain(m *testing.M) { testcluster.Main(m, nil) }

// env is what a row has to work with: the cluster, and a database of its own.
type env struct {
	*testing.T
	cluster *localcluster.Cluster
	db      string
}

// rows is the table of the document, in its order.
var rows = []struct {
	name string
	run  func(e env)
}{
	{"journal_mode", journalMode},
	{"locking_mode", lockingMode},
	{"synchronous", synchronous},
	{"wal_checkpoint", walCheckpoint},
	{"mmap_size", mmapSize},
	{"page_size", pageSize},
	{"busy_timeout", busyTimeout},
	{"user_version", userVersion},
	{"database_list", databaseList},
	{"immutable", immutable},
	{"nolock", nolock},
	{"mode_ro", modeRO},
	{"names_and_paths", namesAndPaths},
	{"attach_two", attachTwo},
	{"attach_plain", attachPlain},
	{"temp_tables", tempTables},
	{"vacuum", vacuum},
	{"vacuum_into", vacuumInto},
	{"backup_from", backupFrom},
	{"backup_into", backupInto},
	{"deserialize", deserialize},
	{"session", session},
	{"large_transaction", largeTransaction},
	{"close", closeLast},
	{"delete", deleteOpen},
	{"data_version", dataVersion},
	{"linearizable", linearizable},
	{"past", past},
	{"hasqlite_pragmas", pragmas},
	{"hasqlite_error", errorPragma},
}

func TestCompat(t *testing.T) {
	c := testcluster.Start(t, localcluster.Options{Args: []string{"--max-transaction", "8MiB"}})
	for _, r := range rows {
		t.Run(r.name, func(t *testing.T) {
			r.run(env{t, c, strings.ReplaceAll(r.name, "_", "-") + ".db"})
		})
	}
}

func TestDocumentAndTestsHaveTheSameRows(t *testing.T) {
	b, err := os.ReadFile("../../docs/sqlite-compatibility.md")
	if err != nil {
		t.Fatal(err)
	}
	var inDocument, inTests []string
	for _, m := range regexp.MustCompile("`TestCompat/(\\w+)`").FindAllStringSubmatch(string(b), -1) {
		inDocument = append(inDocument, m[1])
	}
	for _, r := range rows {
		inTests = append(inTests, r.name)
	}
	if !slices.Equal(inDocument, inTests) {
		t.Errorf("rows of the document:\n%s\ntests:\n%s", strings.Join(inDocument, " "), strings.Join(inTests, " "))
	}
}

// open opens the row's database through a node, by number.
func (e env) open(node int, params ...string) *sql.DB {
	e.Helper()
	return testcluster.Open(e.T, e.cluster.Nodes()[node], e.db, append([]string{"_busy_timeout=10000"}, params...)...)
}

func (e env) exec(db *sql.DB, query string, args ...any) {
	e.Helper()
	testcluster.Exec(e.T, db, query, args...)
}

// want compares the first column of the first row.
func (e env) want(db *sql.DB, query, want string) {
	e.Helper()
	if got := testcluster.Query(e.T, db, query); got != want {
		e.Errorf("%s: got %q, want %q", query, got, want)
	}
}

// fails wants an error of a code; its text, or that which the VFS kept, has to
// say something.
func (e env) fails(db *sql.DB, query string, code sqlite3.ErrNo, says string) {
	e.Helper()
	_, err := db.ExecContext(e.Context(), query)
	e.failed(db, query, err, code, says)
}

func (e env) failed(db *sql.DB, query string, err error, code sqlite3.ErrNo, says string) {
	e.Helper()
	var se sqlite3.Error
	if !errors.As(err, &se) || se.Code != code {
		e.Fatalf("%s: got error %v, want code %d", query, err, code)
	}
	text := err.Error()
	if !strings.Contains(text, says) && db != nil {
		text = testcluster.Query(e.T, db, "SELECT count(*) FROM pragma_database_list WHERE name='o'")
		if text == "1" {
			text = testcluster.Query(e.T, db, "PRAGMA o.hasqlite_error")
		} else {
			text = testcluster.Query(e.T, db, "PRAGMA hasqlite_error")
		}
	}
	if !strings.Contains(text, says) {
		e.Errorf("%s: the error says %q and %q, want %q", query, err, text, says)
	}
}

// seen waits until a query gives a value on all nodes.
func (e env) seen(query, want string) {
	e.Helper()
	for i := range e.cluster.Nodes() {
		db := e.open(i)
		got := ""
		err := localcluster.Poll(testcluster.Context(e.T, 10*time.Second), 5*time.Millisecond, func() (bool, error) {
			err := db.QueryRowContext(e.Context(), query).Scan(&got)
			return err == nil && got == want, err
		})
		if err != nil {
			e.Fatalf("node %d: %s: got %q, want %q: %v", i+1, query, got, want, err)
		}
	}
}

// raw opens the database with the driver's own connection.
func (e env) raw(dsn string) *sqlite3.SQLiteConn {
	e.Helper()
	c, err := (&sqlite3.SQLiteDriver{}).Open(dsn)
	if err != nil {
		e.Fatal(err)
	}
	e.Cleanup(func() {
		if err := c.Close(); err != nil {
			e.Error(err)
		}
	})
	return c.(*sqlite3.SQLiteConn)
}

func (e env) dsn(node int, params ...string) string {
	return e.cluster.Nodes()[node].DSN(e.db, params...)
}

// first returns the first row of a query on the driver's own connection.
func (e env) first(c *sqlite3.SQLiteConn, query string) []driver.Value {
	e.Helper()
	r, err := c.QueryContext(e.Context(), query, nil)
	if err != nil {
		e.Fatalf("%s: %v", query, err)
	}
	defer r.Close()
	values := make([]driver.Value, len(r.Columns()))
	if err := r.Next(values); err != nil && !errors.Is(err, io.EOF) {
		e.Fatalf("%s: %v", query, err)
	}
	return values
}

func (e env) path(name string) string { return filepath.Join(e.TempDir(), name) }
