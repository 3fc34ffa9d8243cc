package rowdiff

import (
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	_ "github.com/mattn/go-sqlite3"
)

// pair makes two databases of scripts and compares them.
func pair(t *testing.T, before, after string, rows int) *Result {
	t.Helper()
	dir := t.TempDir()
	for name, script := range map[string]string{"a.db": before, "b.db": after} {
		db, err := sql.Open("sqlite3", "file:"+filepath.Join(dir, name)+"?_synchronous=OFF")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := db.Exec(script); err != nil {
			t.Fatalf("%s: %v", script, err)
		}
		db.Close()
	}
	db, err := sql.Open("sqlite3", filepath.Join(dir, "a.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	c, err := db.Conn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.ExecContext(t.Context(), "ATTACH ? AS after", filepath.Join(dir, "b.db")); err != nil {
		t.Fatal(err)
	}
	var told []string
	r, err := Compare(t.Context(), c, Options{Before: "main", After: "after", Rows: rows, Progress: func(table string) { told = append(told, table) }})
	if err != nil {
		t.Fatal(err)
	}
	for _, changed := range r.Tables {
		if !slices.Contains(told, changed.Name) {
			t.Errorf("that %s is compared was not told: %q", changed.Name, told)
		}
	}
	return r
}

func texts(fields []Field) string {
	parts := make([]string, len(fields))
	for i, f := range fields {
		parts[i] = f.Column + "=" + f.Text()
	}
	return strings.Join(parts, ",")
}

// describe writes a result in lines.
func describe(r *Result) string {
	var b strings.Builder
	for _, s := range r.Schema {
		fmt.Fprintf(&b, "%s %s %s\n", s.Change, s.Type, s.Name)
	}
	for _, t := range r.Tables {
		fmt.Fprintf(&b, "%s +%d -%d ~%d\n", t.Name, t.Inserted, t.Deleted, t.Updated)
		for _, row := range t.Rows {
			fmt.Fprintf(&b, "  %s %s: %s > %s\n", row.Change, texts(row.Key), texts(row.Before), texts(row.After))
		}
	}
	for _, s := range r.Skipped {
		fmt.Fprintf(&b, "skipped %s\n", s)
	}
	return b.String()
}

func TestCompare(t *testing.T) {
	for _, tt := range []struct{ name, before, after, want string }{
		{"nothing", "CREATE TABLE t(a); INSERT INTO t VALUES(1)", "CREATE TABLE t(a); INSERT INTO t VALUES(1)", ""},
		{"by rowid", "CREATE TABLE t(a, b); INSERT INTO t VALUES(1, 'x'), (2, 'y'), (3, 'z')",
			"CREATE TABLE t(a, b); INSERT INTO t(rowid, a, b) VALUES(1, 1, 'x'), (3, 3, 'Z'), (4, 4, NULL)",
			"t +1 -1 ~1\n  deleted rowid=2: a=2,b='y' > \n  inserted rowid=4:  > a=4,b=NULL\n  updated rowid=3: b='z' > b='Z'\n"},
		{"types and collations", "CREATE TABLE t(id INTEGER PRIMARY KEY, a COLLATE NOCASE, b BLOB); INSERT INTO t VALUES(1, 'x', 1), (2, 'x', 'a'), (3, 'same  ', x'00'), (4, 1, NULL)",
			"CREATE TABLE t(id INTEGER PRIMARY KEY, a COLLATE NOCASE, b BLOB); INSERT INTO t VALUES(1, 'X', 1.0), (2, 'x', x'61'), (3, 'same  ', x'00'), (4, 1, 0)",
			"t +0 -0 ~3\n  updated rowid=1: a='x' > a='X'\n  updated rowid=2: b='a' > b=x'61'\n  updated rowid=4: b=NULL > b=0\n"},
		{"without rowid", "CREATE TABLE t(k TEXT, n INT, v, PRIMARY KEY(n, k)) WITHOUT ROWID; INSERT INTO t VALUES('a', 1, 'x'), ('b', 1, 'y')",
			"CREATE TABLE t(k TEXT, n INT, v, PRIMARY KEY(n, k)) WITHOUT ROWID; INSERT INTO t VALUES('b', 1, 'Y'), ('a', 2, 'x')",
			"t +1 -1 ~1\n  deleted n=1,k='a': k='a',n=1,v='x' > \n  inserted n=2,k='a':  > k='a',n=2,v='x'\n  updated n=1,k='b': v='y' > v='Y'\n"},
		{"schema", "CREATE TABLE old(a); INSERT INTO old VALUES(1); CREATE TABLE t(a); CREATE INDEX i ON t(a); CREATE VIEW v AS SELECT 1; CREATE TABLE u(a UNIQUE)",
			"CREATE TABLE new(b); INSERT INTO new VALUES(2); CREATE TABLE t(a); CREATE INDEX i ON t(a DESC); CREATE TRIGGER tr AFTER INSERT ON t BEGIN SELECT 1; END; CREATE TABLE u(a UNIQUE)",
			"dropped table old\nchanged index i\ndropped view v\ncreated table new\ncreated trigger tr\nold +0 -1 ~0\n  deleted rowid=1: a=1 > \nnew +1 -0 ~0\n  inserted rowid=1:  > b=2\n"},
		{"a column more", "CREATE TABLE t(a); INSERT INTO t VALUES(1), (2)", "CREATE TABLE t(a, b DEFAULT 7); INSERT INTO t(a) VALUES(1), (3)",
			"changed table t\nt +0 -0 ~1\n  updated rowid=2: a=2 > a=3\n"},
		{"another key", "CREATE TABLE t(k PRIMARY KEY, v) WITHOUT ROWID; INSERT INTO t VALUES(1, 1)", "CREATE TABLE t(k, v PRIMARY KEY) WITHOUT ROWID; INSERT INTO t VALUES(1, 1)",
			"changed table t\nt +1 -1 ~0\n  deleted k=1: k=1,v=1 > \n  inserted v=1:  > k=1,v=1\n"},
		{"generated columns", "CREATE TABLE t(a, g AS (a*2), s AS (a*3) STORED); INSERT INTO t VALUES(1)", "CREATE TABLE t(a, g AS (a*2), s AS (a*3) STORED); INSERT INTO t VALUES(2)",
			"t +0 -0 ~1\n  updated rowid=1: a=1 > a=2\n"},
		{"odd names", `CREATE TABLE "a""b's"("c""d", rowid, 'oid'); INSERT INTO "a""b's" VALUES(1, 2, 3)`, `CREATE TABLE "a""b's"("c""d", rowid, 'oid'); INSERT INTO "a""b's" VALUES(1, 2, 4)`,
			"a\"b's +0 -0 ~1\n  updated _rowid_=1: oid=3 > oid=4\n"},
		{"hidden rowid", "CREATE TABLE t(rowid, oid, _rowid_)", "CREATE TABLE t(rowid, oid, _rowid_); INSERT INTO t VALUES(1, 2, 3)", "skipped t: columns hide its rowid\n"},
		{"virtual", "CREATE VIRTUAL TABLE r USING rtree(id, x, y)", "CREATE VIRTUAL TABLE r USING rtree(id, x, y); INSERT INTO r VALUES(1, 2, 3)", "skipped r: virtual\n"},
		{"times stay text", "CREATE TABLE t(at TIMESTAMP, b BOOLEAN); INSERT INTO t VALUES('2026-11-22 10:00:00', 1)", "CREATE TABLE t(at TIMESTAMP, b BOOLEAN); INSERT INTO t VALUES('2026-11-22 10:00', 2)",
			"t +0 -0 ~1\n  updated rowid=1: at='2026-11-22 10:00:00',b=1 > at='2026-11-22 10:00',b=2\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := describe(pair(t, tt.before, tt.after, 10)); got != tt.want {
				t.Errorf("got\n%swant\n%s", got, tt.want)
			}
		})
	}
}

