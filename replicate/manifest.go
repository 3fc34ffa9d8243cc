package replicate

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"slices"

	"github.com/uglyer/ha-sqlite/snapshot"
)

// A manifest is the FSM's state as a raft snapshot, little-endian:
//
//	magic "HASM", 1 format version, 8 length of the whole
//	16 cluster id, 8 applied index, 8 term, 8 index of its start, 1 cluster version,
//	8 archive
//	4 databases by id, each:
//	    16 id, string name, 8 incarnation, 4 page size, 4 page count, 1 auto_vacuum,
//	    8+8 position, 8 commit time, 8 last index, 8 created index, 8 created time,
//	    8 archived TXID, 16 source of a fork, 1 pending, 2 accepted entries, oldest first, the last one of the position's TXID,
//	    each 16 id, 8 checksum, 8 index
//	4 tombstones by id, each: 16 id, string name, 8 index
//	2 members by id, each: 1 codec version, string id, string raft address, string HTTP address
//	2 rejected entries, oldest first, each: 16 id, 8 index
//	2 large transactions under way, by id, each: 16 id, 16 database, 8 term, 8+8 pre position,
//	    4 page count, 4 parts in all, 4 parts so far, 8 bytes in them, 32 hash
//	4 CRC-32C of everything before
//
// The number of tombstones of a name is its incarnation.

const (
	manifestMagic   = "HASM"
	manifestVersion = 1

	// maxManifestBytes bounds what Restore reads into memory.
	maxManifestBytes = 2 << 30

	manifestPrefixSize = len(manifestMagic) + 1 + 8
	acceptedEntrySize  = 32
	minDatabaseSize    = 16 + 2 + 8 + 4 + 4 + 1 + 16 + 8 + 8 + 8 + 8 + 8 + 16 + 1 + 2
	minTombstoneSize   = 16 + 2 + 8
	minMemberSize      = 1 + 2 + 2 + 2
	rejectedEntrySize  = 24
	runningSize        = 16 + 16 + 8 + 16 + 4 + 4 + 4 + 8 + 32
)

// ErrCorruptManifest is returned for a manifest that no FSM wrote. Raft falls
// back to an older snapshot or fetches one from the leader.
var ErrCorruptManifest = errors.New("corrupt manifest")

// manifest is a copy of the state that Apply no longer changes.
type manifest struct {
	cluster        [16]byte
	applied        uint64
	term           uint64
	termIndex      uint64
	clusterVersion uint8
	archive        uint64
	databases      []database // by id
	tombstones     []Tombstone
	members        []Member
	rejected       []rejectedEntry
	running        []Running
}

// manifest copies the state. The entries of accepted transactions are shared:
// they never change.
func (s *state) manifest() *manifest {
	m := &manifest{
		cluster:        s.cluster,
		applied:        s.applied,
		term:           s.term,
		termIndex:      s.termIndex,
		clusterVersion: s.clusterVersion,
		archive:        s.archive,
		databases:      make([]database, 0, len(s.byID)),
		tombstones:     make([]Tombstone, 0, len(s.tombstones)),
		members:        sortedMembers(s.members),
		rejected:       s.rejected.ordered(),
		running:        s.runningList(),
	}
	for _, db := range s.byID {
		m.databases = append(m.databases, *db)
	}
	for _, g := range s.tombstones {
		m.tombstones = append(m.tombstones, g)
	}
	return m
}

// sort puts the lists in their order; it is not done under the FSM's lock.
func (m *manifest) sort() {
	slices.SortFunc(m.databases, func(a, b database) int { return bytes.Compare(a.ID[:], b.ID[:]) })
	slices.SortFunc(m.tombstones, func(a, b Tombstone) int { return bytes.Compare(a.ID[:], b.ID[:]) })
}

// states returns the databases by name.
func (m *manifest) states() []DatabaseState {
	out := make([]DatabaseState, len(m.databases))
	for i := range m.databases {
		out[i] = m.databases[i].DatabaseState
	}
	slices.SortFunc(out, func(a, b DatabaseState) int { return cmp.Compare(a.Name, b.Name) })
	return out
}

