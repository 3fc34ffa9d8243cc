package shell

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/uglyer/ha-sqlite/internal/localcluster"
	"github.com/uglyer/ha-sqlite/internal/testcluster"
)

func TestMain(m *testing.M) { testcluster.Main(m, nil) }

// result is what a command printed and its exit code.
type result struct {
	out, errs string
	code      int
}

func command(t *testing.T, n *localcluster.Node, binary, stdin string, args ...string) result {
	t.Helper()
	cmd := exec.CommandContext(testcluster.Context(t, time.Minute), testcluster.Binary(t, binary), args...)
	cmd.Env = append(os.Environ(), "HASQLITE_NODE="+n.HTTP, "HASQLITE_HISTORY="+filepath.Join(n.Data, "..", "history"))
	cmd.Stdin = strings.NewReader(stdin)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	var exit *exec.ExitError
	if err := cmd.Run(); err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return result{out.String(), errs.String(), cmd.ProcessState.ExitCode()}
}

// want fails the test unless the command said all of this.
func (r result) want(t *testing.T, code int, says ...string) {
	t.Helper()
	if r.code != code {
		t.Errorf("exit code %d, want %d", r.code, code)
	}
	for _, s := range says {
		if !strings.Contains(r.out+r.errs, s) {
			t.Errorf("it did not say %q", s)
		}
	}
	if t.Failed() {
		t.Fatalf("stdout:\n%s\nstderr:\n%s", r.out, r.errs)
	}
}

