package replicate

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"slices"

	"github.com/uglyer/ha-sqlite/snapshot"
)

// Running is a large transaction of which parts are decided and the final entry
// is not. It is part of the state machine's state; the bytes are in a spool.
//
// Nothing is reserved for it: another transaction may take its position, and it
// is dropped then. So it is at the term's start, with its database, by its final
// entry if that is refused, and by any entry of its id that does not continue it.
type Running struct {
	ID        EntryID
	DB        DatabaseID
	Term      uint64
	Pre       Position
	PageCount uint32 // of the database after it, as its LTX header says
	Count     uint32 // parts in all
	Parts     uint32 // parts so far
	Bytes     uint64 // in them
	Hash      [32]byte
}

// partHash returns the hash of the parts up to one, from that of those before.
func partHash(before [32]byte, part []byte) (after [32]byte) {
	h := sha256.New()
	h.Write(before[:])
	h.Write(part)
	h.Sum(after[:0])
	return after
}

// part decides a part of a large transaction.
func (s *state) part(p *Part, d *Decision) func(Sink) {
	d.DB = p.DB
	db := s.byID[p.DB]
	if db != nil {
		d.Position = db.Position
	}
	run := s.running[p.ID]
	if d.Reason = s.partRefusal(p, db, run, d.Term); d.Reason != "" {
		return s.refuseLarge(p.ID, db, p.Pre, d.Index)
	}
	if run == nil {
		h, _ := snapshot.PeekHeader(p.Data) // partRefusal has looked at it
		run = &Running{ID: p.ID, DB: p.DB, Term: p.Term, Pre: p.Pre, PageCount: h.PageCount, Count: p.Count}
		s.running[p.ID] = run
	}
	before := *run
	run.Parts++
	run.Bytes += uint64(len(p.Data))
	run.Hash = partHash(run.Hash, p.Data)
	d.Accepted = true
	return func(sink Sink) { sink.Part(d.Index, before, p.Data) }
}

// partRefusal says why p cannot be taken, or nothing.
func (s *state) partRefusal(p *Part, db *database, run *Running, term uint64) string {
	if reason := s.largeRefusal(p.ID, p.DB, p.Pre, p.Term, db, term); reason != "" {
		return reason
	}
	switch {
	case p.Count == 0 || p.Count > maxParts || p.Number == 0 || p.Number > p.Count:
		return fmt.Sprintf("part %d of %d", p.Number, p.Count)
	case p.Number < p.Count && len(p.Data) != PartBytes || len(p.Data) == 0 || len(p.Data) > PartBytes:
		return fmt.Sprintf("part %d of %d has %d bytes", p.Number, p.Count, len(p.Data))
	case run != nil && (p.Number != run.Parts+1 || p.Count != run.Count || p.DB != run.DB || p.Pre != run.Pre):
		return fmt.Sprintf("part %d of %d does not follow part %d of %d", p.Number, p.Count, run.Parts, run.Count)
	case run != nil:
		return ""
	case p.Number != 1:
		return fmt.Sprintf("part %d of a transaction that is not under way", p.Number)
	case len(s.running) >= maxRunning:
		return fmt.Sprintf("%d large transactions are under way", len(s.running))
	}
	h, err := snapshot.PeekHeader(p.Data)
	switch {
	case err != nil:
		return err.Error()
	case h.PageSize != db.PageSize || h.TXID != uint64(p.Pre.TXID)+1 || h.CommitTimeMillis != partsCommitMillis:
		return fmt.Sprintf("LTX header (page size %d, transaction %v, time %d ms) differs from the entry", h.PageSize, TXID(h.TXID), h.CommitTimeMillis)
	}
	return ""
}

// largeRefusal is what parts and final entries have in common.
func (s *state) largeRefusal(id EntryID, dbID DatabaseID, pre Position, stamped uint64, db *database, term uint64) string {
	if db == nil {
		if g, ok := s.tombstones[dbID]; ok {
			return fmt.Sprintf("database %s (%q) was deleted", dbID, g.Name)
		}
		return fmt.Sprintf("database %s does not exist", dbID)
	}
	switch {
	case db.Pending:
		return fmt.Sprintf("database %q is being made", db.Name)
	case term != s.term:
		return fmt.Sprintf("term %d has not started", term)
	case stamped != term:
		return fmt.Sprintf("proposed in term %d, committed in term %d", stamped, term)
	case pre != db.Position:
		return fmt.Sprintf("based on position %v, the database is at %v", pre, db.Position)
	case id.IsZero():
		return "it has no entry id"
	}
	if _, ok := s.rejected.find(id); ok {
		return fmt.Sprintf("entry %s was rejected before", id)
	}
	return ""
}

// final decides a large transaction.
func (s *state) final(f *Final, d *Decision) func(Sink) {
	d.DB = f.DB
	db := s.byID[f.DB]
	if db != nil {
		d.Position = db.Position
	}
	if d.Reason = s.finalRefusal(f, db, d.Term); d.Reason != "" {
		return s.refuseLarge(f.ID, db, f.Pre, d.Index)
	}
	delete(s.running, f.ID)
	dropped := s.accept(db, f.transaction(), d)
	return func(sink Sink) {
		sink.AcceptedLarge(d.Index, f)
		tellDropped(sink, d.Index, dropped)
	}
}

