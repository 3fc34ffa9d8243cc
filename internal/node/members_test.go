package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/uglyer/ha-sqlite/internal/api"
	"github.com/uglyer/ha-sqlite/replicate"
)

// join starts one more node that joins through node 0, and returns its number.
func (c *cluster) join(id string, change func(cfg *Config)) int {
	c.t.Helper()
	dir, err := os.MkdirTemp("", "hs")
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() { os.RemoveAll(dir) })
	cfg := Config{
		Data: filepath.Join(dir, "d"), ID: id, HTTP: "127.0.0.1:0", Raft: freeAddr(c.t), Socket: filepath.Join(dir, "s"),
		Join: []string{c.cfgs[0].Raft, c.cfgs[1].Raft}, VerifyFull: true,
	}
	if change != nil {
		change(&cfg)
	}
	c.cfgs = append(c.cfgs, cfg)
	c.nodes = append(c.nodes, nil)
	c.start(len(c.nodes) - 1)
	return len(c.nodes) - 1
}

// running is a node that runs.
func (c *cluster) running() backend {
	for _, n := range c.nodes {
		if n != nil {
			return backend{n}
		}
	}
	c.t.Fatal("no node runs")
	return backend{}
}

func (c *cluster) replace(old, addr string) {
	c.t.Helper()
	eventually(c.t, "the member is replaced", func() error {
		r, err := c.running().ReplaceMember(c.t.Context(), api.ReplaceRequest{Old: old, Raft: addr})
		if err == nil && r.State != api.ReplaceDone {
			err = fmt.Errorf("%+v", r)
		}
		return err
	})
}

// A dead member is replaced: the new node has everything before it has a vote, and the dead one goes last.
func TestReplaceADeadMember(t *testing.T) {
	all := faulty(t)
	all["n3"] = &faults{}
	c := prepared(t, 3, func(_ int, cfg *Config) { cfg.SnapshotEntries, cfg.TrailingEntries = 20, 5 })
	dead := c.follower()
	c.stop(dead)
	w := c.open(c.leader(), "db")
	for i := range 60 {
		exec(t, w, `INSERT INTO t VALUES(?)`, i)
	}
	// Its files cannot be synced: it hears everything and stands for nothing (RULES A5).
	all["n3"].sync.Store(true)
	fresh := c.join("n3", func(cfg *Config) { cfg.SnapshotEntries, cfg.TrailingEntries = 20, 5 })
	b := c.running()
	for range 3 {
		var r api.Replacement
		eventually(t, "the new node is a member and asked", func() (err error) {
			r, err = b.ReplaceMember(t.Context(), api.ReplaceRequest{Old: c.cfgs[dead].ID, Raft: c.cfgs[fresh].Raft})
			return err
		})
		if r.New != "n3" || r.State != api.ReplaceWaiting && r.State != api.ReplaceCatchingUp {
			t.Fatalf("a node whose files are not durable: %+v", r)
		}
		if err := c.votes(c.leader(), 3); err != nil {
			t.Errorf("it votes: %v", err)
		}
	}
	all["n3"].sync.Store(false)
	c.replace(c.cfgs[dead].ID, c.cfgs[fresh].Raft)
	if err := c.votes(c.leader(), 3); err != nil {
		t.Error(err)
	}
	c.ready(fresh)
	c.equal("db")
	if r, err := b.ReplaceMember(t.Context(), api.ReplaceRequest{Old: c.cfgs[dead].ID, Raft: c.cfgs[fresh].Raft}); err != nil || r.State != api.ReplaceDone {
		t.Errorf("once more: %+v, %v", r, err)
	}
	if _, err := b.ReplaceMember(t.Context(), api.ReplaceRequest{Old: "nobody", Raft: c.cfgs[dead].Raft}); err == nil {
		t.Error("an unknown member is replaced by a node that does not answer")
	}

	// The dead one comes back, as a node of the cluster that it was removed from: it is heard by nobody.
	term := c.nodes[c.leader()].svc.LocalStatus().Cluster.Term
	c.start(dead)
	eventually(t, "the removed node finds no leader", func() error {
		st := c.nodes[dead].svc.LocalStatus()
		if st.State != "candidate" && st.Cluster.Term == 0 {
			return errors.New(st.State)
		}
		return nil
	})
	for i := range 30 {
		exec(t, w, `INSERT INTO t VALUES(?)`, i)
	}
	if now := c.nodes[c.leader()].svc.LocalStatus().Cluster.Term; now != term {
		t.Errorf("term %d became %d when a removed node came back", term, now)
	}
	c.stop(dead)
	if _, err := Rejoin(c.cfgs[dead].Data, slog.New(slog.DiscardHandler)); err != nil {
		t.Fatal(err)
	}
	c.cfgs[dead].NonVoter = true
	c.start(dead)
	c.ready(dead)
	if r := c.equal("db"); len(r.Nodes) != 4 {
		t.Errorf("%d nodes", len(r.Nodes))
	}
}

