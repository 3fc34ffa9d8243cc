package node

import (
	"testing"
	"time"

	"github.com/uglyer/ha-sqlite/internal/localcluster"
	"github.com/uglyer/ha-sqlite/internal/testcluster"
)

// A leader whose process died is succeeded by a node that knows that, not by one that has missed its heartbeats. The time is
// not measured here, because this machine may be doing anything else: make bench does.
func TestAKilledLeaderIsSucceededWithoutATimeout(t *testing.T) {
	c := testcluster.Start(t, localcluster.Options{})
	ctx := testcluster.Context(t, 2*time.Minute)
	const text = "stand for election at once"
	for i := range 3 {
		nodes := testcluster.LeaderFirst(t, c)
		db := testcluster.Open(t, nodes[1+i%2], "f.db", patient...)
		insist(ctx, t, db, `CREATE TABLE IF NOT EXISTS t(v)`)
		if err := nodes[0].Kill(); err != nil {
			t.Fatal(err)
		}
		begun := time.Now()
		insist(ctx, t, db, `INSERT INTO t VALUES(?)`, i)
		t.Logf("kill to commit: %v", time.Since(begun))
		if !nodes[1].LogContains(text) && !nodes[2].LogContains(text) {
			t.Fatalf("neither %s nor %s has said %q", nodes[1].ID, nodes[2].ID, text)
		}
		if err := nodes[0].Start(); err != nil {
			t.Fatal(err)
		}
		if err := nodes[0].WaitReady(ctx); err != nil {
			t.Fatal(err)
		}
		testcluster.Converged(t, c, "f.db")
	}
}

// A process that is stopped for a moment, as a busy machine does it, keeps its role.
func TestAShortPauseOfAnyNodeIsNoReasonForAnElection(t *testing.T) {
	c := testcluster.Start(t, localcluster.Options{})
	ctx := testcluster.Context(t, 2*time.Minute)
	nodes := testcluster.LeaderFirst(t, c)
	db := testcluster.Open(t, nodes[1], "p.db", patient...)
	insist(ctx, t, db, `CREATE TABLE t(v)`)
	term := func() uint64 {
		t.Helper()
		s, err := nodes[0].Status(ctx)
		if err != nil {
			t.Fatal(err)
		}
		return s.Cluster.Term
	}
	before := term()
	for _, n := range nodes {
		if err := n.Pause(); err != nil {
			t.Fatal(err)
		}
		pause := time.NewTimer(300 * time.Millisecond)
		<-pause.C
		if err := n.Resume(); err != nil {
			t.Fatal(err)
		}
		insist(ctx, t, db, `INSERT INTO t VALUES(?)`, n.ID)
	}
	if after := term(); after != before {
		t.Errorf("the term went from %d to %d", before, after)
	}
}
