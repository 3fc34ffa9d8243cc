package replicate

import (
	"context"
	"slices"
	"time"

	"github.com/hashicorp/raft"
)

// A leader whose process died is succeeded without waiting for its heartbeat to be missed. Proof of death is that its
// machine refuses connections to its port. One follower that has lost its connection to the leader asks the others
// whether they find the same, and stands for election when a majority does, itself included; one by one, so that votes are
// not split. Where the proof is missing (a machine that lost its power, a cut network, a process that
// is stopped), raft's own timeouts decide.
const (
	// takeoverStep is how long each follower leaves the election to the one before it.
	takeoverStep = 200 * time.Millisecond
	takeoverPoll = 5 * time.Millisecond
	// goneTries times takeoverPoll is how long a port may still accept connections after the first one broke: a dying
	// process closes its files one after the other.
	goneTries = 10
	// judgeTimeout is how long the others have to say what they find.
	judgeTimeout = 300 * time.Millisecond
)

// leaderQuestion asks a node whether it, too, finds that the leader of a term is gone.
type leaderQuestion struct {
	Leader string
	Term   uint64
}

// leaderJudgement is what it finds, with the end of its log.
type leaderJudgement struct {
	Gone      bool
	LastIndex uint64
	LastTerm  uint64
}

// raftEnded hears that a connection of another node's raft has ended.
func (s *Service) raftEnded(id string) {
	select {
	case <-s.raftUp:
	default:
		return // raft starts
	}
	if s.raft.State() != raft.Follower {
		return
	}
	leader, term := s.leader()
	if leader != id || s.successor.Swap(term) == term {
		return // not the leader's, or looked at already
	}
	s.goroutine(func() {
		if !s.succeed(leader, term) {
			s.successor.CompareAndSwap(term, 0)
		}
	})
}

// succeed stands for election if the leader is gone. It reports false where this node found no proof.
func (s *Service) succeed(leader string, term uint64) bool {
	if s.mayCampaign() != nil || !s.findsGone(leader, goneTries) {
		return false
	}
	var voters []string
	for _, srv := range s.servers() {
		if srv.Suffrage == raft.Voter {
			voters = append(voters, string(srv.ID))
		}
	}
	for end := s.now().Add(takeoverTurn(voters, leader, s.opts.NodeID)); s.now().Before(end); {
		if !s.pauseFor(s.ctx, takeoverPoll) || !s.stillFollows(leader, term) {
			return true // it has a successor
		}
	}
	ctx, cancel := context.WithTimeout(s.ctx, judgeTimeout)
	defer cancel()
	found := make(chan leaderJudgement, len(voters))
	asked := 0
	for _, id := range voters {
		if id == leader || id == s.opts.NodeID {
			continue
		}
		asked++
		s.goroutine(func() {
			j, err := callJSON[leaderQuestion, leaderJudgement](ctx, s, id, methodLeaderGone, leaderQuestion{leader, term})
			if err != nil {
				j = leaderJudgement{}
			}
			found <- j
		})
	}
	var others []leaderJudgement
	for len(others) < asked {
		select {
		case j := <-found:
			others = append(others, j)
		case <-ctx.Done():
			asked = len(others)
		}
		if index, last := s.store.Last(); maySucceed(slices.Contains(voters, s.opts.NodeID), len(voters), index, last, others) {
			break
		}
	}
	index, last := s.store.Last()
	if !maySucceed(slices.Contains(voters, s.opts.NodeID), len(voters), index, last, others) || !s.stillFollows(leader, term) {
		return false
	}
	s.log.Info("the leader's process is gone: stand for election at once", "leader", leader, "term", term)
	if err := s.transport.StandForElection(raft.ServerID(s.opts.NodeID)); err != nil {
		s.log.Warn("succeed the leader; the heartbeat timeout will", "err", err)
		return false
	}
	return true
}

// takeoverTurn is how long a node waits for those that come before it.
func takeoverTurn(voters []string, leader, self string) time.Duration {
	turn := 0
	for _, id := range voters {
		if id != leader && id < self {
			turn++
		}
	}
	return time.Duration(turn) * takeoverStep
}

// maySucceed reports whether a voter may stand for election: a majority finds that the leader is gone, this node
// included, and none of those has a log that this node's must not replace.
func maySucceed(voter bool, voters int, index, term uint64, others []leaderJudgement) bool {
	agree := 1
	for _, j := range others {
		if !j.Gone {
			continue
		}
		if j.LastTerm > term || j.LastTerm == term && j.LastIndex > index {
			return false // it would not vote for this node, and its turn comes
		}
		agree++
	}
	return voter && agree > voters/2
}

func (s *Service) stillFollows(leader string, term uint64) bool {
	now, t := s.leader()
	return t == term && (now == leader || now == "") && s.raft.State() == raft.Follower
}

// findsGone reports whether connections to a node are refused, looking several times.
func (s *Service) findsGone(id string, tries int) bool {
	for range tries {
		if s.port.Refuses(s.ctx, id) {
			return true
		}
		if !s.pauseFor(s.ctx, takeoverPoll) {
			break
		}
	}
	return false
}

// judgeLeader answers another node's question.
func (s *Service) judgeLeader(_ context.Context, q leaderQuestion) (leaderJudgement, error) {
	j := leaderJudgement{}
	j.LastIndex, j.LastTerm = s.store.Last()
	j.Gone = s.stillFollows(q.Leader, q.Term) && s.findsGone(q.Leader, goneTries)
	return j, nil
}
