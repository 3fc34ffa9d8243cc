package replicate

import (
	"context"
	"sync"
	"time"
)

const (
	// lateItems and lateBytes are how far behind the log the files of a database may be on a node before it
	// counts as late.
	lateItems = 512
	lateBytes = 4 << 20
	// pressureInterval is how often a node tells the leader what is late; a report counts for three of them.
	pressureInterval = 200 * time.Millisecond
	// pressurePause is how long a grant waits at a time, pressureLimit how long in all: writers are slowed,
	// never stopped.
	pressurePause = 5 * time.Millisecond
	pressureLimit = 500 * time.Millisecond
)

// pressure is the leader's knowledge of which nodes are late with which database (RULES A4). Back pressure
// is applied to the writers, where it belongs: deciding never waits.
type pressure struct {
	mu   sync.Mutex
	late map[DatabaseID]map[string]time.Time // until when a node's report counts
}

// report replaces what a node said.
func (p *pressure) report(node string, ids []DatabaseID, until time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.late == nil {
		p.late = map[DatabaseID]map[string]time.Time{}
	}
	for id, nodes := range p.late {
		if delete(nodes, node); len(nodes) == 0 {
			delete(p.late, id)
		}
	}
	for _, id := range ids {
		if p.late[id] == nil {
			p.late[id] = map[string]time.Time{}
		}
		p.late[id][node] = until
	}
}

// count returns how many nodes are late with a database.
func (p *pressure) count(id DatabaseID, now time.Time) (n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, until := range p.late[id] {
		if now.Before(until) {
			n++
		}
	}
	return n
}

// slowDown holds a grant back for a while when most of the reachable nodes are late with the database.
func (s *Service) slowDown(ctx context.Context, id DatabaseID) {
	if s.pressure.count(id, s.now()) == 0 {
		return
	}
	reachable := 1
	for _, node := range s.peersLeaderLast() {
		if s.port.Connected(node) {
			reachable++
		}
	}
	for end := s.now().Add(pressureLimit); 2*s.pressure.count(id, s.now()) > reachable && s.now().Before(end); {
		if !s.pauseFor(ctx, pressurePause) {
			return
		}
	}
}

// reportPressure tells the leader which databases this node is late with.
func (s *Service) reportPressure() {
	said := false
	for s.pauseFor(s.ctx, pressureInterval) {
		var ids []DatabaseID
		for _, d := range s.activeReplicas() {
			d.mu.Lock()
			late := len(d.queue) > lateItems || d.queueBytes > lateBytes
			d.mu.Unlock()
			if late {
				ids = append(ids, d.id)
			}
		}
		if len(ids) == 0 && !said {
			continue
		}
		leader, _ := s.leader()
		switch leader {
		case "":
			continue
		case s.opts.NodeID:
			s.pressure.report(leader, ids, s.now().Add(3*pressureInterval))
		default:
			ctx, cancel := context.WithTimeout(s.ctx, time.Second)
			_, err := callJSON[[]DatabaseID, bool](ctx, s, leader, methodPressure, ids)
			cancel()
			if err != nil {
				continue
			}
		}
		said = len(ids) > 0
	}
}

func (s *Service) servePressure(_ context.Context, from string, ids []DatabaseID) (bool, error) {
	s.pressure.report(from, ids, s.now().Add(3*pressureInterval))
	return true, nil
}
