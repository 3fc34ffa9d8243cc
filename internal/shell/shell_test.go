package shell

import (
	"bytes"
	"database/sql"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// play runs input on the database file and returns what was printed.
func play(t *testing.T, file, input string, change ...func(*Options)) (stdout, stderr string, err error) {
	t.Helper()
	var out, errs bytes.Buffer
	opts := Options{DSN: "file:" + file, Name: "test", Stdin: strings.NewReader(input), Stdout: &out, Stderr: &errs}
	for _, f := range change {
		f(&opts)
	}
	err = Run(t.Context(), opts)
	return out.String(), errs.String(), err
}

func TestModes(t *testing.T) {
	const input = ".mode %\n.headers on\nSELECT 1 AS n, 'a,b\"c' AS \"te xt\", NULL AS nil, 0.1 AS r, x'00ff' AS b UNION ALL SELECT -20, 'ü\x1b[2J', 'x', 1e300, x'';\n" +
		"SELECT 1 AS none WHERE 0;\n"
	tests := map[string]string{
		"table": `
+-----+----------+------+--------+---------+
| n   | te xt    | nil  | r      | b       |
+-----+----------+------+--------+---------+
|   1 | a,b"c    | NULL |    0.1 | x'00ff' |
| -20 | ü\x1b[2J | x    | 1e+300 | x''     |
+-----+----------+------+--------+---------+
`,
		"list": "\nn|te xt|nil|r|b\n1|a,b\"c||0.1|x'00ff'\n-20|ü\x1b[2J|x|1e+300|x''\n",
		"csv":  "\nn,te xt,nil,r,b\r\n1,\"a,b\"\"c\",,0.1,x'00ff'\r\n-20,ü\x1b[2J,x,1e+300,x''\r\n",
		"json": "\n[{\"n\":1,\"te xt\":\"a,b\\\"c\",\"nil\":null,\"r\":0.1,\"b\":\"x'00ff'\"},\n{\"n\":-20,\"te xt\":\"ü\\u001b[2J\",\"nil\":\"x\",\"r\":1e+300,\"b\":\"x''\"}]\n",
		"line": `
    n = 1
te xt = a,b"c
  nil = NULL
    r = 0.1
    b = x'00ff'

    n = -20
te xt = ü\x1b[2J
  nil = x
    r = 1e+300
    b = x''
`,
	}
	for _, mode := range modes {
		out, errs, err := play(t, ":memory:", strings.Replace(input, "%", mode, 1))
		if want := strings.TrimPrefix(tests[mode], "\n"); err != nil || errs != "" || out != want {
			t.Errorf("%s: %v %s\ngot:\n%s\nwant:\n%s", mode, err, errs, out, want)
		}
	}
}

// The driver makes bools and times of columns declared so; the shell shows
// what is stored.
func TestStoredValuesAreShown(t *testing.T) {
	out, _, err := play(t, ":memory:", `CREATE TABLE t(b BOOLEAN, d DATE, ts TIMESTAMP, dt DATETIME);
		INSERT INTO t VALUES(7, 'not a date', 1700000000, '2024-01-02 03:04:05Z'); SELECT * FROM t; SELECT * FROM t;`)
	const row = "7|not a date|1700000000|2024-01-02 03:04:05Z\n"
	if err != nil || out != row+row {
		t.Fatalf("got %q, %v", out, err)
	}
}

func TestErrorsSayWhere(t *testing.T) {
	input := "SELECT 1;\n\nSELECT\n nope;\n.mode odd\n.frobnicate\n.timer\n.read /nonexistent/x\nSELECT 2;\nCREATE TABLE t(a UNIQUE); INSERT INTO t VALUES(1);\nINSERT INTO t VALUES(1);"
	out, errs, err := play(t, ":memory:", input)
	if !errors.Is(err, ErrFailed) || out != "1\n2\n" {
		t.Errorf("got %q, %v", out, err)
	}
	for _, want := range []string{
		"Error: standard input, line 3: no such column: nope (1)\n", `line 5: .mode "odd": want one of table, list`, "line 6: unknown command .frobnicate",
		"line 7: usage: .timer on|off", "line 8: .read: open /nonexistent/x", "line 11: UNIQUE constraint failed: t.a (2067)",
	} {
		if !strings.Contains(errs, want) {
			t.Errorf("no %q in\n%s", want, errs)
		}
	}
	out, errs, err = play(t, ":memory:", input, func(o *Options) { o.Bail = true })
	if !errors.Is(err, ErrFailed) || out != "1\n" || strings.Count(errs, "Error:") != 1 {
		t.Errorf("with bail: got %q, %q, %v", out, errs, err)
	}
	if _, _, err := play(t, "/nonexistent/dir/x", "SELECT 1;"); err == nil && !errors.Is(err, ErrFailed) {
		t.Error("a database that cannot be opened gave no error")
	}
	if _, _, err := play(t, ":memory:", "", func(o *Options) { o.Mode = "odd" }); err == nil {
		t.Error("an unknown mode was taken")
	}
}

func TestStatementsFromArguments(t *testing.T) {
	out, _, err := play(t, ":memory:", "SELECT 'input is not read';", func(o *Options) {
		o.Statements, o.Mode = []string{"CREATE TABLE t(a); INSERT INTO t VALUES(1),(2)", ".headers on", "SELECT count(*) AS n FROM t"}, "csv"
	})
	if err != nil || out != "n\r\n2\r\n" {
		t.Fatalf("got %q, %v", out, err)
	}
}

func TestDotCommands(t *testing.T) {
	dir := t.TempDir()
	file, script := filepath.Join(dir, "a.db"), filepath.Join(dir, "my script.sql")
	if err := os.WriteFile(script, []byte("CREATE TABLE beta(x);\nCREATE VIEW v AS SELECT * FROM beta;\n.tables b%\nCREATE INDEX i ON beta(x)"), 0o600); err != nil {
		t.Fatal(err)
	}
	out, errs, err := play(t, file, "CREATE TABLE alpha(y);\n.read '"+script+"'\n.tables\n.indexes\n.indexes alpha\n.schema beta\n.databases\n.mode\n.timer on\nSELECT 1;\n.timer off\n.help\n.quit\nSELECT 3;\n")
	if err != nil || errs != "" {
		t.Fatalf("%v: %s", err, errs)
	}
	for _, want := range []string{"beta\nalpha\nbeta\nv\ni\nCREATE TABLE beta(x);\nCREATE INDEX i ON beta(x);\nmain|" + file + "\nlist\n1\nRun Time: real 0.", ".read FILE"} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in\n%s", want, out)
		}
	}
	if strings.Contains(out, "\n3\n") {
		t.Error("went on after .quit")
	}
	if _, errs, _ := play(t, file, ".status\n"); !strings.Contains(errs, "not replicated") {
		t.Errorf(".status on a plain file: %s", errs)
	}
	if err := os.WriteFile(script, []byte(".read '"+script+"'\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, errs, err := play(t, file, ".read '"+script+"'\n"); !errors.Is(err, ErrFailed) || !strings.Contains(errs, "16 deep") {
		t.Errorf("a file that reads itself: %v %s", err, errs)
	}
}

