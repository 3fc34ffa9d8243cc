package shell

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"

	"github.com/mattn/go-sqlite3"
)

// conn is the one connection of a shell.
type conn struct{ c *sqlite3.SQLiteConn }

func open(dsn string) (*conn, error) {
	c, err := (&sqlite3.SQLiteDriver{}).Open(dsn)
	if err != nil {
		return nil, err
	}
	return &conn{c.(*sqlite3.SQLiteConn)}, nil
}

func (c *conn) close() error { return c.c.Close() }

// query runs one statement. columns is called once, with no names for a
// statement that returns no rows; row for each row, which it may keep.
func (c *conn) query(ctx context.Context, statement string, columns func([]string) error, row func([]any) error) (err error) {
	dr, err := c.c.QueryContext(ctx, statement, nil)
	if err != nil {
		return err
	}
	rows := dr.(*sqlite3.SQLiteRows)
	defer func() { err = errors.Join(err, rows.Close()) }()
	names := rows.Columns()
	if err := columns(names); err != nil {
		return err
	}
	// The driver turns values into bool and time.Time by the declared type of
	// their column. A shell shows what is stored: with the declared types
	// blanked, it gets it. The slice is the driver's own, and a test watches
	// that it stays so.
	for i := range rows.DeclTypes() {
		rows.DeclTypes()[i] = ""
	}
	values := make([]driver.Value, len(names))
	for {
		switch err := rows.Next(values); {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return err
		}
		out := make([]any, len(values))
		for i, v := range values {
			out[i] = v
		}
		if err := row(out); err != nil {
			return err
		}
	}
}

// all returns all rows of a query as text, NULL as "".
func (c *conn) all(ctx context.Context, statement string) ([][]string, error) {
	var rows [][]string
	err := c.query(ctx, statement, func([]string) error { return nil }, func(values []any) error {
		row := make([]string, len(values))
		for i, v := range values {
			row[i] = text(v, "")
		}
		rows = append(rows, row)
		return nil
	})
	return rows, err
}

// hints says what to do about the codes that are particular to a replicated
// database, where the VFS has nothing more exact to say.
// docs/sqlite-compatibility.md has the same in more words.
var hints = map[sqlite3.ErrNoExtended]string{
	sqlite3.ErrNoExtended(sqlite3.ErrBusy): "another writer has the lock, or there is no leader: try again",
	sqlite3.ErrBusySnapshot:                "refused and not written: run the transaction again",
	sqlite3.ErrIoErrWrite:                  "whether it was written is not known: look before you run it again",
}

// fromVFS lists the codes that may come from the VFS. Another error has
// nothing to do with the last text that the VFS kept.
var fromVFS = map[sqlite3.ErrNo]bool{
	sqlite3.ErrBusy: true, sqlite3.ErrReadonly: true, sqlite3.ErrIoErr: true, sqlite3.ErrFull: true,
	sqlite3.ErrCantOpen: true, sqlite3.ErrMisuse: true,
}

// describe returns the text of an error with SQLite's code, and what the VFS
// says about it or, failing that, what to do.
func (c *conn) describe(ctx context.Context, err error) string {
	text := describe(err)
	var se sqlite3.Error
	if c == nil || !errors.As(err, &se) || !fromVFS[se.Code] && se.Error() != "SQL logic error" {
		return text
	}
	// The text is kept with the database that refused, which may be an
	// attached one.
	schemas, _ := c.all(ctx, "SELECT name FROM pragma_database_list WHERE name <> 'temp'")
	for _, s := range schemas {
		rows, err := c.all(ctx, "PRAGMA "+quoteName(s[0])+".hasqlite_error")
		if err == nil && len(rows) > 0 && rows[0][0] != "" {
			return text + ": " + rows[0][0]
		}
	}
	if hint := hints[se.ExtendedCode]; hint != "" {
		return text + ": " + hint
	}
	return text
}

// describe returns the text of an error with SQLite's code.
func describe(err error) string {
	var se sqlite3.Error
	if !errors.As(err, &se) {
		return err.Error()
	}
	if code := int(se.ExtendedCode); code != 0 {
		return fmt.Sprintf("%s (%d)", se.Error(), code)
	}
	return se.Error()
}
