package replicate

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/raft"
)

// Hello is what a node says of itself to anybody who asks.
type Hello struct {
	ID      string   `json:"id"`
	Raft    string   `json:"raft"`
	Cluster [16]byte `json:"cluster"`
	Expect  int      `json:"expect,omitempty"` // how many voters start a cluster with this one, 0 if it is none of them
}

// JoinRequest asks to become a member.
type JoinRequest struct {
	ID    string `json:"id"`
	Raft  string `json:"raft"`
	Voter bool   `json:"voter"`
}

// JoinReply is the identity of the cluster that a node now belongs to.
type JoinReply struct {
	Cluster [16]byte `json:"cluster"`
	Lineage uint64   `json:"lineage"`
}

// Membership says how a node finds its cluster at its first start.
type Membership struct {
	Join            []string // node ports of others
	BootstrapExpect int
	NonVoter        bool
	RaftAddr        string // this node's port, as others reach it
	// Adopt stores the identity of the cluster. It is called before anything of that cluster is accepted.
	Adopt   func(cluster [16]byte, lineage uint64) error
	Lineage func() uint64 // as it is stored now
}

// NewClusterID returns a random cluster id.
func NewClusterID() (id [16]byte) {
	rand.Read(id[:])
	return id
}

// Enter makes the node a member of a cluster, once in its life: it bootstraps a single node, or finds its
// peers and lets the smallest id bootstrap all, or asks a member to join. It returns when that is decided.
func (s *Service) Enter(ctx context.Context, m Membership) error {
	s.mu.Lock()
	s.membership = m
	s.mu.Unlock()
	defer func() { s.goroutine(func() { s.announce(m) }) }()
	if len(s.servers()) > 0 || s.opts.Cluster() != [16]byte{} {
		return nil // a member already; raft knows the rest
	}
	if len(m.Join) == 0 && m.BootstrapExpect <= 1 {
		return s.bootstrap(m, []raft.Server{{ID: raft.ServerID(s.opts.NodeID), Address: raft.ServerAddress(m.RaftAddr)}})
	}
	wait := 50 * time.Millisecond
	for said := ""; ; {
		done, why := s.findCluster(ctx, m)
		if done {
			return why
		}
		if why != nil && why.Error() != said {
			said = why.Error()
			s.log.Info("waiting for a cluster", "why", said)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("join a cluster through %s: %w", strings.Join(m.Join, ","), errors.Join(why, ctx.Err()))
		case <-s.ctx.Done():
			return ErrShutdown
		case <-time.After(wait):
		}
		wait = min(wait*2, time.Second)
	}
}

func (s *Service) bootstrap(m Membership, servers []raft.Server) error {
	id, members := NewClusterID(), raft.Configuration{Servers: servers}
	if err := s.store.PlanBootstrap(id, members); err != nil {
		return err
	}
	if err := m.Adopt(id, m.Lineage()); err != nil {
		return err
	}
	err := s.raft.BootstrapCluster(members).Error()
	if errors.Is(err, raft.ErrRaftShutdown) {
		return ErrShutdown
	}
	if err != nil {
		return fmt.Errorf("bootstrap the cluster: %w", err)
	}
	s.log.Info("cluster bootstrapped", "members", len(servers))
	return nil
}

// findCluster asks the addresses given once around. It reports whether that decided what becomes of this node.
func (s *Service) findCluster(ctx context.Context, m Membership) (bool, error) {
	found := map[string]string{s.opts.NodeID: m.RaftAddr}
	var errs []error
	for _, addr := range m.Join {
		if addr == m.RaftAddr {
			continue
		}
		h, err := s.hello(ctx, addr)
		if err != nil {
			errs = append(errs, fmt.Errorf("ask %s: %w", addr, err))
			continue
		}
		if h.ID == s.opts.NodeID && h.Raft != m.RaftAddr {
			return false, fmt.Errorf("the node at %s has this node's id %q", addr, h.ID)
		}
		if h.Cluster != [16]byte{} {
			if err := s.join(ctx, m, addr); err != nil {
				errs = append(errs, fmt.Errorf("join through %s: %w", addr, err))
				continue
			}
			return true, nil
		}
		switch {
		case h.Expect == m.BootstrapExpect:
			found[h.ID] = h.Raft
		case m.BootstrapExpect > 1:
			errs = append(errs, fmt.Errorf("node %s at %s does not start a cluster of %d", h.ID, addr, m.BootstrapExpect))
		}
	}
	if m.BootstrapExpect < 2 || m.NonVoter {
		return false, errors.Join(errs...)
	}
	if len(found) < m.BootstrapExpect {
		return false, errors.Join(append(errs, fmt.Errorf("%d of %d nodes are there", len(found), m.BootstrapExpect))...)
	}
	ids := make([]string, 0, len(found))
	for id := range found {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	if ids[0] != s.opts.NodeID {
		return false, fmt.Errorf("node %s bootstraps the cluster", ids[0])
	}
	var servers []raft.Server
	for _, id := range ids {
		servers = append(servers, raft.Server{ID: raft.ServerID(id), Address: raft.ServerAddress(found[id])})
	}
	return true, s.bootstrap(m, servers) // a second try would be of another id
}

func (s *Service) hello(ctx context.Context, addr string) (h Hello, err error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	reply, err := s.port.CallAddr(ctx, addr, methodHello, []byte("{}"))
	if err != nil {
		return h, remoteError(err)
	}
	err = json.Unmarshal(reply, &h)
	return h, err
}

func (s *Service) join(ctx context.Context, m Membership, addr string) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	req, err := json.Marshal(JoinRequest{ID: s.opts.NodeID, Raft: m.RaftAddr, Voter: !m.NonVoter})
	if err != nil {
		return err
	}
	reply, err := s.port.CallAddr(ctx, addr, methodJoin, req)
	if err != nil {
		return remoteError(err)
	}
	var r JoinReply
	if err := json.Unmarshal(reply, &r); err != nil {
		return fmt.Errorf("decode the answer: %w", err)
	}
	return m.Adopt(r.Cluster, r.Lineage)
}