func (m *manifest) encode(dst []byte) []byte {
	m.sort()
	le := binary.LittleEndian
	size := 128 + len(m.rejected)*rejectedEntrySize + len(m.running)*runningSize
	for i := range m.databases {
		size += minDatabaseSize + len(m.databases[i].Name) + len(m.databases[i].accepted.window(m.applied))*acceptedEntrySize
	}
	for i := range m.tombstones {
		size += minTombstoneSize + len(m.tombstones[i].Name)
	}
	start := len(dst)
	dst = slices.Grow(dst, size)
	dst = append(dst, manifestMagic...)
	dst = append(dst, manifestVersion)
	dst = append(dst, 0, 0, 0, 0, 0, 0, 0, 0)
	dst = append(dst, m.cluster[:]...)
	dst = le.AppendUint64(dst, m.applied)
	dst = le.AppendUint64(dst, m.term)
	dst = le.AppendUint64(dst, m.termIndex)
	dst = append(dst, m.clusterVersion)
	dst = le.AppendUint64(dst, m.archive)

	dst = le.AppendUint32(dst, uint32(len(m.databases)))
	for i := range m.databases {
		db := &m.databases[i]
		dst = append(dst, db.ID[:]...)
		dst = appendName(dst, db.Name)
		dst = le.AppendUint64(dst, db.Incarnation)
		dst = le.AppendUint32(dst, db.PageSize)
		dst = le.AppendUint32(dst, db.PageCount)
		dst = append(dst, db.AutoVacuum)
		dst = appendPosition(dst, db.Position)
		dst = le.AppendUint64(dst, uint64(db.CommitTime))
		dst = le.AppendUint64(dst, db.LastIndex)
		dst = le.AppendUint64(dst, db.CreatedIndex)
		dst = le.AppendUint64(dst, uint64(db.CreatedTime))
		dst = le.AppendUint64(dst, uint64(db.Archived))
		dst = append(dst, db.Source[:]...)
		dst = append(dst, boolByte(db.Pending))
		entries := db.accepted.window(m.applied)
		dst = le.AppendUint16(dst, uint16(len(entries)))
		for _, e := range entries {
			dst = append(dst, e.id[:]...)
			dst = le.AppendUint64(dst, uint64(e.checksum))
			dst = le.AppendUint64(dst, e.index)
		}
	}
	dst = le.AppendUint32(dst, uint32(len(m.tombstones)))
	for _, g := range m.tombstones {
		dst = append(dst, g.ID[:]...)
		dst = appendName(dst, g.Name)
		dst = le.AppendUint64(dst, g.Index)
	}
	dst = le.AppendUint16(dst, uint16(len(m.members)))
	for _, x := range m.members {
		dst = append(dst, x.CodecVersion)
		dst = appendName(dst, x.ID)
		dst = appendName(dst, x.RaftAddr)
		dst = appendName(dst, x.HTTPAddr)
	}
	dst = le.AppendUint16(dst, uint16(len(m.rejected)))
	for _, e := range m.rejected {
		dst = append(dst, e.id[:]...)
		dst = le.AppendUint64(dst, e.index)
	}
	dst = le.AppendUint16(dst, uint16(len(m.running)))
	for i := range m.running {
		dst = m.running[i].append(dst)
	}
	le.PutUint64(dst[start+len(manifestMagic)+1:], uint64(len(dst)-start+4))
	return le.AppendUint32(dst, crc32.Checksum(dst[start:], castagnoli))
}

// appendName appends a string that came through the entry codec, which bounds it.
func appendName(dst []byte, s string) []byte {
	dst = binary.LittleEndian.AppendUint16(dst, uint16(len(s)))
	return append(dst, s...)
}

