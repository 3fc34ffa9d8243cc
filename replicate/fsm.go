package replicate

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"

	"github.com/hashicorp/raft"

	"github.com/uglyer/ha-sqlite/snapshot"
	"github.com/uglyer/ha-sqlite/wal"
)

const (
	// acceptedWindow is how many of the last transactions of a database keep
	// their entry ids, for verdicts asked late.
	acceptedWindow = 1024

	// acceptedHorizon is after how many further log entries they are forgotten: ten thousand databases that were
	// busy once would keep 32 KiB each. No verdict is asked that late.
	acceptedHorizon = 1 << 18

	// rejectedWindow is how many rejected entry ids are kept, of all databases.
	rejectedWindow = 1024

	maxMembers = 1024
)

// ErrStopped is returned once the FSM met an entry that it cannot decide. The
// node must be stopped.
var ErrStopped = errors.New("state machine stopped")

// Decision is what deciding one entry came to; raft's Apply future returns it
// as a *Decision.
type Decision struct {
	Kind     Kind
	DB       DatabaseID
	Accepted bool
	Reason   string     // why not accepted, for people
	Position Position   // decided position of DB after the entry
	Index    uint64     // of the entry in the raft log
	Term     uint64     // of the entry in the raft log
	ID       DatabaseID // create: the database that has the name now, also where it existed before
}

// Sink hears what was decided, in log order, from the goroutine that applies
// the log. Methods must not block. They may call the FSM's methods except those
// that wait; what they are told is decided already, but no waiter and no caller
// of raft has been told before them.
type Sink interface {
	Created(index uint64, d DatabaseState)
	// Accepted passes a transaction whose LTX aliases the log entry's bytes:
	// valid for ever, not to be changed.
	Accepted(index uint64, t *Transaction)
	// Part passes a part of a large transaction, which was as before says. data
	// aliases the log entry's bytes.
	Part(index uint64, before Running, data []byte)
	// AcceptedLarge passes a transaction whose parts came before.
	AcceptedLarge(index uint64, f *Final)
	// Dropped says that large transactions ended without being accepted.
	Dropped(index uint64, ids []EntryID)
	Deleted(index uint64, id DatabaseID)
	TermStarted(index, term uint64)
	MemberChanged(Member)
	// ForkBegun says that a database is to be made of a state of another: the one that this has now, or a past
	// one. ForkReady says that it can be used.
	ForkBegun(index uint64, st DatabaseState, past bool)
	ForkReady(index uint64, st DatabaseState)
	// Archived passes positions as the entry has them, also of databases that are
	// deleted.
	Archived(index uint64, e *Archived)
	// Stop is called at most once: the log holds an entry that this program
	// cannot decide. No further entry is decided.
	Stop(err error)
}

// DatabaseState is what the log says about a database.
type DatabaseState struct {
	ID           DatabaseID
	Name         string
	Incarnation  uint64
	PageSize     uint32 // bytes
	PageCount    uint32 // pages after Position
	AutoVacuum   uint8  // as created
	Position     Position
	CommitTime   int64  // of Position, microseconds since 1970
	LastIndex    uint64 // raft index of the entry that led to Position
	CreatedIndex uint64 // raft index of the create entry
	CreatedTime  int64  // microseconds since 1970
	// Source is the database of whose state this one is a fork, zero for none: its first transaction is not the empty
	// image. Pending says that its copies are still being made: nothing is written into it, and nobody opens it.
	Source   DatabaseID
	Pending  bool
	Archived TXID // last transaction known to be in the archive that FSM.Archive names
}

// Tombstone is what is left of a deleted database.
type Tombstone struct {
	ID    DatabaseID
	Name  string
	Index uint64 // raft index of the delete entry
}

// PersistHook is called before a manifest is written and returns once every
// database in it is durable here at its position (RULES A5). An error abandons
// the snapshot, and nothing is compacted.
type PersistHook func(ctx context.Context, states []DatabaseState) error

// RestoreHook is called after a manifest replaced the state and returns once the
// files have caught up with it. On an error the former state is put back.
type RestoreHook func(states []DatabaseState) error

// SpoolHooks keep the bytes of large transactions with the state that lists
// them (RULES A8). Each may be nil.
type SpoolHooks struct {
	// Listed hears, from the goroutine that applies the log, what a manifest
	// that is about to be written lists.
	Listed func(running []Running)
	// Persist returns once the parts that a manifest lists are durable here.
	Persist func(ctx context.Context, running []Running) error
	// Persisted says that the manifest of the state at a raft index is durable.
	Persisted func(index uint64)
	// Restore returns once the parts that a manifest lists are here, or are
	// sure to be fetched before they are needed.
	Restore func(running []Running) error
}

