package sqlitefile

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func run(t *testing.T, db *sql.DB, q string, args ...any) {
	t.Helper()
	if _, err := db.ExecContext(t.Context(), q, args...); err != nil {
		t.Fatalf("%s: %v", q, err)
	}
}

func openRW(t *testing.T, path string) *sql.DB {
	t.Helper()
	db, err := open(path, "mode=rwc")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	return db
}

// image makes a database in a directory of its own.
func image(t *testing.T, pragmas string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "f.db")
	db := openRW(t, path)
	run(t, db, pragmas+`; CREATE TABLE t(a, b); CREATE INDEX i ON t(a); INSERT INTO t VALUES(1, randomblob(5000)), (2, 'two')`)
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	return path
}

func content(t *testing.T, s *Source) []byte {
	t.Helper()
	b, err := io.ReadAll(s.Reader())
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestAFileIsTakenAsItIs(t *testing.T) {
	for mode, pragmas := range []string{"PRAGMA page_size=512", "PRAGMA page_size=65536; PRAGMA auto_vacuum=FULL", "PRAGMA auto_vacuum=INCREMENTAL"} {
		path := image(t, pragmas)
		want, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		s, err := Open(t.Context(), path, Options{})
		if err != nil {
			t.Fatal(err)
		}
		if int(s.AutoVacuum) != mode || !bytes.Equal(content(t, s), want) || s.FromWAL || s.Kind != KindDatabase {
			t.Errorf("%s: %+v", pragmas, s.Info)
		}
		if err := Check(t.Context(), s.Path()); err != nil {
			t.Error(err)
		}
		s.Close()
		in, err := Open(t.Context(), "-", Options{Stdin: bytes.NewReader(want)})
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(content(t, in), want) {
			t.Error("standard input gives another database")
		}
		in.Close()
	}
}

// copyAside copies a database with its log while it is open.
func copyAside(t *testing.T, path string, suffixes ...string) string {
	t.Helper()
	target := filepath.Join(t.TempDir(), "copy.db")
	for _, suffix := range append(suffixes, "") {
		b, err := os.ReadFile(path + suffix)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(target+suffix, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return target
}

// What is in the log beside a file is imported too, and neither of the two is touched.
func TestALogBesideTheFileIsReadThroughAPrivateCopy(t *testing.T) {
	path := image(t, "PRAGMA journal_mode=WAL")
	db := openRW(t, path)
	run(t, db, `PRAGMA wal_autocheckpoint=0; INSERT INTO t VALUES(3, 'only in the log')`)
	left := copyAside(t, path, "-wal")
	before := map[string][]byte{}
	for _, suffix := range []string{"", "-wal"} {
		before[suffix], _ = os.ReadFile(left + suffix)
	}
	temp := t.TempDir()
	s, err := Open(t.Context(), left, Options{TempDir: temp})
	if err != nil {
		t.Fatal(err)
	}
	if !s.FromWAL {
		t.Error("the log was left out")
	}
	out := filepath.Join(t.TempDir(), "out.db")
	if err := os.WriteFile(out, content(t, s), 0o600); err != nil {
		t.Fatal(err)
	}
	var n int
	if err := openRW(t, out).QueryRow(`SELECT count(*) FROM t WHERE b = 'only in the log'`).Scan(&n); err != nil || n != 1 {
		t.Errorf("%d rows, %v", n, err)
	}
	s.Close()
	for suffix, want := range before {
		if got, err := os.ReadFile(left + suffix); err != nil || !bytes.Equal(got, want) {
			t.Errorf("copy.db%s was changed: %v", suffix, err)
		}
	}
	if names, err := os.ReadDir(filepath.Dir(left)); err != nil || len(names) != 2 {
		t.Errorf("%v, %v", names, err)
	}
	if names, err := os.ReadDir(temp); err != nil || len(names) != 0 {
		t.Errorf("private copies stay behind: %v, %v", names, err)
	}
}

func TestFilesThatAreRefused(t *testing.T) {
	write := func(path string, b []byte) {
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	read := func(path string) []byte {
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	tests := map[string]struct {
		make func() string
		want error
		text string
	}{
		"hot journal": {func() string {
			path := image(t, "PRAGMA journal_mode=DELETE")
			db := openRW(t, path)
			run(t, db, `PRAGMA cache_size=1; BEGIN; UPDATE t SET b = randomblob(90000); UPDATE t SET a = a + 1`)
			return copyAside(t, path, "-journal")
		}, ErrRefused, "hot journal"},
		"log of another file": {func() string {
			path := image(t, "PRAGMA journal_mode=DELETE")
			other := image(t, "PRAGMA journal_mode=WAL")
			run(t, openRW(t, other), `INSERT INTO t VALUES(3, 'x')`)
			write(path+"-wal", read(other+"-wal"))
			return path
		}, ErrRefused, "not in WAL mode"},
		"damaged log": {func() string {
			path := image(t, "PRAGMA journal_mode=WAL")
			run(t, openRW(t, path), `INSERT INTO t VALUES(3, 'x')`)
			left := copyAside(t, path, "-wal")
			b := read(left + "-wal")
			b[20] ^= 1
			write(left+"-wal", b)
			return left
		}, ErrDamaged, "log beside it"},
		"cut off log": {func() string {
			path := image(t, "PRAGMA journal_mode=WAL")
			write(path+"-wal", []byte("short"))
			return path
		}, ErrDamaged, "log beside it"},
		"cut off":  {func() string { p := image(t, "PRAGMA page_size=1024"); write(p, read(p)[:2048]); return p }, ErrDamaged, "cut off"},
		"empty":    {func() string { p := filepath.Join(t.TempDir(), "e"); write(p, nil); return p }, ErrRefused, "empty"},
		"noise":    {func() string { p := filepath.Join(t.TempDir(), "e"); write(p, []byte{0, 1, 2}); return p }, ErrDamaged, "neither"},
		"absent":   {func() string { return filepath.Join(t.TempDir(), "no") }, os.ErrNotExist, ""},
		"a folder": {func() string { return t.TempDir() }, ErrRefused, "regular"},
	}
	for name, test := range tests {
		s, err := Open(t.Context(), test.make(), Options{})
		if !errors.Is(err, test.want) || !strings.Contains(err.Error(), test.text) {
			t.Errorf("%s: %v, want %v", name, err, test.want)
		}
		if s != nil {
			t.Errorf("%s: a source all the same", name)
		}
	}
	damaged := image(t, "PRAGMA page_size=512")
	b := read(damaged)
	for i := 512; i < len(b); i += 3 {
		b[i] ^= 0x55
	}
	write(damaged, b)
	if err := Check(t.Context(), damaged); !errors.Is(err, ErrDamaged) {
		t.Errorf("%v, want ErrDamaged", err)
	}
}

func TestAFileThatIsWrittenMeanwhileIsNoticed(t *testing.T) {
	path := image(t, "PRAGMA page_size=1024")
	s, err := Open(t.Context(), path, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if err := s.Unchanged(); err != nil {
		t.Error(err)
	}
	run(t, openRW(t, path), `INSERT INTO t VALUES(3, randomblob(5000))`)
	if err := s.Unchanged(); !errors.Is(err, ErrRefused) {
		t.Errorf("%v, want ErrRefused", err)
	}
}

func TestScripts(t *testing.T) {
	const good = `PRAGMA foreign_keys=OFF; BEGIN TRANSACTION;
CREATE TABLE t(a, b); INSERT INTO t VALUES(1,'semi;colon
line');
CREATE TRIGGER r AFTER INSERT ON t BEGIN UPDATE t SET b = 1; END;
CREATE VIRTUAL TABLE f USING fts4(x); INSERT INTO f VALUES('word');
COMMIT; VACUUM`
	s, err := Open(t.Context(), "-", Options{Stdin: strings.NewReader(good), PageSize: 8192})
	if err != nil {
		t.Fatal(err)
	}
	if s.Kind != KindScript || s.PageSize != 8192 || s.Statements != 9 {
		t.Errorf("%+v", s)
	}
	if err := Check(t.Context(), s.Path()); err != nil {
		t.Error(err)
	}
	s.Close()
	for name, test := range map[string]struct{ script, text string }{
		"syntax":       {"CREATE TABLE t(a);\nnonsense;\n", "line 2"},
		"cut off":      {"BEGIN; CREATE TABLE t(a);", "within a transaction"},
		"rolled back":  {"BEGIN; CREATE TABLE t(a); ROLLBACK; -- due to errors", "damaged database"},
		"attach":       {fmt.Sprintf("ATTACH '%s' AS x; CREATE TABLE x.t(a)", filepath.Join(t.TempDir(), "x")), "ATTACH"},
		"vacuum into":  {fmt.Sprintf("CREATE TABLE t(a); VACUUM INTO '%s'", filepath.Join(t.TempDir(), "x")), "authorization denied"},
		"no statement": {"-- nothing\n", "no table"},
	} {
		if _, err := Open(t.Context(), "-", Options{Stdin: strings.NewReader(test.script)}); !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), test.text) {
			t.Errorf("%s: %v", name, err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Open(ctx, "-", Options{Stdin: strings.NewReader(good)}); !errors.Is(err, context.Canceled) {
		t.Errorf("%v, want it cancelled", err)
	}
}

// FuzzInspect: whatever the bytes are, the header is refused or describes pages that are there.
func FuzzInspect(f *testing.F) {
	empty := make([]byte, 4096)
	copy(empty, magic)
	empty[16], empty[18], empty[19] = 16, 1, 1
	f.Add(empty)
	f.Add([]byte(magic))
	f.Fuzz(func(t *testing.T, b []byte) {
		i, err := Inspect(bytes.NewReader(b), int64(len(b)))
		if err != nil {
			return
		}
		if i.Size() > int64(len(b)) || i.PageSize < 512 || i.PageSize > 65536 || i.AutoVacuum > 2 {
			t.Fatalf("%+v of %d bytes", i, len(b))
		}
	})
}
