package shimtest

import (
	"database/sql"
	"testing"
	"time"
)

// TestAKeptGrantServesTheNextTransaction has a node that leaves the lock with each accepted transaction, and looks at who is
// asked for the next one.
func TestAKeptGrantServesTheNextTransaction(t *testing.T) {
	const long = time.Minute
	for _, row := range []struct {
		name    string
		keep    time.Duration
		between func(t *testing.T, n *Node, d *Database, db *sql.DB)
		want    Stats // of Begins, Resumes, Mismatches after the grant was kept
		code    int
	}{
		{name: "kept", keep: long, want: Stats{Resumes: 1}},
		{name: "not kept", want: Stats{Begins: 1}},
		{name: "its time is over", keep: time.Millisecond, want: Stats{Begins: 1},
			between: func(*testing.T, *Node, *Database, *sql.DB) {
				later := time.NewTimer(20 * time.Millisecond)
				<-later.C
			}},
		{name: "it serves once", keep: long, want: Stats{Begins: 1, Resumes: 1},
			between: func(t *testing.T, _ *Node, _ *Database, db *sql.DB) {
				mustExec(t, db, "BEGIN IMMEDIATE", "ROLLBACK")
			}},
		{name: "somebody wrote", keep: long, want: Stats{Begins: 1, Mismatches: 1}, code: 5,
			between: func(t *testing.T, _ *Node, d *Database, _ *sql.DB) {
				mustExec(t, open(t, "file:"+d.Path), "INSERT INTO a VALUES('foreign')")
			}},
		{name: "the connection is another one", keep: long, want: Stats{Begins: 1},
			between: func(t *testing.T, n *Node, _ *Database, _ *sql.DB) {
				n.Stop()
				if err := n.Start(); err != nil {
					t.Fatal(err)
				}
			}},
		{name: "another writer has the lock", keep: long, want: Stats{Resumes: 1}, code: busySnapshot,
			between: func(_ *testing.T, _ *Node, d *Database, _ *sql.DB) { <-d.writer }},
	} {
		t.Run(row.name, func(t *testing.T) {
			n, d, db := shop(t)
			n.Set(func(h *Hooks) { h.Keep = row.keep })
			mustExec(t, db, "INSERT INTO a VALUES(3)")
			eventually(t, "the end of the transaction", func() bool { s := d.Snapshot(); return s.Ends == s.Begins })
			before := d.Snapshot()
			if row.between != nil {
				row.between(t, n, d, db)
			}
			_, err := db.Exec("INSERT INTO a VALUES(4)")
			if got := codeOf(err); err != nil && got != row.code || err == nil && row.code != 0 {
				t.Fatalf("code %d (%v), want %d", got, err, row.code)
			}
			if row.code == 0 {
				if got := queryText(t, db, "SELECT max(x) FROM a"); got != "4" {
					t.Errorf("the last row is %s", got)
				}
			}
			eventually(t, "what the node was told", func() bool {
				now := d.Snapshot()
				s := Stats{Begins: now.Begins - before.Begins, Resumes: now.Resumes - before.Resumes, Mismatches: now.Mismatches - before.Mismatches}
				if s.Begins > row.want.Begins || s.Resumes > row.want.Resumes {
					t.Fatalf("begins, resumes, mismatches: %+v, want %+v", s, row.want)
				}
				return s == row.want
			})
		})
	}
}
