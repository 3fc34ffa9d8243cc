package shimtest

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/uglyer/ha-sqlite/internal/link"
)

// Debian's own programs: they load the SQLite of the system.
const (
	python = "/usr/bin/python3"
	cli    = "/usr/bin/sqlite3"
)

// run runs a program and returns what it printed.
func run(t *testing.T, env []string, name string, args ...string) string {
	t.Helper()
	out, err := try(env, name, args...)
	if err != nil {
		t.Fatalf("%s: %v\n%s", filepath.Base(name), err, out)
	}
	return out
}

func try(env []string, name string, args ...string) (string, error) {
	cmd := exec.Command(name, args...)
	cmd.Env = append(os.Environ(), env...)
	out, err := cmd.CombinedOutput()
	return strings.TrimSpace(string(out)), err
}

// prelude loads the extension and connects to a replicated database.
func prelude(so string) string {
	return `
import sqlite3, os, sys, time, signal
loader = sqlite3.connect(':memory:')
loader.enable_load_extension(True)
loader.load_extension('` + strings.TrimSuffix(so, ".so") + `')
loader.close()
def connect(name='shop.db', **kw):
    return sqlite3.connect('file:%s?vfs=hasqlite' % name, uri=True, isolation_level=None, **kw)
`
}

func TestExtensionIsSmallAndStandsAlone(t *testing.T) {
	so := filepath.Join(t.TempDir(), "hasqlite.so")
	run(t, nil, "strip", "-o", so, extension(t))
	info, err := os.Stat(so)
	if err != nil {
		t.Fatal(err)
	}
	if info.Size() >= 100<<10 {
		t.Errorf("%d bytes", info.Size())
	}
	if out := run(t, nil, "ldd", so); strings.Contains(out, "sqlite") {
		t.Errorf("linked to SQLite:\n%s", out)
	}
	out := run(t, nil, "nm", "-D", "--defined-only", so)
	if lines := strings.Split(out, "\n"); len(lines) != 1 || !strings.HasSuffix(lines[0], " sqlite3_hasqlite_init") {
		t.Errorf("exports:\n%s", out)
	}
	t.Logf("%d bytes", info.Size())
}

func TestCommandLineShell(t *testing.T) {
	n := startNode(t)
	so := extension(t)
	env := []string{"HASQLITE_SOCKET=" + n.Socket}
	script := filepath.Join(t.TempDir(), "s.sql")
	sql := ".load " + strings.TrimSuffix(so, ".so") + `
.open file:shop.db?vfs=hasqlite
CREATE TABLE a(id INTEGER PRIMARY KEY, x, at DEFAULT CURRENT_TIMESTAMP, r);
CREATE TRIGGER ar AFTER INSERT ON a BEGIN UPDATE a SET r=random() WHERE id=new.id; END;
CREATE VIRTUAL TABLE f USING fts5(body);
CREATE VIRTUAL TABLE rt USING rtree(id, x0, x1);
CREATE VIEW v AS SELECT x FROM a;
CREATE TABLE w(k PRIMARY KEY, g AS (k*2) STORED) WITHOUT ROWID;
INSERT INTO a(x) VALUES(1),(2);
INSERT INTO f VALUES('hello world');
INSERT INTO rt VALUES(1, 0, 1);
INSERT INTO w(k) VALUES(21);
SELECT (SELECT count(*) FROM v), (SELECT g FROM w), (SELECT body FROM f WHERE f MATCH 'world');
PRAGMA busy_timeout;
PRAGMA journal_mode=delete;
PRAGMA hasqlite_status;
`
	if err := os.WriteFile(script, []byte(sql), 0o600); err != nil {
		t.Fatal(err)
	}
	out, _ := try(env, cli, "-batch", ":memory:", ".read "+script)
	for _, want := range []string{"2|42|hello world", "\n5000\n", "journal_mode stays wal", "hasqlite_status of shop.db: ok"} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in\n%s", want, out)
		}
	}
	if peer := n.Database("shop.db").Snapshot().LastPeer; peer.Client != "extension" || peer.PID == os.Getpid() {
		t.Errorf("peer %+v", peer)
	}
	checkMirror(t, n.Database("shop.db"))
}

