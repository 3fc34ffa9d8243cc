package shimtest

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestSettingsAtCreation(t *testing.T) {
	for _, row := range []struct {
		name   string
		params []string
		check  map[string]string
	}{
		{"defaults", nil, map[string]string{"page_size": "4096", "auto_vacuum": "0", "encoding": "UTF-8"}},
		{"by URI", []string{"page_size=65536", "auto_vacuum=1"}, map[string]string{"page_size": "65536", "auto_vacuum": "1"}},
		{"nonsense is ignored", []string{"page_size=1000", "auto_vacuum=7"}, map[string]string{"page_size": "4096", "auto_vacuum": "0"}},
	} {
		t.Run(row.name, func(t *testing.T) {
			n := startNode(t)
			db := open(t, dsn(n, "shop.db", row.params...))
			mustExec(t, db, "CREATE TABLE a(x)", "INSERT INTO a VALUES('ä')")
			for pragma, want := range row.check {
				if got := queryText(t, db, "PRAGMA "+pragma); got != want {
					t.Errorf("%s = %s, want %s", pragma, got, want)
				}
			}
			if got := queryText(t, db, "PRAGMA integrity_check"); got != "ok" {
				t.Errorf("integrity_check: %s", got)
			}
			again := open(t, dsn(n, "shop.db"))
			if got := queryText(t, again, "SELECT x FROM a"); got != "ä" {
				t.Errorf("read back %q", got)
			}
			checkMirror(t, n.Database("shop.db"))
		})
	}
}

func TestOpenFlags(t *testing.T) {
	n, _, _ := shop(t)
	for _, row := range []struct {
		name, dsn string
		want      int
	}{
		{"immutable", dsn(n, "shop.db", "immutable=1"), 14},
		{"nolock", dsn(n, "shop.db", "nolock=1"), 14},
		{"unknown consistency", dsn(n, "shop.db", "consistency=magic"), 14},
		{"mode=ro of a new name", dsn(n, "new.db", "mode=ro"), 14},
		{"mode=rw of a new name", dsn(n, "new.db", "mode=rw"), 14},
		{"name with ..", dsn(n, "a..b"), 14},
		{"long name", dsn(n, strings.Repeat("n", 300)), 14},
		{"immutable=0", dsn(n, "shop.db", "immutable=0"), -1},
		{"psow=0 is overruled", dsn(n, "shop.db", "psow=0"), -1},
		{"mode=ro", dsn(n, "shop.db", "mode=ro"), -1},
	} {
		db := open(t, row.dsn)
		if _, err := db.Exec("SELECT * FROM a"); codeOf(err) != row.want {
			t.Errorf("%s: code %d (%v), want %d", row.name, codeOf(err), err, row.want)
		}
	}
	ro := open(t, dsn(n, "shop.db", "mode=ro"))
	if _, err := ro.Exec("INSERT INTO a VALUES(1)"); codeOf(err) != 8 {
		t.Errorf("write by mode=ro: %v", err)
	}
}

// TestPragmas has one row per PRAGMA that a replicated database treats in its
// own way.
func TestPragmas(t *testing.T) {
	_, d, db := shop(t)
	for _, row := range []struct{ query, want, errText string }{
		{"PRAGMA journal_mode", "wal", ""},
		{"PRAGMA journal_mode=wal", "wal", ""},
		{"PRAGMA journal_mode=delete", "", "journal_mode stays wal and cannot become delete"},
		{"PRAGMA main.journal_mode=OFF", "", "cannot become OFF"},
		{"PRAGMA locking_mode=EXCLUSIVE", "", "locking_mode stays normal"},
		{"PRAGMA locking_mode=NORMAL", "normal", ""},
		{"PRAGMA locking_mode", "normal", ""},
		{"PRAGMA mmap_size=1000000", "1000000", ""},
		{"PRAGMA hasqlite_position", "0000000000000004/0000000000000000", ""},
		{"PRAGMA hasqlite_status", "hasqlite_status of shop.db: ok", ""},
		{"PRAGMA hasqlite_lag", "hasqlite_lag of shop.db: ok", ""},
		{"PRAGMA hasqlite_wait='0000000000000004/00@ab'", "0000000000000004/00@ab", ""},
		{"PRAGMA hasqlite_wait=never", "", "not reached in time: never"},
		{"PRAGMA hasqlite_nonsense", "", "no such PRAGMA"},
	} {
		var got string
		err := db.QueryRow(row.query).Scan(&got)
		switch {
		case row.errText != "":
			if err == nil || !strings.Contains(err.Error(), row.errText) {
				t.Errorf("%s: %q, %v; want error %q", row.query, got, err, row.errText)
			}
		case err != nil || got != row.want:
			t.Errorf("%s: %q, %v; want %q", row.query, got, err, row.want)
		}
	}
	mustExec(t, db, "PRAGMA synchronous=OFF", "INSERT INTO a VALUES(3)", "PRAGMA user_version=7", "VACUUM")
	if got := queryText(t, db, "PRAGMA user_version"); got != "7" {
		t.Errorf("user_version = %s", got)
	}
	mustExec(t, db, "PRAGMA page_size=8192", "VACUUM")
	if got := queryText(t, db, "PRAGMA page_size"); got != "4096" {
		t.Errorf("page_size after VACUUM = %s", got)
	}
	checkMirror(t, d)
}

