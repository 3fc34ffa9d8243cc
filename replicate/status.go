package replicate

import (
	"context"
	"sync"
	"time"

	"github.com/hashicorp/raft"
)

// Status is what one node knows of itself and its cluster.
type Status struct {
	State     string           `json:"state"` // leader, follower, candidate
	Stale     bool             `json:"stale"` // no leader: reads may be old, writes wait
	Disk      DiskStatus       `json:"disk"`
	Cluster   ClusterStatus    `json:"cluster"`
	Log       LogStatus        `json:"log"`
	Totals    DatabaseTotals   `json:"totals"`
	Databases []DatabaseStatus `json:"databases"`
	More      bool             `json:"more"` // there are further databases after the last one
}

// DatabaseTotals are the sums over all databases on one node.
type DatabaseTotals struct {
	Databases int            `json:"databases"`
	States    map[string]int `json:"states"`
	Handles   int            `json:"handles"`
	WALBytes  int64          `json:"wal_bytes"`
	Lag       uint64         `json:"lag"` // the largest

	BacklogFrames uint64 `json:"backlog_frames"`
	BacklogMS     int64  `json:"backlog_ms"`    // the largest
	ReaderAgeMS   int64  `json:"reader_age_ms"` // the largest
}

// DatabaseQuery chooses databases: at most Limit whose names begin with Prefix and come after After.
type DatabaseQuery struct {
	Prefix, After string
	Limit         int
}

// ClusterStatus is the raft group as this node sees it.
type ClusterStatus struct {
	ID           string         `json:"id"`
	Leader       string         `json:"leader"`
	LeaderHTTP   string         `json:"leader_http"`
	Term         uint64         `json:"term"`
	CommitIndex  uint64         `json:"commit_index"`
	AppliedIndex uint64         `json:"applied_index"`
	LastIndex    uint64         `json:"last_index"`
	Members      []MemberStatus `json:"members"`
	Warnings     []string       `json:"warnings,omitempty"`
}

// MemberStatus is one member.
type MemberStatus struct {
	ID        string `json:"id"`
	Raft      string `json:"raft"`
	HTTP      string `json:"http"`
	Voter     bool   `json:"voter"`
	Reachable bool   `json:"reachable"`
}

// DatabaseStatus is one database on one node.
type DatabaseStatus struct {
	Name     string    `json:"name"`
	ID       string    `json:"id"`
	Decided  Position  `json:"decided"`
	Archived TXID      `json:"archived"`
	File     *Position `json:"file"` // nil while it is not known
	Lag      uint64    `json:"lag"`  // transactions decided and not in the files
	PageSize uint32    `json:"page_size"`
	Pages    uint32    `json:"pages"`
	WALBytes int64     `json:"wal_bytes"`
	// BacklogFrames are in the WAL and not in the database file, BacklogMS for how long there has been a backlog.
	BacklogFrames uint32 `json:"backlog_frames,omitempty"`
	BacklogMS     int64  `json:"backlog_ms,omitempty"`
	// ReaderAgeMS is the age of the oldest read transaction that keeps frames in the WAL, ReaderPID its process.
	ReaderPID   int       `json:"reader_pid,omitempty"`
	ReaderAgeMS int64     `json:"reader_age_ms,omitempty"`
	Handles     int       `json:"handles"`
	Quota       *Quota    `json:"quota,omitempty"` // of this node, nil for none
	State       string    `json:"state"`           // ok, idle, fenced, catching_up, late, ahead, deleted
	Detail      string    `json:"detail,omitempty"`
	HolderPID   int       `json:"holder_pid,omitempty"`
	HolderAgeMS int64     `json:"holder_age_ms,omitempty"`
	CommitTime  time.Time `json:"commit_time"`
	// CatchupPages of CatchupTotal differing pages have come from a peer; 0 and 0 if none are fetched now.
	CatchupPages uint32 `json:"catchup_pages,omitempty"`
	CatchupTotal uint32 `json:"catchup_total,omitempty"`
	// Stale says that this node hears of no leader: reads may be old. Only in the status of a handle; that of a node
	// has it once.
	Stale bool `json:"stale"`
}

