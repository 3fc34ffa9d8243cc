package compat

import (
	"context"
	"database/sql/driver"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"time"

	"github.com/mattn/go-sqlite3"

	"github.com/uglyer/ha-sqlite/internal/localcluster"
	"github.com/uglyer/ha-sqlite/internal/testcluster"
)

func journalMode(e env) {
	db := e.open(0)
	e.exec(db, "CREATE TABLE t(a)")
	for _, mode := range []string{"delete", "truncate", "persist", "memory", "off"} {
		e.fails(db, "PRAGMA journal_mode="+mode, sqlite3.ErrError, "journal_mode stays wal and cannot become "+mode)
	}
	e.want(db, "PRAGMA journal_mode=wal", "wal")
	e.want(db, "PRAGMA journal_mode", "wal")
	// Asked of another main database it acts on attached ones too.
	c := e.raw(":memory:")
	e.first(c, "ATTACH '"+e.dsn(0)+"' AS r")
	e.first(c, "SELECT count(*) FROM r.t")
	if _, err := c.ExecContext(e.Context(), "PRAGMA journal_mode=delete", nil); err != nil {
		e.failed(nil, "PRAGMA journal_mode=delete of all", err, sqlite3.ErrBusy, "")
	}
	e.want(db, "PRAGMA journal_mode", "wal")
}

func lockingMode(e env) {
	db := e.open(0)
	e.exec(db, "CREATE TABLE t(a)")
	e.fails(db, "PRAGMA locking_mode=EXCLUSIVE", sqlite3.ErrError, "locking_mode stays normal")
	e.want(db, "PRAGMA locking_mode", "normal")
	e.want(db, "PRAGMA locking_mode=normal", "normal")
	e.exec(db, "INSERT INTO t VALUES(1)")
	e.seen("SELECT count(*) FROM t", "1")
}

func synchronous(e env) {
	db := e.open(1)
	e.exec(db, "CREATE TABLE t(a)")
	for i, level := range []string{"OFF", "NORMAL", "FULL", "EXTRA"} {
		e.exec(db, "PRAGMA synchronous="+level)
		e.want(db, "PRAGMA synchronous", fmt.Sprint(i))
		e.exec(db, "INSERT INTO t VALUES(1)")
	}
	e.seen("SELECT count(*) FROM t", "4")
}

func walCheckpoint(e env) {
	c := e.raw(e.dsn(0, "_busy_timeout=0"))
	e.first(c, "CREATE TABLE t(a)")
	for _, mode := range []string{"PASSIVE", "FULL", "RESTART", "TRUNCATE"} {
		if got := e.first(c, "PRAGMA wal_checkpoint("+mode+")"); fmt.Sprint(got) != "[1 -1 -1]" {
			e.Errorf("%s: got busy|log|checkpointed %v, want 1, -1, -1", mode, got)
		}
	}
	db := e.open(0)
	e.exec(db, "PRAGMA wal_autocheckpoint=1") // the attempt fails, the commit does not
	e.exec(db, "INSERT INTO t VALUES(1)")
	e.exec(db, "INSERT INTO t VALUES(2)")
	e.seen("SELECT count(*) FROM t", "2")
}

func mmapSize(e env) {
	db := e.open(0)
	e.exec(db, "CREATE TABLE t(a)")
	e.exec(db, "INSERT INTO t SELECT randomblob(1000) FROM (WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n+1 FROM c WHERE n<1000) SELECT n FROM c)")
	e.exec(db, "PRAGMA mmap_size=268435456")
	e.want(db, "SELECT count(*) FROM t", "1000")
	path := testcluster.DatabaseFile(e.T, e.cluster.Nodes()[0], e.db)
	maps, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		e.Fatal(err)
	}
	for line := range strings.SplitSeq(string(maps), "\n") {
		if strings.HasSuffix(line, path) {
			e.Errorf("the file is mapped: %s", line)
		}
	}
}