// FSM decides the entries of the raft log. It implements raft.FSM and
// raft.ConfigurationStore.
//
// Invariants:
//  1. State and decisions are a function of the entries alone.
//  2. Apply does no input or output and waits for nobody.
//  3. An entry that cannot be decoded is never skipped: the FSM stops.
type FSM struct {
	// Set before raft starts, not changed afterwards. Both may be nil.
	OnPersist PersistHook
	OnRestore RestoreHook
	Spools    SpoolHooks

	sink   Sink
	log    *slog.Logger
	ctx    context.Context // of OnPersist, ends with Close
	cancel context.CancelFunc

	mu      sync.RWMutex
	s       *state
	stopped error
	wait    waiters
}

// state is everything that the log decides. A manifest holds all of it.
type state struct {
	cluster        [16]byte // zero until a term start names it
	applied        uint64   // raft index of the last entry seen
	term           uint64   // highest term whose start is decided
	termIndex      uint64   // of that term start
	clusterVersion uint8
	archive        uint64 // which the archived positions are about
	byID           map[DatabaseID]*database
	byName         map[string]*database
	names          nameIndex // of byName
	tombstones     map[DatabaseID]Tombstone
	incarnations   map[string]uint64 // deleted databases of the name
	members        map[string]Member
	rejected       rejectedRing
	running        map[EntryID]*Running
	pending        map[DatabaseID]*database // forks that are being made
}

type database struct {
	DatabaseState
	accepted acceptedRing
}

// mayHaveAccepted reports whether t was accepted before the entry at index, so that this is a second copy of it, or
// whether that is not known any more. Such a one is not kept as rejected: its writer may have been told the contrary.
func (db *database) mayHaveAccepted(t *Transaction, index uint64) bool {
	next := t.Pre.TXID + 1
	if db == nil || next <= 1 || next > db.Position.TXID { // transaction 1 is the creation
		return false
	}
	e, ok := db.accepted.at(next, db.Position.TXID, index)
	return !ok || e.id == t.ID
}

func newState() *state {
	return &state{
		clusterVersion: 1,
		byID:           make(map[DatabaseID]*database),
		byName:         make(map[string]*database),
		tombstones:     make(map[DatabaseID]Tombstone),
		incarnations:   make(map[string]uint64),
		members:        make(map[string]Member),
		running:        make(map[EntryID]*Running),
		pending:        make(map[DatabaseID]*database),
	}
}

// NewFSM returns an FSM for an empty log. sink may be nil.
func NewFSM(sink Sink, log *slog.Logger) *FSM {
	if sink == nil {
		sink = noSink{}
	}
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	f := &FSM{sink: sink, log: log, s: newState()}
	f.ctx, f.cancel = context.WithCancel(context.Background())
	return f
}

// Close cancels a manifest that is being persisted. Waiters end by their own
// contexts.
func (f *FSM) Close() { f.cancel() }

// Apply decides one committed entry and returns a *Decision.
func (f *FSM) Apply(l *raft.Log) any {
	d := &Decision{Index: l.Index, Term: l.Term}
	if l.Type != raft.LogCommand {
		f.finish(l.Index, nil)
		return d
	}
	var e any
	var err error
	if len(l.Data) > 1 && l.Data[1] == byte(KindTransaction) {
		t := new(Transaction)
		err, e = decodeTransaction(l.Data, t), t
	} else {
		e, err = Decode(l.Data)
	}
	if err == nil {
		if v, ok := e.(*Version); ok && v.Cluster > CodecVersion {
			err = fmt.Errorf("cluster version %d, this program knows up to %d: %w", v.Cluster, CodecVersion, ErrNewerVersion)
		}
	}

	f.mu.Lock()
	if f.stopped != nil || err != nil {
		first := f.stopped == nil
		if first {
			f.stopped = fmt.Errorf("decide log entry %d of term %d: %w", l.Index, l.Term, err)
		}
		err = f.stopped
		f.mu.Unlock()
		d.Reason = fmt.Sprintf("%v: %v", ErrStopped, err)
		if first {
			f.log.Error("state machine stopped, this node cannot go on with its log", "index", l.Index, "term", l.Term, "err", err)
			f.sink.Stop(err)
		}
		return d
	}
	tell := f.s.decide(e, d)
	f.mu.Unlock()

	if tell != nil {
		tell(f.sink)
	}
	f.finish(l.Index, d)
	return d
}

