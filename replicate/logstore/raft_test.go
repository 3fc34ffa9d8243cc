package logstore

import (
	"errors"
	"fmt"
	"io"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/raft"
)

// counter is an FSM whose snapshot is a manifest: restoring it from another
// node can fail, and then the snapshot must not count.
type counter struct {
	snaps *Snapshots

	mu      sync.Mutex
	n       uint64
	refuse  bool // restores of snapshots that are not complete fail
	store   *Store
	refused int
}

func (c *counter) Apply(*raft.Log) any {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.n++
	return c.n
}

func (c *counter) Snapshot() (raft.FSMSnapshot, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return persisted(c.n), nil
}

func (c *counter) Restore(rc io.ReadCloser) error {
	given, ok := SnapshotOf(rc)
	if !ok {
		return errors.New("snapshot without an id")
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.refuse && !given.Complete {
		c.refused++
		return errors.New("the pages did not come")
	}
	var n uint64
	if _, err := fmt.Fscan(rc, &n); err != nil {
		return err
	}
	c.n = n
	if given.Complete {
		return nil
	}
	if err := c.snaps.MarkComplete(given.ID); err != nil {
		return err
	}
	c.store.Installed(given.Index)
	return nil
}

func (c *counter) value() uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.n
}

type persisted uint64

func (p persisted) Persist(sink raft.SnapshotSink) error {
	if err := TakenHere(sink); err != nil {
		return err
	}
	_, err := fmt.Fprintln(sink, uint64(p))
	return err
}

func (persisted) Release() {}

type member struct {
	*raft.Raft
	fsm   *counter
	store *Store
	snaps *Snapshots
	trans *raft.InmemTransport
}

func startMember(t *testing.T, dir string, kind Kind, id string, boot bool, refuse bool) *member {
	t.Helper()
	s, err := Open(dir, kind, Options{SegmentBytes: testSegment})
	must(t, err)
	sn := openSnapshots(t, dir, 1)
	must(t, Check(s, sn, id))
	_, trans := raft.NewInmemTransport(raft.ServerAddress(id))
	conf := raft.DefaultConfig()
	conf.LocalID = raft.ServerID(id)
	conf.HeartbeatTimeout, conf.ElectionTimeout, conf.LeaderLeaseTimeout = 100*time.Millisecond, 100*time.Millisecond, 50*time.Millisecond
	conf.CommitTimeout = 5 * time.Millisecond
	conf.TrailingLogs = 2
	conf.LogOutput = io.Discard
	if boot {
		must(t, raft.BootstrapCluster(conf, s, s, sn, trans, raft.Configuration{Servers: []raft.Server{{ID: conf.LocalID, Address: raft.ServerAddress(id)}}}))
	}
	m := &member{fsm: &counter{snaps: sn, refuse: refuse, store: s}, store: s, snaps: sn, trans: trans}
	m.Raft, err = raft.NewRaft(conf, m.fsm, s, s, sn, trans)
	must(t, err)
	return m
}

func (m *member) stop(t *testing.T) {
	t.Helper()
	must(t, m.Shutdown().Error())
	must(t, m.store.Close())
}

func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(10 * time.Second); !ok(); <-tick.C {
		if time.Now().After(end) {
			t.Fatalf("never: %s", what)
		}
	}
}

// TestAFollowerClaimsNothingThatItCouldNotRestore runs raft over the stores: a
// follower gets a snapshot whose restore fails, restarts, and has nothing; then
// the restore goes through, and it has all, also after another restart.
func TestAFollowerClaimsNothingThatItCouldNotRestore(t *testing.T) {
	for _, kind := range kinds {
		t.Run(string(kind), func(t *testing.T) {
			lead := startMember(t, t.TempDir(), kind, "lead", true, false)
			defer lead.stop(t)
			until(t, "there is a leader", func() bool { return lead.State() == raft.Leader })
			for range 20 {
				must(t, lead.Apply([]byte("x"), time.Second).Error())
			}
			must(t, lead.Snapshot().Error())
			if first, _ := lead.store.Bounds(); first < 5 {
				t.Fatalf("log still starts at %d", first)
			}

			dir := t.TempDir()
			join := func(refuse bool) *member {
				m := startMember(t, dir, kind, "new", false, refuse)
				lead.trans.Connect("new", m.trans)
				m.trans.Connect("lead", lead.trans)
				return m
			}
			f := join(true)
			must(t, lead.AddNonvoter("new", "new", 0, time.Second).Error())
			until(t, "a restore fails", func() bool {
				f.fsm.mu.Lock()
				defer f.fsm.mu.Unlock()
				return f.fsm.refused > 0
			})
			if list, err := f.snaps.List(); err != nil || len(list) != 0 {
				t.Fatalf("snapshots %v, %v", list, err)
			}
			f.stop(t)

			f = join(false)
			if f.LastIndex() != 0 {
				t.Fatalf("claims to have %d", f.LastIndex())
			}
			until(t, "it has caught up", func() bool { return f.fsm.value() == lead.fsm.value() })
			must(t, lead.Apply([]byte("x"), time.Second).Error())
			want := lead.fsm.value()
			until(t, "it follows", func() bool { return f.fsm.value() == want })
			last, _ := f.store.Last()
			f.stop(t)

			f = join(false)
			if f.LastIndex() < last {
				t.Fatalf("has %d after a restart, had %d", f.LastIndex(), last)
			}
			until(t, "it has everything again", func() bool { return f.fsm.value() == want })
			f.stop(t)
		})
	}
}