func (s *Service) serveHello(_ context.Context, _ string, _ struct{}) (Hello, error) {
	s.mu.RLock()
	m := s.membership
	s.mu.RUnlock()
	h := Hello{ID: s.opts.NodeID, Raft: s.port.Addr(), Cluster: s.opts.Cluster()}
	if !m.NonVoter {
		h.Expect = m.BootstrapExpect
	}
	return h, nil
}

// lineage is how often the cluster was recovered by force; 0 also before the node looks for its cluster.
func (s *Service) lineage() uint64 {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.membership.Lineage == nil {
		return 0
	}
	return s.membership.Lineage()
}

// serveJoin admits a node. While there was no leader yet the one that bootstrapped the cluster answers at once, since a
// leader needs the answer; any other asks the leader, who alone knows who was a member before.
func (s *Service) serveJoin(ctx context.Context, _ string, q JoinRequest) (JoinReply, error) {
	cluster := s.opts.Cluster()
	if cluster == [16]byte{} {
		return JoinReply{}, errors.New("this node belongs to no cluster yet")
	}
	s.mu.RLock()
	lineage := s.membership.Lineage
	s.mu.RUnlock()
	if lineage == nil {
		return JoinReply{}, errors.New("this node is starting")
	}
	reply := JoinReply{Cluster: cluster, Lineage: lineage()}
	if s.bootstrapping() {
		for _, srv := range s.servers() {
			if string(srv.ID) == q.ID && string(srv.Address) == q.Raft {
				return reply, nil
			}
		}
	}
	_, err := s.changeMember(ctx, memberRequest{Op: "join", ID: q.ID, Raft: q.Raft, Voter: q.Voter})
	return reply, err
}

// bootstrapping says that this node has bootstrapped the cluster and nobody has led it: its log has the entry with the
// members alone. That of another member may be as short when the cluster is old.
func (s *Service) bootstrapping() bool {
	if s.raft.LastIndex() != 1 {
		return false
	}
	ids := make([]string, 0, 3)
	for _, srv := range s.servers() {
		ids = append(ids, string(srv.ID))
	}
	return len(ids) > 0 && slices.Min(ids) == s.opts.NodeID // see findCluster
}

// memberRequest is a change of membership on its way to the leader.
type memberRequest struct {
	Op    string `json:"op"` // join, add, remove, announce, transfer
	ID    string `json:"id"`
	Raft  string `json:"raft,omitempty"`
	HTTP  string `json:"http,omitempty"`
	Voter bool   `json:"voter,omitempty"`
	Force bool   `json:"force,omitempty"`
}

func (s *Service) changeMember(ctx context.Context, q memberRequest) (struct{}, error) {
	return onLeader(ctx, s, methodMember, q, s.leaderMember)
}

// AddMember adds a node by its id and address, or changes whether it votes.
func (s *Service) AddMember(ctx context.Context, id, raftAddr string, voter bool) error {
	_, err := s.changeMember(ctx, memberRequest{Op: "add", ID: id, Raft: raftAddr, Voter: voter})
	return err
}

// RemoveMember removes a node from the cluster. Without force it is refused when the voters that are left could
// decide nothing.
func (s *Service) RemoveMember(ctx context.Context, id string, force bool) error {
	_, err := s.changeMember(ctx, memberRequest{Op: "remove", ID: id, Force: force})
	return err
}

// TransferLeadership hands leadership to a member, or to the one that is furthest if id is empty.
func (s *Service) TransferLeadership(ctx context.Context, id string) error {
	_, err := s.changeMember(ctx, memberRequest{Op: "transfer", ID: id})
	return err
}

