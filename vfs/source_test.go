package vfs

import (
	"database/sql"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/uglyer/ha-sqlite/wal"
)

// transaction is what a commit of the source wrote.
type transaction struct {
	pages     []wal.Page
	pageCount uint32
}

// source is a plain SQLite database whose transactions are taken from its log.
type source struct {
	db     *sql.DB
	path   string
	log    *os.File
	reader *wal.Reader
}

// newSource makes a source that starts with the same image as a new replica.
func newSource(t testing.TB, pageSize uint32, autoVacuum uint8) *source {
	t.Helper()
	path := filepath.Join(t.TempDir(), "source")
	if err := os.WriteFile(path, Image(pageSize, autoVacuum), 0o600); err != nil {
		t.Fatal(err)
	}
	s := &source{db: openSQL(t, path+"?_txlock=immediate"), path: path}
	s.mustExec(t, "PRAGMA wal_autocheckpoint=0")
	s.mustExec(t, "PRAGMA synchronous=OFF")
	return s
}

func (s *source) mustExec(t testing.TB, stmt string) {
	t.Helper()
	if _, err := s.db.Exec(stmt); err != nil {
		t.Fatalf("%s: %v", stmt, err)
	}
}

// exec runs statements that make one transaction and returns its pages. The
// log of a database carries no locks, so it may be read as a file.
func (s *source) exec(t testing.TB, stmts ...string) transaction {
	t.Helper()
	tx, err := s.db.Begin()
	if len(stmts) == 1 {
		if err == nil {
			err = tx.Rollback()
		}
		if err == nil {
			_, err = s.db.Exec(stmts[0]) // VACUUM runs in no transaction
		}
	} else {
		for _, stmt := range stmts {
			if err == nil {
				_, err = tx.Exec(stmt)
			}
		}
		if err == nil {
			err = tx.Commit()
		}
	}
	if err != nil {
		t.Fatalf("%q: %v", stmts, err)
	}
	out, err := s.next()
	if err != nil {
		t.Fatalf("%q: %v", stmts, err)
	}
	return out
}

// next returns the next transaction of the log.
func (s *source) next() (transaction, error) {
	var err error
	if s.log == nil {
		if s.log, err = os.Open(s.path + "-wal"); err != nil {
			return transaction{}, err
		}
		if s.reader, err = wal.NewReader(s.log); err != nil {
			return transaction{}, err
		}
	}
	c, err := s.reader.Next()
	if err != nil {
		return transaction{}, err
	}
	pages, err := s.reader.ReadPages(c)
	return transaction{pages: pages, pageCount: c.PageCount}, err
}

// restart copies the log into the file and empties it. All of it was read.
func (s *source) restart(t testing.TB) {
	t.Helper()
	if s.log != nil {
		if _, err := s.reader.Next(); !errors.Is(err, io.EOF) {
			t.Fatalf("unread transactions in the log: %v", err)
		}
		s.log.Close()
		s.log = nil
	}
	s.mustExec(t, "PRAGMA wal_checkpoint(TRUNCATE)")
}