// TestManyProcesses has Python processes write one database while one commit
// in ten is refused: every acknowledged row is there, once.
func TestManyProcesses(t *testing.T) {
	n := startNode(t)
	so := extension(t)
	env := []string{"HASQLITE_SOCKET=" + n.Socket}
	count := 0
	n.Set(func(h *Hooks) {
		h.Verdict = func(*Database, *link.Tx) (link.Outcome, string) {
			if count++; count%10 == 0 {
				return link.Refused, "injected"
			}
			return link.Accepted, ""
		}
	})
	script := prelude(so) + `
me, rounds = int(sys.argv[1]), int(sys.argv[2])
db = connect()
for i in range(rounds):
    while True:
        try:
            db.execute('BEGIN IMMEDIATE')
            db.execute('CREATE TABLE IF NOT EXISTS a(who, n, PRIMARY KEY(who, n))')
            db.execute('INSERT INTO a VALUES(?,?)', (me, i))
            db.execute('COMMIT')
            break
        except sqlite3.OperationalError as e:
            if db.in_transaction: db.execute('ROLLBACK')
            if 'locked' not in str(e): raise
print('done')
`
	const procs, rounds = 3, 60
	results := make(chan string, procs)
	for i := range procs {
		go func() {
			out, err := try(env, python, "-c", script, fmt.Sprint(i), fmt.Sprint(rounds))
			if err != nil {
				out += err.Error()
			}
			results <- out
		}()
	}
	for range procs {
		if out := <-results; out != "done" {
			t.Fatal(out)
		}
	}
	db := open(t, dsn(n, "shop.db"))
	if got := queryText(t, db, "SELECT count(*)||' '||count(DISTINCT who) FROM a"); got != fmt.Sprintf("%d %d", procs*rounds, procs) {
		t.Errorf("rows %s", got)
	}
	if s := n.Database("shop.db").Snapshot(); s.Mismatches != 0 || s.Lost != 0 {
		t.Errorf("stats %+v", s)
	}
	checkMirror(t, n.Database("shop.db"))
}

// TestKilledWriter: a writer that is killed between begin and commit leaves
// nothing behind, and the lock is free at once.
func TestKilledWriter(t *testing.T) {
	n, d, db := shop(t)
	so := extension(t)
	script := prelude(so) + `
db = connect()
db.execute('PRAGMA cache_size=5')
db.execute('BEGIN IMMEDIATE')
db.execute('INSERT INTO a WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n+1 FROM c WHERE n<100) SELECT randomblob(1000) FROM c')
os.kill(os.getpid(), signal.SIGKILL)
`
	closes := d.Snapshot().Closes
	_, _ = try([]string{"HASQLITE_SOCKET=" + n.Socket}, python, "-c", script)
	eventually(t, "the killed writer's handle closed", func() bool { return d.Snapshot().Closes > closes })
	mustExec(t, db, "PRAGMA busy_timeout=5000", "INSERT INTO a VALUES(3)")
	if got := queryText(t, db, "SELECT count(*) FROM a"); got != "3" {
		t.Errorf("%s rows", got)
	}
	checkMirror(t, d)
}

func TestFork(t *testing.T) {
	n, d, db := shop(t)
	so := extension(t)
	script := prelude(so) + `
def child(f):
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        try: f()
        except sqlite3.Error as e: print('child:', e)
        sys.stdout.flush()
        os._exit(0)
    os.waitpid(pid, 0)

idle = connect()
idle.execute('INSERT INTO a VALUES(10)')
child(lambda: idle.execute('INSERT INTO a VALUES(11)'))
idle.execute('INSERT INTO a VALUES(12)')

busy = connect()
busy.execute('BEGIN IMMEDIATE')
busy.execute('INSERT INTO a VALUES(20)')
def meddle():
    try: busy.execute('COMMIT')
    finally: busy.close()
child(meddle)
busy.execute('COMMIT')
busy.execute('INSERT INTO a VALUES(21)')
print([r[0] for r in busy.execute('SELECT x FROM a ORDER BY x')])
`
	out := run(t, []string{"HASQLITE_SOCKET=" + n.Socket}, python, "-c", script)
	if !strings.Contains(out, "child: disk I/O error") {
		t.Errorf("the child's commit in the parent's transaction: %s", out)
	}
	if want := "[1, 2, 10, 11, 12, 20, 21]"; !strings.Contains(out, want) {
		t.Errorf("rows %s, want %s", out, want)
	}
	mustExec(t, db, "INSERT INTO a VALUES(30)")
	checkMirror(t, d)
}

