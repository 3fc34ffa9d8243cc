package node

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/uglyer/ha-sqlite/internal/api"
	"github.com/uglyer/ha-sqlite/replicate"
)

// transfer hands leadership to a node and waits until it leads.
func (c *cluster) transfer(to int) {
	c.t.Helper()
	eventually(c.t, "leadership is handed over", func() error {
		if c.nodes[to].svc.LocalStatus().State == api.StateLeader {
			return nil
		}
		err := backend{c.nodes[c.leader()]}.TransferLeadership(c.t.Context(), api.TransferRequest{ID: c.cfgs[to].ID})
		return errors.Join(errors.New("not yet"), err)
	})
	eventually(c.t, "all nodes know the leader", func() error {
		for i, n := range c.nodes {
			if n != nil && n.svc.LocalStatus().Cluster.Leader != c.cfgs[to].ID {
				return fmt.Errorf("node %d does not", i)
			}
		}
		return nil
	})
}

// A transaction that is open while the leader changes goes on if its base still is the decided position, and
// is refused if it is not (RULES B19).
func TestTransactionAcrossALeaderChange(t *testing.T) {
	c := prepared(t, 3, nil)
	l := c.leader()
	f, other := (l+1)%3, (l+2)%3
	a := c.script(f, "db")

	// On a busy machine the leadership may pass twice: then the commit that meets the former leader is refused, for sure.
	for to, got := other, replicate.OutcomeRefused; got != replicate.OutcomeAccepted; to = l + other - to {
		a.begin()
		c.transfer(to)
		if got = a.commit(5); got == replicate.OutcomeUnknown {
			t.Fatal("the verdict is unknown")
		} else if got == replicate.OutcomeRefused {
			a.release()
			a.h.End(false, a.fp, false)
		}
	}
	a.publish()
	a.end()
	a.release()
	c.wantVersion("db", 5)

	a.begin()
	c.transfer(l + other - c.leader())
	// The new leader's table may know nothing of the holder: another writer can be faster.
	b := c.script(other, "db")
	granted := make(chan error, 1)
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	go func() {
		_, _, err := b.h.Begin(ctx)
		granted <- err
	}()
	if err := <-granted; err == nil {
		b.h.End(false, a.txn.Fingerprint(), true)
	}
	if got := a.commit(6); got == replicate.OutcomeUnknown {
		t.Error("the verdict is unknown")
	} else if got == replicate.OutcomeAccepted {
		a.publish()
		a.end()
	}
	a.release()
	a.h.Close()
	b.h.Close()
	exec(t, c.open(f, "db"), `PRAGMA user_version=7`)
	c.wantVersion("db", 7)
}

// Whatever becomes of the leader while a follower's application commits: accepted is there, refused is
// nowhere, and only what is unknown may be either (RULES A1).
func TestLeaderStopsDuringACommit(t *testing.T) {
	c := prepared(t, 3, nil)
	before := 0
	for round := 1; round <= 3; round++ {
		l, f := c.leader(), c.follower()
		a := c.script(f, "db")
		a.begin()
		stopped := make(chan error, 1)
		n := c.nodes[l]
		c.nodes[l] = nil
		go func() {
			ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
			defer cancel()
			stopped <- n.Shutdown(ctx)
		}()
		got := a.commit(uint32(round))
		if got == replicate.OutcomeAccepted {
			a.publish()
			a.end()
		}
		a.release()
		a.h.Close()
		if err := <-stopped; err != nil {
			t.Error(err)
		}
		c.start(l)
		c.ready(l)
		c.equal("db")
		db := c.open(f, "db")
		now := query[int](t, db, `PRAGMA user_version`)
		switch {
		case got == replicate.OutcomeAccepted && now != round:
			t.Errorf("round %d: accepted, and the version is %d", round, now)
		case got == replicate.OutcomeRefused && now != before:
			t.Errorf("round %d: refused, and the version is %d, not %d", round, now, before)
		case now != before && now != round:
			t.Errorf("round %d: the version is %d", round, now)
		}
		before = now
		db.Close()
	}
}

// A delete without force needs every member's word that nobody has the database open (RULES B12). A member
// that was down learns of the deletion later, and removes its files.
func TestDeleteWhileAMemberIsDown(t *testing.T) {
	c := prepared(t, 3, nil)
	f := c.follower()
	c.stop(f)
	b := backend{c.nodes[c.leader()]}
	if err := b.DeleteDatabase(t.Context(), "db", false); !errors.Is(err, api.ErrInUse) {
		t.Errorf("delete while a member cannot be asked: %v", err)
	}
	if err := b.DeleteDatabase(t.Context(), "db", true); err != nil {
		t.Fatal(err)
	}
	exec(t, c.open(c.leader(), "db"), `CREATE TABLE again(v)`)
	c.start(f)
	c.ready(f)
	c.equal("db")
	eventually(t, "the files of the first one are gone", func() error {
		dirs, err := os.ReadDir(filepath.Join(c.cfgs[f].Data, "databases"))
		if err == nil && len(dirs) != 1 {
			err = fmt.Errorf("%d directories", len(dirs))

		}
		return err
	})
	if got := query[int](t, c.open(f, "db"), `SELECT count(*) FROM sqlite_schema WHERE name = 'again'`); got != 1 {
		t.Errorf("%d tables, want the one of the new database", got)
	}
}
