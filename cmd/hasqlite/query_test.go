package main

import (
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/uglyer/ha-sqlite/internal/exit"
	"github.com/uglyer/ha-sqlite/internal/testarchive"
)

// shopArchive has six commits of shop.db.
func shopArchive(t *testing.T) (*testarchive.DB, string) {
	t.Helper()
	d, root := testarchive.InDir(t, "shop.db")
	d.Exec(
		"CREATE TABLE item(id INTEGER PRIMARY KEY, name TEXT, price REAL)",
		"INSERT INTO item VALUES(1, 'apple', 0.5), (2, 'pear', 0.75)",
		"CREATE INDEX item_name ON item(name)",
		"UPDATE item SET price = 0.6 WHERE id = 1",
		"INSERT INTO item VALUES(3, 'plum', 0.2)",
		"DELETE FROM item WHERE id = 2",
	)
	return d, root
}

func TestQueryAnswersFromThePast(t *testing.T) {
	d, root := shopArchive(t)
	env := map[string]string{"HASQLITE_ARCHIVE": root, "HASQLITE_HISTORY": "off"}
	for _, tt := range []struct {
		args []string
		out  string
		errs string
	}{
		{[]string{"--at", "2026-11-22T10:00:02Z", "SELECT id, name, price FROM item"}, "1|apple|0.5\n2|pear|0.75\n", "commit " + d.Bookmark(2) + " of 2026-11-22T10:00:02.000000Z\n"},
		{[]string{"--at", "2026-11-22T10:00:04.9Z", "SELECT price FROM item WHERE id = 1"}, "0.6\n", d.Bookmark(4)},
		{[]string{"--to", "0000000000000005", "--mode", "csv", "SELECT name FROM item ORDER BY name"}, "apple\r\npear\r\nplum\r\n", d.Bookmark(5)},
		{[]string{"--to", d.Bookmark(5), "--json", "SELECT id FROM item WHERE name = 'plum'"}, `[{"id":3}]` + "\n", d.Bookmark(5)},
		{[]string{"--mode", "table", "SELECT id FROM item"}, "+----+\n| id |\n+----+\n|  1 |\n|  3 |\n+----+\n", d.Bookmark(6)},
		{[]string{"--at", "now", "SELECT count(*) FROM item", "PRAGMA journal_mode"}, "2\noff\n", "the last commit of the archive"},
		{[]string{"--to", "0000000000000001", ".tables"}, "item\n", ""},
	} {
		code, stdout, stderr := cmdline(t, exampleNode(), env, append([]string{"query", "shop.db"}, tt.args...)...)
		if code != 0 || stdout != tt.out || !strings.Contains(stderr, tt.errs) {
			t.Errorf("%v: exit code %d: %q, %q", tt.args, code, stdout, stderr)
		}
	}
}

func TestQueryRefusals(t *testing.T) {
	_, root := shopArchive(t)
	for _, tt := range []struct {
		args []string
		code int
		says string
	}{
		{[]string{"--at", "2026-11-22T10:00:00Z", "SELECT 1"}, exit.NotFound, "10:00:01.000000Z to"},
		{[]string{"--at", "soon", "SELECT 1"}, exit.Usage, "--at \"soon\""},
		{[]string{"--at", "now", "--to", "0000000000000001", "SELECT 1"}, exit.Usage, "two states"},
		{[]string{"--mode", "csv", "--json", "SELECT 1"}, exit.Usage, "both given"},
		{[]string{"--cache", "0", "SELECT 1"}, exit.Usage, "--cache 0"},
		{[]string{"INSERT INTO item VALUES(9, 'x', 1)"}, exit.Failure, "attempt to write a readonly database (8)"},
		{[]string{"SELECT nope"}, exit.Failure, "no such column: nope"},
	} {
		code, stdout, stderr := cmdline(t, exampleNode(), nil, append([]string{"query", "shop.db", "--archive", root}, tt.args...)...)
		if code != tt.code || !strings.Contains(stderr, tt.says) || stdout != "" {
			t.Errorf("%v: exit code %d, want %d: %q, %q", tt.args, code, tt.code, stdout, stderr)
		}
	}
	if code, _, stderr := cmdline(t, exampleNode(), nil, "query", "other.db", "--archive", root, "SELECT 1"); code != exit.NotFound {
		t.Errorf("another name: exit code %d: %s", code, stderr)
	}
}

