package lang

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/uglyer/ha-sqlite/internal/localcluster"
	"github.com/uglyer/ha-sqlite/internal/testcluster"
)

const (
	commandLine = "/usr/bin/sqlite3"
	python      = "/usr/bin/python3"
)

func TestMain(m *testing.M) { testcluster.Main(m, nil) }

// shell runs a script in the sqlite3 command line, with a database of a node opened by the extension.
func shell(t *testing.T, n *localcluster.Node, database, script string) string {
	t.Helper()
	cmd := exec.CommandContext(testcluster.Context(t, time.Minute), commandLine, "-batch", "-bail", ":memory:")
	cmd.Stdin = strings.NewReader(".load " + testcluster.Extension(t) + "\n.open '" + n.DSN(database) + "'\n.timeout 20000\n" + script)
	var errs strings.Builder
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil || errs.Len() > 0 {
		t.Fatalf("sqlite3 on %s: %v\n%s%s", n.ID, err, out, errs.String())
	}
	return string(out)
}

func TestExtensionIsSmallAndPlainC(t *testing.T) {
	path := testcluster.Extension(t)
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if info.Size() >= 100<<10 {
		t.Errorf("the extension has %d bytes, want less than 100 KiB", info.Size())
	}
	out, err := exec.Command("ldd", path).CombinedOutput()
	if err != nil {
		t.Fatalf("ldd: %v: %s", err, out)
	}
	for _, library := range []string{"libsqlite3", "libgo"} {
		if strings.Contains(string(out), library) {
			t.Errorf("the extension links %s:\n%s", library, out)
		}
	}
}

func TestCommandLineReadsASchemaAndDumpsTheSameOnEveryNode(t *testing.T) {
	c := testcluster.Start(t, localcluster.Options{})
	const database = "acme/schema.db"
	schema, err := filepath.Abs("testdata/schema.sql")
	if err != nil {
		t.Fatal(err)
	}
	shell(t, c.Nodes()[0], database, ".read "+schema+"\n")
	for i, n := range c.Nodes() {
		shell(t, n, database, fmt.Sprintf("INSERT INTO orders(customer, amount) VALUES(%d, 10);\n", i+1))
	}
	testcluster.Converged(t, c, database)
	var first string
	for i, n := range c.Nodes() {
		dump := shell(t, n, database, "PRAGMA user_version;\nPRAGMA integrity_check;\nSELECT * FROM journal;\n"+
			"SELECT rowid, * FROM note('runner') ORDER BY rank, rowid LIMIT 5;\nSELECT * FROM place WHERE minx > 10 AND maxx < 15;\n.dump\n")
		if i == 0 {
			first = dump
			for _, want := range []string{"42", "ok", "VIRTUAL TABLE", "WITHOUT ROWID", "CREATE TRIGGER", "CREATE VIEW", "GENERATED ALWAYS"} {
				if !strings.Contains(dump, want) {
					t.Errorf("the dump lacks %q", want)
				}
			}
			if len(dump) < 100_000 {
				t.Errorf("the dump has only %d bytes", len(dump))
			}
			continue
		}
		if dump != first {
			t.Errorf("the dump of %s differs from that of %s", n.ID, c.Nodes()[0].ID)
		}
	}
}

func TestNinePythonWritersOnThreeNodesLoseAndDoubleNothing(t *testing.T) {
	const (
		database = "work.db"
		perNode  = 3
		rows     = 60
	)
	c := testcluster.Start(t, localcluster.Options{})
	ctx := testcluster.Context(t, 3*time.Minute)
	db := testcluster.Open(t, c.Nodes()[0], database, "_busy_timeout=20000")
	testcluster.Exec(t, db, `CREATE TABLE work(id INTEGER PRIMARY KEY, writer TEXT, n INT, luck INT DEFAULT (random()), at TEXT DEFAULT CURRENT_TIMESTAMP);
		CREATE TABLE total(n INT); INSERT INTO total VALUES(0)`)
	testcluster.Converged(t, c, database)
	var apps []*testcluster.App
	for i, n := range c.Nodes() {
		for j := range perNode {
			app, err := testcluster.StartCommand(exec.Command(python, "testdata/writer.py", testcluster.Extension(t),
				n.DSN(database), fmt.Sprintf("p%d.%d", i, j), fmt.Sprint(rows)))
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = app.Kill() })
			apps = append(apps, app)
		}
	}
	for _, app := range apps {
		line := end(ctx, t, app)
		var acknowledged, again, unknown int
		if _, err := fmt.Sscanf(line, "done %d %d %d", &acknowledged, &again, &unknown); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		if acknowledged != rows || unknown != 0 {
			t.Errorf("a writer got %d of %d acknowledged, %d unknown: %s", acknowledged, rows, unknown, app.Output())
		}
		t.Logf("%s", line)
	}
	testcluster.Converged(t, c, database)
	want := fmt.Sprintf("%d|%d|%d", len(apps)*rows, len(apps)*rows, len(apps)*rows)
	for _, n := range c.Nodes() {
		db := testcluster.Open(t, n, database)
		got := testcluster.Query(t, db, `SELECT count(*) || '|' || count(DISTINCT writer || '/' || n) || '|' || (SELECT n FROM total) FROM work`)
		if got != want {
			t.Errorf("%s has rows|distinct|total %s, want %s", n.ID, got, want)
		}
		if got := testcluster.Query(t, db, "PRAGMA integrity_check"); got != "ok" {
			t.Errorf("%s: integrity_check: %s", n.ID, got)
		}
	}
}