// lateAfter is for how long an applier may wait for native slot 0 before status calls the database late.
const lateAfter = time.Second

func (d *replica) status(st DatabaseState) DatabaseStatus {
	d.mu.Lock()
	defer d.mu.Unlock()
	r := DatabaseStatus{
		Name: d.name, ID: d.id.String(), Decided: st.Position, PageSize: d.pageSize, Pages: st.PageCount,
		Handles: len(d.handles), Quota: d.quota, State: "ok", CommitTime: time.UnixMicro(st.CommitTime).UTC(),
	}
	if d.known {
		p := d.position
		r.File = &p
		if p.TXID < st.Position.TXID {
			r.Lag = uint64(st.Position.TXID - p.TXID)
		}
	} else if d.live == nil && d.base == st.Position && !d.unreached && !d.forkingLocked() {
		p := d.base
		r.File = &p
	} else {
		r.Lag = uint64(len(d.queue))
	}
	if d.live != nil {
		if n, err := d.live.WALSize(); err == nil {
			r.WALBytes = n
		}
		now := time.Now()
		if r.BacklogFrames = d.ckpt.backlog; !d.ckpt.since.IsZero() {
			r.BacklogMS = now.Sub(d.ckpt.since).Milliseconds()
		}
		if reader, age, ok := d.ckpt.oldest(); ok {
			r.ReaderPID, r.ReaderAgeMS = reader.pid, age.Milliseconds()
		}
	} else {
		r.State = "idle"
	}
	for h := range d.handles {
		if h.granted {
			r.HolderPID, r.HolderAgeMS = h.opts.PID, time.Since(h.since).Milliseconds()
		}
	}
	switch {
	case d.deleted:
		r.State = "deleted"
	case d.fenced != nil:
		r.State, r.Detail = "fenced", d.fenced.Error()
		if d.healErr != nil {
			r.Detail += "; heal: " + d.healErr.Error()
		}
	case d.stuck != nil:
		r.State, r.Detail = "late", d.stuck.Error()
	case !d.late.IsZero() && time.Since(d.late) > lateAfter:
		r.State, r.Detail = "late", "an application holds the native write lock of this node's copy"
	case d.forkingLocked():
		r.State, r.Detail = "catching_up", "this node's copy of the fork is being made"
	case r.Lag > 0 || d.behind:
		r.State = "catching_up"
	}
	if p := d.progress; p.total > 0 {
		r.CatchupPages, r.CatchupTotal = p.fetched, p.total
		if r.State == "idle" {
			r.State = "catching_up"
		}
	}
	return r
}

// Status describes this node and some of its databases; members are asked whether they answer.
func (s *Service) Status(ctx context.Context, q DatabaseQuery) *Status {
	st := s.LocalStatus()
	st.Databases, st.More = s.Databases(q)
	var wg sync.WaitGroup
	for i := range st.Cluster.Members {
		m := &st.Cluster.Members[i]
		wg.Add(1)
		go func() {
			defer wg.Done()
			m.Reachable = s.reachable(ctx, m.ID)
		}()
	}
	wg.Wait()
	st.Cluster.Warnings = s.warnings(st)
	return st
}

// Databases describes this node's copies of some databases, sorted by name, and says whether more of them follow.
func (s *Service) Databases(q DatabaseQuery) (list []DatabaseStatus, more bool) {
	page, more := s.fsm.Page(q.Prefix, q.After, q.Limit)
	list = make([]DatabaseStatus, 0, len(page))
	for _, st := range page {
		if d, ok := s.replica(st.ID); ok {
			list = append(list, s.statusOf(d, st))
		}
	}
	return list, more
}