const pageSizeScript = `
import sqlite3, sys
loader = sqlite3.connect(":memory:")
loader.enable_load_extension(True)
loader.load_extension(sys.argv[1])
db = sqlite3.connect(sys.argv[2], uri=True, isolation_level=None)
for s in "PRAGMA page_size=8192", "PRAGMA auto_vacuum=incremental", "PRAGMA encoding='UTF-16le'", "CREATE TABLE t(a)":
    db.execute(s)
`

func pageSize(e env) {
	// By pragmas, where the driver has read nothing before.
	out, err := exec.CommandContext(e.Context(), "/usr/bin/python3", "-c", pageSizeScript, testcluster.Extension(e.T), e.dsn(0)).CombinedOutput()
	if err != nil {
		e.Fatalf("%v: %s", err, out)
	}
	db := e.open(0)
	e.seen("SELECT page_size || '|' || auto_vacuum || '|' || encoding FROM pragma_page_size, pragma_auto_vacuum, pragma_encoding", "8192|2|UTF-16le")
	e.exec(db, "PRAGMA page_size=512; VACUUM")
	e.seen("SELECT page_size FROM pragma_page_size", "8192")
	e.db = "uri-" + e.db
	e.exec(e.open(2, "page_size=1024", "auto_vacuum=1"), "CREATE TABLE t(a)")
	e.seen("SELECT page_size || '|' || auto_vacuum FROM pragma_page_size, pragma_auto_vacuum", "1024|1")
}

// A begin waits for the cluster for at most lock_timeout in one series of
// attempts; the busy timeout comes on top.
func busyTimeout(e env) {
	a, b := e.open(0), e.raw(e.dsn(1, "lock_timeout=300", "_busy_timeout=0"))
	e.exec(a, "CREATE TABLE t(a)")
	e.seen("SELECT count(*) FROM t", "0")
	tx, err := a.BeginTx(e.Context(), nil)
	if err != nil {
		e.Fatal(err)
	}
	defer func() { _ = tx.Rollback() }()
	if _, err := tx.Exec("INSERT INTO t VALUES(1)"); err != nil {
		e.Fatal(err)
	}
	start := time.Now()
	_, err = b.ExecContext(e.Context(), "INSERT INTO t VALUES(2)", nil)
	e.failed(nil, "INSERT", err, sqlite3.ErrBusy, "")
	if took := time.Since(start); took < 250*time.Millisecond || took > 5*time.Second {
		e.Errorf("the begin gave up after %s, want lock_timeout, 300ms", took)
	}
}

func userVersion(e env) {
	db := e.open(2)
	e.exec(db, "PRAGMA user_version=42; PRAGMA application_id=7")
	e.seen("SELECT user_version || '|' || application_id FROM pragma_user_version, pragma_application_id", "42|7")
}

func databaseList(e env) {
	db := e.open(0)
	e.exec(db, "CREATE TABLE t(a)")
	e.want(db, "SELECT file FROM pragma_database_list WHERE name='main'", testcluster.DatabaseFile(e.T, e.cluster.Nodes()[0], e.db))
}

func (e env) cannotOpen(param string) {
	e.Helper()
	e.exec(e.open(0), "CREATE TABLE t(a)")
	c, err := (&sqlite3.SQLiteDriver{}).Open(e.dsn(0, param))
	if err == nil { // the driver opens lazily in places
		_, err = c.(*sqlite3.SQLiteConn).ExecContext(e.Context(), "SELECT * FROM t", nil)
		if cerr := c.Close(); cerr != nil {
			e.Error(cerr)
		}
	}
	e.failed(nil, "open with "+param, err, sqlite3.ErrCantOpen, "")
}

func immutable(e env) { e.cannotOpen("immutable=1") }
func nolock(e env)    { e.cannotOpen("nolock=1") }

