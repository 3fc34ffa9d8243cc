package wal_test

import (
	"bytes"
	"database/sql"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"

	_ "github.com/mattn/go-sqlite3"

	"github.com/uglyer/ha-sqlite/wal"
)

// The files were made by SQLite 3.40.1, see testdata/make.py. What our reader takes for the valid part of a
// damaged log is what SQLite recovers from it.
func TestReaderAndSQLiteAgreeAboutDamagedLogs(t *testing.T) {
	for _, tc := range []struct {
		dir  string
		rows int // of table t; -1: the log holds no transaction, so there is no table
		err  error
	}{
		{"five-transactions-512", 4, nil},
		{"five-transactions-4096", 4, nil},
		{"five-transactions-65536", 4, nil},
		{"torn-last-frame", 3, nil},
		{"salt-mismatch", 3, nil},
		{"bad-checksum", 3, nil},
		{"bad-page", 3, nil},
		{"page-zero", 3, nil},
		{"header-only", -1, nil},
		{"torn-header", -1, wal.ErrCorrupt},
		{"bad-header-checksum", -1, wal.ErrCorrupt},
		{"unknown-version", -1, wal.ErrVersion},
	} {
		t.Run(tc.dir, func(t *testing.T) {
			log, err := os.ReadFile(filepath.Join("..", "testdata", tc.dir, "db-wal"))
			if err != nil {
				t.Fatal(err)
			}
			commits := 0
			r, err := wal.NewReader(bytes.NewReader(log))
			if !errors.Is(err, tc.err) {
				t.Fatalf("read the header: got %v, want %v", err, tc.err)
			}
			if err == nil {
				for ; ; commits++ {
					if _, err = r.Next(); err != nil {
						break
					}
				}
				if !errors.Is(err, io.EOF) {
					t.Fatal(err)
				}
			}
			if want := tc.rows + 1; commits != want { // CREATE TABLE is the first
				t.Errorf("%d transactions, want %d", commits, want)
			}
			if tc.err != nil && errors.Is(tc.err, wal.ErrVersion) {
				return // SQLite refuses the database
			}
			if got := recoveredRows(t, tc.dir); got != tc.rows {
				t.Errorf("SQLite recovers %d rows, want %d", got, tc.rows)
			}
		})
	}
}

// recoveredRows has SQLite recover a copy; -1: there is no table.
func recoveredRows(t *testing.T, dir string) int {
	t.Helper()
	to := t.TempDir()
	if err := os.CopyFS(to, os.DirFS(filepath.Join("..", "testdata", dir))); err != nil {
		t.Fatal(err)
	}
	db, err := sql.Open("sqlite3", filepath.Join(to, "db"))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	var tables, rows int
	if err := db.QueryRow(`SELECT count(*) FROM sqlite_schema`).Scan(&tables); err != nil {
		t.Fatal(err)
	}
	if tables == 0 {
		return -1
	}
	if err := db.QueryRow(`SELECT count(*) FROM t`).Scan(&rows); err != nil {
		t.Fatal(err)
	}
	return rows
}
