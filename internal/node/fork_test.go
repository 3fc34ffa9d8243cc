package node

import (
	"bytes"
	"errors"
	"fmt"
	"testing"

	"github.com/uglyer/ha-sqlite/internal/api"
	"github.com/uglyer/ha-sqlite/replicate"
)

func (c *cluster) fork(i int, source, name string, m api.Moment) api.ForkReport {
	c.t.Helper()
	r, err := backend{c.nodes[i]}.Fork(c.t.Context(), api.ForkRequest{Source: source, Name: name, Moment: m}, func(api.Progress) {})
	if err != nil {
		c.t.Fatal(err)
	}
	return r
}

// A fork is the source byte for byte on every node, no page of it is in the log, and from then on the two differ.
func TestForkIsTheSourceAndGoesItsOwnWay(t *testing.T) {
	c := newCluster(t, 3, nil)
	i := c.follower()
	src := c.open(i, "src.db")
	exec(t, src, `CREATE TABLE t(a INTEGER PRIMARY KEY, b BLOB)`)
	exec(t, src, `WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i < 2000) INSERT INTO t SELECT i, randomblob(500) FROM n`)
	_, want := c.export(0, "src.db", api.Moment{})
	before := c.nodes[c.leader()].svc.Metrics().ReplicatedBytes
	r := c.fork(c.leader(), "src.db", "fork.db", api.Moment{})
	if n := c.nodes[c.leader()].svc.Metrics().ReplicatedBytes - before; n > 4096 {
		t.Errorf("%d bytes were replicated", n)
	}
	head, got := c.export(i, "fork.db", api.Moment{})
	if !bytes.Equal(got, want) || head.Commit.TXID != r.Target.TXID {
		t.Errorf("the fork differs from its source: %+v, %+v", head.Commit, r)
	}
	c.equal("fork.db")
	fork := c.open(c.leader(), "fork.db")
	exec(t, fork, `DELETE FROM t WHERE a > 10`)
	exec(t, src, `INSERT INTO t(b) VALUES('only here')`)
	if a, b := query[int](t, fork, `SELECT count(*) FROM t`), query[int](t, src, `SELECT count(*) FROM t`); a != 10 || b != 2001 {
		t.Errorf("the fork has %d rows, the source %d", a, b)
	}
	src.Close()
	if err := (backend{c.nodes[0]}).DeleteDatabase(t.Context(), "src.db", true); err != nil {
		t.Fatal(err)
	}
	exec(t, fork, `INSERT INTO t(b) VALUES('after the source')`)
	c.equal("fork.db")
	for k := range c.nodes { // what a restart makes of it
		c.stop(k)
		c.start(k)
		c.ready(k)
	}
	for k := range c.nodes {
		if n := query[int](t, c.open(k, "fork.db"), `SELECT count(*) FROM t`); n != 11 {
			t.Errorf("node %d has %d rows", k, n)
		}
	}
	fork.Close()
}

// What has no transaction is forked by its creation alone; a name that is taken, and a source that is not there, are
// refused.
func TestForkOfAnEmptyDatabaseAndRefusals(t *testing.T) {
	c := newCluster(t, 1, nil)
	if _, err := (backend{c.nodes[0]}).CreateDatabase(t.Context(), api.CreateDatabaseRequest{Name: "empty.db", PageSize: 1024}); err != nil {
		t.Fatal(err)
	}
	r := c.fork(0, "empty.db", "fork.db", api.Moment{})
	if r.Target.TXID != 1 || r.PageSize != 1024 {
		t.Errorf("%+v", r)
	}
	db := c.open(0, "fork.db")
	exec(t, db, `CREATE TABLE t(a)`)
	for name, test := range map[string]struct {
		req  api.ForkRequest
		want error
	}{
		"taken":     {api.ForkRequest{Source: "empty.db", Name: "fork.db"}, api.ErrExists},
		"no source": {api.ForkRequest{Source: "no.db", Name: "x.db"}, api.ErrNotFound},
		"name":      {api.ForkRequest{Source: "empty.db", Name: "../x"}, api.ErrInvalid},
		"both":      {api.ForkRequest{Source: "empty.db", Name: "x", Moment: api.Moment{At: "1 hour ago", To: "0000000000000001"}}, api.ErrInvalid},
	} {
		if _, err := (backend{c.nodes[0]}).Fork(t.Context(), test.req, func(api.Progress) {}); !errors.Is(err, test.want) {
			t.Errorf("%s: %v, want %v", name, err, test.want)
		}
	}
	db.Close()
}

// A writer on each node, forks all the time: each fork is a state of the source that was committed, whole.
func TestForksUnderWriters(t *testing.T) {
	c := newCluster(t, 3, nil)
	db := c.open(0, "src.db")
	exec(t, db, `CREATE TABLE t(a INTEGER PRIMARY KEY, b); CREATE TABLE n(v)`)
	exec(t, db, `INSERT INTO n VALUES(0)`)
	stop := make(chan struct{})
	failed := make(chan error, 3)
	for i := range 3 {
		db := c.open(i, "src.db", "_txlock=immediate")
		go func() {
			for {
				select {
				case <-stop:
					failed <- db.Close()
					return
				default:
				}
				tx, err := db.Begin()
				if err == nil {
					if _, err = tx.Exec(`INSERT INTO t(b) VALUES(randomblob(2000)); UPDATE n SET v = v + 1`); err == nil {
						err = tx.Commit()
					} else {
						tx.Rollback()
					}
				}
				if err != nil {
					failed <- fmt.Errorf("writer %d: %w", i, err)
					return
				}
			}
		}()
	}
	for k := range 5 {
		name := fmt.Sprint("fork", k)
		r := c.fork(k%3, "src.db", name, api.Moment{})
		v := c.equal(name)
		if v.Position.TXID != r.Target.TXID {
			t.Errorf("%s is at %v, it was made at %v", name, v.Position.TXID, r.Target.TXID)
		}
		fork := c.open((k+1)%3, name)
		if a, b := query[int](t, fork, `SELECT count(*) FROM t`), query[int](t, fork, `SELECT v FROM n`); a != b {
			t.Errorf("%s has %d rows of %d", name, a, b)
		}
		if got := query[string](t, fork, `PRAGMA integrity_check`); got != "ok" {
			t.Error(got)
		}
		fork.Close()
	}
	close(stop)
	for range 3 {
		if err := <-failed; err != nil {
			t.Error(err)
		}
	}
	db.Close()
}

var _ = replicate.ErrForking