func modeRO(e env) {
	e.exec(e.open(0), "CREATE TABLE t(a)")
	db := e.open(0, "mode=ro")
	e.want(db, "SELECT count(*) FROM t", "0")
	e.fails(db, "INSERT INTO t VALUES(1)", sqlite3.ErrReadonly, "")
	e.db = "none-" + e.db
	_, err := e.open(0, "mode=ro").Exec("SELECT 1 FROM sqlite_schema")
	e.failed(nil, "open a missing database with mode=ro", err, sqlite3.ErrCantOpen, "")
	s, err := e.cluster.Nodes()[0].Status(e.Context())
	if err != nil {
		e.Fatal(err)
	}
	if _, ok := s.Database(e.db); ok {
		e.Error("mode=ro made the database")
	}
}

func namesAndPaths(e env) {
	e.db = "acme/plan 7/ünï.db"
	e.exec(e.open(0), "CREATE TABLE t(a)")
	e.seen("SELECT count(*) FROM t", "0")
	plain := e.path("plain.db")
	c := e.raw("file:" + plain + "?vfs=hasqlite")
	e.first(c, "CREATE TABLE t(a)")
	if _, err := os.Stat(plain); err != nil {
		e.Errorf("a path is no plain file: %v", err)
	}
	if got := e.first(c, "PRAGMA journal_mode=delete"); fmt.Sprint(got) != "[delete]" {
		e.Errorf("journal_mode of a plain file: %v", got)
	}
}

func attachTwo(e env) {
	other := e
	other.db = "other-" + e.db
	e.exec(other.open(0), "CREATE TABLE u(a)")
	db := e.open(0)
	e.exec(db, "CREATE TABLE t(a)")
	e.exec(db, "ATTACH '"+other.dsn(0)+"' AS o")
	e.exec(db, "INSERT INTO o.u VALUES(1)")
	e.exec(db, "INSERT INTO t SELECT a FROM o.u") // reads one, writes the other
	e.exec(db, "BEGIN; INSERT INTO t VALUES(2)")
	e.fails(db, "INSERT INTO o.u VALUES(2)", sqlite3.ErrError, "one transaction can write only one replicated database")
	e.exec(db, "ROLLBACK")
	e.fails(db, "BEGIN IMMEDIATE", sqlite3.ErrError, "BEGIN IMMEDIATE writes every attached database")
	e.exec(db, "DETACH o; ATTACH '"+other.dsn(0, "mode=ro")+"' AS o")
	e.exec(db, "BEGIN IMMEDIATE; INSERT INTO t SELECT a FROM o.u; COMMIT")
	e.seen("SELECT count(*) FROM t", "2")
	other.seen("SELECT count(*) FROM u", "1")
}

func attachPlain(e env) {
	db := e.open(0)
	e.exec(db, "CREATE TABLE t(a)")
	e.exec(db, "ATTACH 'file:"+e.path("plain.db")+"?vfs=unix' AS p")
	e.exec(db, "BEGIN; CREATE TABLE p.u(a); INSERT INTO p.u VALUES(1); INSERT INTO t VALUES(1); COMMIT")
	e.seen("SELECT count(*) FROM t", "1")
	e.seen("SELECT count(*) FROM sqlite_schema", "1")
}

func tempTables(e env) {
	db := e.open(0)
	e.exec(db, "CREATE TABLE t(a); CREATE TEMP TABLE x(a); INSERT INTO x VALUES(1)")
	e.want(db, "SELECT count(*) FROM x", "1")
	e.seen("SELECT group_concat(name) FROM sqlite_schema", "t")
}

func vacuum(e env) {
	db := e.open(0)
	e.exec(db, "CREATE TABLE t(a); INSERT INTO t SELECT randomblob(3000) FROM (WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n+1 FROM c WHERE n<100) SELECT n FROM c); DELETE FROM t WHERE rowid > 1")
	e.exec(db, "VACUUM")
	e.seen("SELECT page_count < 10 FROM pragma_page_count", "1")
	e.exec(db, "PRAGMA auto_vacuum=full; VACUUM")
	e.seen("SELECT auto_vacuum FROM pragma_auto_vacuum", "1")
	testcluster.Converged(e.T, e.cluster, e.db)
}

