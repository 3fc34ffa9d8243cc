package main

import (
	"bytes"
	"database/sql"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/uglyer/ha-sqlite/internal/exit"
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
	sum := snapshot.ChecksumFlag
	for at := 0; at < len(content); at += 4096 {
		sum = snapshot.Roll(sum, snapshot.PageSum(uint32(at/4096)+1, content[at:at+4096]))
	}
	n := exampleNode()
	n.exported, n.bookmark = content, fmt.Sprintf("%016x/%016x@%032x", 2, sum, 1)
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
	n.dropped = true
	if _, out, errs = cmdline(t, n, nil, "export", "shop.db", filepath.Join(t.TempDir(), "x"), "--at", "1 hour ago"); !strings.Contains(out, "no longer kept one by one") {
		t.Errorf("commits behind the state are missing: %s%s", out, errs)
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
	code, out, errs := cmdline(t, n, nil, "rollback", "shop.db", "--at", "1 hour ago")
	if code != exit.OK || !strings.Contains(out, "b2") || !strings.Contains(out, "hasqlite rollback shop.db --to b1") || n.calls[0] != "rollback shop.db 1 hour ago false" {
		t.Errorf("%d, %s%s, %q", code, out, errs, n.calls)
	}
	if code, out, _ = cmdline(t, n, nil, "rollback", "shop.db", "--to", "b0", "--dry-run"); code != exit.OK || !strings.Contains(out, "would") {
		t.Errorf("%d, %s", code, out)
	}
	if code, _, _ = cmdline(t, n, nil, "rollback", "shop.db"); code != exit.Usage {
		t.Errorf("no state: %d", code)
	}
}
