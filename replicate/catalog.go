package replicate

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// catalogRequest creates or deletes a database, on its way to the leader.
type catalogRequest struct {
	Op         string     `json:"op"` // create, delete
	Name       string     `json:"name"`
	ID         DatabaseID `json:"id"`
	PageSize   uint32     `json:"page_size,omitempty"`
	AutoVacuum uint8      `json:"auto_vacuum,omitempty"`
	Force      bool       `json:"force,omitempty"`
	At         Position   `json:"at,omitzero"`
}

type catalogReply struct {
	ID      DatabaseID `json:"id"`
	Index   uint64     `json:"index"`
	Created bool       `json:"created"`
}

// DefaultPageSize is SQLite's own.
const DefaultPageSize = 4096

// Lookup returns a database by its name.
func (s *Service) Lookup(name string) (DatabaseState, bool) { return s.fsm.Lookup(name) }

// Resolve returns the id and the path that a name has or, if there is no such database, will have.
func (s *Service) Resolve(name string) (id DatabaseID, path string, exists bool, err error) {
	if err := ValidateName(name); err != nil {
		return id, "", false, &kindError{err, ErrInvalid}
	}
	if st, ok := s.fsm.Lookup(name); ok {
		return st.ID, s.databasePath(st.ID), true, nil
	}
	id, incarnation := s.fsm.NextID(s.opts.Cluster(), name)
	if !s.replayed() {
		if found, ok := s.provisional(name, incarnation); ok {
			return found, s.databasePath(found), true, nil
		}
	}
	return id, s.databasePath(id), false, nil
}

// maxIncarnationsAhead bounds the search for the files of a name that was deleted and created again since
// the last snapshot.
const maxIncarnationsAhead = 16

// provisional finds a database by its files while the log is not replayed: the state machine learns of it only
// when a leader confirms the log. It can be read, as stale as it may be (RULES A3). Files with content exist
// only for databases whose creation was decided.
func (s *Service) provisional(name string, incarnation uint64) (DatabaseID, bool) {
	for n := incarnation + maxIncarnationsAhead; n+1 > incarnation; n-- {
		id := NewDatabaseID(s.opts.Cluster(), name, n)
		if _, _, gone := s.fsm.Tombstone(id); gone {
			continue
		}
		if st, err := s.files.Stat(s.databasePath(id)); err != nil || st.SizeBytes == 0 {
			continue
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.replayed() { // decided meanwhile: the caller asks again
			return id, s.replicas[id] != nil
		}
		if s.replicas[id] == nil {
			d := newReplica(s, DatabaseState{ID: id, Name: name})
			d.provisional = true
			s.replicas[id] = d
			d.mu.Lock()
			d.listLocked()
			d.mu.Unlock()
		}
		return id, true
	}
	return DatabaseID{}, false
}

// adopt makes a provisional replica the one of a database that is decided now.
func (d *replica) adopt(st DatabaseState) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.provisional {
		d.provisional = false
		d.pageSize, d.autoVacuum = st.PageSize, st.AutoVacuum
		d.base, d.decided = st.Position, st.Position
	}
}

// dropProvisional ends what was found by its files and is no database of the replayed log.
func (s *Service) dropProvisional() {
	for _, d := range s.activeReplicas() {
		d.mu.Lock()
		lost := d.provisional
		d.mu.Unlock()
		if lost {
			d.enqueue(item{deleted: true})
		}
	}
}

// Create makes a database with the given name if there is none, and returns once this node has decided it. Its files
// are made when somebody uses it, of what the log says alone.
// want, if not zero, is the id that the caller's path is made of; another id is a conflict.
func (s *Service) Create(ctx context.Context, name string, want DatabaseID, pageSize uint32, autoVacuum uint8) (DatabaseState, bool, error) {
	none := DatabaseState{}
	if err := ValidateName(name); err != nil {
		return none, false, &kindError{err, ErrInvalid}
	}
	if pageSize == 0 {
		pageSize = DefaultPageSize
	}
	if pageSize < 512 || pageSize > 65536 || pageSize&(pageSize-1) != 0 {
		return none, false, fmt.Errorf("create database %q: page size %d is not a power of two from 512 to 65536: %w", name, pageSize, ErrInvalid)
	}
	if autoVacuum > 2 {
		return none, false, fmt.Errorf("create database %q: auto_vacuum %d is not 0, 1 or 2: %w", name, autoVacuum, ErrInvalid)
	}
	reply, err := onLeader(ctx, s, methodCatalog, catalogRequest{Op: "create", Name: name, ID: want, PageSize: pageSize, AutoVacuum: autoVacuum}, s.leaderCatalog)
	if err != nil {
		return none, false, fmt.Errorf("create database %q: %w", name, err)
	}
	if err := s.fsm.WaitIndex(ctx, reply.Index); err != nil {
		return none, false, fmt.Errorf("create database %q: wait for this node: %w", name, err)
	}
	st, ok := s.fsm.Get(reply.ID)
	if !ok {
		return none, false, fmt.Errorf("create database %q: %w", name, ErrDeleted)
	}
	return st, reply.Created, nil
}