func vacuumInto(e env) {
	db := e.open(0)
	e.exec(db, "CREATE TABLE t(a); INSERT INTO t VALUES(1)")
	e.fails(db, "VACUUM INTO 'copy.db'", sqlite3.ErrCantOpen, "")
	path := e.path("copy.db")
	e.exec(db, "VACUUM INTO '"+path+"'")
	copied := e.raw("file:" + path)
	if got := e.first(copied, "SELECT count(*) FROM t"); fmt.Sprint(got) != "[1]" {
		e.Errorf("the copy has %v rows", got)
	}
}

// backup copies main of one connection over main of another.
func (e env) backup(to, from *sqlite3.SQLiteConn) error {
	b, err := to.Backup("main", from, "main")
	if err != nil {
		return err
	}
	for {
		done, err := b.Step(-1)
		if err != nil || done {
			if ferr := b.Finish(); err == nil {
				err = ferr
			}
			return err
		}
	}
}

func backupFrom(e env) {
	e.exec(e.open(0), "CREATE TABLE t(a); INSERT INTO t VALUES(1)")
	to := e.raw("file:" + e.path("copy.db"))
	if err := e.backup(to, e.raw(e.dsn(0))); err != nil {
		e.Fatal(err)
	}
	if got := e.first(to, "SELECT count(*) FROM t"); fmt.Sprint(got) != "[1]" {
		e.Errorf("the copy has %v rows", got)
	}
}

func backupInto(e env) {
	from := e.raw("file:" + e.path("from.db"))
	e.first(from, "CREATE TABLE t(a)")
	e.first(from, "INSERT INTO t VALUES(5)")
	e.exec(e.open(0), "CREATE TABLE old(a)")
	if err := e.backup(e.raw(e.dsn(0)), from); err != nil {
		e.Fatal(err)
	}
	e.seen("SELECT a FROM t", "5")
	testcluster.Converged(e.T, e.cluster, e.db)
	e.db = "small-" + e.db
	e.exec(e.open(0, "page_size=1024"), "CREATE TABLE old(a)")
	e.failed(nil, "backup into another page size", e.backup(e.raw(e.dsn(0)), from), sqlite3.ErrReadonly, "")
}

func deserialize(e env) {
	e.exec(e.open(0), "CREATE TABLE t(a)")
	c := e.raw(e.dsn(0))
	image, err := c.Serialize("main")
	if err != nil {
		e.Fatal(err)
	}
	if err := c.Deserialize(image, "main"); err != nil {
		e.Fatal(err)
	}
	if _, err := c.ExecContext(e.Context(), "CREATE TABLE lost(a)", nil); err == nil {
		e.seen("SELECT count(*) FROM sqlite_schema", "1") // it is an in-memory database now
	}
	e.seen("SELECT group_concat(name) FROM sqlite_schema", "t")
}

const sessionScript = `
import ctypes, sys
lib = ctypes.CDLL("libsqlite3.so.0")
def check(rc, what):
    if rc != 0: raise SystemExit("%s: %d" % (what, rc))
P = ctypes.c_void_p
loader, db, s, buf, n = P(), P(), P(), P(), ctypes.c_int()
check(lib.sqlite3_open(b":memory:", ctypes.byref(loader)), "open")
check(lib.sqlite3_enable_load_extension(loader, 1), "enable")
check(lib.sqlite3_load_extension(loader, sys.argv[1].encode(), None, None), "load")
check(lib.sqlite3_open_v2(sys.argv[2].encode(), ctypes.byref(db), 0x46, None), "open database")
check(lib.sqlite3_busy_timeout(db, 10000), "timeout")
check(lib.sqlite3_exec(db, b"CREATE TABLE t(a INTEGER PRIMARY KEY, b)", None, None, None), "create")
check(lib.sqlite3session_create(db, b"main", ctypes.byref(s)), "session")
check(lib.sqlite3session_attach(s, None), "attach")
check(lib.sqlite3_exec(db, b"INSERT INTO t VALUES(1, 'x')", None, None, None), "insert")
check(lib.sqlite3session_changeset(s, ctypes.byref(n), ctypes.byref(buf)), "changeset")
lib.sqlite3session_delete(s)
lib.sqlite3_close(db)
print("changeset", n.value)
`