// readManifest reads no more than the length that the manifest states, and
// memory grows with what is really there.
func readManifest(r io.Reader) ([]byte, error) {
	var head [manifestPrefixSize]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return nil, fmt.Errorf("read manifest header: %w", err)
	}
	size, err := checkManifestPrefix(head[:])
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	b.Write(head[:])
	if _, err := io.Copy(&b, io.LimitReader(r, int64(size)-int64(len(head))+1)); err != nil {
		return nil, fmt.Errorf("read manifest of %d bytes: %w", size, err)
	}
	return b.Bytes(), nil
}

func checkManifestPrefix(b []byte) (size uint64, err error) {
	if len(b) < manifestPrefixSize {
		return 0, fmt.Errorf("manifest of %d bytes: %w", len(b), ErrCorruptManifest)
	}
	if string(b[:len(manifestMagic)]) != manifestMagic {
		return 0, fmt.Errorf("manifest magic %q, want %q: %w", b[:len(manifestMagic)], manifestMagic, ErrCorruptManifest)
	}
	if v := b[len(manifestMagic)]; v > manifestVersion {
		return 0, fmt.Errorf("manifest version %d, this program knows up to %d: %w", v, manifestVersion, ErrNewerVersion)
	} else if v == 0 {
		return 0, fmt.Errorf("manifest version 0: %w", ErrCorruptManifest)
	}
	size = binary.LittleEndian.Uint64(b[len(manifestMagic)+1:])
	if size < uint64(manifestPrefixSize)+4 || size > maxManifestBytes {
		return 0, fmt.Errorf("manifest states %d bytes: %w", size, ErrCorruptManifest)
	}
	return size, nil
}

// decodeManifest reads all of b into a new state.
func decodeManifest(b []byte) (*state, error) {
	size, err := checkManifestPrefix(b)
	if err != nil {
		return nil, err
	}
	if size != uint64(len(b)) {
		return nil, fmt.Errorf("manifest states %d bytes and has %d: %w", size, len(b), ErrCorruptManifest)
	}
	body := b[:len(b)-4]
	if got, want := crc32.Checksum(body, castagnoli), binary.LittleEndian.Uint32(b[len(body):]); got != want {
		return nil, fmt.Errorf("manifest checksum %08x, want %08x: %w", got, want, ErrCorruptManifest)
	}
	d := &decoder{b: body[manifestPrefixSize:]}
	s := newState()
	d.bytes16(&s.cluster)
	s.applied = d.uint64()
	s.term = d.uint64()
	s.termIndex = d.uint64()
	s.clusterVersion = d.uint8()
	if s.clusterVersion > CodecVersion {
		return nil, fmt.Errorf("manifest of cluster version %d, this program knows up to %d: %w", s.clusterVersion, CodecVersion, ErrNewerVersion)
	}
	s.archive = d.uint64()
	s.readDatabases(d)
	s.readTombstones(d)
	s.readMembers(d)
	s.readRejected(d)
	s.readRunning(d)
	if err := d.done(); err != nil {
		return nil, fmt.Errorf("decode manifest: %w: %w", ErrCorruptManifest, err)
	}
	for _, db := range s.byID {
		if n := s.incarnations[db.Name]; db.Incarnation != n {
			return nil, fmt.Errorf("decode manifest: incarnation %d of %q and %d tombstones: %w", db.Incarnation, db.Name, n, ErrCorruptManifest)
		}
	}
	return s, nil
}

// count reads a number of records of at least size bytes each.
func (d *decoder) count(n, size int) int {
	if n*size > len(d.b) {
		d.fail("%d records of at least %d bytes, %d bytes are left", n, size, len(d.b))
		return 0
	}
	return n
}

// ascends refuses records out of order, which also finds doubled ones.
func (d *decoder) ascends(first bool, previous, id DatabaseID) {
	if !first && bytes.Compare(previous[:], id[:]) >= 0 {
		d.fail("id %s after %s", id, previous)
	}
}

