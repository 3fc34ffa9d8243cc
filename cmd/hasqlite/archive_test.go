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

	agekeys "filippo.io/age"

	"github.com/uglyer/ha-sqlite/internal/exit"
	"github.com/uglyer/ha-sqlite/snapshot"
	"github.com/uglyer/ha-sqlite/snapshot/archive"
	"github.com/uglyer/ha-sqlite/snapshot/store"
	"github.com/uglyer/ha-sqlite/wal"
)

// exampleArchive has five commits of shop.db, a second apart from 10:00:01 UTC
// of 2026-11-22 on. It returns where it is and the file after each commit.
func exampleArchive(t *testing.T, keys *archive.Keys) (string, [][]byte) {
	t.Helper()
	root := filepath.Join(t.TempDir(), "archive")
	d, err := store.OpenDir(root)
	if err != nil {
		t.Fatal(err)
	}
	id := archive.Identity{Cluster: "c1", Lineage: 1, Database: strings.Repeat("0f", 16), Name: "shop.db"}
	a, err := archive.Claim(t.Context(), d, id.Cluster, archive.Options{Keys: keys})
	if err != nil {
		t.Fatal(err)
	}
	w, err := a.Writer(t.Context(), id, archive.WriterOptions{PackFrom: 1 << 30})
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "db")
	db, err := sql.Open("sqlite3", "file:"+path+"?_synchronous=OFF")
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	var images [][]byte
	var commits []archive.Commit
	for i := range 5 {
		if _, err := db.Exec(fmt.Sprintf("CREATE TABLE t%d(a)", i)); err != nil {
			t.Fatal(err)
		}
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		when := time.Date(2026, 11, 22, 10, 0, i+1, 0, time.UTC)
		sum := snapshot.ChecksumFlag
		var pages []wal.Page
		for at := 0; at < len(b); at += 4096 {
			p := wal.Page{Pgno: uint32(at/4096 + 1), Data: b[at : at+4096]}
			sum = snapshot.Roll(sum, snapshot.PageSum(p.Pgno, p.Data))
			pages = append(pages, p)
		}
		f, err := snapshot.EncodeTransaction(nil, snapshot.Header{PageSize: 4096, PageCount: uint32(len(pages)), TXID: uint64(i + 1), CommitTimeMillis: when.UnixMilli()}, pages)
		if err != nil {
			t.Fatal(err)
		}
		images, commits = append(images, b), append(commits, archive.Commit{TXID: uint64(i + 1), Time: when.UnixMicro(), Post: sum, LTX: bytes.NewReader(f)})
	}
	if err := w.Append(t.Context(), commits); err != nil {
		t.Fatal(err)
	}
	return root, images
}

func TestRestoreFindsTheState(t *testing.T) {
	root, images := exampleArchive(t, nil)
	db := strings.Repeat("0f", 16)
	for _, tt := range []struct {
		args string
		want int // commit
		says string
	}{
		{"", 5, "@" + db + " of 2026-11-22T10:00:05.000000Z restored into"},
		{"--at 2026-11-22T10:00:03Z", 3, "10:00:03.000000Z"},
		{"--at 2026-11-22T10:00:03.999999Z", 3, ""},
		{"--at 2026-11-22T10:00:02.999999Z", 2, ""},
		{"--at 2026-11-22T23:00:00Z", 5, "the last commit of the archive: what was committed later and not archived is not in it; the archive has 2026-11-22T10:00:01.000000Z to 2026-11-22T10:00:05.000000Z (0000000000000001/"},
		{"--to 0000000000000004", 4, ""},
		{"--to 0000000000000001 --verify", 1, "integrity_check: ok"},
	} {
		out := filepath.Join(t.TempDir(), "out.db")
		args := append([]string{"restore", "--db", "shop.db", "-o", out, "--archive", root}, strings.Fields(tt.args)...)
		code, stdout, stderr := cmdline(t, exampleNode(), nil, args...)
		if code != 0 || !strings.Contains(stdout, tt.says) {
			t.Errorf("%s: exit code %d: %s%s", tt.args, code, stdout, stderr)
			continue
		}
		if got, err := os.ReadFile(out); err != nil || !bytes.Equal(got, images[tt.want-1]) {
			t.Errorf("%s: not the file of commit %d: %v", tt.args, tt.want, err)
		}
	}
}