func session(e env) {
	out, err := exec.CommandContext(e.Context(), "/usr/bin/python3", "-c", sessionScript, testcluster.Extension(e.T), e.dsn(0)).CombinedOutput()
	if err != nil || !strings.Contains(string(out), "changeset") || strings.Contains(string(out), "changeset 0") {
		e.Fatalf("%v: %s", err, out)
	}
	e.seen("SELECT b FROM t", "x")
}

func largeTransaction(e env) {
	db := e.open(0)
	e.exec(db, "CREATE TABLE t(a)")
	e.fails(db, "INSERT INTO t VALUES(randomblob(9000000))", sqlite3.ErrFull, "over the node's limit of 8388608 bytes")
	e.want(db, "SELECT count(*) FROM t", "0")
	e.exec(db, "INSERT INTO t VALUES(randomblob(7000000))")
	e.seen("SELECT length(a) FROM t", "7000000")
}

func closeLast(e env) {
	c, err := (&sqlite3.SQLiteDriver{}).Open(e.dsn(0))
	if err != nil {
		e.Fatal(err)
	}
	if _, err := c.(*sqlite3.SQLiteConn).ExecContext(e.Context(), "CREATE TABLE t(a)", nil); err != nil {
		e.Fatal(err)
	}
	path := testcluster.DatabaseFile(e.T, e.cluster.Nodes()[0], e.db)
	if err := c.Close(); err != nil {
		e.Fatal(err)
	}
	for _, suffix := range []string{"-wal", "-shm"} {
		if _, err := os.Stat(path + suffix); err != nil {
			e.Errorf("after the last close: %v", err)
		}
	}
}

func deleteOpen(e env) {
	n := e.cluster.Nodes()[0]
	c := e.raw(e.dsn(0, "_busy_timeout=10000"))
	e.first(c, "CREATE TABLE t(a)")
	ctx := testcluster.Context(e.T, 10*time.Second)
	if err := n.Call(ctx, http.MethodDelete, "/v1/databases/"+e.db, nil, nil); err == nil {
		e.Fatal("a database that is open was deleted without force")
	}
	if err := n.Call(ctx, http.MethodDelete, "/v1/databases/"+e.db+"?force=1", nil, nil); err != nil {
		e.Fatal(err)
	}
	var err error
	perr := localcluster.Poll(ctx, 5*time.Millisecond, func() (bool, error) {
		_, err = c.ExecContext(ctx, "INSERT INTO t VALUES(1)", nil)
		return err != nil, nil
	})
	if perr != nil {
		e.Fatal(perr)
	}
	e.Logf("write after the delete: %v", err)
	db := e.open(0)
	e.exec(db, "CREATE TABLE again(a)")
	e.seen("SELECT group_concat(name) FROM sqlite_schema", "again")
}

func dataVersion(e env) {
	a, b := e.open(0), e.open(0)
	e.exec(a, "CREATE TABLE t(a)")
	before := testcluster.Query(e.T, a, "PRAGMA data_version")
	e.exec(a, "INSERT INTO t VALUES(1)")
	e.want(a, "PRAGMA data_version", before) // one's own commits do not count
	e.exec(b, "INSERT INTO t VALUES(2)")
	e.exec(e.open(1), "INSERT INTO t VALUES(3)")
	e.seen("SELECT count(*) FROM t", "3")
	if after := testcluster.Query(e.T, a, "PRAGMA data_version"); after == before {
		e.Error("data_version did not see the commits of others")
	}
}