// totals adds up the active databases; all others are idle.
func (s *Service) totals() DatabaseTotals {
	t := DatabaseTotals{Databases: s.fsm.Count(), States: map[string]int{}}
	active := 0
	for _, d := range s.activeReplicas() {
		st, ok := s.fsm.Get(d.id)
		if !ok {
			continue
		}
		r := s.statusOf(d, st)
		t.States[r.State]++
		t.Handles += r.Handles
		t.WALBytes += r.WALBytes
		t.Lag = max(t.Lag, r.Lag)
		t.BacklogFrames += uint64(r.BacklogFrames)
		t.BacklogMS = max(t.BacklogMS, r.BacklogMS)
		t.ReaderAgeMS = max(t.ReaderAgeMS, r.ReaderAgeMS)
		active++
	}
	if idle := t.Databases - active; idle > 0 {
		t.States["idle"] += idle
	}
	return t
}

// Database describes this node's copy of one database.
func (s *Service) Database(name string) (DatabaseStatus, bool) {
	st, ok := s.fsm.Lookup(name)
	if !ok {
		return DatabaseStatus{}, false
	}
	d, ok := s.replica(st.ID)
	if !ok {
		return DatabaseStatus{}, false
	}
	return s.statusOf(d, st), true
}

// LocalStatus describes this node without its databases one by one, and without asking the members.
func (s *Service) LocalStatus() *Status {
	leader, term := s.leader()
	cluster := DatabaseID(s.opts.Cluster())
	st := &Status{
		State: stateName(s.raft.State()), Stale: leader == "", Disk: s.Disk(),
		Cluster: ClusterStatus{
			ID: cluster.String(), Leader: leader, Term: term, CommitIndex: s.raft.CommitIndex(), AppliedIndex: s.fsm.Applied(), LastIndex: s.raft.LastIndex(),
		},
		Log: s.logStatus(), Totals: s.totals(), Databases: []DatabaseStatus{},
	}
	for _, srv := range s.servers() {
		m := MemberStatus{ID: string(srv.ID), Raft: string(srv.Address), Voter: srv.Suffrage == raft.Voter}
		if got, ok := s.member(m.ID); ok {
			m.Raft, m.HTTP = got.RaftAddr, got.HTTPAddr
		}
		if m.ID == leader {
			st.Cluster.LeaderHTTP = m.HTTP
		}
		st.Cluster.Members = append(st.Cluster.Members, m)
	}
	return st
}

func stateName(r raft.RaftState) string {
	switch r {
	case raft.Leader:
		return "leader"
	case raft.Candidate:
		return "candidate"
	case raft.Follower:
		return "follower"
	}
	return "stopped"
}

// Ready reports whether this node can serve: it knows a leader and has replayed its log.
func (s *Service) Ready() bool {
	leader, _ := s.leader()
	return leader != "" && s.replayed() && !s.draining.Load()
}

// Lag returns how many transactions this node's files are behind the leader's decided position.
func (h *Handle) Lag(ctx context.Context) (uint64, error) {
	at, _, err := h.svc.readIndex(ctx, h.db.id)
	if err != nil {
		return 0, err
	}
	got, ok := h.Position()
	if !ok || got.TXID >= at.TXID {
		return 0, nil
	}
	return uint64(at.TXID - got.TXID), nil
}

// Status describes the handle's database on this node.
func (h *Handle) Status() (DatabaseStatus, bool) {
	st, ok := h.svc.fsm.Get(h.db.id)
	if !ok {
		return DatabaseStatus{}, false
	}
	r := h.svc.statusOf(h.db, st)
	leader, _ := h.svc.leader()
	r.Stale = leader == ""
	return r, true
}

// statusOf is the status of a copy, and how far its archive is.
func (s *Service) statusOf(d *replica, st DatabaseState) DatabaseStatus {
	r := d.status(st)
	// A leader has decided what files can have. Its own are behind that, or where it is.
	if _, leads := s.leading(); leads && r.State == "ok" && r.File != nil {
		if now, ok := s.fsm.Get(d.id); ok && r.File.TXID > now.Position.TXID {
			r.State, r.Detail = "ahead", ErrAhead.Error()
		}
	}
	r.Archived = s.ArchivedPosition(st.ID)
	return r
}
