package node

import (
	"context"
	"database/sql"
	"errors"
	"testing"
	"time"

	"github.com/mattn/go-sqlite3"

	"github.com/uglyer/ha-sqlite/internal/localcluster"
	"github.com/uglyer/ha-sqlite/internal/testcluster"
)

// patient is how an application opens a database that it writes.
var patient = []string{"_busy_timeout=20000", "_synchronous=FULL"}

func TestMain(m *testing.M) { testcluster.Main(m, nil) }

// code returns SQLite's extended result code of an error, 0 for none and -1 for an error of another kind.
func code(err error) int {
	var e sqlite3.Error
	switch {
	case err == nil:
		return 0
	case errors.As(err, &e):
		return int(e.ExtendedCode)
	}
	return -1
}

// insist runs a statement until it gives no SQLITE_BUSY, and reports whether it was done; any other error fails the test.
func insist(ctx context.Context, t *testing.T, db *sql.DB, query string, args ...any) bool {
	t.Helper()
	var err error
	pollErr := localcluster.Poll(ctx, 5*time.Millisecond, func() (bool, error) {
		_, err = db.ExecContext(ctx, query, args...)
		return code(err)&0xff != int(sqlite3.ErrBusy), err
	})
	if err := errors.Join(pollErr, err); err != nil {
		t.Errorf("%s: %v (%d)", query, err, code(err))
		return false
	}
	return true
}

// conn takes the one connection of a handle, for a transaction over several statements.
func conn(t *testing.T, db *sql.DB) *sql.Conn {
	t.Helper()
	c, err := db.Conn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() }) // tests that give it back early have closed it
	return c
}

func do(t *testing.T, c *sql.Conn, queries ...string) {
	t.Helper()
	for _, q := range queries {
		if _, err := c.ExecContext(t.Context(), q); err != nil {
			t.Fatalf("%s: %v", q, err)
		}
	}
}
