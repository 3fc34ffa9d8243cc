package fault

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"

	"github.com/mattn/go-sqlite3"
)

// schema of the database that the writers share. The trigger and the default make every transaction unlike any other.
const schema = `
CREATE TABLE rows(id INTEGER PRIMARY KEY AUTOINCREMENT, writer TEXT NOT NULL, seq INT NOT NULL, part INT NOT NULL,
  parts INT NOT NULL, luck INT NOT NULL DEFAULT (random()));
CREATE INDEX rows_by_transaction ON rows(writer, seq);
CREATE TABLE audit(row INTEGER PRIMARY KEY, luck INT NOT NULL, at TEXT NOT NULL);
CREATE TRIGGER rows_audit AFTER INSERT ON rows BEGIN INSERT INTO audit VALUES(new.id, random(), CURRENT_TIMESTAMP); END;
CREATE TABLE same(v);
CREATE TABLE counter(n INT NOT NULL);
INSERT INTO counter VALUES(0);
CREATE TABLE account(id INTEGER PRIMARY KEY, balance INT NOT NULL DEFAULT 0);
WITH RECURSIVE c(i) AS (VALUES(1) UNION ALL SELECT i+1 FROM c WHERE i < 10) INSERT INTO account(id) SELECT i FROM c;
CREATE TABLE blobs(id INTEGER PRIMARY KEY, data BLOB);
`

// classify says what an error promises. committing: it came from the statement that commits.
func classify(err error, committing bool) Fate {
	if err == nil {
		return Acknowledged
	}
	if !committing {
		return Refused
	}
	var e sqlite3.Error
	if errors.As(err, &e) && e.Code != sqlite3.ErrIoErr {
		return Refused
	}
	return Unknown
}

// envFull is set for applications whose disk may be full.
const envFull = "HASQLITE_TEST_FULL"

// expected reports whether a correct cluster may give this error while its nodes are being killed.
func expected(err error) bool {
	var e sqlite3.Error
	if !errors.As(err, &e) {
		return false
	}
	switch e.Code {
	case sqlite3.ErrBusy, sqlite3.ErrIoErr, sqlite3.ErrCantOpen:
		return true
	case sqlite3.ErrFull:
		return os.Getenv(envFull) != ""
	}
	return false
}

// reason gives the code and the text of an error.
func reason(err error) string {
	var e sqlite3.Error
	if errors.As(err, &e) {
		return fmt.Sprintf("%d/%d %s", e.Code, e.ExtendedCode, e.Error())
	}
	if err == nil {
		return ""
	}
	return err.Error()
}

// open opens a database with exactly one connection.
func open(dsn string) *sql.DB {
	db, err := sql.Open("sqlite3", dsn)
	if err != nil {
		panic(fmt.Sprintf("the driver is linked in: %v", err)) // sql.Open fails only for an unknown driver
	}
	db.SetMaxOpenConns(1)
	return db
}

// readFinal reads everything that judge wants to see.
func readFinal(ctx context.Context, db *sql.DB) (Final, error) {
	var f Final
	err := db.QueryRowContext(ctx, `SELECT (SELECT count(*) FROM audit), (SELECT count(*) FROM same), (SELECT n FROM counter),
		(SELECT sum(balance) FROM account)`).Scan(&f.Audited, &f.Same, &f.Counter, &f.Balance)
	if err != nil {
		return Final{}, fmt.Errorf("read counts: %w", err)
	}
	rows, err := db.QueryContext(ctx, `SELECT id, writer, seq, part, parts FROM rows ORDER BY id`)
	if err != nil {
		return Final{}, fmt.Errorf("read rows: %w", err)
	}
	defer rows.Close()
	for rows.Next() {
		var r Row
		if err := rows.Scan(&r.ID, &r.Writer, &r.Seq, &r.Part, &r.Parts); err != nil {
			return Final{}, fmt.Errorf("read rows: %w", err)
		}
		f.Rows = append(f.Rows, r)
	}
	if err := rows.Err(); err != nil {
		return Final{}, fmt.Errorf("read rows: %w", err)
	}
	return f, nil
}
