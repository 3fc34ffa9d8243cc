package main

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/uglyer/ha-sqlite/internal/exit"
	"github.com/uglyer/ha-sqlite/internal/testarchive"
	"github.com/uglyer/ha-sqlite/snapshot/archive"
)

// stateOf is the database after one of its first commits, as a later one left it: nobody wrote meanwhile.
type stateOf struct {
	d        *testarchive.DB
	of, txid int
	sum      uint64
}

func (s stateOf) Position() (uint64, int64, uint64) {
	return uint64(s.txid), s.d.Time(s.txid).UnixMicro(), s.sum
}
func (s stateOf) PageSize() uint32  { return 4096 }
func (s stateOf) PageCount() uint32 { return uint32(len(s.d.Images[s.of-1]) / 4096) }
func (s stateOf) ReadPage(pgno uint32, data []byte) error {
	copy(data, s.d.Images[s.of-1][int(pgno-1)*4096:])
	return nil
}

// twoLineages has five commits of shop.db of lineage 1, the last one with a label, and of lineage 2 a snapshot of the
// fourth one that says it was the 20th: those in between are lost.
func twoLineages(t *testing.T) (string, *testarchive.DB) {
	t.Helper()
	d, root := testarchive.InDir(t, "shop.db")
	d.Exec("CREATE TABLE t(a INTEGER PRIMARY KEY)", "INSERT INTO t VALUES(1)", "INSERT INTO t VALUES(2)", "INSERT INTO t VALUES(3)", "INSERT INTO t VALUES(4)")
	if _, err := d.Writer.Label(t.Context(), "before it"); err != nil {
		t.Fatal(err)
	}
	p, err := d.Writer.View().PointOf(t.Context(), 4)
	if err != nil {
		t.Fatal(err)
	}
	id := d.ID
	id.Lineage = 2
	w, err := d.Archive.Writer(t.Context(), id, archive.WriterOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if err := w.SnapshotOf(t.Context(), stateOf{d, 4, 20, p.Checksum}); err != nil {
		t.Fatal(err)
	}
	return root, d
}

// What shows the newest database of a name says that there are older ones, and shows them when they are named.
func TestOlderDatabasesOfAName(t *testing.T) {
	root, d := twoLineages(t)
	first, second := d.ID.Database+"-1", d.ID.Database+"-2"
	for _, tt := range []struct{ args, newest, named string }{
		{"history shop.db", "0000000000000014/", "0000000000000003/"},
		{"archive status shop.db", "lineage 2", "lineage 1"},
		{"archive verify shop.db", "1 files", "6 files"},
		{"snapshot list shop.db", "LABEL", "before it"},
	} {
		args := append(strings.Fields(tt.args), "--archive", root)
		code, out, errs := cmdline(t, exampleNode(), nil, args...)
		if code != 0 || !strings.Contains(out, tt.newest) || strings.Contains(out, tt.named) || !strings.Contains(errs, "--database "+first+"\n") {
			t.Errorf("%s: exit code %d: %s%s", tt.args, code, out, errs)
		}
		code, out, errs = cmdline(t, exampleNode(), nil, append(args, "--database", first)...)
		if code != 0 || !strings.Contains(out, tt.named) || errs != "" {
			t.Errorf("%s --database: exit code %d: %s%s", tt.args, code, out, errs)
		}
		for db, want := range map[string]int{second[:34]: exit.OK, d.ID.Database: exit.OK, d.ID.Database + "-3": exit.NotFound, "0e" + first[2:]: exit.NotFound, "0f-1": exit.Usage, d.ID.Database + "-x": exit.Usage} {
			if code, _, errs := cmdline(t, exampleNode(), nil, append(args, "--database", db)...); code != want {
				t.Errorf("%s --database %s: exit code %d, want %d: %s", tt.args, db, code, want, errs)
			}
		}
		if tt.newest == "LABEL" {
			continue // its JSON is a list of labels
		}
		code, out, _ = cmdline(t, exampleNode(), nil, append(args, "--json")...)
		var r struct {
			ID      string
			Lineage uint64
			Older   []older
		}
		if err := json.Unmarshal([]byte(out), &r); code != 0 || err != nil || r.ID != d.ID.Database || r.Lineage != 2 || len(r.Older) != 1 ||
			r.Older[0].ID != d.ID.Database || r.Older[0].Lineage != 1 || r.Older[0].Last.Bookmark != d.Bookmark(5) {
			t.Errorf("%s: exit code %d, %v: %s", tt.args, code, err, out)
		}
	}
	for _, tt := range []struct {
		args string
		code int
		says string
	}{
		{"restore --db shop.db --dry-run --to " + d.Bookmark(3), exit.OK, d.Bookmark(3)},
		{"restore --db shop.db --dry-run --to 0000000000000003 --database " + first, exit.OK, d.Bookmark(3)},
		{"restore --db shop.db --dry-run --to 0000000000000003 --database " + second, exit.NotFound, "0000000000000014 behind it"},
		{"restore --db shop.db --dry-run --database " + first, exit.OK, d.Bookmark(5)},
		{"restore --all --into-cluster --database " + first, exit.Usage, "--database"},
		{"query shop.db --database " + first + " SELECT+max(a)+FROM+t", exit.OK, "4\n"},
		{"query shop.db SELECT+max(a)+FROM+t", exit.OK, "3\n"},
		{"diff shop.db 0000000000000003 0000000000000005 --database " + first, exit.OK, "table t: 2 inserted"},
		{"diff shop.db 0000000000000003 0000000000000014 --database " + second, exit.NotFound, "0000000000000014 behind it"},
	} {
		var args []string
		for _, a := range strings.Fields(tt.args) {
			args = append(args, strings.ReplaceAll(a, "+", " "))
		}
		if code, out, errs := cmdline(t, exampleNode(), nil, append(args, "--archive", root)...); code != tt.code || !strings.Contains(out+errs, tt.says) {
			t.Errorf("%s: exit code %d: %s%s", tt.args, code, out, errs)
		}
	}
}

// Whatever gives a state behind which commits are missing says so.
func TestStatesBeforeWhatIsMissingAreSaidToBe(t *testing.T) {
	root, d := twoLineages(t)
	const note = "no longer kept one by one"
	const dropped, exact = "2026-11-22T10:00:06Z", "2026-11-22T10:00:05Z"
	for _, tt := range []struct {
		args string
		json string // where it is said
	}{
		{"restore --db shop.db --dry-run --at", `"dropped": true`},
		{"restore --all --into-cluster --replace --dry-run --at", `"dropped": true`},
		{"diff shop.db 0000000000000003", `"dropped": true`},
	} {
		for at, want := range map[string]bool{dropped: true, exact: false} {
			args := append(strings.Fields(tt.args), at, "--archive", root)
			code, out, errs := cmdline(t, exampleNode(), nil, args...)
			if code != 0 || strings.Contains(out+errs, note) != want || !strings.Contains(out, d.Bookmark(5)) {
				t.Errorf("%s %s: exit code %d: %s%s", tt.args, at, code, out, errs)
			}
			code, out, errs = cmdline(t, exampleNode(), nil, append(args, "--json")...)
			if code != 0 || strings.Contains(out, tt.json) != want || !strings.Contains(out, `"dropped": `) {
				t.Errorf("%s %s: exit code %d: %s%s", tt.args, at, code, out, errs)
			}
		}
	}
}

// A snapshot is shown also where a single commit ends at the same state, with its labels.
func TestHistoryMarksSnapshots(t *testing.T) {
	d, root := testarchive.InDir(t, "shop.db")
	d.Exec("CREATE TABLE t(a)", "INSERT INTO t VALUES(1)")
	if err := d.Writer.Snapshot(t.Context()); err != nil {
		t.Fatal(err)
	}
	d.Exec("INSERT INTO t VALUES(2)")
	for _, label := range []string{"one", "two"} {
		if _, err := d.Writer.Label(t.Context(), label); err != nil {
			t.Fatal(err)
		}
	}
	code, out, errs := cmdline(t, exampleNode(), nil, "history", "shop.db", "--archive", root)
	var got []string
	for _, line := range strings.Split(strings.TrimSpace(out), "\n") {
		got = append(got, strings.TrimSpace(line[strings.LastIndex(line, "  "):]))
	}
	if code != 0 || strings.Join(got, "|") != "SNAPSHOT|-|yes|one, two" {
		t.Errorf("exit code %d: %q\n%s%s", code, got, out, errs)
	}
	code, out, _ = cmdline(t, exampleNode(), nil, "history", "shop.db", "--archive", root, "--json")
	var list struct{ States []historyLine }
	if err := json.Unmarshal([]byte(out), &list); code != 0 || err != nil || len(list.States) != 3 {
		t.Fatalf("exit code %d, %v: %s", code, err, out)
	}
	for i, l := range list.States {
		if l.Level != 0 || l.Snapshot != (i > 0) || strings.Join(l.Labels, " ") != []string{"", "", "one two"}[i] {
			t.Errorf("state %d: %+v", i, l)
		}
	}
}