func (s *Service) leaderMember(ctx context.Context, q memberRequest) (struct{}, error) {
	none := struct{}{}
	if _, ok := s.leading(); !ok {
		return none, ErrNotLeader
	}
	var current *raft.Server
	for _, srv := range s.servers() {
		if string(srv.ID) == q.ID {
			current = &srv
		}
	}
	switch q.Op {
	case "join", "add":
		if q.ID == "" || q.Raft == "" && current == nil {
			return none, fmt.Errorf("add member %q at %q: id and address are needed: %w", q.ID, q.Raft, ErrInvalid)
		}
		if q.Raft == "" {
			q.Raft = string(current.Address)
		}
		if q.Op == "join" && current != nil {
			if s.reachable(ctx, q.ID) {
				return none, fmt.Errorf("a member with id %q is alive at %s: %w", q.ID, current.Address, ErrConflict)
			}
			if current.Suffrage == raft.Voter {
				return none, s.rejoin(q, current)
			}
		}
		return none, s.admit(q, current)
	case "remove":
		if current == nil {
			return none, fmt.Errorf("remove member %q: %w", q.ID, ErrNoMember)
		}
		if current.Suffrage == raft.Voter && s.voters() == 1 {
			return none, fmt.Errorf("remove the last voter %q: %w", q.ID, ErrConflict)
		}
		if current.Suffrage == raft.Voter && !q.Force {
			if err := s.quorumWithout(ctx, q.ID); err != nil {
				return none, fmt.Errorf("remove member %q: %w", q.ID, err)
			}
		}
		// The vote goes first: a voter that is no announced member may join with nothing, see rejoin. A leader that took
		// its own would lead no more.
		if current.Suffrage == raft.Voter && q.ID != s.opts.NodeID {
			if err := s.raftChange(s.raft.DemoteVoter(raft.ServerID(q.ID), 0, 10*time.Second)); err != nil {
				return none, err
			}
		}
		if err := s.proposeMember(ctx, &Member{ID: q.ID, Removed: true}); err != nil {
			return none, err
		}
		if err := s.raftChange(s.raft.RemoveServer(raft.ServerID(q.ID), 0, 10*time.Second)); err != nil {
			return none, err
		}
		s.log.Info("member removed", "member", q.ID)
		s.warnEven()
		return none, nil
	case "announce":
		if current == nil {
			return none, fmt.Errorf("announce member %q: %w", q.ID, ErrNoMember)
		}
		return none, s.proposeMember(ctx, &Member{ID: q.ID, RaftAddr: q.Raft, HTTPAddr: q.HTTP, CodecVersion: CodecVersion})
	case "transfer":
		return none, s.transfer(q.ID, current)
	}
	return none, fmt.Errorf("membership change %q: %w", q.Op, ErrInvalid)
}

// ErrNoMember is returned for an id that is no member of the cluster.
var ErrNoMember = errors.New("no such member")

func (s *Service) transfer(id string, target *raft.Server) error {
	if id == s.opts.NodeID {
		return nil
	}
	if id == "" {
		if s.voters() < 2 {
			return fmt.Errorf("transfer leadership: there is no other voter: %w", ErrConflict)
		}
		return s.raft.LeadershipTransfer().Error()
	}
	if target == nil || target.Suffrage != raft.Voter {
		return fmt.Errorf("transfer leadership to %q: %w", id, ErrNoMember)
	}
	return s.raft.LeadershipTransferToServer(target.ID, raft.ServerAddress(target.Address)).Error()
}

func (s *Service) raftChange(f raft.IndexFuture) error {
	if err := f.Error(); err != nil {
		if definite(err) {
			return fmt.Errorf("%w: %w", ErrNotLeader, err)
		}
		return err
	}
	return nil
}

// admit adds a non-voter and promotes it once it has caught up (RULES A5: a node becomes a voter only
// after its restore).
func (s *Service) admit(q memberRequest, current *raft.Server) error {
	id, addr := raft.ServerID(q.ID), raft.ServerAddress(q.Raft)
	if current != nil && current.Suffrage == raft.Voter {
		if !q.Voter {
			if err := s.quorumWithout(s.ctx, q.ID); err != nil && !q.Force {
				return fmt.Errorf("take the vote of member %q: %w", q.ID, err)
			}
			return s.raftChange(s.raft.DemoteVoter(id, 0, 10*time.Second))
		}
		return s.raftChange(s.raft.AddVoter(id, addr, 0, 10*time.Second))
	}
	if current == nil || current.Address != addr {
		if err := s.raftChange(s.raft.AddNonvoter(id, addr, 0, 10*time.Second)); err != nil {
			return err
		}
		s.log.Info("member added", "member", q.ID, "raft", q.Raft, "voter", false)
	}
	if q.Voter {
		if _, busy := s.promoting.LoadOrStore(q.ID, true); !busy {
			s.goroutine(func() {
				defer s.promoting.Delete(q.ID)
				s.promote(q.ID)
			})
		}
	}
	return nil
}

