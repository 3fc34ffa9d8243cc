package replicate

import (
	"encoding/binary"
	"fmt"

	"github.com/uglyer/ha-sqlite/snapshot"
)

// A fork is two small entries (RULES A9). Begin makes a database that is pending: its first state is the one that the
// source has when begin is decided, or an earlier one, and each node makes its copy of it. Ready is proposed when a
// majority has a durable copy, and only then can the database be opened. Where no majority manages, it is deleted.
//
//	fork begin   16 id, 16 source, 8 incarnation, 8+8 position, 4 page count, 8 commit time of
//	             that position, 8 commit time, string name
//	fork ready   16 id, 8 commit time
//
// A position of transaction 0, with no page count and time, means the source's own.

// ForkBegin makes a database whose first state is one of another database.
type ForkBegin struct {
	ID          DatabaseID
	Source      DatabaseID
	Incarnation uint64
	Name        string
	At          Position // zero: the source's when this is decided
	PageCount   uint32   // at At
	StateTime   int64    // commit time of At, microseconds since 1970
	CommitTime  int64    // microseconds since 1970
}

// ForkReady says that a majority has a durable copy of a fork.
type ForkReady struct {
	ID         DatabaseID
	CommitTime int64 // microseconds since 1970
}

// EncodeForkBegin appends the entry to dst.
func EncodeForkBegin(dst []byte, e *ForkBegin) ([]byte, error) {
	start := len(dst)
	dst = append(dst, CodecVersion, byte(KindForkBegin))
	dst = append(dst, e.ID[:]...)
	dst = append(dst, e.Source[:]...)
	dst = binary.LittleEndian.AppendUint64(dst, e.Incarnation)
	dst = appendPosition(dst, e.At)
	dst = binary.LittleEndian.AppendUint32(dst, e.PageCount)
	dst = binary.LittleEndian.AppendUint64(dst, uint64(e.StateTime))
	dst = binary.LittleEndian.AppendUint64(dst, uint64(e.CommitTime))
	dst, err := appendString(dst, "name", e.Name)
	return finishEntry(dst, start, KindForkBegin, err)
}

// EncodeForkReady appends the entry to dst.
func EncodeForkReady(dst []byte, e *ForkReady) ([]byte, error) {
	start := len(dst)
	dst = append(dst, CodecVersion, byte(KindForkReady))
	dst = append(dst, e.ID[:]...)
	dst = binary.LittleEndian.AppendUint64(dst, uint64(e.CommitTime))
	return finishEntry(dst, start, KindForkReady, nil)
}

func (d *decoder) forkBegin(e *ForkBegin) {
	d.bytes16((*[16]byte)(&e.ID))
	d.bytes16((*[16]byte)(&e.Source))
	e.Incarnation = d.uint64()
	e.At = d.position()
	e.PageCount = d.uint32()
	e.StateTime = int64(d.uint64())
	e.CommitTime = int64(d.uint64())
	e.Name = d.string()
}

func (d *decoder) forkReady(e *ForkReady) {
	d.bytes16((*[16]byte)(&e.ID))
	e.CommitTime = int64(d.uint64())
}

// Past reports that the state is an earlier one of the source.
func (e *ForkBegin) Past() bool { return e.At.TXID != 0 }

// forkBegin makes the pending database.
func (s *state) forkBegin(e *ForkBegin, d *Decision) func(Sink) {
	d.DB = e.ID
	if db := s.byName[e.Name]; db != nil {
		d.ID, d.Position = db.ID, db.Position
		d.Reason = fmt.Sprintf("database %q exists", e.Name)
		return nil
	}
	source := s.byID[e.Source]
	if d.Reason = s.forkRefusal(e, source); d.Reason != "" {
		return nil
	}
	db := &database{DatabaseState: DatabaseState{
		ID: e.ID, Name: e.Name, Incarnation: e.Incarnation, PageSize: source.PageSize, PageCount: source.PageCount, AutoVacuum: source.AutoVacuum,
		Position: source.Position, CommitTime: source.CommitTime, LastIndex: d.Index, CreatedIndex: d.Index, CreatedTime: e.CommitTime,
		Source: e.Source, Pending: true,
	}}
	if e.Past() {
		db.Position, db.PageCount, db.CommitTime = e.At, e.PageCount, e.StateTime
	}
	// What nobody has written is what its creation says: there is nothing to copy. Its first commit is that one, and has
	// its time.
	if db.Pending = db.Position.TXID > 1; !db.Pending {
		db.Source, db.CommitTime = DatabaseID{}, db.CreatedTime
	}
	s.addDatabase(db)
	d.Accepted = true
	d.ID, d.Position = db.ID, db.Position
	created, past := db.DatabaseState, e.Past()
	return func(sink Sink) {
		if created.Pending {
			sink.ForkBegun(d.Index, created, past)
		} else {
			sink.Created(d.Index, created)
		}
	}
}