// StoreConfiguration counts an entry that changes raft's members as seen; it
// implements raft.ConfigurationStore.
func (f *FSM) StoreConfiguration(index uint64, _ raft.Configuration) { f.finish(index, nil) }

// finish makes the entry visible to those who wait.
func (f *FSM) finish(index uint64, d *Decision) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.stopped != nil {
		return
	}
	f.s.applied = max(f.s.applied, index)
	f.wait.indexReached(f.s.applied)
	switch {
	case d == nil:
	case d.Kind == KindTermStart:
		f.wait.reviewAll(f.s)
	case d.Kind == KindDelete && d.Accepted:
		f.wait.deleted(f.s, d.DB, d.Index)
	case d.Kind == KindPart && d.Accepted:
	case d.Kind == KindTransaction, d.Kind == KindDelete, d.Kind == KindCreate, d.Kind == KindPart, d.Kind == KindFinal:
		f.wait.review(f.s, d.DB)
	}
}

// decide changes the state by one entry, fills in d and returns what the sink
// is to be told.
func (s *state) decide(e any, d *Decision) func(Sink) {
	switch e := e.(type) {
	case *Transaction:
		d.Kind = KindTransaction
		return s.transaction(e, d)
	case *TermStart:
		d.Kind = KindTermStart
		return s.termStart(e, d)
	case *Create:
		d.Kind = KindCreate
		return s.create(e, d)
	case *Delete:
		d.Kind = KindDelete
		return s.delete(e, d)
	case *Member:
		d.Kind = KindMember
		return s.member(e, d)
	case *Version:
		d.Kind = KindVersion
		s.version(e, d)
		return nil
	case *Part:
		d.Kind = KindPart
		return s.part(e, d)
	case *Final:
		d.Kind = KindFinal
		return s.final(e, d)
	case *ForkBegin:
		d.Kind = KindForkBegin
		return s.forkBegin(e, d)
	case *ForkReady:
		d.Kind = KindForkReady
		return s.forkReady(e, d)
	case *Archived:
		d.Kind = KindArchived
		return s.archived(e, d)
	}
	panic(fmt.Sprintf("decide entry of type %T", e))
}

func (s *state) transaction(t *Transaction, d *Decision) func(Sink) {
	d.DB = t.DB
	db := s.byID[t.DB]
	if db != nil {
		d.Position = db.Position
	}
	if reason := s.refusal(t, db, d.Term); reason != "" {
		d.Reason = reason
		if !db.mayHaveAccepted(t, d.Index) {
			s.rejected.add(t.ID, d.Index)
		}
		return nil
	}
	dropped := s.accept(db, t, d)
	return func(sink Sink) {
		sink.Accepted(d.Index, t)
		tellDropped(sink, d.Index, dropped)
	}
}

// accept moves db to the state after t and returns the large transactions that
// were based on the state before: they can never be accepted any more.
func (s *state) accept(db *database, t *Transaction, d *Decision) (dropped []EntryID) {
	db.accepted.add(acceptedEntry{id: t.ID, checksum: t.Post.Checksum, index: d.Index})
	db.Position = t.Post
	db.PageCount = t.PageCount
	db.CommitTime = t.CommitTime
	db.LastIndex = d.Index
	d.Accepted = true
	d.Position = t.Post
	if len(s.running) == 0 {
		return nil
	}
	return s.dropRunning(func(r *Running) bool { return r.DB == t.DB })
}