// Delete removes a database on all nodes. Without force it is refused while any handle is open, or while a
// member that could have one cannot be asked (RULES B12).
func (s *Service) Delete(ctx context.Context, name string, force bool) error {
	st, ok := s.fsm.Lookup(name)
	if !ok {
		// This node may be late.
		if err := s.CatchUp(ctx); err != nil {
			return err
		}
		if st, ok = s.fsm.Lookup(name); !ok {
			return fmt.Errorf("delete database %q: %w", name, ErrNotFound)
		}
	}
	return s.delete(ctx, catalogRequest{Op: "delete", Name: name, ID: st.ID, Force: force})
}

// DeleteAt removes a database that is at a position still, and that nobody has open.
func (s *Service) DeleteAt(ctx context.Context, name string, id DatabaseID, at Position) error {
	return s.delete(ctx, catalogRequest{Op: "delete", Name: name, ID: id, At: at})
}

func (s *Service) delete(ctx context.Context, q catalogRequest) error {
	reply, err := onLeader(ctx, s, methodCatalog, q, s.leaderCatalog)
	if err != nil {
		return fmt.Errorf("delete database %q: %w", q.Name, err)
	}
	return s.fsm.WaitIndex(ctx, reply.Index)
}

func (s *Service) leaderCatalog(ctx context.Context, q catalogRequest) (catalogReply, error) {
	if _, ok := s.leading(); !ok {
		return catalogReply{}, ErrNotLeader
	}
	switch q.Op {
	case "create":
		return s.leaderCreate(ctx, q)
	case "delete":
		return s.leaderDelete(ctx, q)
	}
	return catalogReply{}, fmt.Errorf("catalogue change %q: %w", q.Op, ErrInvalid)
}

func (s *Service) leaderCreate(ctx context.Context, q catalogRequest) (catalogReply, error) {
	if st, ok := s.fsm.Lookup(q.Name); ok {
		if q.ID != (DatabaseID{}) && q.ID != st.ID {
			return catalogReply{}, fmt.Errorf("the name has id %s, not %s: open it again: %w", st.ID, q.ID, ErrConflict)
		}
		return catalogReply{ID: st.ID, Index: s.fsm.Applied()}, nil
	}
	if err := s.diskFull(); err != nil {
		return catalogReply{}, err
	}
	id, incarnation := s.fsm.NextID(s.opts.Cluster(), q.Name)
	if q.ID != (DatabaseID{}) && q.ID != id {
		return catalogReply{}, fmt.Errorf("the name will have id %s, not %s: open it again: %w", id, q.ID, ErrConflict)
	}
	done, err := s.quotas.admit(q.Name)
	if err != nil {
		return catalogReply{}, err
	}
	defer done()
	entry, err := EncodeCreate(nil, &Create{
		ID: id, Name: q.Name, Incarnation: incarnation, PageSize: q.PageSize, AutoVacuum: q.AutoVacuum, CommitTime: s.now().UnixMicro(),
	})
	if err != nil {
		return catalogReply{}, err
	}
	dec, err := s.propose(ctx, entry)
	if err != nil {
		return catalogReply{}, err
	}
	if !dec.Accepted && dec.ID == (DatabaseID{}) {
		return catalogReply{}, fmt.Errorf("refused at log index %d: %s: %w", dec.Index, dec.Reason, ErrConflict)
	}
	return catalogReply{ID: dec.ID, Index: dec.Index, Created: dec.Accepted}, nil
}