func (s *state) forkRefusal(e *ForkBegin, source *database) string {
	switch {
	case source == nil:
		if g, ok := s.tombstones[e.Source]; ok {
			return fmt.Sprintf("database %s (%q) was deleted", e.Source, g.Name)
		}
		return fmt.Sprintf("database %s does not exist", e.Source)
	case source.Pending:
		return fmt.Sprintf("database %q is being made itself", source.Name)
	case !e.Past() && (e.At != Position{} || e.PageCount != 0 || e.StateTime != 0):
		return "a position without a transaction"
	case e.Past() && (e.At.TXID > source.Position.TXID || e.At.TXID == source.Position.TXID && e.At != source.Position):
		return fmt.Sprintf("position %v is none of database %q, which is at %v", e.At, source.Name, source.Position)
	case e.Past() && (e.PageCount == 0 || uint64(e.At.Checksum)&snapshot.ChecksumFlag == 0 || e.StateTime > source.CommitTime):
		return fmt.Sprintf("a state of %d pages with checksum %v at %d is none", e.PageCount, e.At.Checksum, e.StateTime)
	case e.Past() && e.At.TXID == 1 && !s.isEmpty(e, source):
		return fmt.Sprintf("position %v is not the first one of database %q", e.At, source.Name)
	case len(s.pending) >= maxForks:
		return fmt.Sprintf("%d forks are being made", len(s.pending))
	}
	return s.createRefusal(&Create{ID: e.ID, Name: e.Name, Incarnation: e.Incarnation, PageSize: source.PageSize, AutoVacuum: source.AutoVacuum})
}

// isEmpty reports that a fork begins as a database that nobody has written.
func (s *state) isEmpty(e *ForkBegin, source *database) bool {
	empty, err := emptyPosition(source.PageSize, source.AutoVacuum)
	return err == nil && e.At == empty && e.PageCount == 1
}

// maxForks is how many forks may be pending at a time.
const maxForks = 64

// addDatabase puts a database into the catalogue.
func (s *state) addDatabase(db *database) {
	s.byID[db.ID], s.byName[db.Name] = db, db
	s.names.add(db.Name)
	if db.Pending {
		s.pending[db.ID] = db
	}
}

func (s *state) forkReady(e *ForkReady, d *Decision) func(Sink) {
	d.DB = e.ID
	db := s.byID[e.ID]
	switch {
	case db == nil:
		d.Reason = fmt.Sprintf("database %s does not exist", e.ID)
		return nil
	case !db.Pending:
		d.Reason = fmt.Sprintf("database %q is no fork that is being made", db.Name)
		return nil
	}
	db.Pending = false
	delete(s.pending, db.ID)
	d.Accepted = true
	d.ID, d.Position = db.ID, db.Position
	ready := db.DatabaseState
	return func(sink Sink) { sink.ForkReady(d.Index, ready) }
}

// forkOf returns a pending fork of a database, nil if there is none.
func (s *state) forkOf(source DatabaseID) *database {
	for _, db := range s.pending {
		if db.Source == source {
			return db
		}
	}
	return nil
}

// PendingForks returns the forks that are being made.
func (f *FSM) PendingForks() []DatabaseState {
	f.mu.RLock()
	defer f.mu.RUnlock()
	if len(f.s.pending) == 0 {
		return nil
	}
	list := make([]DatabaseState, 0, len(f.s.pending))
	for _, db := range f.s.pending {
		list = append(list, db.DatabaseState)
	}
	return list
}