// rejoin lets a voter in that belongs to no cluster. One that never announced itself is a voter by the bootstrap and
// enters for the first time. Any other has lost its log, and must not vote before it has a new one: it could elect a
// leader that lacks what it has acknowledged (decision 028).
func (s *Service) rejoin(q memberRequest, current *raft.Server) error {
	if _, announced := s.member(q.ID); announced {
		return fmt.Errorf("member %q has a vote and comes back without its log, against which it could vote: remove it first (hasqlite cluster remove %s); then it joins as a new one and gets its vote when it has caught up: %w", q.ID, q.ID, ErrConflict)
	}
	if string(current.Address) == q.Raft {
		return nil
	}
	return s.admit(q, current)
}

// promote makes a non-voter a voter when it has announced itself, has decided what the leader had committed, and stored it.
func (s *Service) promote(id string) {
	target := s.raft.CommitIndex()
	for s.pauseFor(s.ctx, 100*time.Millisecond) {
		if _, ok := s.leading(); !ok {
			return // the node asks the next leader again
		}
		if _, announced := s.member(id); !announced {
			continue // see rejoin
		}
		if up, err := s.caughtUp(s.ctx, id, target); err != nil || !up.Done {
			continue
		}
		addr, _ := s.Address(id)
		if err := s.raftChange(s.raft.AddVoter(raft.ServerID(id), raft.ServerAddress(addr), 0, 10*time.Second)); err != nil {
			s.log.Warn("promote member", "member", id, "err", err)
			continue
		}
		s.log.Info("member votes now", "member", id)
		s.warnEven()
		return
	}
}

func (s *Service) warnEven() {
	if n := s.voters(); n > 0 && n%2 == 0 {
		s.log.Warn("an even number of voters tolerates no more failures than one voter less", "voters", n)
	}
}

func (s *Service) proposeMember(ctx context.Context, m *Member) error {
	entry, err := EncodeMember(nil, m)
	if err != nil {
		return err
	}
	_, err = s.propose(ctx, entry)
	return err
}

// announce tells the cluster this node's addresses, after every start and until it knows them, and asks for
// the vote that the node is meant to have.
func (s *Service) announce(m Membership) {
	for wait := 100 * time.Millisecond; s.pauseFor(s.ctx, wait); wait = min(2*wait, 2*time.Second) {
		member, votes := false, false
		for _, srv := range s.servers() {
			if string(srv.ID) == s.opts.NodeID {
				member, votes = true, srv.Suffrage == raft.Voter
			}
		}
		got, ok := s.member(s.opts.NodeID)
		announced := ok && got.RaftAddr == m.RaftAddr && got.HTTPAddr == s.opts.HTTPAddr
		q := memberRequest{Op: "announce", ID: s.opts.NodeID, Raft: m.RaftAddr, HTTP: s.opts.HTTPAddr}
		switch {
		case !member:
			continue
		case announced && (votes || m.NonVoter):
			return
		case announced:
			q.Op, q.Voter = "add", true
		}
		ctx, cancel := context.WithTimeout(s.ctx, 5*time.Second)
		err := s.announceTo(ctx, q)
		cancel()
		if err != nil && s.ctx.Err() == nil {
			s.log.Debug("announce this node", "err", err)
		}
	}
}

// announceTo is changeMember for a node that may have moved: the leader looks for it where it was, so it hears
// of no leader until one of the others has told that one.
func (s *Service) announceTo(ctx context.Context, q memberRequest) error {
	if leader, _ := s.leader(); leader != "" {
		_, err := s.changeMember(ctx, q)
		return err
	}
	errs := []error{ErrNoLeader}
	for _, peer := range s.peersLeaderLast() {
		_, err := callJSON[memberRequest, struct{}](ctx, s, peer, methodMember, q)
		if err == nil {
			return nil
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// reachable says whether a member answers as one: a node with its id and an empty directory is none.
func (s *Service) reachable(ctx context.Context, id string) bool {
	if id == s.opts.NodeID {
		return true
	}
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	h, err := callJSON[struct{}, Hello](ctx, s, id, methodHello, struct{}{})
	return err == nil && h.Cluster == s.opts.Cluster()
}

// pause waits a moment before another try; false when ctx or the service ended.
func (s *Service) pause(ctx context.Context) bool { return s.pauseFor(ctx, 10*time.Millisecond) }

func (s *Service) pauseFor(ctx context.Context, d time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-s.ctx.Done():
		return false
	case <-time.After(d):
		return true
	}
}