func TestRowsAreLimitedAndCounted(t *testing.T) {
	const script = "CREATE TABLE t(a); WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i<50) INSERT INTO t SELECT i FROM n;"
	r := pair(t, script, script+"DELETE FROM t WHERE a <= 20; UPDATE t SET a = -a", 7)
	if len(r.Tables) != 1 || r.Tables[0].Deleted != 20 || r.Tables[0].Updated != 30 || len(r.Tables[0].Rows) != 7 || !r.Tables[0].More {
		t.Errorf("%+v", r)
	}
	if r := pair(t, script, script+"DELETE FROM t", 0); r.Tables[0].Deleted != 50 || r.Tables[0].Rows != nil || r.Tables[0].More {
		t.Errorf("%+v", r)
	}
	b, err := json.Marshal(Field{"c", []byte{1, 255}})
	if err != nil || string(b) != `{"column":"c","value":{"blob":"01ff"}}` {
		t.Errorf("%s, %v", b, err)
	}
}

// Random changes: applying what Compare finds to the one database gives the other.
func TestChangesLeadFromOneToTheOther(t *testing.T) {
	for seed := range uint64(12) {
		r := rand.New(rand.NewPCG(seed, 7))
		tail := []string{"", " WITHOUT ROWID"}[seed%2]
		script := "CREATE TABLE t(id INTEGER PRIMARY KEY, a, b TEXT)" + tail + ";"
		var more string
		for i := range 60 {
			script += fmt.Sprintf("INSERT INTO t VALUES(%d, %d, 'x%d');", i, r.IntN(3), r.IntN(5))
			switch r.IntN(4) {
			case 0:
				more += fmt.Sprintf("DELETE FROM t WHERE id = %d;", r.IntN(60))
			case 1:
				more += fmt.Sprintf("UPDATE t SET a = %d, b = 'x%d' WHERE id = %d;", r.IntN(3), r.IntN(5), r.IntN(60))
			case 2:
				more += fmt.Sprintf("INSERT OR IGNORE INTO t VALUES(%d, NULL, x'0%d');", 60+r.IntN(20), r.IntN(9))
			}
		}
		found := pair(t, script, script+more, 1000)
		for _, c := range found.Tables {
			for _, row := range c.Rows {
				id := row.Key[0].Text()
				switch row.Change {
				case Deleted:
					script += "DELETE FROM t WHERE id = " + id + ";"
				case Inserted:
					script += "INSERT INTO t VALUES(" + row.After[0].Text() + "," + row.After[1].Text() + "," + row.After[2].Text() + ");"
				default:
					for _, f := range row.After {
						script += "UPDATE t SET " + f.Column + " = " + f.Text() + " WHERE id = " + id + ";"
					}
				}
			}
		}
		db, err := sql.Open("sqlite3", ":memory:")
		if err != nil {
			t.Fatal(err)
		}
		db.SetMaxOpenConns(1)
		want, err := sql.Open("sqlite3", ":memory:")
		if err != nil {
			t.Fatal(err)
		}
		want.SetMaxOpenConns(1)
		base := strings.SplitAfter(script, ";") // of which the first 61 made both
		sums := map[*sql.DB]string{}
		for x, text := range map[*sql.DB]string{db: script, want: strings.Join(base[:61], "") + more} {
			if _, err := x.ExecContext(context.Background(), text); err != nil {
				t.Fatalf("seed %d: %v", seed, err)
			}
			var all sql.NullString
			if err := x.QueryRow("SELECT group_concat(id || quote(a) || quote(b)) FROM (SELECT * FROM t ORDER BY id)").Scan(&all); err != nil {
				t.Fatal(err)
			}
			sums[x] = all.String
			x.Close()
		}
		if sums[db] != sums[want] {
			t.Errorf("seed %d:\n%s\n%s", seed, sums[db], sums[want])
		}
	}
}