// TestJournalModeOfAttached: an unqualified PRAGMA goes to main's VFS only but
// acts on every attached database.
func TestJournalModeOfAttached(t *testing.T) {
	n, _, _ := shop(t)
	db := open(t, "file::memory:")
	mustExec(t, db, "PRAGMA busy_timeout=0", "ATTACH '"+dsn(n, "shop.db")+"' AS s", "SELECT * FROM s.a")
	if _, err := db.Exec("PRAGMA journal_mode=delete"); codeOf(err) != 5 {
		t.Errorf("code %d (%v), want 5", codeOf(err), err)
	}
	if got := queryText(t, db, "PRAGMA s.journal_mode"); got != "wal" {
		t.Errorf("journal_mode = %s", got)
	}
	mustExec(t, db, "INSERT INTO s.a VALUES(3)")

	db = open(t, "file::memory:")
	mustExec(t, db, "PRAGMA busy_timeout=0", "PRAGMA locking_mode=exclusive")
	if _, err := db.Exec("ATTACH '" + dsn(n, "shop.db") + "' AS s"); codeOf(err) != 5 {
		t.Errorf("exclusive mode from before ATTACH: code %d (%v), want 5", codeOf(err), err)
	}
}

func TestTwoReplicatedDatabasesInOneTransaction(t *testing.T) {
	n, d, db := shop(t)
	two := open(t, dsn(n, "two.db"))
	mustExec(t, two, "CREATE TABLE b(x)")
	mustExec(t, db, "ATTACH '"+dsn(n, "two.db")+"' AS two")

	mustExec(t, db, "BEGIN", "INSERT INTO a VALUES(3)")
	if _, err := db.Exec("INSERT INTO two.b VALUES(1)"); codeOf(err) != 1 {
		t.Errorf("second database: code %d (%v)", codeOf(err), err)
	}
	if got := queryText(t, db, "PRAGMA two.hasqlite_error"); !strings.Contains(got, "shop.db") || !strings.Contains(got, "?mode=ro") {
		t.Errorf("error text %q", got)
	}
	mustExec(t, db, "COMMIT", "INSERT INTO two.b VALUES(1)", "INSERT INTO a SELECT x FROM two.b")
	if _, err := db.Exec("BEGIN IMMEDIATE"); codeOf(err) != 1 {
		t.Errorf("BEGIN IMMEDIATE: code %d (%v)", codeOf(err), err)
	}
	mustExec(t, db, "DETACH two", "ATTACH '"+dsn(n, "two.db", "mode=ro")+"' AS two", "BEGIN IMMEDIATE", "INSERT INTO a SELECT x FROM two.b", "COMMIT")

	plain := filepath.Join(t.TempDir(), "plain.db")
	mustExec(t, db, "ATTACH 'file:"+plain+"?vfs=unix' AS p", "BEGIN", "CREATE TABLE p.c(x)", "INSERT INTO a VALUES(5)", "COMMIT")
	checkMirror(t, d)
	checkMirror(t, n.Database("two.db"))
}

func TestVacuumInto(t *testing.T) {
	n, d, db := shop(t)
	for _, q := range []string{"VACUUM INTO 'backup.db'", "VACUUM INTO 'shop.db'"} {
		t.Run(q, func(t *testing.T) {
			t.Setenv("HASQLITE_SOCKET", n.Socket)
			if _, err := db.Exec(q); err == nil {
				t.Error("no error")
			}
		})
	}
	if got := n.Names(); len(got) != 1 {
		t.Errorf("databases: %v", got)
	}
	dir := t.TempDir()
	path := filepath.Join(dir, "copy.db")
	mustExec(t, db, "VACUUM INTO '"+path+"'", "VACUUM INTO 'file:"+path+"2?vfs=unix'")
	plain := open(t, "file:"+path+"?vfs=unix")
	if got := queryText(t, plain, "SELECT group_concat(x) FROM a"); got != "1,2" {
		t.Errorf("copy has rows %s", got)
	}
	if _, err := os.Stat(path + "2"); err != nil {
		t.Error(err)
	}
	checkMirror(t, d)
}
