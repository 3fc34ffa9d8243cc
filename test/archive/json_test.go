package archive

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/uglyer/ha-sqlite/internal/exit"
	"github.com/uglyer/ha-sqlite/internal/localcluster"
	"github.com/uglyer/ha-sqlite/internal/testcluster"
)

// streams runs the command and returns what it prints on each stream, and its exit code.
func streams(t *testing.T, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), testcluster.Binary(t, "hasqlite"), args...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	var failed *exec.ExitError
	if err := cmd.Run(); err != nil && !errors.As(err, &failed) {
		t.Fatal(err)
	}
	return out.String(), errs.String(), cmd.ProcessState.ExitCode()
}

// oneValue says whether a text is one JSON value.
func oneValue(text string) bool {
	d := json.NewDecoder(strings.NewReader(text))
	var v any
	return d.Decode(&v) == nil && v != nil && errors.Is(d.Decode(&v), io.EOF)
}

// other are the commands that have nothing to do with what was, or that a person types at.
var other = []string{"cluster", "completion", "db", "demo", "help", "shell", "verify"}

// commandsOf lists the commands that a help text has.
func commandsOf(help string) (names []string) {
	_, list, _ := strings.Cut(help, "Available Commands:\n")
	list, _, _ = strings.Cut(list, "\n\n")
	for _, m := range regexp.MustCompile(`(?m)^  (\S+)`).FindAllStringSubmatch(list, -1) {
		names = append(names, m[1])
	}
	return names
}