// rooted is a script that knows nothing of URIs or VFS names.
const rooted = `
import sqlite3, sys
db = sqlite3.connect(sys.argv[1], isolation_level=None)
db.execute('CREATE TABLE IF NOT EXISTS a(x)')
db.execute('INSERT INTO a VALUES(1)')
print(db.execute('SELECT count(*) FROM a').fetchone()[0], db.execute('PRAGMA journal_mode').fetchone()[0])
`

func TestPreload(t *testing.T) {
	n := startNode(t)
	so := extension(t)
	root, other := t.TempDir(), t.TempDir()
	env := []string{"HASQLITE_SOCKET=" + n.Socket, "HASQLITE_ROOT=" + root, "LD_PRELOAD=" + so}
	if got := run(t, env, python, "-c", rooted, filepath.Join(root, "acme", "shop.db")); got != "1 wal" {
		t.Errorf("below the root: %s", got)
	}
	if got := run(t, env, cli, filepath.Join(root, "acme", "shop.db"), "INSERT INTO a VALUES(2); SELECT count(*) FROM a;"); !strings.HasSuffix(got, "2") {
		t.Errorf("by the shell: %s", got)
	}
	if got := run(t, env, python, "-c", rooted, filepath.Join(other, "plain.db")); got != "1 delete" {
		t.Errorf("elsewhere: %s", got)
	}
	if got := n.Names(); len(got) != 1 || got[0] != "acme/shop.db" {
		t.Errorf("databases %v", got)
	}
	if peer := n.Database("acme/shop.db").Snapshot().LastPeer; peer.Client != "preload" {
		t.Errorf("peer %+v", peer)
	}
	if got := run(t, []string{"LD_PRELOAD=" + so}, python, "-c", rooted, filepath.Join(other, "plain2.db")); got != "1 delete" {
		t.Errorf("without a root: %s", got)
	}
	checkMirror(t, n.Database("acme/shop.db"))
}

func TestDefaultVFS(t *testing.T) {
	n := startNode(t)
	so := extension(t)
	root := t.TempDir()
	env := []string{"HASQLITE_SOCKET=" + n.Socket, "HASQLITE_ROOT=" + root, "HASQLITE_DEFAULT_VFS=1"}
	if got := run(t, env, python, "-c", prelude(so)+rooted, filepath.Join(root, "shop.db")); got != "1 wal" {
		t.Errorf("below the root: %s", got)
	}
	if got := run(t, env, python, "-c", prelude(so)+rooted, filepath.Join(t.TempDir(), "plain.db")); got != "1 delete" {
		t.Errorf("elsewhere: %s", got)
	}
	if got := n.Names(); len(got) != 1 || got[0] != "shop.db" {
		t.Errorf("databases %v", got)
	}
}

func TestSettingsByPragma(t *testing.T) {
	n := startNode(t)
	so := extension(t)
	script := prelude(so) + `
db = connect()
for q in ('page_size=8192', 'auto_vacuum=incremental', "encoding='UTF-16le'"): db.execute('PRAGMA ' + q)
db.execute('CREATE TABLE a(x)')
db.execute("INSERT INTO a VALUES('x')")
print([db.execute('PRAGMA ' + q).fetchone()[0] for q in ('page_size', 'auto_vacuum', 'encoding', 'integrity_check')])
`
	if got, want := run(t, []string{"HASQLITE_SOCKET=" + n.Socket}, python, "-c", script), "[8192, 2, 'UTF-16le', 'ok']"; got != want {
		t.Errorf("settings %s, want %s", got, want)
	}
	checkMirror(t, n.Database("shop.db"))
}