// refusal says why t cannot be accepted now, or nothing.
func (s *state) refusal(t *Transaction, db *database, term uint64) string {
	if db == nil {
		if g, ok := s.tombstones[t.DB]; ok {
			return fmt.Sprintf("database %s (%q) was deleted", t.DB, g.Name)
		}
		return fmt.Sprintf("database %s does not exist", t.DB)
	}
	switch {
	case db.Pending:
		return fmt.Sprintf("database %q is being made", db.Name)
	case t.Term != term:
		return fmt.Sprintf("proposed in term %d, committed in term %d", t.Term, term)
	case t.Pre != db.Position:
		return fmt.Sprintf("based on position %v, the database is at %v", t.Pre, db.Position)
	case t.ID.IsZero():
		return "it has no entry id"
	}
	if _, ok := s.rejected.find(t.ID); ok {
		return fmt.Sprintf("entry %s was rejected before", t.ID)
	}
	if reason := s.numbersRefusal(t, db); reason != "" {
		return reason
	}
	h, err := snapshot.PeekHeader(t.LTX)
	switch {
	case err != nil:
		return err.Error()
	case h.PageSize != t.PageSize || h.PageCount != t.PageCount || h.TXID != uint64(t.Post.TXID) || h.CommitTimeMillis != commitTimeMillis(t.CommitTime):
		return fmt.Sprintf("LTX header (page size %d, %d pages, transaction %v, time %d ms) differs from the entry",
			h.PageSize, h.PageCount, TXID(h.TXID), h.CommitTimeMillis)
	}
	return ""
}

// numbersRefusal looks at what a transaction says about itself.
func (s *state) numbersRefusal(t *Transaction, db *database) string {
	switch {
	case t.Post.TXID != t.Pre.TXID+1:
		return fmt.Sprintf("transaction %v does not follow %v", t.Post.TXID, t.Pre.TXID)
	case uint64(t.Post.Checksum)&snapshot.ChecksumFlag == 0:
		return fmt.Sprintf("checksum %v is not one", t.Post.Checksum)
	case t.PageSize != db.PageSize:
		return fmt.Sprintf("page size %d, the database has %d", t.PageSize, db.PageSize)
	case t.PageCount == 0:
		return "it leaves a database of 0 pages"
	case t.CommitTime <= db.CommitTime:
		return fmt.Sprintf("commit time %d is not after %d", t.CommitTime, db.CommitTime)
	}
	return ""
}

func (s *state) termStart(e *TermStart, d *Decision) func(Sink) {
	if s.cluster == ([16]byte{}) {
		s.cluster = e.Cluster
	}
	if d.Term <= s.term {
		d.Reason = fmt.Sprintf("term %d has started already", s.term)
		return nil
	}
	s.term, s.termIndex = d.Term, d.Index
	d.Accepted = true
	// The definite refusal of what earlier terms left unfinished (RULES A8).
	dropped := s.dropRunning(func(r *Running) bool { return r.Term < d.Term })
	return func(sink Sink) {
		tellDropped(sink, d.Index, dropped)
		sink.TermStarted(d.Index, d.Term)
	}
}

func (s *state) create(e *Create, d *Decision) func(Sink) {
	d.DB = e.ID
	if db := s.byName[e.Name]; db != nil {
		d.ID, d.Position = db.ID, db.Position
		d.Reason = fmt.Sprintf("database %q exists", e.Name)
		return nil
	}
	if reason := s.createRefusal(e); reason != "" {
		d.Reason = reason
		return nil
	}
	empty, err := emptyPosition(e.PageSize, e.AutoVacuum)
	if err != nil {
		d.Reason = err.Error()
		return nil
	}
	db := &database{DatabaseState: DatabaseState{
		ID:           e.ID,
		Name:         e.Name,
		Incarnation:  e.Incarnation,
		PageSize:     e.PageSize,
		PageCount:    1,
		AutoVacuum:   e.AutoVacuum,
		Position:     empty,
		CommitTime:   e.CommitTime,
		LastIndex:    d.Index,
		CreatedIndex: d.Index,
		CreatedTime:  e.CommitTime,
	}}
	s.addDatabase(db)
	d.Accepted = true
	d.ID, d.Position = db.ID, db.Position
	created := db.DatabaseState
	return func(sink Sink) { sink.Created(d.Index, created) }
}

// emptyPosition is that of a database that nobody has written.
func emptyPosition(pageSize uint32, autoVacuum uint8) (Position, error) {
	image, err := wal.EmptyDatabase(pageSize, autoVacuum)
	if err != nil {
		return Position{}, err
	}
	return Position{TXID: 1, Checksum: Checksum(snapshot.Roll(snapshot.ChecksumFlag, snapshot.PageSum(1, image)))}, nil
}

