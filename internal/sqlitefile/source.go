package sqlitefile

import (
	"bufio"
	"bytes"
	"context"
	"database/sql"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"unicode/utf8"

	"github.com/mattn/go-sqlite3"

	"github.com/uglyer/ha-sqlite/internal/shell"
	"github.com/uglyer/ha-sqlite/wal"
)

// Options say how a source is opened.
type Options struct {
	// Stdin is read where the path is "-".
	Stdin io.Reader
	// TempDir is where private copies are made; empty: the system's.
	TempDir string
	// PageSize is that of a database that is made of a script; 0: 4096.
	PageSize uint32
	// Progress is told of bytes of a script or copy.
	Progress func(step string, done, total int64)
}

// Kinds of a Source.
const (
	KindDatabase = "database"
	KindScript   = "script"
)

// Source is a database that can be read from its first byte to its last.
type Source struct {
	Info
	Kind string // of what was given
	// FromWAL says that a log lay beside the file, whose transactions are in the private copy.
	FromWAL bool
	// Statements of a script.
	Statements int

	file *os.File
	stat os.FileInfo
	dir  string // of the private copy, "": none
}

// Open makes a SQLite file or a script readable as one database. The file itself is not changed.
func Open(ctx context.Context, path string, o Options) (_ *Source, err error) {
	if o.Progress == nil {
		o.Progress = func(string, int64, int64) {}
	}
	s := &Source{Kind: KindDatabase}
	defer func() {
		if err != nil {
			s.Close()
			err = fmt.Errorf("%s: %w", path, err)
		}
	}()
	given := path
	if path == "-" {
		if given, err = s.spool(ctx, o); err != nil {
			return nil, err
		}
	}
	f, err := os.Open(given)
	if err != nil {
		return nil, plain(err)
	}
	s.file = f
	if s.stat, err = f.Stat(); err != nil {
		return nil, plain(err)
	}
	if !s.stat.Mode().IsRegular() {
		return nil, fmt.Errorf("it is no regular file: %w", ErrRefused)
	}
	head := make([]byte, 4096)
	n, err := f.ReadAt(head, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, plain(err)
	}
	head = head[:n]
	switch {
	case n == 0:
		return nil, fmt.Errorf("it is empty: %w", ErrRefused)
	case bytes.HasPrefix(head, []byte(magic)):
		err = s.database(ctx, given, head, o)
	case isText(head):
		s.Kind = KindScript
		err = s.script(ctx, o)
	default:
		err = fmt.Errorf("it is neither a SQLite database nor a script (encrypted databases cannot be read): %w", ErrDamaged)
	}
	if err != nil {
		return nil, err
	}
	return s, nil
}

// plain leaves the path out, which the caller names.
func plain(err error) error {
	var pe *fs.PathError
	if errors.As(err, &pe) {
		return pe.Err
	}
	return err
}

func isText(b []byte) bool {
	if bytes.IndexByte(b, 0) >= 0 {
		return false
	}
	for cut := 0; cut < utf8.UTFMax && cut < len(b); cut++ { // a rune may be cut off at the end
		if utf8.Valid(b[:len(b)-cut]) {
			return true
		}
	}
	return false
}

func (s *Source) private(o Options) (string, error) {
	if s.dir == "" {
		dir, err := os.MkdirTemp(o.TempDir, "hasqlite-import-*")
		if err != nil {
			return "", fmt.Errorf("make a private copy: %w", err)
		}
		s.dir = dir
	}
	return s.dir, nil
}

// spool copies standard input into a private file.
func (s *Source) spool(ctx context.Context, o Options) (string, error) {
	if o.Stdin == nil {
		return "", fmt.Errorf("there is no standard input: %w", ErrRefused)
	}
	dir, err := s.private(o)
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, "input")
	return path, copyTo(ctx, path, o.Stdin, 0, o.Progress)
}

// copyTo writes all of r into a new file.
func copyTo(ctx context.Context, path string, r io.Reader, total int64, progress func(string, int64, int64)) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fmt.Errorf("make a private copy: %w", err)
	}
	defer f.Close()
	buf := make([]byte, 1<<20)
	for done := int64(0); ; {
		n, err := r.Read(buf)
		if _, werr := f.Write(buf[:n]); werr != nil {
			return fmt.Errorf("make a private copy: %w", werr)
		}
		if done += int64(n); total > 0 {
			progress("copy", done, total)
		}
		switch {
		case errors.Is(err, io.EOF):
			return f.Close()
		case err != nil:
			return fmt.Errorf("make a private copy: %w", err)
		case ctx.Err() != nil:
			return ctx.Err()
		}
	}
}