const everything = `
CREATE TABLE t(id INTEGER PRIMARY KEY AUTOINCREMENT, "odd ""name" TEXT DEFAULT ';', r REAL, b BLOB, g INT AS (id * 2) STORED, h AS (id + 1));
INSERT INTO t(r, b, "odd ""name") VALUES(0.1, x'00ff', 'it''s
two; lines'), (NULL, NULL, NULL), (1e308 * 10, x'', '');
CREATE TABLE w(a TEXT PRIMARY KEY, b) WITHOUT ROWID;
INSERT INTO w VALUES('x', 1), ('y', 2.5);
CREATE UNIQUE INDEX wi ON w(b);
CREATE VIEW v AS SELECT a FROM w;
CREATE VIEW vv AS SELECT * FROM v;
CREATE TRIGGER tr AFTER INSERT ON w BEGIN UPDATE w SET b = b + 1 WHERE a = new.a; SELECT CASE WHEN 1 THEN 2 END; END;
CREATE VIRTUAL TABLE f USING fts4(body);
INSERT INTO f VALUES('hello world'), ('other');
CREATE VIRTUAL TABLE rt USING rtree(id, x0, x1);
INSERT INTO rt VALUES(1, 2.0, 3.0);
ANALYZE;
`

// What .dump prints, read again, is the same database: its own dump is equal
// and its virtual tables work.
func TestDumpReadsBack(t *testing.T) {
	dir := t.TempDir()
	a, b := filepath.Join(dir, "a"), filepath.Join(dir, "b")
	if _, errs, err := play(t, a, everything); err != nil {
		t.Fatalf("%v: %s", err, errs)
	}
	dump, errs, err := play(t, a, ".dump\n")
	if err != nil {
		t.Fatalf("%v: %s", err, errs)
	}
	if _, errs, err := play(t, b, dump); err != nil {
		t.Fatalf("%v: %s\n%s", err, errs, dump)
	}
	again, _, err := play(t, b, ".dump\n")
	if err != nil || again != dump {
		t.Fatalf("%v\nfirst:\n%s\nsecond:\n%s", err, dump, again)
	}
	db, err := sql.Open("sqlite3", "file:"+b)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	for query, want := range map[string]string{
		"PRAGMA integrity_check":                       "ok",
		"SELECT count(*) FROM f WHERE f MATCH 'hello'": "1",
		"SELECT id FROM rt WHERE x0 > 1":               "1",
		"SELECT seq FROM sqlite_sequence":              "3",
		"SELECT group_concat(g) FROM t":                "2,4,6",
	} {
		var got string
		if err := db.QueryRow(query).Scan(&got); err != nil || got != want {
			t.Errorf("%s: got %q, %v; want %q", query, got, err, want)
		}
	}
	one, _, err := play(t, a, ".dump W\n")
	if err != nil || !strings.Contains(one, `INSERT INTO "w" VALUES('x',1);`) || !strings.Contains(one, "CREATE TRIGGER tr") || strings.Contains(one, "rtree") {
		t.Errorf("dump of one table: %v\n%s", err, one)
	}
	if _, errs, err := play(t, a, ".dump nope\n"); !errors.Is(err, ErrFailed) || !strings.Contains(errs, `no table or view named "nope"`) {
		t.Errorf("dump of no table: %v %s", err, errs)
	}
}

func TestLongTablesComeInPieces(t *testing.T) {
	out, _, err := play(t, ":memory:", "WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n+1 FROM c WHERE n < 4500) SELECT n FROM c;", func(o *Options) { o.Mode = "table" })
	if err != nil || strings.Count(out, "| n") != 3 || !strings.Contains(out, "\n| 4500 |\n+------+\n") {
		t.Fatalf("%v: %d headers", err, strings.Count(out, "| n"))
	}
}

func TestRealText(t *testing.T) {
	for f, want := range map[float64]string{1: "1.0", 0.1: "0.1", 1.0 / 3: "0.33333333333333331", 1e21: "1e+21", -0.5: "-0.5", 100000000000000000: "1e+17"} {
		if got := realText(f); got != want {
			t.Errorf("%v: got %s, want %s", f, got, want)
		}
	}
}