func (s *state) createRefusal(e *Create) string {
	if err := ValidateName(e.Name); err != nil {
		return err.Error()
	}
	if !snapshot.ValidPageSize(e.PageSize) {
		return fmt.Sprintf("page size %d", e.PageSize)
	}
	if e.AutoVacuum > 2 {
		return fmt.Sprintf("auto_vacuum %d", e.AutoVacuum)
	}
	if g, ok := s.tombstones[e.ID]; ok {
		return fmt.Sprintf("database %s (%q) was deleted", e.ID, g.Name)
	}
	if other := s.byID[e.ID]; other != nil || e.ID.IsZero() {
		return fmt.Sprintf("id %s is not free", e.ID)
	}
	if want := s.incarnations[e.Name]; e.Incarnation != want {
		return fmt.Sprintf("incarnation %d of %q, expected %d", e.Incarnation, e.Name, want)
	}
	if s.cluster != ([16]byte{}) {
		if want := NewDatabaseID(s.cluster, e.Name, e.Incarnation); e.ID != want {
			return fmt.Sprintf("id %s for %q, expected %s", e.ID, e.Name, want)
		}
	}
	return ""
}

func (s *state) delete(e *Delete, d *Decision) func(Sink) {
	d.DB = e.DB
	db := s.byID[e.DB]
	if db == nil {
		if g, ok := s.tombstones[e.DB]; ok {
			d.Reason = fmt.Sprintf("database %s (%q) was deleted", e.DB, g.Name)
		} else {
			d.Reason = fmt.Sprintf("database %s does not exist", e.DB)
		}
		return nil
	}
	d.Position = db.Position
	if e.At != (Position{}) && e.At != db.Position {
		d.Reason = fmt.Sprintf("database %q is at %s, not at %s any more", db.Name, db.Position, e.At)
		return nil
	}
	if fork := s.forkOf(db.ID); fork != nil { // some node may need what it has
		d.Reason = fmt.Sprintf("database %q is being forked into %q", db.Name, fork.Name)
		return nil
	}
	delete(s.pending, db.ID)
	delete(s.byID, db.ID)
	delete(s.byName, db.Name)
	s.names.remove(db.Name)
	s.incarnations[db.Name]++
	s.tombstones[db.ID] = Tombstone{ID: db.ID, Name: db.Name, Index: d.Index}
	dropped := s.dropRunning(func(r *Running) bool { return r.DB == e.DB })
	d.Accepted = true
	return func(sink Sink) {
		tellDropped(sink, d.Index, dropped)
		sink.Deleted(d.Index, e.DB)
	}
}

func (s *state) member(e *Member, d *Decision) func(Sink) {
	if e.ID == "" {
		d.Reason = "member without id"
		return nil
	}
	if e.Removed {
		if _, ok := s.members[e.ID]; !ok {
			d.Reason = fmt.Sprintf("no member %q", e.ID)
			return nil
		}
		delete(s.members, e.ID)
	} else {
		if e.CodecVersion < s.clusterVersion {
			d.Reason = fmt.Sprintf("member %q knows version %d, the cluster runs %d", e.ID, e.CodecVersion, s.clusterVersion)
			return nil
		}
		if _, ok := s.members[e.ID]; !ok && len(s.members) >= maxMembers {
			d.Reason = fmt.Sprintf("the cluster has %d members", len(s.members))
			return nil
		}
		s.members[e.ID] = *e
	}
	d.Accepted = true
	m := *e
	return func(sink Sink) { sink.MemberChanged(m) }
}

func (s *state) version(e *Version, d *Decision) {
	if e.Cluster <= s.clusterVersion {
		d.Reason = fmt.Sprintf("the cluster runs version %d", s.clusterVersion)
		return
	}
	for _, m := range s.members {
		if m.CodecVersion < e.Cluster {
			d.Reason = fmt.Sprintf("not every member knows version %d", e.Cluster)
			return
		}
	}
	s.clusterVersion = e.Cluster
	d.Accepted = true
}

type noSink struct{}

func (noSink) Created(uint64, DatabaseState)         {}
func (noSink) Accepted(uint64, *Transaction)         {}
func (noSink) Part(uint64, Running, []byte)          {}
func (noSink) AcceptedLarge(uint64, *Final)          {}
func (noSink) Dropped(uint64, []EntryID)             {}
func (noSink) Deleted(uint64, DatabaseID)            {}
func (noSink) TermStarted(uint64, uint64)            {}
func (noSink) MemberChanged(Member)                  {}
func (noSink) Archived(uint64, *Archived)            {}
func (noSink) ForkBegun(uint64, DatabaseState, bool) {}
func (noSink) ForkReady(uint64, DatabaseState)       {}
func (noSink) Stop(error)                            {}
