package history

import (
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/psanford/sqlite3vfs"
)

// An open that fails closes nobody else's file: the first file of the process
// has the identifier that is closed then. So the test is the first of its process.
func TestAFailedOpenClosesNobodysFile(t *testing.T) {
	const child = "HASQLITE_TEST_FIRST_FILE"
	if os.Getenv(child) == "" {
		cmd := exec.Command(os.Args[0], "-test.run=^TestAFailedOpenClosesNobodysFile$", "-test.count=1")
		cmd.Env = append(os.Environ(), child+"=1")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		return
	}
	_, root := example(t, 40)
	first := open(t, uri(root, "to=0000000000000028"))
	if _, err := first.Exec("PRAGMA cache_size=2"); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if err := open(t, uri(root, "at=soon")).Ping(); err == nil {
			t.Fatal("opened")
		}
		if got := text(t, first, "SELECT count(pad) FROM t"); got != "39" {
			t.Errorf("got %s rows", got)
		}
	}
}

// PRAGMAs that are not ours are SQLite's.
func TestPragmasReachSQLite(t *testing.T) {
	_, root := example(t, 5)
	db := open(t, uri(root, "at=now"))
	for pragma, want := range map[string]string{
		"page_size": "4096", "page_count": "2", "integrity_check": "ok", "encoding": "UTF-8", "user_version": "0", "schema_version": "1", "hasqlite_error": "",
	} {
		if got := text(t, db, "PRAGMA "+pragma); got != want {
			t.Errorf("%s is %s, want %s", pragma, got, want)
		}
	}
	if err := db.QueryRow("PRAGMA hasqlite_nothing").Scan(new(string)); err == nil {
		t.Error("an unknown PRAGMA has an answer")
	}
}

// What SQLite is told of locks is the negation of what a file says.
func TestNobodyHasALock(t *testing.T) {
	for _, f := range []sqlite3vfs.File{&file{}, failedFile{}, &tempFile{}} {
		if locked, err := f.CheckReservedLock(); !locked || err != nil {
			t.Errorf("%T: %v, %v: SQLite would see a lock, and a journal as a hot one", f, locked, err)
		}
	}
}

// Files return errors of sqlite3vfs as they are: it looks at their types.
func TestErrorsKeepTheirCode(t *testing.T) {
	for what, err := range map[string]error{
		"failed read": second(failedFile{}.ReadAt(nil, 0)), "write": second((&file{}).WriteAt(nil, 0)), "truncate": (&file{}).Truncate(0), "pragma": pragmaError(&file{}),
	} {
		if !strings.HasPrefix(err.Error(), "sqlite (") {
			t.Errorf("%s: %v is of type %T", what, err, err)
		}
	}
}

func second(_ int, err error) error { return err }

func pragmaError(f *file) error {
	_, err := f.FileControl(14, "cache_size", nil)
	return err
}

// A file ends with io.EOF and never with a short read alone, which panics.
func TestReadsBehindTheEnd(t *testing.T) {
	d, root := example(t, 3)
	db := open(t, uri(root, "at=now"))
	if err := db.Ping(); err != nil {
		t.Fatal(err)
	}
	f, err := openURI("acme/shop.db", map[string]string{"at": "now", "archive": root})
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	size, err := f.FileSize()
	if err != nil || size != int64(len(d.Images[2])) {
		t.Fatalf("%d bytes, %v", size, err)
	}
	for off, want := range map[int64]int{size: 0, size - 10: 10, size + 4096: 0, 0: 100, size - 100: 100} {
		n, err := f.ReadAt(make([]byte, 100), off)
		if n != want || (n < 100) != (err != nil) {
			t.Errorf("from %d: %d bytes, %v", off, n, err)
		}
	}
}