// A damaged object is named, with its exit code, and nothing is printed that
// could be taken for an answer.
func TestQueryNamesDamage(t *testing.T) {
	_, root := shopArchive(t)
	var file string
	if err := filepath.WalkDir(root, func(path string, _ fs.DirEntry, err error) error {
		if strings.Contains(path, "0000000000000005-") {
			file = path
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(file)
	if err = errors.Join(err, os.WriteFile(file, b[:len(b)-1], 0o600)); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{"--to", "0000000000000005"}, {"--to", "0000000000000006"}} {
		code, stdout, stderr := cmdline(t, exampleNode(), nil, append([]string{"query", "shop.db", "SELECT * FROM item", "--archive", root}, args...)...)
		if code != exit.Damaged || stdout != "" || !strings.Contains(stderr, "0000000000000005-0000000000000005.ltx") {
			t.Errorf("%v: exit code %d: %q, %q", args, code, stdout, stderr)
		}
	}
	if code, stdout, stderr := cmdline(t, exampleNode(), nil, "query", "shop.db", "--json", "SELECT count(*) AS n FROM item", "--archive", root, "--to", "0000000000000004"); code != 0 || !json.Valid([]byte(stdout)) {
		t.Errorf("a state before it: exit code %d: %q, %q", code, stdout, stderr)
	}
}

// All commands that read an archive read that of a node through it, with the
// same output.
func TestArchiveCommandsReadThroughANode(t *testing.T) {
	d, root := shopArchive(t)
	if _, err := d.Writer.Label(t.Context(), "before v2"); err != nil {
		t.Fatal(err)
	}
	n := exampleNode()
	n.archive = root
	out := t.TempDir()
	for _, args := range [][]string{
		{"restore", "--db", "shop.db", "--to", "0000000000000004", "-o", "OUT"},
		{"history", "shop.db"},
		{"query", "shop.db", "--to", "0000000000000003", "SELECT * FROM item"},
		{"archive", "verify", "shop.db"},
		{"snapshot", "list", "shop.db"},
		{"snapshot", "list", "shop.db", "--json"},
	} {
		var outputs []string
		for i, from := range []string{"--archive=" + root, "--timeout=20s"} {
			file := filepath.Join(out, strings.Repeat("x", i+1)+".db")
			line := append(strings.Split(strings.ReplaceAll(strings.Join(args, "\x00"), "OUT", file), "\x00"), from)
			code, stdout, stderr := cmdline(t, n, map[string]string{"HASQLITE_HISTORY": "off"}, line...)
			if code != 0 {
				t.Errorf("%v: exit code %d: %s", line, code, stderr)
			}
			outputs = append(outputs, strings.ReplaceAll(stdout+stderr, file, "FILE"))
			if args[0] == "restore" {
				if got, err := os.ReadFile(file); err != nil || string(got) != string(d.Images[3]) {
					t.Errorf("%v: not the file of the commit: %v", line, err)
				}
			}
		}
		if outputs[0] != outputs[1] || outputs[0] == "" {
			t.Errorf("%v: directly %q, through the node %q", args, outputs[0], outputs[1])
		}
	}
	n.failed = map[string]string{"n3": "no route", "n2": "disk full"}
	if code, stdout, stderr := cmdline(t, n, nil, "snapshot", "create", "shop.db", "--label", "x"); code != exit.Failure || !strings.Contains(stdout, "kept as x") ||
		!strings.Contains(stderr, "node n2 did not do it: disk full; node n3 did not do it: no route") {
		t.Errorf("exit code %d: %q, %q", code, stdout, stderr)
	}
	for _, args := range [][]string{{"create", "shop.db", "--label", ""}, {"delete", "shop.db"}, {"delete", "shop.db", "--label", "x", "--to", "000000000000002a"}} {
		if code, _, stderr := cmdline(t, n, nil, append([]string{"snapshot"}, args...)...); code != exit.Usage || !strings.Contains(stderr, "--label") {
			t.Errorf("%q: exit code %d: %q", args, code, stderr)
		}
	}
	// Without one it is the time, which is printed.
	n = exampleNode()
	n.now = inCET
	if code, stdout, stderr := cmdline(t, n, nil, "snapshot", "create", "shop.db"); code != exit.OK || !strings.Contains(stdout, "kept as 2026-11-22T09:00:00Z") || n.calls[0] != "label shop.db 2026-11-22T09:00:00Z false" {
		t.Errorf("exit code %d: %q, %q, %q", code, stdout, stderr, n.calls)
	}
	if code, stdout, stderr := cmdline(t, n, nil, "snapshot", "delete", "shop.db", "--to", "000000000000002a"); code != exit.OK || n.calls[1] != "unlabel shop.db 000000000000002a false" {
		t.Errorf("exit code %d: %q, %q, %q", code, stdout, stderr, n.calls)
	}
}

func TestDiffShowsWhatChanged(t *testing.T) {
	d, root := shopArchive(t)
	for _, tt := range []struct {
		args []string
		want string
	}{
		{[]string{"0000000000000002", "2026-11-22T10:00:06Z"}, "from commit " + d.Bookmark(2) + " of 2026-11-22T10:00:02.000000Z\nto   commit " + d.Bookmark(6) +
			" of 2026-11-22T10:00:06.000000Z\nindex item_name created\ntable item: 1 inserted, 1 deleted, 1 updated\n"},
		{[]string{"0000000000000004", d.Bookmark(6), "--rows"}, "from commit " + d.Bookmark(4) + " of 2026-11-22T10:00:04.000000Z\nto   commit " + d.Bookmark(6) +
			" of 2026-11-22T10:00:06.000000Z\ntable item: 1 inserted, 1 deleted, 0 updated\n  deleted rowid=2  - id=2 name='pear' price=0.75\n  inserted rowid=3  + id=3 name='plum' price=0.2\n"},
		{[]string{"0000000000000003", "0000000000000003"}, "from commit " + d.Bookmark(3) + " of 2026-11-22T10:00:03.000000Z\nto   commit " + d.Bookmark(3) + " of 2026-11-22T10:00:03.000000Z\nnothing differs\n"},
	} {
		code, stdout, stderr := cmdline(t, exampleNode(), nil, append([]string{"diff", "shop.db", "--archive", root}, tt.args...)...)
		if code != 0 || stdout != tt.want {
			t.Errorf("%v: exit code %d: %q, %q", tt.args, code, stdout, stderr)
		}
	}
	code, stdout, _ := cmdline(t, exampleNode(), nil, "diff", "shop.db", "--archive", root, "--json", "--rows", "0000000000000001", "now")
	_, _, stderr := cmdline(t, exampleNode(), nil, "diff", "shop.db", "--archive", root, "0000000000000001", "now")
	if want := "now: it is the last commit of the archive"; !strings.Contains(stderr, want) || !strings.Contains(stderr, d.Bookmark(1)) {
		t.Errorf("%q, want %q with the range", stderr, want)
	}
	var got struct {
		From, To struct{ Bookmark string }
		Tables   []struct {
			Inserted int
			Rows     []struct{ After []struct{ Column string } }
		}
	}
	if err := json.Unmarshal([]byte(stdout), &got); code != 0 || err != nil || got.To.Bookmark != d.Bookmark(6) || got.Tables[0].Inserted != 2 || got.Tables[0].Rows[0].After[1].Column != "name" {
		t.Errorf("exit code %d, %v: %s", code, err, stdout)
	}
	for _, tt := range []struct {
		args []string
		code int
		says string
	}{
		{[]string{"soon", "now"}, exit.Usage, "soon"},
		{[]string{"now"}, exit.Usage, "accepts 3 arg"},
		{[]string{"2026-11-22T10:00:00Z", "now"}, exit.NotFound, "10:00:01"},
		{[]string{"2026-11-22T10:00:03Z", "9999-01-01"}, exit.Usage, "; the archive has 2026-11-22T10:00:01.000000Z to 2026-11-22T10:00:06.000000Z (" + d.Bookmark(1) + " to " + d.Bookmark(6) + ")"},
		{[]string{"now", "now", "--limit", "0"}, exit.Usage, "--limit"},
	} {
		if code, stdout, stderr := cmdline(t, exampleNode(), nil, append([]string{"diff", "shop.db", "--archive", root}, tt.args...)...); code != tt.code || stdout != "" || !strings.Contains(stderr, tt.says) {
			t.Errorf("%v: exit code %d: %q, %q", tt.args, code, stdout, stderr)
		}
	}
}
