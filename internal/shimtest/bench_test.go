package shimtest

import (
	"database/sql"
	"math/rand/v2"
	"path/filepath"
	"testing"
)

// benchmarked is a handle on a replicated or a plain database.
func benchmarked(b *testing.B, replicated bool) *sql.DB {
	b.Helper()
	dir := b.TempDir()
	source := "file:" + filepath.Join(dir, "plain.db") + "?vfs=unix"
	if replicated {
		n := NewNode(dir)
		if err := n.Start(); err != nil {
			b.Fatal(err)
		}
		b.Cleanup(n.Close)
		source = dsn(n, "shop.db")
	}
	db, err := sql.Open("sqlite3", source)
	if err != nil {
		b.Fatal(err)
	}
	db.SetMaxOpenConns(1)
	b.Cleanup(func() { _ = db.Close() })
	for _, q := range []string{"PRAGMA journal_mode=wal", "PRAGMA synchronous=NORMAL", "CREATE TABLE t(id INTEGER PRIMARY KEY, v)",
		"INSERT INTO t WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n+1 FROM c WHERE n<100000) SELECT n, n FROM c"} {
		if _, err := db.Exec(q); err != nil {
			b.Fatal(err)
		}
	}
	return db
}

func BenchmarkSelect(b *testing.B) {
	for _, c := range []struct {
		name       string
		replicated bool
	}{{"plain", false}, {"replicated", true}} {
		b.Run(c.name, func(b *testing.B) {
			db := benchmarked(b, c.replicated)
			q, err := db.Prepare("SELECT v FROM t WHERE id=?")
			if err != nil {
				b.Fatal(err)
			}
			defer func() { _ = q.Close() }()
			r := rand.New(rand.NewPCG(1, 1))
			var v int
			for b.Loop() {
				if err := q.QueryRow(1 + r.IntN(100000)).Scan(&v); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkInsert(b *testing.B) {
	for _, c := range []struct {
		name       string
		replicated bool
	}{{"plain", false}, {"replicated", true}} {
		b.Run(c.name, func(b *testing.B) {
			db := benchmarked(b, c.replicated)
			q, err := db.Prepare("INSERT INTO t(v) VALUES(?)")
			if err != nil {
				b.Fatal(err)
			}
			defer func() { _ = q.Close() }()
			for b.Loop() {
				if _, err := q.Exec(1); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
