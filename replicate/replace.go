package replicate

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/hashicorp/raft"
)

// caughtUpPatience is how long a member that is asked whether it has caught up waits for its files.
const caughtUpPatience = 5 * time.Second

// caughtUpBatch is how many databases are made durable before it looks whether there is time for more.
const caughtUpBatch = 256

// caughtUpReply says whether a member has decided and stored everything up to the index that it was asked for.
type caughtUpReply struct {
	Done    bool   `json:"done"`
	Applied uint64 `json:"applied"`
	Detail  string `json:"detail,omitempty"`
}

// serveCaughtUp answers whether this node has decided index, and every database is durable here at what was
// decided then: only what its files have does a vote stand for (RULES A5). What was stored when the time is over counts
// when it is asked the next time: a member of many databases, and with a slow disk, gets there too.
func (s *Service) serveCaughtUp(ctx context.Context, index uint64) (caughtUpReply, error) {
	r := caughtUpReply{Applied: s.fsm.Applied()}
	if r.Applied < index {
		r.Detail = fmt.Sprintf("it has decided entry %d of %d", r.Applied, index)
		return r, nil
	}
	ctx, cancel := context.WithTimeout(ctx, caughtUpPatience)
	defer cancel()
	missing := s.notDurable(s.fsm.positionsAt(index))
	for some := range slices.Chunk(missing, caughtUpBatch) {
		errs, err := s.makeAllDurable(ctx, some)
		if err != nil {
			r.Detail = err.Error()
			return r, nil
		}
		for i, err := range errs {
			if err != nil && !errors.Is(err, ErrDeleted) && !errors.Is(err, ErrNotFound) {
				st, _ := s.fsm.Get(some[i].ID)
				r.Detail = fmt.Sprintf("database %q is not stored up to transaction %s: %v", st.Name, some[i].TXID, err)
				return r, nil
			}
		}
		if ctx.Err() != nil {
			r.Detail = fmt.Sprintf("%d databases are not stored yet", len(s.notDurable(missing)))
			return r, nil
		}
	}
	r.Done = true
	return r, nil
}

// notDurable returns the positions that are not known to be durable here.
func (s *Service) notDurable(positions []durablePosition) (missing []durablePosition) {
	for _, p := range positions {
		if d, ok := s.replica(p.ID); ok && !d.isDurable(p.TXID) {
			missing = append(missing, p)
		}
	}
	return missing
}

// caughtUp asks a member.
func (s *Service) caughtUp(ctx context.Context, id string, index uint64) (caughtUpReply, error) {
	ctx, cancel := context.WithTimeout(ctx, caughtUpPatience+time.Second)
	defer cancel()
	return callJSON[uint64, caughtUpReply](ctx, s, id, methodCaughtUp, index)
}

// quorumWithout says why the voters that are left when id goes could not decide anything; nil if they can.
func (s *Service) quorumWithout(ctx context.Context, id string) error {
	voters, reachable := 0, 0
	for _, srv := range s.servers() {
		if srv.Suffrage != raft.Voter || string(srv.ID) == id {
			continue
		}
		voters++
		if s.reachable(ctx, string(srv.ID)) {
			reachable++
		}
	}
	if need := voters/2 + 1; reachable < need {
		return fmt.Errorf("of the %d voters that are left %d can be reached, %d are needed: nothing could be written any more; force does it all the same: %w", voters, reachable, need, ErrConflict)
	}
	return nil
}

// Steps of a replacement, in order.
const (
	ReplaceWaiting    = "waiting"     // for the new node to be a member
	ReplaceCatchingUp = "catching_up" // it has not everything yet
	ReplacePromoting  = "promoting"   // it is being given its vote
	ReplaceDone       = "done"        // the old member is removed
)

// Replacement is how far a replacement is.
type Replacement struct {
	State  string `json:"state"`
	Old    string `json:"old"`
	New    string `json:"new"`
	Detail string `json:"detail,omitempty"`
}

// replaceRequest is one step of a replacement, on its way to the leader.
type replaceRequest struct {
	Old   string `json:"old"`
	Addr  string `json:"addr"`
	Force bool   `json:"force,omitempty"`
}

// Replace does the next step of replacing member old by the node at addr, and says how far it is. It is called
// until it is done. Nothing is remembered in between: whoever calls finds where the cluster stands, and leaving
// off at any step leaves a cluster that works.
func (s *Service) Replace(ctx context.Context, old, addr string, force bool) (Replacement, error) {
	return onLeader(ctx, s, methodReplace, replaceRequest{Old: old, Addr: addr, Force: force}, s.leaderReplace)
}