func (s *Service) leaderDelete(ctx context.Context, q catalogRequest) (catalogReply, error) {
	if _, ok := s.fsm.Get(q.ID); !ok {
		return catalogReply{}, ErrNotFound
	}
	if !q.Force {
		for _, srv := range s.servers() {
			id := string(srv.ID)
			n, err := s.handlesOn(ctx, id, q.ID)
			if err != nil {
				return catalogReply{}, fmt.Errorf("node %s cannot be asked for open handles (%v); force deletes all the same: %w", id, err, ErrConflict)
			}
			if n > 0 {
				return catalogReply{}, fmt.Errorf("node %s has %d open handles; force deletes all the same: %w", id, n, ErrConflict)
			}
		}
	}
	entry, err := EncodeDelete(nil, &Delete{DB: q.ID, CommitTime: s.now().UnixMicro(), At: q.At})
	if err != nil {
		return catalogReply{}, err
	}
	dec, err := s.propose(ctx, entry)
	if err != nil {
		return catalogReply{}, err
	}
	if !dec.Accepted {
		why := ErrNotFound
		if dec.Position != (Position{}) { // it is there
			why = ErrConflict
		}
		return catalogReply{}, fmt.Errorf("refused at log index %d: %s: %w", dec.Index, dec.Reason, why)
	}
	return catalogReply{ID: q.ID, Index: dec.Index}, nil
}

