package replicate

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"fmt"
	"slices"

	"github.com/uglyer/ha-sqlite/snapshot/archive"
)

// The body of an archived entry, little-endian:
//
//	8 archive, 2 databases, by id, each: 16 id, 8 TXID
//
// What it says is true whoever proposed it: the commits are in the store.

// maxArchived is how many databases one entry has.
const maxArchived = 1024

const archivedSize = 16 + 8

// Archived says up to which transaction databases are in the archive.
type Archived struct {
	Archive   uint64 // names the archive: positions in another one are forgotten
	Positions []ArchivedPosition
}

// ArchivedPosition is the last transaction of a database that is archived.
type ArchivedPosition struct {
	DB   DatabaseID
	TXID TXID
}

// EncodeArchived appends the entry to dst. It puts the positions in order.
func EncodeArchived(dst []byte, e *Archived) ([]byte, error) {
	start := len(dst)
	dst = append(dst, CodecVersion, byte(KindArchived))
	dst = binary.LittleEndian.AppendUint64(dst, e.Archive)
	var err error
	if len(e.Positions) > maxArchived {
		err = fmt.Errorf("%d databases, at most %d: %w", len(e.Positions), maxArchived, ErrEntryTooLarge)
	}
	slices.SortFunc(e.Positions, func(a, b ArchivedPosition) int {
		return cmp.Or(bytes.Compare(a.DB[:], b.DB[:]), cmp.Compare(a.TXID, b.TXID))
	})
	dst = binary.LittleEndian.AppendUint16(dst, uint16(len(e.Positions)))
	for _, p := range e.Positions {
		dst = append(dst, p.DB[:]...)
		dst = binary.LittleEndian.AppendUint64(dst, uint64(p.TXID))
	}
	return finishEntry(dst, start, KindArchived, err)
}

func (d *decoder) archived(e *Archived) {
	e.Archive = d.uint64()
	n := d.count(int(d.uint16()), archivedSize)
	if n > maxArchived {
		d.fail("%d databases, at most %d", n, maxArchived)
		return
	}
	for i := range n {
		var p ArchivedPosition
		d.bytes16((*[16]byte)(&p.DB))
		p.TXID = TXID(d.uint64())
		if i > 0 {
			d.ascends(false, e.Positions[i-1].DB, p.DB)
		}
		if d.err != nil {
			return
		}
		e.Positions = append(e.Positions, p)
	}
}

// archived notes what is archived. It is only about the archive that the last
// such entry named.
func (s *state) archived(e *Archived, d *Decision) func(Sink) {
	if e.Archive != s.archive {
		s.archive = e.Archive
		for _, db := range s.byID {
			db.Archived = 0
		}
	}
	for _, p := range e.Positions {
		if db := s.byID[p.DB]; db != nil && p.TXID <= db.Position.TXID {
			db.Archived = max(db.Archived, p.TXID)
		}
	}
	d.Accepted = true
	return func(sink Sink) { sink.Archived(d.Index, e) }
}

// Archive returns which archive the archived positions are about, 0 for none.
func (f *FSM) Archive() uint64 {
	f.mu.RLock()
	defer f.mu.RUnlock()
	return f.s.archive
}

// Archive returns the archive of the cluster, or of this node where each has one; nil while it is not open, or nothing
// is archived.
func (s *Service) Archive() *archive.Archive {
	a := s.archiver
	if a == nil {
		return nil
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.archive
}

// HurryArchive says that somebody waits for what is not archived yet: an archive on the node's own disk ends its rest.
func (s *Service) HurryArchive() {
	if s.archiver != nil {
		s.archiver.gate.hurry()
	}
}

// ArchivedPosition returns the last transaction of a database that this node knows to be archived, 0 for none.
func (s *Service) ArchivedPosition(id DatabaseID) TXID {
	a := s.archiver
	if a == nil {
		return 0
	}
	st, ok := s.fsm.Get(id)
	if !ok {
		return 0
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	k := a.kept[id]
	switch {
	case a.opts.Local && a.surveyed == 0 || a.archive == nil:
		return 0
	case k != nil:
		return k.archived
	case a.opts.Local && st.Position.TXID > 1:
		return st.Position.TXID // nothing of it waits
	case s.fsm.Archive() == a.tag:
		return st.Archived
	}
	return 0
}