func linearizable(e env) {
	w := e.open(0)
	e.exec(w, "CREATE TABLE t(a)")
	r := e.open(2, "consistency=linearizable")
	for i := range 50 {
		e.exec(w, "INSERT INTO t VALUES(1)")
		e.want(r, "SELECT count(*) FROM t", fmt.Sprint(i+1))
	}
	c, err := (&sqlite3.SQLiteDriver{}).Open(e.dsn(0, "consistency=total"))
	if err == nil {
		_, err = c.(*sqlite3.SQLiteConn).ExecContext(e.Context(), "SELECT * FROM t", nil)
		_ = c.Close()
	}
	e.failed(nil, "consistency=total", err, sqlite3.ErrCantOpen, "")
}

func pragmas(e env) {
	db, far := e.open(0), e.open(1)
	e.exec(db, "CREATE TABLE t(a)")
	e.exec(db, "INSERT INTO t VALUES(1)")
	bookmark := testcluster.Query(e.T, db, "PRAGMA hasqlite_position")
	e.want(far, "PRAGMA hasqlite_wait='"+bookmark+"'", bookmark)
	e.want(far, "SELECT count(*) FROM t", "1")
	e.want(db, "PRAGMA hasqlite_lag", "0")
	if status := testcluster.Query(e.T, db, "PRAGMA hasqlite_status"); !strings.Contains(status, `"name":"`+e.db+`"`) {
		e.Errorf("hasqlite_status: %s", status)
	}
	short := e.open(0, "lock_timeout=100")
	later := "00000000000000ff" + bookmark[16:]
	if _, err := short.Exec("PRAGMA hasqlite_wait='" + later + "'"); err == nil {
		e.Error("waiting for a position that never comes gave no error")
	}
	if _, err := db.Exec("PRAGMA hasqlite_wait='" + bookmark[:len(bookmark)-4] + "ffff'"); err == nil {
		e.Error("waiting for another database's position gave no error")
	}
}

func errorPragma(e env) {
	c := e.raw(e.dsn(0))
	e.first(c, "CREATE TABLE t(a)")
	if got := e.first(c, "PRAGMA hasqlite_error"); len(got) > 0 && got[0] != nil && got[0] != "" {
		e.Errorf("before any error: %v", got)
	}
	_, _ = c.ExecContext(context.Background(), "PRAGMA journal_mode=off", []driver.NamedValue{})
	if got := fmt.Sprint(e.first(c, "PRAGMA hasqlite_error")); !strings.Contains(got, e.db) || !strings.Contains(got, "journal_mode") {
		e.Errorf("after an error: %s", got)
	}
}

func past(e env) {
	db := e.open(0)
	e.exec(db, "CREATE TABLE t(a)")
	e.exec(db, "INSERT INTO t VALUES(1), (2)")
	before, then := testcluster.Query(e.T, db, "PRAGMA hasqlite_position"), time.Now().UTC().Format(time.RFC3339Nano)
	e.exec(db, "DELETE FROM t WHERE a = 1")
	e.exec(db, "DROP TABLE t")
	last := testcluster.Query(e.T, db, "PRAGMA hasqlite_position")
	for node := range 3 {
		e.want(e.open(node), "PRAGMA hasqlite_wait='"+last+"'", last)
		for _, state := range []string{"to=" + before, "at=" + then} {
			was := e.open(node, state)
			e.want(was, "PRAGMA hasqlite_position", before)
			e.want(was, "SELECT sum(a) FROM t", "3")
			e.want(was, "PRAGMA journal_mode=delete", "off")
			e.want(was, "PRAGMA integrity_check", "ok")
			e.fails(was, "INSERT INTO t VALUES(3)", sqlite3.ErrReadonly, "")
		}
		e.want(e.open(node, "at=now"), "PRAGMA hasqlite_position", last)
	}
	for _, param := range []string{"at=1+hour+ago", "at=soon", "to=0000000000000fff", "at=now&to=" + before} {
		c, err := (&sqlite3.SQLiteDriver{}).Open(e.dsn(0, param))
		if err == nil {
			_ = c.Close()
		}
		e.failed(nil, param, err, sqlite3.ErrCantOpen, "")
	}
	e.fails(db, "SELECT * FROM t", sqlite3.ErrError, "no such table")
}