func (s *Service) leaderReplace(ctx context.Context, q replaceRequest) (Replacement, error) {
	r := Replacement{Old: q.Old}
	if _, ok := s.leading(); !ok {
		return r, ErrNotLeader
	}
	// That a node does not answer is the answer: onLeader would take it for a leader that did not.
	h, err := s.hello(ctx, q.Addr)
	if err != nil {
		return r, fmt.Errorf("replace member %q: ask the node at %s: %v: %w", q.Old, q.Addr, err, ErrConflict)
	}
	r.New = h.ID
	var former, fresh *raft.Server
	for _, srv := range s.servers() {
		switch string(srv.ID) {
		case q.Old:
			former = &srv
		case h.ID:
			fresh = &srv
		}
	}
	switch {
	case q.Old == h.ID:
		return r, fmt.Errorf("replace member %q: the node at %s is that member: %w", q.Old, q.Addr, ErrConflict)
	case former == nil && fresh != nil && fresh.Suffrage == raft.Voter:
		r.State = ReplaceDone
		return r, nil
	case former == nil:
		return r, fmt.Errorf("replace member %q: %w", q.Old, ErrNoMember)
	case q.Old == s.opts.NodeID:
		return r, fmt.Errorf("replace member %q: it is the leader: hand leadership over first (hasqlite cluster transfer): %w", q.Old, ErrConflict)
	}
	if err := s.quorumWithout(ctx, q.Old); err != nil && !q.Force {
		return r, fmt.Errorf("replace member %q: %w", q.Old, err)
	}
	if fresh == nil {
		// It asks to join by itself when it was started for that; then it knows the cluster.
		if h.Cluster != [16]byte{} && h.Cluster != s.opts.Cluster() {
			return r, fmt.Errorf("replace member %q: the node at %s belongs to another cluster: %w", q.Old, q.Addr, ErrConflict)
		}
		if err := s.admit(memberRequest{Op: "add", ID: h.ID, Raft: q.Addr}, nil); err != nil {
			return r, err
		}
		r.State, r.Detail = ReplaceWaiting, "it was added without a vote"
		return r, nil
	}
	if h.Cluster == [16]byte{} {
		r.State, r.Detail = ReplaceWaiting, "the node has not joined yet: it has to be started with --join"
		return r, nil
	}
	if fresh.Suffrage != raft.Voter {
		if _, announced := s.member(h.ID); !announced { // see rejoin
			r.State, r.Detail = ReplaceCatchingUp, "it has not announced itself yet"
			return r, nil
		}
		up, err := s.caughtUp(ctx, h.ID, s.raft.CommitIndex())
		if err != nil {
			return r, fmt.Errorf("replace member %q: ask %s whether it has caught up: %v: %w", q.Old, h.ID, err, ErrConflict)
		}
		if !up.Done {
			r.State, r.Detail = ReplaceCatchingUp, up.Detail
			return r, nil
		}
		// A voter in place of a dead one first: with it the majority is larger for a moment, and it answers.
		if err := s.raftChange(s.raft.AddVoter(fresh.ID, fresh.Address, 0, 10*time.Second)); err != nil {
			return r, err
		}
		s.log.Info("member votes now", "member", h.ID)
		r.State = ReplacePromoting
		return r, nil
	}
	if _, err := s.leaderMember(ctx, memberRequest{Op: "remove", ID: q.Old, Force: q.Force}); err != nil {
		return r, err
	}
	s.log.Info("member replaced", "member", h.ID, "former", q.Old)
	r.State = ReplaceDone
	return r, nil
}

// warnings are what a person should know of the members, and that no error will tell.
func (s *Service) warnings(st *Status) (all []string) {
	voters, reachable := 0, 0
	for _, m := range st.Cluster.Members {
		if m.Voter {
			voters++
			if m.Reachable {
				reachable++
			}
		}
	}
	need := voters/2 + 1
	switch {
	case voters > 0 && reachable < need:
		all = append(all, fmt.Sprintf("%d of %d voters can be reached, %d are needed: nothing can be written", reachable, voters, need))
	case voters > 1 && reachable == need && reachable < voters:
		all = append(all, fmt.Sprintf("no further voter may be lost: %d of %d can be reached, %d are needed", reachable, voters, need))
	}
	if voters > 0 && voters%2 == 0 {
		all = append(all, fmt.Sprintf("%d voters survive the loss of %d, no more than %d do: add or remove one", voters, (voters-1)/2, voters-1))
	}
	if l := st.Log; l.Bytes >= share(l.Limit, slowShare) {
		all = append(all, fmt.Sprintf("the raft log of this node has %d of at most %d bytes: %s", l.Bytes, l.Limit, l.Blocked))
	}
	return all
}