func (s *state) readDatabases(d *decoder) {
	n := d.count(int(d.uint32()), minDatabaseSize)
	var previous DatabaseID
	for i := range n {
		db := new(database)
		d.bytes16((*[16]byte)(&db.ID))
		db.Name = d.string()
		db.Incarnation = d.uint64()
		db.PageSize = d.uint32()
		db.PageCount = d.uint32()
		db.AutoVacuum = d.uint8()
		db.Position = d.position()
		db.CommitTime = int64(d.uint64())
		db.LastIndex = d.uint64()
		db.CreatedIndex = d.uint64()
		db.CreatedTime = int64(d.uint64())
		db.Archived = TXID(d.uint64())
		d.bytes16((*[16]byte)(&db.Source))
		db.Pending = d.bool()
		d.accepted(db)
		if d.err != nil {
			return
		}
		d.ascends(i == 0, previous, db.ID)
		previous = db.ID
		if err := ValidateName(db.Name); err != nil {
			d.fail("%v", err)
		}
		if !snapshot.ValidPageSize(db.PageSize) || db.AutoVacuum > 2 || db.PageCount == 0 || db.Position.TXID == 0 {
			d.fail("database %s: page size %d, auto_vacuum %d, %d pages, transaction %v", db.ID, db.PageSize, db.AutoVacuum, db.PageCount, db.Position.TXID)
		}
		if db.Archived > db.Position.TXID {
			d.fail("database %s at transaction %v is archived up to %v", db.ID, db.Position.TXID, db.Archived)
		}
		if s.byName[db.Name] != nil {
			d.fail("two databases are named %q", db.Name)
		}
		if db.Pending && (db.Source.IsZero() || len(db.accepted.entries) > 0) {
			d.fail("database %s is a fork of %s that is being made, with %d accepted entries", db.ID, db.Source, len(db.accepted.entries))
		}
		s.addDatabase(db)
	}
}

func (d *decoder) accepted(db *database) {
	n := d.count(int(d.uint16()), acceptedEntrySize)
	if n > acceptedWindow || uint64(n) >= max(1, uint64(db.Position.TXID)) {
		d.fail("database %s at transaction %v with %d accepted entries", db.ID, db.Position.TXID, n)
		return
	}
	if n == 0 {
		return
	}
	db.accepted.entries = make([]acceptedEntry, n)
	for i := range db.accepted.entries {
		e := &db.accepted.entries[i]
		d.bytes16((*[16]byte)(&e.id))
		e.checksum = Checksum(d.uint64())
		e.index = d.uint64()
	}
}

func (s *state) readTombstones(d *decoder) {
	n := d.count(int(d.uint32()), minTombstoneSize)
	var previous DatabaseID
	for i := range n {
		var g Tombstone
		d.bytes16((*[16]byte)(&g.ID))
		g.Name = d.string()
		g.Index = d.uint64()
		if d.err != nil {
			return
		}
		d.ascends(i == 0, previous, g.ID)
		if s.byID[g.ID] != nil {
			d.fail("database %s exists and has a tombstone", g.ID)
		}
		previous = g.ID
		s.tombstones[g.ID] = g
		s.incarnations[g.Name]++
	}
}

func (s *state) readMembers(d *decoder) {
	n := d.count(int(d.uint16()), minMemberSize)
	previous := ""
	for range n {
		m := Member{CodecVersion: d.uint8(), ID: d.string(), RaftAddr: d.string(), HTTPAddr: d.string()}
		if d.err != nil {
			return
		}
		if m.ID <= previous {
			d.fail("member %q after %q", m.ID, previous)
		}
		previous = m.ID
		s.members[m.ID] = m
	}
}

func (s *state) readRejected(d *decoder) {
	n := d.count(int(d.uint16()), rejectedEntrySize)
	if n > rejectedWindow {
		d.fail("%d rejected entries", n)
		return
	}
	for range n {
		var id EntryID
		d.bytes16((*[16]byte)(&id))
		index := d.uint64()
		if _, ok := s.rejected.find(id); ok || id.IsZero() {
			d.fail("rejected entry %s twice or without id", id)
			return
		}
		s.rejected.add(id, index)
	}
}