// journalMagic begins a rollback journal that was not finished.
var journalMagic = []byte{0xd9, 0xd5, 0x05, 0xf9, 0x20, 0xa1, 0x63, 0xd7}

// database takes a SQLite file with what lies beside it.
func (s *Source) database(ctx context.Context, path string, head []byte, o Options) error {
	journal, err := beginning(path+"-journal", len(journalMagic))
	if err != nil {
		return err
	}
	if bytes.Equal(journal, journalMagic) {
		return fmt.Errorf("a hot journal lies beside it (%s-journal): a transaction runs, or was cut off in the middle; end the program that writes it, "+
			"or open the file once with sqlite3, which rolls the transaction back: %w", filepath.Base(path), ErrRefused)
	}
	log, err := beginning(path+"-wal", wal.HeaderSize)
	if err != nil {
		return err
	}
	if len(log) == 0 {
		s.Info, err = readHeader(head, s.stat.Size())
		return err
	}
	name := filepath.Base(path) + "-wal"
	if len(head) < headerSize || head[18] != 2 || head[19] != 2 {
		return fmt.Errorf("a write-ahead log lies beside it (%s), and the file is not in WAL mode: the log is of another file, or the file was "+
			"replaced under it; remove the one that is wrong: %w", name, ErrRefused)
	}
	hdr, _, err := wal.DecodeHeader(log)
	if err == nil && hdr.PageSize != pageSizeOf(head) {
		err = fmt.Errorf("it has pages of %d bytes, the file of %d", hdr.PageSize, pageSizeOf(head))
	}
	if err != nil {
		return fmt.Errorf("the write-ahead log beside it (%s) is damaged, SQLite would leave out what was committed into it: %w: %w", name, err, ErrDamaged)
	}
	return s.checkpoint(ctx, path, o)
}

func pageSizeOf(head []byte) uint32 {
	n := uint32(binary.BigEndian.Uint16(head[16:]))
	if n == 1 {
		return 65536
	}
	return n
}

// beginning reads the first bytes of a file, none where there is no file or nothing in it.
func beginning(path string, n int) ([]byte, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b := make([]byte, n)
	n, err = io.ReadFull(f, b)
	if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		return nil, err
	}
	return b[:n], nil
}

// checkpoint makes a private copy of a file and its log, and has SQLite put the one into the other.
func (s *Source) checkpoint(ctx context.Context, path string, o Options) error {
	dir, err := s.private(o)
	if err != nil {
		return err
	}
	target := filepath.Join(dir, "copy.db")
	logBefore, err := os.Stat(path + "-wal")
	if err != nil {
		return err
	}
	log, err := os.Open(path + "-wal")
	if err != nil {
		return err
	}
	defer log.Close()
	err = copyTo(ctx, target, io.NewSectionReader(s.file, 0, s.stat.Size()), s.stat.Size(), o.Progress)
	if err == nil {
		err = copyTo(ctx, target+"-wal", log, 0, o.Progress)
	}
	if err != nil {
		return err
	}
	logAfter, err := os.Stat(path + "-wal")
	if err != nil || !sameStat(logBefore, logAfter) {
		return errBeingWritten
	}
	if err := s.Unchanged(); err != nil {
		return err
	}
	db, err := open(target, "mode=rw")
	if err != nil {
		return err
	}
	var busy, frames, done int
	err = db.QueryRowContext(ctx, "PRAGMA wal_checkpoint(TRUNCATE)").Scan(&busy, &frames, &done)
	if err == nil && (busy != 0 || done != frames) {
		err = fmt.Errorf("%d of %d frames", done, frames)
	}
	if err = errors.Join(err, db.Close()); err != nil {
		return fmt.Errorf("put its write-ahead log into a private copy: %w: %w", err, ErrDamaged)
	}
	s.FromWAL = true
	return s.take(target)
}

// take makes a private database the one that is read.
func (s *Source) take(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	s.file.Close()
	s.file = f
	if s.stat, err = f.Stat(); err != nil {
		return err
	}
	s.Info, err = Inspect(f, s.stat.Size())
	return err
}