// What would leave a cluster that can decide nothing is refused; what merely is a bad idea is said.
func TestRemovalsThatBreakTheMajorityAreRefused(t *testing.T) {
	c := prepared(t, 3, nil)
	leader, dead := c.leader(), c.follower()
	alive := 3 - leader - dead
	c.stop(dead)
	b := backend{c.nodes[leader]}
	eventually(t, "the dead member is known to be", func() error {
		if c.nodes[leader].port.Connected(c.cfgs[dead].ID) {
			return errors.New("connected")
		}
		return nil
	})
	if err := b.RemoveMember(t.Context(), c.cfgs[alive].ID, false); !errors.Is(err, api.ErrInUse) || !strings.Contains(err.Error(), "1 can be reached, 2 are needed") {
		t.Errorf("removal of the one that is needed: %v", err)
	}
	if err := b.AddMember(t.Context(), api.AddMemberRequest{ID: c.cfgs[alive].ID, Raft: c.cfgs[alive].Raft, Voter: false}); !errors.Is(err, api.ErrInUse) {
		t.Errorf("taking the vote of the one that is needed: %v", err)
	}
	if err := b.RemoveMember(t.Context(), "nobody", false); !errors.Is(err, api.ErrNotFound) {
		t.Errorf("removal of nobody: %v", err)
	}
	if err := (backend{c.nodes[alive]}).RemoveMember(t.Context(), "nobody", false); !errors.Is(err, api.ErrNotFound) {
		t.Errorf("removal of nobody, asked of a follower: %v", err)
	}
	st, err := b.Cluster(t.Context())
	if err != nil || len(st.Warnings) != 1 || !strings.Contains(st.Warnings[0], "no further voter may be lost") {
		t.Errorf("warnings %q, %v", st.Warnings, err)
	}
	if err := b.RemoveMember(t.Context(), c.cfgs[dead].ID, false); err != nil {
		t.Errorf("removal of the dead one: %v", err)
	}
	eventually(t, "an even number is said", func() error {
		st, err := b.Cluster(t.Context())
		if err == nil && (len(st.Warnings) != 1 || !strings.Contains(st.Warnings[0], "2 voters survive the loss of 0, no more than 1 do")) {
			err = fmt.Errorf("warnings %q", st.Warnings)
		}
		return err
	})
	exec(t, c.open(leader, "db"), `INSERT INTO t VALUES('on')`)
}

// A node that comes back at another address is found by its id, and votes as before (RULES B18).
func TestAMemberChangesItsAddress(t *testing.T) {
	c := prepared(t, 3, nil)
	moved := c.follower()
	c.stop(moved)
	c.cfgs[moved].Raft = freeAddr(t)
	c.start(moved)
	c.ready(moved)
	w := c.open(c.leader(), "db")
	exec(t, w, `INSERT INTO t VALUES('after the move')`)
	c.equal("db")
	// It is needed now: the other follower is gone.
	third := 3 - c.leader() - moved
	if third != moved {
		c.stop(third)
	}
	exec(t, w, `INSERT INTO t VALUES('with its vote')`)
	eventually(t, "status shows the new address", func() error {
		st, err := c.running().Cluster(t.Context())
		for _, m := range st.Members {
			if m.ID == c.cfgs[moved].ID && m.Raft == c.cfgs[moved].Raft {
				return err
			}
		}
		return fmt.Errorf("%+v, %v", st.Members, err)
	})
}