func TestRestorePrintsABookmarkThatRestoreTakes(t *testing.T) {
	root, images := exampleArchive(t, nil)
	env := map[string]string{"HASQLITE_ARCHIVE": "file://" + root}
	code, stdout, stderr := cmdline(t, exampleNode(), env, "restore", "--db", "shop.db", "--at", "2026-11-22 10:00:02Z", "--dry-run", "--json")
	var r restored
	if err := json.Unmarshal([]byte(stdout), &r); code != 0 || err != nil || !r.DryRun || r.SizeBytes != int64(len(images[1])) {
		t.Fatalf("exit code %d, %v: %s%s", code, err, stdout, stderr)
	}
	out := filepath.Join(t.TempDir(), "out.db")
	if code, _, stderr := cmdline(t, exampleNode(), env, "restore", "--db", "shop.db", "--to", r.Bookmark, "-o", out); code != 0 {
		t.Fatal(stderr)
	}
	if got, err := os.ReadFile(out); err != nil || !bytes.Equal(got, images[1]) {
		t.Error("not the file of the bookmark", err)
	}
}

func TestRestoreRefusals(t *testing.T) {
	root, _ := exampleArchive(t, nil)
	exists := filepath.Join(t.TempDir(), "out.db")
	if err := os.WriteFile(exists, []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		args string
		code int
		says string
	}{
		{"--db shop.db -o OUT --archive ROOT --at 2026-11-22T10:00:00Z", exit.NotFound, "2026-11-22T10:00:01.000000Z to 2026-11-22T10:00:05.000000Z (0000000000000001/"},
		{"--db shop.db -o OUT --archive ROOT --at 9999-01-01", exit.Usage, "in the future"},
		{"--db shop.db -o OUT --archive ROOT --at 9999-01-01", exit.Usage, "; the archive has 2026-11-22T10:00:01.000000Z to 2026-11-22T10:00:05.000000Z (0000000000000001/"},
		{"--db shop.db -o OUT --archive ROOT --at soon", exit.Usage, "10 minutes ago"},
		{"--db shop.db -o OUT --archive ROOT --to 7", exit.Usage, "16 hex digits"},
		{"--db shop.db -o OUT --archive ROOT --to 0000000000000009", exit.NotFound, "0000000000000005 before it and nothing behind it"},
		{"--db shop.db -o OUT --archive ROOT --to 0000000000000002/8000000000000001@" + strings.Repeat("0f", 16), exit.NotFound, "of another history"},
		{"--db shop.db -o OUT --archive ROOT --to 0000000000000002/8000000000000001@" + strings.Repeat("0e", 16), exit.NotFound, "the bookmark is of database"},
		{"--db shop.db -o OUT --archive ROOT --at now --to 0000000000000002", exit.Usage, "two states"},
		{"--db other.db -o OUT --archive ROOT", exit.NotFound, "no such database"},
		{"--db shop.db -o EXISTS --archive ROOT", exit.Conflict, "exists"},
		{"--db shop.db -o OUT --archive ROOT/nothing", exit.NotFound, "there is no archive"},
		{"--db shop.db -o OUT --archive gs://x", exit.Usage, "known schemes"},
		{"--db shop.db -o OUT", exit.Unreachable, "HASQLITE_ARCHIVE"},
		{"-o OUT --archive ROOT", exit.Usage, "--db"},
		{"--db shop.db --archive ROOT", exit.Usage, "--output"},
		{"--db shop.db -o OUT --archive ROOT --identity EXISTS", exit.Failure, "encryption key"},
	} {
		out := filepath.Join(t.TempDir(), "out.db")
		args := strings.Fields(strings.NewReplacer("OUT", out, "ROOT", root, "EXISTS", exists).Replace(tt.args))
		code, stdout, stderr := cmdline(t, exampleNode(), nil, append([]string{"restore"}, args...)...)
		if code != tt.code || !strings.Contains(stderr, tt.says) || stdout != "" {
			t.Errorf("%s: exit code %d, want %d: %s%s", tt.args, code, tt.code, stdout, stderr)
		}
		if left, _ := os.ReadDir(filepath.Dir(out)); len(left) != 0 {
			t.Errorf("%s leaves %v", tt.args, left)
		}
	}
}

func TestHistoryListsTheCommits(t *testing.T) {
	root, _ := exampleArchive(t, nil)
	code, stdout, stderr := cmdline(t, exampleNode(), nil, "history", "shop.db", "--archive", root)
	if code != 0 || strings.Count(stdout, "\n") != 6 || !strings.Contains(stdout, "2026-11-22T10:00:04.000000Z  0000000000000004/") {
		t.Errorf("exit code %d: %s%s", code, stdout, stderr)
	}
	code, stdout, _ = cmdline(t, exampleNode(), nil, "history", "shop.db", "--archive", root, "--json", "--since", "2026-11-22T10:00:02Z", "--until", "2026-11-22T10:00:04Z", "--limit", "2")
	var list struct {
		States []historyLine
		More   bool
	}
	if err := json.Unmarshal([]byte(stdout), &list); code != 0 || err != nil || !list.More || len(list.States) != 2 || list.States[0].TXID != "0000000000000003" {
		t.Errorf("exit code %d, %v: %s", code, err, stdout)
	}
}