// Every command for what was, and for archives, answers with one JSON value with --json; where it fails it says why on
// standard error alone, with an exit code for programs.
func TestCommandsAnswerInJSON(t *testing.T) {
	ctx := testcluster.Context(t, caseLimit)
	c := testcluster.Start(t, localcluster.Options{Nodes: 1, Args: []string{"--archive-interval", interval.String()}})
	node := c.Nodes()[0]
	db := testcluster.Open(t, node, "shop.db")
	for _, q := range []string{`CREATE TABLE item(id INTEGER PRIMARY KEY, v)`, `INSERT INTO item VALUES(1, 'tea')`, `UPDATE item SET v = 'milk'`} {
		testcluster.Exec(t, db, q)
	}
	st := complete(ctx, t, c)
	shop, _ := st.Database("shop.db")
	dir := t.TempDir()
	dead := "http://127.0.0.1:1"
	at := strings.NewReplacer("DIR", dir, "ARCHIVE", strings.TrimPrefix(st.Archive.URL, "file://"), "BOOKMARK", shop.Decided.String()+"@"+shop.ID)

	type row struct {
		code int
		args string // fields, of which those with blanks have _ in their place
	}
	table := []row{
		{exit.OK, "history shop.db"},
		{exit.OK, "history shop.db --archive ARCHIVE --limit 1"},
		{exit.NotFound, "history none.db"},
		{exit.Usage, "history shop.db --since soon"},
		{exit.OK, "query shop.db SELECT_*_FROM_item --to 0000000000000003"},
		{exit.NotFound, "query shop.db SELECT_1 --at 2020-01-01"},
		{exit.Usage, "query shop.db SELECT_1 --at 9999-01-01"},
		{exit.Usage, "query shop.db SELECT_1 --mode csv"},
		{exit.Failure, "query shop.db SELECT_nothing --bail"},
		{exit.OK, "diff shop.db 0000000000000002 now --rows"},
		{exit.NotFound, "diff shop.db 2020-01-01 now"},
		{exit.Usage, "diff shop.db now 9999-01-01"},
		{exit.OK, "restore --db shop.db -o DIR/one.db --verify"},
		{exit.OK, "restore --db shop.db --dry-run --archive ARCHIVE"},
		{exit.Conflict, "restore --db shop.db -o DIR/one.db"},
		{exit.NotFound, "restore --db shop.db --dry-run --at 2020-01-01"},
		{exit.Unreachable, "restore --db shop.db --dry-run --node " + dead},
		{exit.OK, "restore --all --into-cluster --archive ARCHIVE"},
		{exit.Usage, "restore --all --into-cluster"},
		{exit.OK, "export shop.db DIR/two.db --at now"},
		{exit.NotFound, "export none.db DIR/none.db"},
		{exit.NotFound, "export shop.db DIR/none.db --at 2020-01-01"},
		{exit.Usage, "export shop.db DIR/none.db --at soon"},
		{exit.OK, "import other.db DIR/one.db --dry-run"},
		{exit.OK, "import other.db DIR/one.db"},
		{exit.Conflict, "import other.db DIR/one.db"},
		{exit.OK, "import other.db DIR/one.db --replace --hold 3s"},
		{exit.Usage, "import other.db DIR/one.db --hold 5h"},
		{exit.Failure, "import third.db DIR/nothing.db"},
		{exit.Unreachable, "import third.db DIR/one.db --node " + dead},
		{exit.OK, "fork shop.db copy.db --dry-run"},
		{exit.OK, "fork shop.db copy.db --to BOOKMARK"},
		{exit.Conflict, "fork shop.db copy.db"},
		{exit.NotFound, "fork none.db new.db"},
		{exit.Usage, "fork shop.db new.db --at 9999-01-01"},
		{exit.OK, "snapshot create shop.db --label v1 --dry-run"},
		{exit.OK, "snapshot create shop.db --label v1"},
		{exit.OK, "snapshot create shop.db"},
		{exit.Conflict, "snapshot create shop.db --label v1"},
		{exit.NotFound, "snapshot create none.db --label v1"},
		{exit.OK, "snapshot list shop.db"},
		{exit.NotFound, "snapshot list none.db"},
		{exit.OK, "snapshot delete shop.db --label v1"},
		{exit.NotFound, "snapshot delete shop.db --label v1"},
		{exit.NotFound, "snapshot delete shop.db --to 0000000000000001"},
		{exit.OK, "snapshot delete shop.db --to BOOKMARK"},
		{exit.Usage, "snapshot delete shop.db"},
		{exit.OK, "archive status shop.db"},
		{exit.NotFound, "archive status none.db"},
		{exit.OK, "archive verify shop.db --archive ARCHIVE"},
		{exit.NotFound, "archive verify shop.db --archive DIR/no"},
		{exit.OK, "archive prune shop.db --dry-run"},
		{exit.OK, "archive prune shop.db"},
		{exit.NotFound, "archive prune none.db"},
		{exit.OK, "rollback shop.db --to 0000000000000003 --dry-run"},
		{exit.OK, "rollback shop.db --at now"},
		{exit.OK, "rollback shop.db --to 0000000000000003"},
		{exit.NotFound, "rollback shop.db --at 2020-01-01"},
		{exit.NotFound, "rollback none.db --to 0000000000000003"},
		{exit.Usage, "rollback shop.db"},
		{exit.Usage, "rollback shop.db --to soon"},
	}
	var covered []string
	for _, tt := range table {
		fields := strings.Fields(at.Replace(tt.args))
		covered = append(covered, fields[0], fields[0]+" "+fields[1])
		for i := range fields {
			if strings.HasPrefix(fields[i], "SELECT") {
				fields[i] = strings.ReplaceAll(fields[i], "_", " ")
			}
		}
		if !slices.Contains(fields, "--node") {
			fields = append(fields, "--node", "http://"+node.HTTP)
		}
		stdout, stderr, code := streams(t, append(fields, "--json")...)
		switch {
		case code != tt.code:
			t.Errorf("%s: exit code %d, want %d: %s%s", tt.args, code, tt.code, stdout, stderr)
		case code == exit.OK && !oneValue(stdout):
			t.Errorf("%s: not one JSON value: %q, %s", tt.args, stdout, stderr)
		case code != exit.OK && (stdout != "" || stderr == ""):
			t.Errorf("%s: %q on standard output, %q on the other", tt.args, stdout, stderr)
		}
	}
	// A file on standard output: the value is on the other.
	stdout, stderr, code := streams(t, "export", "shop.db", "-", "--node", "http://"+node.HTTP, "--json")
	if code != exit.OK || !strings.HasPrefix(stdout, "SQLite format 3\x00") || !oneValue(stderr) {
		t.Errorf("export to standard output: exit code %d, %d bytes, %q", code, len(stdout), stderr)
	}
	help, _, _ := streams(t, "help")
	names := commandsOf(help)
	for _, group := range []string{"archive", "snapshot"} {
		help, _, _ := streams(t, "help", group)
		for _, sub := range commandsOf(help) {
			names = append(names, group+" "+sub)
		}
	}
	if len(names) < 15 {
		t.Errorf("help lists %q", names)
	}
	for _, n := range names {
		if !slices.Contains(other, n) && !slices.Contains(covered, n) {
			t.Errorf("%s is not tried", n)
		}
	}
	if left, err := filepath.Glob(filepath.Join(dir, "none*")); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}