func TestForkedChildLeavesTheParentsTransactionAlone(t *testing.T) {
	c := testcluster.Start(t, localcluster.Options{Nodes: 1})
	app, err := testcluster.StartCommand(exec.Command(python, "testdata/fork.py", testcluster.Extension(t), c.Nodes()[0].DSN("fork.db")))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = app.Kill() })
	if got, want := end(testcluster.Context(t, time.Minute), t, app), "done parent,child,parent again"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestDefaultVFSReplicatesFilesUnderItsRootOnly(t *testing.T) {
	const script = `
import sqlite3, sys
for path in sys.argv[1:]:
    db = sqlite3.connect(path, timeout=30, isolation_level=None)
    db.execute("CREATE TABLE t(a)")
    db.execute("INSERT INTO t VALUES(7)")
    db.close()
print("done")
`
	for name, how := range map[string]func(extension string) []string{
		"loaded first":  nil,
		"by LD_PRELOAD": func(extension string) []string { return []string{"LD_PRELOAD=" + extension} },
	} {
		t.Run(name, func(t *testing.T) {
			c := testcluster.Start(t, localcluster.Options{Nodes: 1})
			n := c.Nodes()[0]
			root, plain := t.TempDir(), filepath.Join(t.TempDir(), "plain.db")
			text := script
			env := []string{"HASQLITE_SOCKET=" + n.Socket, "HASQLITE_DEFAULT_VFS=1", "HASQLITE_ROOT=" + root}
			if how == nil {
				text = fmt.Sprintf("import sqlite3\nl = sqlite3.connect(':memory:')\nl.enable_load_extension(True)\nl.load_extension(%q)\n%s",
					testcluster.Extension(t), text)
			} else {
				env = append(env, how(testcluster.Extension(t))...)
			}
			cmd := exec.Command(python, "-c", text, filepath.Join(root, "sub", "jar.db"), plain)
			cmd.Env = append(os.Environ(), env...)
			app, err := testcluster.StartCommand(cmd)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = app.Kill() })
			end(testcluster.Context(t, time.Minute), t, app)
			if got := testcluster.Query(t, testcluster.Open(t, n, "sub/jar.db"), "SELECT a FROM t"); got != "7" {
				t.Errorf("replicated file: got %s, want 7", got)
			}
			if _, err := os.Stat(plain); err != nil {
				t.Errorf("plain file: %v", err)
			}
			s, err := n.Status(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if len(s.Databases) != 1 {
				t.Errorf("the node has %d databases, want 1: %+v", len(s.Databases), s.Databases)
			}
		})
	}
}

// end waits for the line "done …" of an application.
func end(ctx context.Context, t *testing.T, app *testcluster.App) string {
	t.Helper()
	line, err := app.Expect(ctx, "done")
	if err != nil {
		t.Fatal(err)
	}
	return line
}

// A program in another language reads a database as it was, beside the present.
func TestPythonReadsThePast(t *testing.T) {
	const script = `
import sqlite3, sys
loader = sqlite3.connect(":memory:")
loader.enable_load_extension(True)
loader.load_extension(sys.argv[1])
now = sqlite3.connect(sys.argv[2], uri=True, timeout=30, isolation_level=None)
now.execute("CREATE TABLE item(id INTEGER PRIMARY KEY, name TEXT)")
now.executemany("INSERT INTO item(name) VALUES(?)", [("item %d" % i,) for i in range(20)])
mark = now.execute("PRAGMA hasqlite_position").fetchone()[0]
now.execute("DELETE FROM item WHERE id > 3")
was = sqlite3.connect(sys.argv[2] + "&to=" + mark, uri=True)
recent = sqlite3.connect(sys.argv[2] + "&at=now", uri=True)
try:
    was.execute("INSERT INTO item(name) VALUES('x')")
except sqlite3.OperationalError as e:
    print(e)
count = "SELECT count(*) FROM item"
print("done", was.execute(count).fetchone()[0], recent.execute(count).fetchone()[0], now.execute(count).fetchone()[0],
    was.execute("SELECT name FROM item WHERE id = 17").fetchone()[0], was.execute("PRAGMA hasqlite_position").fetchone()[0] == mark)
`
	c := testcluster.Start(t, localcluster.Options{Nodes: 1})
	n := c.Nodes()[0]
	app, err := testcluster.StartCommand(exec.Command(python, "-c", script, testcluster.Extension(t), n.DSN("past.db")))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = app.Kill() })
	if got, want := end(testcluster.Context(t, time.Minute), t, app), "done 20 3 3 item 16 True"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if !strings.Contains(app.Output(), "attempt to write a readonly database") {
		t.Errorf("a write: %s", app.Output())
	}
}