func TestArchiveStatusAndVerify(t *testing.T) {
	root, _ := exampleArchive(t, nil)
	code, stdout, stderr := cmdline(t, exampleNode(), nil, "archive", "status", "shop.db", "--archive", root)
	if code != 0 || !strings.Contains(stdout, "c1, lineage 1") || !strings.Contains(stdout, "5 files") {
		t.Errorf("exit code %d: %s%s", code, stdout, stderr)
	}
	code, stdout, stderr = cmdline(t, exampleNode(), nil, "archive", "verify", "shop.db", "--archive", root)
	if code != 0 || !strings.Contains(stdout, "5 files") || !strings.Contains(stdout, "0 problems") {
		t.Errorf("exit code %d: %s%s", code, stdout, stderr)
	}
	files, err := filepath.Glob(filepath.Join(root, "shop.db/_*/ltx/0/0000000000000003-*.ltx"))
	if err != nil || len(files) != 1 {
		t.Fatal(files, err)
	}
	if err := os.Remove(files[0]); err != nil {
		t.Fatal(err)
	}
	code, stdout, stderr = cmdline(t, exampleNode(), nil, "archive", "verify", "shop.db", "--archive", root, "--json")
	var r archiveReport
	if err := json.Unmarshal([]byte(stdout), &r); code != exit.Damaged || err != nil || r.OK || !strings.Contains(strings.Join(r.Problems, " "), filepath.Base(files[0])) {
		t.Errorf("exit code %d, %v: %s%s", code, err, stdout, stderr)
	}
	out := filepath.Join(t.TempDir(), "out.db")
	code, _, stderr = cmdline(t, exampleNode(), nil, "restore", "--db", "shop.db", "-o", out, "--archive", root)
	if code != exit.Damaged || !strings.Contains(stderr, filepath.Base(files[0])) {
		t.Errorf("restore: exit code %d: %s", code, stderr)
	}
}

func TestRestoreFromAnEncryptedArchive(t *testing.T) {
	id, err := agekeys.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	keys, err := archive.NewKeys(id.Recipient().String(), id.String())
	if err != nil {
		t.Fatal(err)
	}
	root, images := exampleArchive(t, keys)
	wrong, err := agekeys.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	for what, tt := range map[string]struct {
		identity, says string
	}{"no key": {"", "no identity was given"}, "wrong key": {wrong.String(), "wrong key"}, "key": {id.String(), ""}} {
		out := filepath.Join(t.TempDir(), "out.db")
		env := map[string]string{}
		if tt.identity != "" {
			env["HASQLITE_IDENTITY"] = filepath.Join(t.TempDir(), "key.txt")
			if err := os.WriteFile(env["HASQLITE_IDENTITY"], []byte("# mine\n"+tt.identity+"\n"), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		code, _, stderr := cmdline(t, exampleNode(), env, "restore", "--db", "shop.db", "-o", out, "--archive", root)
		if tt.says != "" {
			if code == 0 || !strings.Contains(stderr, tt.says) {
				t.Errorf("%s: exit code %d: %s", what, code, stderr)
			}
			continue
		}
		if got, err := os.ReadFile(out); code != 0 || err != nil || !bytes.Equal(got, images[4]) {
			t.Errorf("%s: exit code %d, %v: %s", what, code, err, stderr)
		}
	}
}

// What a cluster is restored from has to be said: its own archive is not what is meant.
func TestRestoreAllNeedsAnArchive(t *testing.T) {
	root, images := exampleArchive(t, nil)
	into := []string{"restore", "--all", "--into-cluster", "--replace", "--hold", "3s"}
	n := exampleNode()
	n.archive = root // its own
	for _, args := range [][]string{into, append(slices.Clone(into), "--dry-run")} {
		if code, stdout, stderr := cmdline(t, n, nil, args...); code != exit.Usage || stdout != "" || !strings.Contains(stderr, "--archive or HASQLITE_ARCHIVE") || len(n.calls) != 0 {
			t.Errorf("%q: exit code %d: %s%s, %q", args, code, stdout, stderr, n.calls)
		}
	}
	for what, env := range map[string]map[string]string{"--archive": nil, "HASQLITE_ARCHIVE": {"HASQLITE_ARCHIVE": root}} {
		n, args := exampleNode(), into
		if env == nil {
			args = append(slices.Clone(into), "--archive", root)
		}
		code, stdout, stderr := cmdline(t, n, env, args...)
		if code != exit.OK || !bytes.Equal(n.imported, images[4]) || n.held != 3000 {
			t.Errorf("%s: exit code %d: %s%s, held %d", what, code, stdout, stderr, n.held)
		}
	}
	if code, _, stderr := cmdline(t, n, nil, append(slices.Clone(into), "--archive", root, "--at", "9999-01-01")...); code != exit.Usage || !strings.Contains(stderr, "the archive has 2026-11-22T10:00:01") {
		t.Errorf("in the future: exit code %d: %s", code, stderr)
	}
}