func (s *state) finalRefusal(f *Final, db *database, term uint64) string {
	if f.Abort {
		return "its writer gave up"
	}
	if reason := s.largeRefusal(f.ID, f.DB, f.Pre, f.Term, db, term); reason != "" {
		return reason
	}
	run := s.running[f.ID]
	switch {
	case run == nil:
		return "its parts are not here"
	case run.Parts != run.Count || f.Count != run.Count || f.Size != run.Bytes || f.Hash != run.Hash || f.DB != run.DB:
		return fmt.Sprintf("%d of %d parts with %d bytes and hash %x, the final entry says %d parts, %d bytes, hash %x",
			run.Parts, run.Count, run.Bytes, run.Hash[:4], f.Count, f.Size, f.Hash[:4])
	case f.PageCount != run.PageCount || f.Pages == 0 || f.Pages > f.PageCount:
		return fmt.Sprintf("%d pages that leave %d, the LTX header says %d", f.Pages, f.PageCount, run.PageCount)
	}
	return s.numbersRefusal(f.transaction(), db)
}

// refuseLarge forgets a large transaction that can never be accepted.
func (s *state) refuseLarge(id EntryID, db *database, pre Position, index uint64) func(Sink) {
	if !db.mayHaveAccepted(&Transaction{ID: id, Pre: pre}, index) {
		s.rejected.add(id, index)
	}
	if s.running[id] == nil {
		return nil
	}
	delete(s.running, id)
	return func(sink Sink) { sink.Dropped(index, []EntryID{id}) }
}

func tellDropped(sink Sink, index uint64, ids []EntryID) {
	if len(ids) > 0 {
		sink.Dropped(index, ids)
	}
}

// dropRunning forgets what which names, and returns it.
func (s *state) dropRunning(which func(*Running) bool) (ids []EntryID) {
	for id, r := range s.running {
		if which(r) {
			ids = append(ids, id)
		}
	}
	for _, id := range ids {
		delete(s.running, id)
	}
	slices.SortFunc(ids, func(a, b EntryID) int { return bytes.Compare(a[:], b[:]) })
	return ids
}

// Running returns the large transactions under way, by id.
func (f *FSM) Running() []Running {
	f.mu.RLock()
	defer f.mu.RUnlock()
	return f.s.runningList()
}

func (s *state) runningList() []Running {
	out := make([]Running, 0, len(s.running))
	for _, r := range s.running {
		out = append(out, *r)
	}
	slices.SortFunc(out, func(a, b Running) int { return bytes.Compare(a.ID[:], b.ID[:]) })
	return out
}

func (r *Running) append(dst []byte) []byte {
	le := binary.LittleEndian
	dst = append(dst, r.ID[:]...)
	dst = append(dst, r.DB[:]...)
	dst = le.AppendUint64(dst, r.Term)
	dst = appendPosition(dst, r.Pre)
	dst = le.AppendUint32(dst, r.PageCount)
	dst = le.AppendUint32(dst, r.Count)
	dst = le.AppendUint32(dst, r.Parts)
	dst = le.AppendUint64(dst, r.Bytes)
	return append(dst, r.Hash[:]...)
}

// readRunning reads the large transactions of a manifest.
func (s *state) readRunning(d *decoder) {
	n := d.count(int(d.uint16()), runningSize)
	var previous EntryID
	for range n {
		r := new(Running)
		d.bytes16((*[16]byte)(&r.ID))
		d.bytes16((*[16]byte)(&r.DB))
		r.Term = d.uint64()
		r.Pre = d.position()
		r.PageCount = d.uint32()
		r.Count = d.uint32()
		r.Parts = d.uint32()
		r.Bytes = d.uint64()
		copy(r.Hash[:], d.take(len(r.Hash)))
		if d.err != nil {
			return
		}
		db := s.byID[r.DB]
		_, rejected := s.rejected.find(r.ID)
		switch {
		case bytes.Compare(r.ID[:], previous[:]) <= 0:
			d.fail("large transaction %s after %s", r.ID, previous)
		case db == nil || db.Position != r.Pre || r.Term != s.term || rejected:
			d.fail("large transaction %s in term %d after %v cannot be under way", r.ID, r.Term, r.Pre)
		case r.Count == 0 || r.Count > maxParts || r.Parts == 0 || r.Parts > r.Count || !r.fits():
			d.fail("large transaction %s: %d of %d parts with %d bytes", r.ID, r.Parts, r.Count, r.Bytes)
		}
		previous = r.ID
		s.running[r.ID] = r
	}
}

// fits says whether so many parts hold so many bytes.
func (r *Running) fits() bool {
	full := uint64(r.Parts) * PartBytes
	if r.Parts < r.Count {
		return r.Bytes == full
	}
	return r.Bytes <= full && r.Bytes > full-PartBytes
}