func TestCommandsOnACluster(t *testing.T) {
	c := testcluster.Start(t, localcluster.Options{})
	nodes := c.Nodes()
	cli := func(args ...string) result { return command(t, nodes[0], "hasqlite", "", args...) }

	cli("db", "create", "acme/plan 7", "--page-size", "1024", "--auto-vacuum", "full").want(t, 0, "made, id ")
	cli("db", "create", "acme/plan 7").want(t, 6, "acme/plan 7")
	cli("db", "create", "a/../b").want(t, 2, `".." segment`)
	cli("db", "info", "nope").want(t, 3, "nope")
	cli("db", "info", "acme/plan 7").want(t, 0, "pages of 1024 bytes", "0000000000000001/")

	script := "CREATE TABLE t(a);\n.read /nonexistent\nINSERT INTO t\n VALUES('x');\n.status\nPRAGMA journal_mode=off;\nSELECT a FROM t;\n"
	command(t, nodes[1], "hasqlite", script, "shell", "acme/plan 7").want(t, 1,
		"line 2: .read: open /nonexistent", `"name":"acme/plan 7"`, "journal_mode stays wal", "\nx\n")
	command(t, nodes[2], "hasqlite", "", "shell", "acme/plan 7", "--linearizable", "--mode", "json", "SELECT a, 1 AS n FROM t").want(t, 0, `[{"a":"x","n":1}]`)
	command(t, nodes[2], "hasqlite", "", "shell", "acme/plan 7", "--readonly", "DELETE FROM t").want(t, 1, "readonly", "(8)")

	db := testcluster.Open(t, nodes[0], "acme/plan 7")
	testcluster.Exec(t, db, "INSERT INTO t VALUES('y')")
	cli("db", "delete", "acme/plan 7").want(t, 6, "acme/plan 7")
	cli("verify", "acme/plan 7", "--deep").want(t, 0, "equal at", "on 3 nodes, page by page")
	cli("verify", "nope").want(t, 3, "nope")
	cli("db", "list", "--json").want(t, 0, `"name": "acme/plan 7"`)
	cli("cluster", "status").want(t, 0, nodes[0].Raft, nodes[1].Raft, nodes[2].Raft, "leader")
	cli("cluster", "add", "x").want(t, 2, "accepts 2 arg(s)")

	leader, err := c.Leader(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	target := nodes[0].ID
	if leader.ID == target {
		target = nodes[1].ID
	}
	cli("cluster", "transfer", target).want(t, 0, target)
	err = localcluster.Poll(testcluster.Context(t, 20*time.Second), 20*time.Millisecond, func() (bool, error) {
		l, err := c.Leader(t.Context())
		return err == nil && l.ID == target, err
	})
	if err != nil {
		t.Fatalf("the leader is not %s: %v", target, err)
	}
	if err := nodes[2].Shutdown(testcluster.Context(t, 30*time.Second)); err != nil {
		t.Fatal(err)
	}
	cli("verify", "acme/plan 7").want(t, 4, "unreachable")
	command(t, nodes[2], "hasqlite", "", "db", "list").want(t, 4, nodes[2].HTTP)
	command(t, nodes[2], "hasqlite", "", "cluster", "status", "--wait", "--timeout", "300ms").want(t, 4)
}

func TestRefusalsAtStart(t *testing.T) {
	c := testcluster.Start(t, localcluster.Options{Nodes: 1})
	n := c.Nodes()[0]
	node := func(args ...string) result {
		return command(t, n, "hasqlite-node", "", append([]string{"--http", "127.0.0.1:0", "--raft", "127.0.0.1:0", "--socket", n.Socket + "2"}, args...)...)
	}
	node().want(t, 2, "no data directory")
	node("--data", n.Data, "--verify=maybe").want(t, 2, `flag --verify="maybe"`)
	node("--data", n.Data).want(t, 1, "in use by a running node")
	command(t, n, "hasqlite-node", "", "migrate", "--data", n.Data, "--raft-log", "boltdb").want(t, 1, "in use by a running node")
	if err := n.Shutdown(testcluster.Context(t, 30*time.Second)); err != nil {
		t.Fatal(err)
	}
	node("--data", n.Data, "--raft-log", "boltdb").want(t, 1, "--raft-log=wal, not boltdb")
	node("--data", n.Data, "--id", "somebody").want(t, 1, "belongs to another node")
	foreign := t.TempDir()
	if err := os.WriteFile(filepath.Join(foreign, "letter.txt"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	node("--data", foreign).want(t, 1, "not empty")
	command(t, n, "hasqlite-node", "", "migrate", "--data", n.Data, "--raft-log", "boltdb").want(t, 0)
	if err := n.Start("--raft-log", "boltdb"); err != nil {
		t.Fatal(err)
	}
	if err := n.WaitReady(testcluster.Context(t, 30*time.Second)); err != nil {
		t.Fatal(err)
	}
}

// terminal plays a person: it types a line each time the prompt is there.
const terminal = `
import os, pty, select, sys, termios, time
pid, fd = pty.fork()
if pid == 0:
    os.environ["TERM"] = "xterm"
    os.execv(sys.argv[1], sys.argv[1:])
seen, mark = b"", 0
def until(text):
    global seen, mark
    end = time.time() + 30
    while text not in seen[mark:]:
        if time.time() > end: raise SystemExit("no %r in %r" % (text, seen[mark:]))
        if select.select([fd], [], [], 0.1)[0]:
            try: seen += os.read(fd, 4096)
            except OSError: raise SystemExit("ended: %r" % seen[mark:])
    mark = seen.index(text, mark) + len(text)
def editing(want):
    # The editor has the terminal while it does not collect lines: the prompt is there a little earlier.
    end = time.time() + 30
    while (termios.tcgetattr(fd)[3] & termios.ICANON == 0) != want:
        if time.time() > end: raise SystemExit("editing is not %r: %r" % (want, seen[mark:]))
        select.select([], [], [], 0.01)
def type(text, want):
    editing(True)
    os.write(fd, text)
    until(want)
until(b"shop.db> ")
type(b"SELECT 40,\n", b"..> ")
type(b"2;\n", b"| 40 | 2 |")
type(b"WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n+1 FROM c) SELECT max(n) FROM c;\r", b"max(n)")
editing(False) # the statement runs
os.write(fd, b"\x03")
until(b"interrupted")
until(b"shop.db> ")
type(b"nonsense;\n", b"syntax error")
until(b"shop.db> ")
type(b"SELECT 6*7;\n", b"|  42 |")
until(b"shop.db> ")
type(b"\x1b[A", b"SELECT 6*7;")
os.write(fd, b"\n")
until(b"|  42 |")
os.write(fd, b".quit\n")
try:
    while os.read(fd, 4096): pass
except OSError: pass
sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
`

func TestThePromptOnATerminal(t *testing.T) {
	c := testcluster.Start(t, localcluster.Options{Nodes: 1})
	n := c.Nodes()[0]
	history := filepath.Join(t.TempDir(), "history")
	cmd := exec.CommandContext(testcluster.Context(t, 2*time.Minute), "/usr/bin/python3", "-c", terminal, testcluster.Binary(t, "hasqlite"), "shell", "shop.db")
	cmd.Env = append(os.Environ(), "HASQLITE_SOCKET="+n.Socket, "HASQLITE_HISTORY="+history)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	b, err := os.ReadFile(history)
	if err != nil || !strings.Contains(string(b), "SELECT 6*7;\n") {
		t.Errorf("history: %v %q", err, b)
	}
	info, err := os.Stat(history)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("history: %v %v", err, info.Mode())
	}
}