var errBeingWritten = fmt.Errorf("it is being written: take a copy with the .backup command of sqlite3, and import that: %w", ErrRefused)

// Unchanged says whether the file is still as it was found.
func (s *Source) Unchanged() error {
	now, err := s.file.Stat()
	if err != nil {
		return plain(err)
	}
	if !sameStat(s.stat, now) {
		return errBeingWritten
	}
	return nil
}

// Reader reads the database.
func (s *Source) Reader() io.Reader { return io.NewSectionReader(s.file, 0, s.Size()) }

// Path is that of the file that is read.
func (s *Source) Path() string { return s.file.Name() }

// Close removes the private copy.
func (s *Source) Close() error {
	var errs []error
	if s.file != nil {
		errs = append(errs, s.file.Close())
	}
	if s.dir != "" {
		errs = append(errs, os.RemoveAll(s.dir))
	}
	return errors.Join(errs...)
}

// What the authorizer of a script is told, from sqlite3.h.
const (
	authTransaction = 22
	authAttach      = 24
	authFunction    = 31
)

// script runs the statements of a script in a private database.
func (s *Source) script(ctx context.Context, o Options) error {
	dir, err := s.private(o)
	if err != nil {
		return err
	}
	target := filepath.Join(dir, "script.db")
	db, err := open(target, "mode=rwc")
	if err != nil {
		return err
	}
	defer db.Close()
	conn, err := db.Conn(ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	size := o.PageSize
	if size == 0 {
		size = 4096
	}
	if _, err := conn.ExecContext(ctx, fmt.Sprintf("PRAGMA page_size=%d; PRAGMA synchronous=off", size)); err != nil {
		return err
	}
	// A script that was made by a dump of a damaged database ends in ROLLBACK.
	err = conn.Raw(func(c any) error {
		c.(*sqlite3.SQLiteConn).RegisterAuthorizer(func(action int, arg1, arg2, _ string) int {
			if action == authAttach && arg1 != "" || action == authTransaction && arg1 == "ROLLBACK" || action == authFunction && strings.EqualFold(arg2, "load_extension") {
				return sqlite3.SQLITE_DENY
			}
			return sqlite3.SQLITE_OK
		})
		return nil
	})
	if err != nil {
		return err
	}
	counted := &countingReader{r: bufio.NewReaderSize(s.file, 1<<20), progress: func(n int64) { o.Progress("run", n, s.stat.Size()) }}
	err = shell.Statements(counted, func(statement string, line int) error {
		s.Statements++
		if _, err := conn.ExecContext(ctx, statement); err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			text := ""
			if code := (sqlite3.Error{}); errors.As(err, &code) && code.Code == sqlite3.ErrAuth {
				text = " (ROLLBACK, ATTACH, VACUUM INTO and load_extension have no place in a script that is imported; a dump that ends in ROLLBACK is of a damaged database)"
			}
			return fmt.Errorf("statement %d, line %d: %w%s: %w", s.Statements, line, err, text, ErrRefused)
		}
		return nil
	})
	if err != nil {
		return err
	}
	if err := s.scriptEnd(ctx, conn); err != nil {
		return err
	}
	if err := errors.Join(conn.Close(), db.Close()); err != nil {
		return err
	}
	return s.take(target)
}

// scriptEnd sees to it that what the script made is in the file.
func (s *Source) scriptEnd(ctx context.Context, conn *sql.Conn) error {
	open := false
	err := conn.Raw(func(c any) error {
		open = !c.(*sqlite3.SQLiteConn).AutoCommit()
		return nil
	})
	if err != nil {
		return err
	}
	if open {
		return fmt.Errorf("it ends within a transaction: it was cut off: %w", ErrRefused)
	}
	// A script that makes nothing leaves no file, and a script may leave a log behind.
	var mode string
	if err := conn.QueryRowContext(ctx, "PRAGMA journal_mode=DELETE").Scan(&mode); err != nil {
		return err
	}
	var count int
	if err := conn.QueryRowContext(ctx, "PRAGMA page_count").Scan(&count); err != nil {
		return err
	}
	if count == 0 {
		return fmt.Errorf("it makes no table: %w", ErrRefused)
	}
	return nil
}

type countingReader struct {
	r        io.Reader
	n        int64
	progress func(int64)
}

func (c *countingReader) Read(b []byte) (int, error) {
	n, err := c.r.Read(b)
	c.n += int64(n)
	c.progress(c.n)
	return n, err
}
