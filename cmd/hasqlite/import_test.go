package main

import (
	"bytes"
	"database/sql"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/uglyer/ha-sqlite/internal/exit"
	"github.com/uglyer/ha-sqlite/internal/moment"
	"github.com/uglyer/ha-sqlite/snapshot"
)

// sqliteFile makes a small SQLite file.
func sqliteFile(t *testing.T, path string) []byte {
	t.Helper()
	db, err := sql.Open("sqlite3", path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := db.Exec(`CREATE TABLE t(a); INSERT INTO t VALUES(randomblob(10000))`); err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestImportSendsTheFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f.db")
	want := sqliteFile(t, path)
	n := exampleNode()
	code, out, errs := cmdline(t, n, nil, "import", "new.db", path)
	if code != exit.OK || !bytes.Equal(n.imported, want) || !strings.Contains(out, "b1") {
		t.Errorf("%d, %d bytes, %s%s", code, len(n.imported), out, errs)
	}
	n = exampleNode()
	if code, out, errs = cmdline(t, n, nil, "import", "new.db", path, "--dry-run", "--json"); code != exit.OK || n.imported != nil {
		t.Errorf("%d, %s%s", code, out, errs)
	}
	var plan importPlan
	if err := json.Unmarshal([]byte(out), &plan); err != nil || !plan.DryRun || plan.SizeBytes != int64(len(want)) || plan.Exists {
		t.Errorf("%+v, %v", plan, err)
	}
	if code, _, _ = cmdline(t, n, nil, "import", "shop.db", path, "--dry-run"); code != exit.Conflict {
		t.Errorf("a name that exists: %d", code)
	}
	if code, out, _ = cmdline(t, n, nil, "import", "shop.db", path, "--dry-run", "--replace"); code != exit.OK || !strings.Contains(out, "replaced") {
		t.Errorf("%d, %s", code, out)
	}
	if code, _, errs = cmdline(t, n, nil, "import", "shop.db", path, "--replace", "--hold", "1500ms"); code != exit.OK || n.held != 1500 {
		t.Errorf("%d, %s, held %d", code, errs, n.held)
	}
	if code, _, errs = cmdline(t, n, nil, "import", "shop.db", path, "--replace", "--hold", "2h"); code != exit.Usage {
		t.Errorf("a hold of 2h: %d, %s", code, errs)
	}
	if err := os.WriteFile(path, want[:5000], 0o600); err != nil {
		t.Fatal(err)
	}
	n = exampleNode()
	if code, _, errs = cmdline(t, n, nil, "import", "new.db", path); code != exit.Damaged || n.imported != nil || !strings.Contains(errs, "cut off") {
		t.Errorf("a file that was cut off: %d, %s", code, errs)
	}
	if code, _, _ = cmdline(t, n, nil, "import", "new.db", path+".sql"); code != exit.Failure {
		t.Errorf("no file: %d", code)
	}
	if code, _, _ = cmdline(t, n, nil, "import", "new.db", path, "--page-size", "3"); code != exit.Usage {
		t.Errorf("a page size of 3: %d", code)
	}
}

func TestExportWritesAllOrNothing(t *testing.T) {
	content := sqliteFile(t, filepath.Join(t.TempDir(), "f.db"))
	n := exampleNode()
	n.exported, n.bookmark = content, bookmarkOf(content)
	file := filepath.Join(t.TempDir(), "out.db")
	code, out, errs := cmdline(t, n, nil, "export", "shop.db", file, "--to", "b1")
	got, err := os.ReadFile(file)
	if code != exit.OK || err != nil || !bytes.Equal(got, content) || !strings.Contains(out, n.bookmark) || n.calls[0] != "export shop.db b1" {
		t.Errorf("%d, %v, %s%s, %q", code, err, out, errs, n.calls)
	}
	if code, _, _ = cmdline(t, n, nil, "export", "shop.db", file); code == exit.OK {
		t.Error("a file that exists was replaced")
	}
	if code, out, errs = cmdline(t, n, nil, "export", "shop.db", "-"); code != exit.OK || out != string(content) || !strings.Contains(errs, n.bookmark) {
		t.Errorf("%d, %d bytes, %s", code, len(out), errs)
	}
	n.dropped, n.remarks = true, []string{moment.DroppedNote}
	if _, out, errs = cmdline(t, n, nil, "export", "shop.db", filepath.Join(t.TempDir(), "x"), "--at", "1 hour ago"); !strings.Contains(out, "no longer kept one by one") {
		t.Errorf("commits behind the state are missing: %s%s", out, errs)
	}
	n.dropped, n.remarks = false, nil
	// Standard output is the file: which commit it is, is said beside it, in JSON too.
	var said exported
	code, out, errs = cmdline(t, n, nil, "export", "shop.db", "-", "--json")
	if err := json.Unmarshal([]byte(errs), &said); code != exit.OK || err != nil || out != string(content) || said.Commit.Bookmark != n.bookmark || !said.Verified {
		t.Errorf("%d, %v, %d bytes, %s", code, err, len(out), errs)
	}
	n.exported = bytes.Clone(content)
	n.exported[5000] ^= 1
	dir := t.TempDir()
	if code, _, errs = cmdline(t, n, nil, "export", "shop.db", filepath.Join(dir, "x")); code != exit.Damaged {
		t.Errorf("a page that differs: %d, %s", code, errs)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
	if code, _, _ = cmdline(t, n, nil, "export", "shop.db", "-", "--at", "now", "--to", "b"); code != exit.Usage {
		t.Errorf("two states: %d", code)
	}
}

func TestRollbackPrintsHowToUndoIt(t *testing.T) {
	n := exampleNode()
	n.now = inCET
	code, out, errs := cmdline(t, n, nil, "rollback", "shop.db", "--at", "1 hour ago")
	if code != exit.OK || !strings.Contains(out, "b2") || !strings.Contains(out, "hasqlite rollback shop.db --to b1") || n.calls[0] != "rollback shop.db 2026-11-22T08:00:00.123456789Z false" {
		t.Errorf("%d, %s%s, %q", code, out, errs, n.calls)
	}
	if code, out, _ = cmdline(t, n, nil, "rollback", "shop.db", "--to", "b0", "--dry-run"); code != exit.OK || !strings.Contains(out, "would") {
		t.Errorf("%d, %s", code, out)
	}
	if code, _, _ = cmdline(t, n, nil, "rollback", "shop.db"); code != exit.Usage {
		t.Errorf("no state: %d", code)
	}
}

// inCET is the clock of a machine an hour east of UTC.
func inCET() time.Time {
	return time.Date(2026, 11, 22, 10, 0, 0, 123456789, time.FixedZone("CET", 3600))
}

// A time is said in the zone, and by the clock, of the machine that the command runs on: the node is told it in full,
// whatever its own are.
func TestTimesAreThoseOfTheCommand(t *testing.T) {
	const db = "shop.db"
	content := sqliteFile(t, filepath.Join(t.TempDir(), "f.db"))
	bookmark := strings.Repeat("0", 15) + "7/8000000000000001@" + strings.Repeat("0f", 16)
	for _, tt := range []struct {
		flag, text, sent string
		code             int
	}{
		{"--at", "2026-11-22 10:00", "2026-11-22T09:00:00Z", exit.OK},
		{"--at", "2026-11-22T10:00:00Z", "2026-11-22T10:00:00Z", exit.OK},
		{"--at", "2026-11-22 09:59:59.123456789", "2026-11-22T08:59:59.123456789Z", exit.OK},
		{"--at", "now", "2026-11-22T09:00:00.123456789Z", exit.OK},
		{"--at", "10 minutes ago", "2026-11-22T08:50:00.123456789Z", exit.OK},
		{"--at", "yesterday 18:00", "2026-11-21T17:00:00Z", exit.OK},
		{"--to", bookmark, bookmark, exit.OK},
		{"--at", "soon", "", exit.Usage},
	} {
		for call, args := range map[string][]string{
			"rollback shop.db %s false":     {"rollback", db},
			"fork shop.db copy.db %s false": {"fork", db, "copy.db"},
			"export shop.db %s":             {"export", db, "-"},
		} {
			n := exampleNode()
			n.now, n.exported, n.bookmark = inCET, content, bookmarkOf(content)
			if code, _, errs := cmdline(t, n, nil, append(args, tt.flag, tt.text)...); code != tt.code {
				t.Errorf("%s %s: exit code %d, %s", args[0], tt.text, code, errs)
			}
			want := []string{fmt.Sprintf(call, tt.sent)}
			if tt.code != exit.OK {
				want = nil
			}
			if !slices.Equal(n.calls, want) {
				t.Errorf("%s %s: asked %q, want %q", args[0], tt.text, n.calls, want)
			}
		}
	}
}

// What the node says of the choice of a commit is printed, with the commit.
func TestRemarksArePrinted(t *testing.T) {
	content := sqliteFile(t, filepath.Join(t.TempDir(), "f.db"))
	for _, args := range []string{"rollback shop.db --at now", "rollback shop.db --at now --dry-run", "fork shop.db copy.db --at now", "export shop.db OUT --at now", "export shop.db - --at now"} {
		n := exampleNode()
		n.exported, n.bookmark, n.remarks = content, bookmarkOf(content), []string{"it is the last commit, of then"}
		args := strings.Fields(strings.ReplaceAll(args, "OUT", filepath.Join(t.TempDir(), "out.db")))
		code, out, errs := cmdline(t, n, nil, args...)
		said := out
		if args[2] == "-" {
			said = errs
		}
		if code != exit.OK || !strings.Contains(said, "\nit is the last commit, of then\n") {
			t.Errorf("%q: %d, %s%s", args, code, out, errs)
		}
	}
}

// bookmarkOf is a bookmark with the checksum of a file.
func bookmarkOf(content []byte) string {
	sum := snapshot.ChecksumFlag
	for at := 0; at < len(content); at += 4096 {
		sum = snapshot.Roll(sum, snapshot.PageSum(uint32(at/4096)+1, content[at:at+4096]))
	}
	return fmt.Sprintf("%016x/%016x@%032x", 2, sum, 1)
}