func (s *Service) handlesOn(ctx context.Context, node string, id DatabaseID) (int, error) {
	if node == s.opts.NodeID {
		return s.localHandles(ctx, id)
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	return callJSON[DatabaseID, int](ctx, s, node, methodHandles, id)
}

func (s *Service) localHandles(_ context.Context, id DatabaseID) (int, error) {
	d, ok := s.replica(id)
	if !ok {
		return 0, nil
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.handles), nil
}

// reclaim tells a new leader of the write locks that handles of this node hold (RULES B19): whose base still
// is the decided position goes on.
func (s *Service) reclaim(leader string) {
	for _, d := range s.activeReplicas() {
		d.mu.Lock()
		var holder *Handle
		for h := range d.handles {
			if h.granted {
				holder = h
			}
		}
		d.mu.Unlock()
		if holder != nil {
			holder.reclaim(leader)
		}
	}
}

// reclaim tells a new leader that the handle holds the write lock. Whatever gives that back waits, or it might get there
// first; where a commit that is decided meanwhile ends the lock, it is given back all the same.
func (h *Handle) reclaim(leader string) {
	s, d := h.svc, h.db
	h.reserveMu.Lock()
	defer h.reserveMu.Unlock()
	if !h.held {
		return
	}
	h.reclaimed = true
	if leader == s.opts.NodeID {
		if err := s.locks.Reregister(d.id, Owner{s.opts.NodeID, h.num}); err != nil {
			s.log.Debug("register a write lock", "err", err)
		}
		return
	}
	req := binary.LittleEndian.AppendUint64(append(make([]byte, 0, 24), d.id[:]...), h.num)
	ctx, cancel := context.WithTimeout(s.ctx, 2*time.Second)
	defer cancel()
	if _, err := s.port.Call(ctx, leader, methodReclaim, req); err != nil {
		s.log.Debug("register a write lock with the new leader", "err", err)
	}
}

func (s *Service) serveReclaim(_ context.Context, from string, req []byte) ([]byte, error) {
	if len(req) != 24 {
		return nil, fmt.Errorf("reclaim request of %d bytes, want 24", len(req))
	}
	if _, ok := s.leading(); !ok {
		return nil, ErrNotLeader
	}
	return nil, s.locks.Reregister(DatabaseID(req[:16]), Owner{Node: from, Handle: binary.LittleEndian.Uint64(req[16:])})
}

// Verification is one node's state of a database at one position, computed from bytes read back.
type Verification struct {
	Node     string   `json:"node"`
	Position Position `json:"position"`
	Checksum Checksum `json:"checksum"` // of the bytes
	Pages    uint32   `json:"pages"`
	PageSize uint32   `json:"page_size"`
	Sums     []uint64 `json:"sums,omitempty"` // by page number minus one, with Deep
	Err      string   `json:"error,omitempty"`
	Fenced   bool     `json:"fenced,omitempty"`
}

type verifyRequest struct {
	ID   DatabaseID `json:"id"`
	At   TXID       `json:"at"`
	Deep bool       `json:"deep"`
}

// Verify compares a database on all members at one decided position, page by page if deep. Writes wait
// while the nodes pin that position, not while they read.
func (s *Service) Verify(ctx context.Context, name string, deep bool) ([]Verification, error) {
	st, ok := s.fsm.Lookup(name)
	if !ok {
		return nil, fmt.Errorf("verify database %q: %w", name, ErrNotFound)
	}
	handle := s.handleSeq.Add(1)
	lctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	at, err := s.acquire(lctx, st.ID, handle)
	cancel()
	if err != nil {
		s.releaseLock(st.ID, handle)
		return nil, fmt.Errorf("verify database %q: hold its writers for a moment: %w", name, err)
	}
	// The lock is held until every node has said that it is pinned, or for ten seconds.
	servers := s.servers()
	results := make([]Verification, len(servers))
	pinned := make(chan struct{}, len(servers))
	finished := make(chan struct{})
	ctx, cancel = context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(s.ctx, cancel)()
	for i, srv := range servers {
		go func() {
			results[i] = s.verifyOn(ctx, string(srv.ID), verifyRequest{st.ID, at.TXID, deep}, pinned)
			finished <- struct{}{}
		}()
	}
	release := time.After(10 * time.Second)
	for waiting, held := len(servers), len(servers); waiting > 0; {
		select {
		case <-pinned:
			if held--; held == 0 {
				s.releaseLock(st.ID, handle)
			}
		case <-release:
			if held > 0 {
				held = -1
				s.releaseLock(st.ID, handle)
			}
		case <-finished:
			waiting--
		}
	}
	slices.SortFunc(results, func(a, b Verification) int { return strings.Compare(a.Node, b.Node) })
	return results, nil
}

// verifyOn asks one node. The node answers twice: when it has pinned the position, and with the sums.
func (s *Service) verifyOn(ctx context.Context, node string, q verifyRequest, pinned chan<- struct{}) Verification {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	told := false
	tell := func() {
		if !told {
			told = true
			pinned <- struct{}{}
		}
	}
	defer tell()
	var v *Verification
	var err error
	if node == s.opts.NodeID {
		v, err = s.localVerify(ctx, q, tell)
	} else {
		v, err = s.remoteVerify(ctx, node, q, tell)
	}
	if err != nil {
		return Verification{Node: node, Err: err.Error(), Fenced: errors.Is(err, ErrFenced)}
	}
	return *v
}

func (s *Service) remoteVerify(ctx context.Context, node string, q verifyRequest, pinned func()) (*Verification, error) {
	req, err := json.Marshal(q)
	if err != nil {
		return nil, err
	}
	stream, err := s.port.Stream(ctx, node, methodVerify, req)
	if err != nil {
		return nil, remoteError(err)
	}
	defer stream.Close()
	var mark [1]byte
	if _, err := io.ReadFull(stream, mark[:]); err != nil {
		return nil, remoteError(err)
	}
	pinned()
	var v Verification
	if err := json.NewDecoder(stream).Decode(&v); err != nil {
		return nil, remoteError(err)
	}
	return &v, nil
}

func (s *Service) serveVerify(ctx context.Context, _ string, req []byte, w io.Writer) error {
	var q verifyRequest
	if err := json.Unmarshal(req, &q); err != nil {
		return &kindError{err, ErrInvalid}
	}
	var werr error
	v, err := s.localVerify(ctx, q, func() { _, werr = w.Write([]byte{1}) })
	if err = errors.Join(err, werr); err != nil {
		return err
	}
	return json.NewEncoder(w).Encode(v)
}

// localVerify reads this node's copy at position q.At or, if it has gone past it, later.
func (s *Service) localVerify(ctx context.Context, q verifyRequest, pinned func()) (*Verification, error) {
	d, ok := s.replica(q.ID)
	if !ok {
		return nil, ErrNotFound
	}
	if err := s.waitFork(ctx, d); err != nil {
		return nil, err
	}
	wctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	snap, pos, err := d.pin(wctx, q.At)
	if err != nil {
		return nil, err
	}
	defer snap.Close()
	pinned()
	sums, sum, err := readSums(snap, d.pageSize)
	if err != nil {
		return nil, err
	}
	if sum != pos.Checksum {
		d.fence(fmt.Errorf("verify: checksum %s instead of %s: %w", sum, pos, errForeign))
	}
	v := &Verification{Node: s.opts.NodeID, Position: pos, Checksum: sum, Pages: uint32(len(sums)), PageSize: d.pageSize}
	if q.Deep {
		v.Sums = sums
	}
	return v, nil
}

// CatchUp waits until this node has decided everything that was committed before the call.
func (s *Service) CatchUp(ctx context.Context) error {
	_, index, err := s.readIndex(ctx, DatabaseID{})
	if err != nil {
		return err
	}
	return s.fsm.WaitIndex(ctx, index)
}

// HasFiles reports whether the path belongs to a database that this node knows.
func (s *Service) HasFiles(path string) bool {
	id, err := ParseDatabaseID(filepath.Base(filepath.Dir(path)))
	if err != nil {
		return false
	}
	d, ok := s.replica(id)
	return ok && d.path == path
}