// TestBackupAndNames covers what a host does through other doors of SQLite.
func TestBackupAndNames(t *testing.T) {
	n, d, _ := shop(t)
	so := extension(t)
	dir := t.TempDir()
	script := prelude(so) + `
d = sys.argv[1]
db = connect()
plain = sqlite3.connect(d + '/plain.db')
db.backup(plain)
print('backup', plain.execute('SELECT count(*) FROM a').fetchone()[0])
plain.execute('INSERT INTO a VALUES(3)'); plain.commit()
new = connect('restored.db')
plain.backup(new)
print('restored', new.execute('SELECT count(*) FROM a').fetchone()[0])
mem = sqlite3.connect('file::memory:?vfs=hasqlite', uri=True)
mem.execute('CREATE TABLE m(x)')
tmp = sqlite3.connect('file:?vfs=hasqlite', uri=True)
tmp.execute('CREATE TABLE m(x)')
os.chdir(d)
rel = sqlite3.connect('file:./rel.db?vfs=hasqlite', uri=True)
rel.execute('CREATE TABLE m(x)')
print(os.path.exists('rel.db'))
try: db.execute("VACUUM INTO 'copy.db'")
except sqlite3.Error as e: print('vacuum:', e)
print(db.execute('PRAGMA hasqlite_lag').fetchone()[0])
`
	out := run(t, []string{"HASQLITE_SOCKET=" + n.Socket, "HASQLITE_LOG=1"}, python, "-c", script, dir)
	for _, want := range []string{"backup 2", "restored 3", "True", "vacuum: ", "VACUUM INTO the name of a replicated database: write a path, such as './copy.db'"} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in\n%s", want, out)
		}
	}
	checkMirror(t, d)
	checkMirror(t, n.Database("restored.db"))
}

// TestSanitized runs the whole shim under the address and undefined-behaviour
// sanitizers inside Debian's Python and shell.
func TestSanitized(t *testing.T) {
	n, d, _ := shop(t)
	so := extension(t, "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined")
	asan := run(t, nil, "gcc", "-print-file-name=libasan.so")
	ubsan := run(t, nil, "gcc", "-print-file-name=libubsan.so")
	env := []string{"HASQLITE_SOCKET=" + n.Socket, "LD_PRELOAD=" + asan + " " + ubsan,
		"ASAN_OPTIONS=detect_leaks=0:abort_on_error=0:exitcode=99", "UBSAN_OPTIONS=print_stacktrace=1"}
	count := 0
	n.Set(func(h *Hooks) {
		h.Verdict = func(*Database, *link.Tx) (link.Outcome, string) {
			if count++; count%7 == 0 {
				return link.Refused, "injected"
			}
			return link.Accepted, ""
		}
	})
	script := prelude(so) + `
import random
random.seed(1)
dbs = [connect(), connect('shop.db'), connect('fresh.db')]
dbs[0].execute('PRAGMA cache_size=5')
dbs[2].execute('PRAGMA page_size=512')
for db in dbs: db.execute('CREATE TABLE IF NOT EXISTS t(k, b)')
for i in range(300):
    db = random.choice(dbs)
    try:
        op = random.randrange(8)
        if op < 3: db.execute('INSERT INTO t VALUES(?, randomblob(?))', (i, random.randrange(5000)))
        elif op == 3:
            db.execute('BEGIN')
            for j in range(20):
                if random.random() < .2: db.execute('SAVEPOINT s')
                db.execute('INSERT INTO t VALUES(?, randomblob(3000))', (j,))
                if random.random() < .1: db.execute('ROLLBACK TO s')
            db.execute('COMMIT')
        elif op == 4: db.execute('DELETE FROM t WHERE k%3=?', (i%3,))
        elif op == 5: db.execute('VACUUM')
        elif op == 6: db.execute('PRAGMA wal_checkpoint(TRUNCATE)').fetchall()
        elif op == 7: db.execute('PRAGMA hasqlite_status').fetchall()
    except sqlite3.OperationalError as e:
        if db.in_transaction: db.execute('ROLLBACK')
for db in dbs: print(db.execute('PRAGMA integrity_check').fetchone()[0])
try: dbs[0].execute("ATTACH 'file:fresh.db?vfs=hasqlite' AS f"); dbs[0].execute('BEGIN IMMEDIATE')
except sqlite3.Error as e: print(e)
for db in dbs: db.close()
`
	out, err := try(env, python, "-c", script)
	if err != nil || strings.Count(out, "ok") != 3 || strings.Contains(out, "runtime error") || strings.Contains(out, "AddressSanitizer") {
		t.Fatalf("%v\n%s", err, out)
	}
	checkMirror(t, d)
	checkMirror(t, n.Database("fresh.db"))
}