// A voter whose disk was replaced has lost what it has acknowledged. It gets no vote for an empty log, neither at its old
// address nor at another one, from the leader or another member; once removed it joins by itself, and votes when it
// has caught up.
func TestAVoterThatLostItsDiskGetsNoVoteForAnEmptyLog(t *testing.T) {
	c := prepared(t, 3, nil)
	leader, lost := c.leader(), c.follower()
	third := 3 - leader - lost
	eventually(t, "all members are announced", func() error {
		st, err := c.running().Cluster(t.Context())
		for _, m := range st.Members {
			if m.HTTP == "" {
				err = errors.Join(err, errors.New(m.ID))
			}
		}
		return err
	})
	c.stop(lost)
	if err := os.RemoveAll(c.cfgs[lost].Data); err != nil {
		t.Fatal(err)
	}
	c.start(lost)
	blank := c.nodes[lost]
	for _, member := range []int{leader, third} {
		for _, addr := range []string{c.cfgs[lost].Raft, freeAddr(t)} {
			var err error
			eventually(t, "the join is decided", func() error {
				_, err = joinThrough(blank, c.cfgs[member].Raft, replicate.JoinRequest{ID: c.cfgs[lost].ID, Raft: addr, Voter: true})
				if err == nil || !strings.Contains(err.Error(), "no leader") && !strings.Contains(err.Error(), "not the leader") {
					return nil
				}
				return err
			})
			if err == nil || !strings.Contains(err.Error(), "hasqlite cluster remove "+c.cfgs[lost].ID) {
				t.Fatalf("join through node %d from %s: %v", member, addr, err)
			}
		}
	}
	if blank.cluster() != [16]byte{} {
		t.Fatal("the node belongs to the cluster")
	}
	st, err := c.running().Cluster(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range st.Members {
		if m.ID == c.cfgs[lost].ID && m.Reachable {
			t.Error("a node with nothing counts as a member that is there")
		}
	}
	exec(t, c.open(leader, "db"), `INSERT INTO t VALUES('without it')`)
	if err := (backend{c.nodes[third]}).RemoveMember(t.Context(), c.cfgs[lost].ID, false); err != nil {
		t.Fatal(err)
	}
	c.ready(lost)
	eventually(t, "it votes again", func() error { return c.votes(leader, 3) })
	c.equal("db")
}

func joinThrough(n *Node, addr string, q replicate.JoinRequest) (replicate.JoinReply, error) {
	req, err := json.Marshal(q)
	if err != nil {
		return replicate.JoinReply{}, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	var r replicate.JoinReply
	reply, err := n.port.CallAddr(ctx, addr, 2, req) // see replicate: a join
	if err == nil {
		err = json.Unmarshal(reply, &r)
	}
	return r, err
}

// A node that stops in its first start, when it has taken the id of the cluster that it bootstraps and raft has not
// stored the members, bootstraps it at the next: there is no other that could.
func TestABootstrapThatWasCutShortIsFinished(t *testing.T) {
	for name, row := range map[string]struct {
		nodes int
		term  uint64 // as far as raft came
	}{
		"one":                        {1, 0},
		"one, the term was written":  {1, 1},
		"three, and the others wait": {3, 0},
	} {
		t.Run(name, func(t *testing.T) {
			c := newCluster(t, row.nodes, func(i int, cfg *Config) {
				if i == row.nodes-1 { // the others are there
					cfg.ID = "first"
					cutBootstrap(t, *cfg, row.term)
				}
			})
			exec(t, c.open(0, "db"), `CREATE TABLE t(v)`)
			if r := c.equal("db"); len(r.Nodes) != row.nodes {
				t.Errorf("%d nodes", len(r.Nodes))
			}
		})
	}
}

// cutBootstrap starts a node for the first time, and stops it between the two steps of a bootstrap.
func cutBootstrap(t *testing.T, cfg Config, term uint64) {
	t.Helper()
	waits := cfg
	waits.Join, waits.BootstrapExpect = []string{cfg.Raft}, 0
	n, err := Start(waits, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	err = n.svc.Enter(t.Context(), replicate.Membership{
		Join: cfg.Join, BootstrapExpect: cfg.BootstrapExpect, RaftAddr: n.raftAddr, Lineage: func() uint64 { return 0 },
		Adopt: func(cluster [16]byte, lineage uint64) error {
			return errors.Join(n.dir.SetCluster(cluster, lineage), n.store.SetUint64([]byte("CurrentTerm"), term), n.Shutdown(t.Context()))
		},
	})
	if !errors.Is(err, replicate.ErrShutdown) {
		t.Fatalf("a bootstrap while the node stops: %v", err)
	}
}

// Who does not start the cluster, but is there already and in everybody's list, neither gets a vote by the bootstrap nor is
// waited for: it joins.
func TestOnlyWhoStartsTheClusterBootstrapsIt(t *testing.T) {
	for name, row := range map[string]struct {
		id       string
		nonVoter bool
		expect   int
		votes    int
	}{
		"a non-voter, the smallest":            {"a", true, 0, 2},
		"a non-voter, the largest":             {"z", true, 0, 2},
		"a non-voter with everybody's options": {"a", true, 2, 2},
		"one that joins, the smallest":         {"a", false, 0, 3},
	} {
		t.Run(name, func(t *testing.T) {
			c := newCluster(t, 3, func(i int, cfg *Config) {
				cfg.BootstrapExpect = 2
				if i == 0 {
					cfg.ID, cfg.NonVoter, cfg.BootstrapExpect = row.id, row.nonVoter, row.expect
				}
			})
			eventually(t, "its vote", func() error { return c.votes(c.leader(), row.votes) })
		})
	}
}
