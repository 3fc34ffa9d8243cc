package archive

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc64"
	"slices"

	"github.com/uglyer/ha-sqlite/snapshot"
)

// Object is one LTX file of an archive. Those of level 0 have one transaction:
// they are the commits.
type Object struct {
	Level     int
	MinTXID   uint64
	MaxTXID   uint64
	Time      int64  // of the last commit in it, microseconds since 1970
	Post      uint64 // checksum of the database after it
	PageCount uint32 // pages of the database after it
	Pages     uint32 // page images in it
	Size      int64  // bytes of the file
	Stored    int64  // bytes in the store, encrypted
	Checksum  uint64 // of the file's content, as its last 8 bytes
	IndexSize int64  // bytes of its page index in the store; 0 without one
	IndexSum  uint64 // CRC-64 of the page index

	// Of a commit that is in a pack, the object that has the files of all commits
	// of a range one after the other; PackMax is 0 for one with an object of its own.
	PackMin, PackMax uint64
	PackAt           int64  // offset of the file in the pack
	PackStored       int64  // bytes of the pack in the store
	PackIndex        int64  // bytes of the index at its end
	PackSum          uint64 // CRC-64 of the index
}

func (o Object) packed() bool { return o.PackMax != 0 }

// name is the file's name without its extension.
func (o Object) name() string { return fmt.Sprintf("%016x-%016x", o.MinTXID, o.MaxTXID) }

// Segment is an object with the commits of a range, of level 0.
type Segment struct {
	MinTXID, MaxTXID    uint64
	FirstTime, LastTime int64
	Count               uint32
	Sum                 uint64 // CRC-64 of it
}

func (s Segment) name() string { return fmt.Sprintf("%016x-%016x", s.MinTXID, s.MaxTXID) }

// Gap is a range of commits behind the first state that were not archived one
// by one: the state after the last of them is, as a snapshot.
type Gap struct {
	MinTXID, MaxTXID uint64
}

// Label is a restore point that retention keeps.
type Label struct {
	Name string
	TXID uint64 // of a snapshot
}

// State is what a manifest says of a database.
type State struct {
	Identity
	PageSize  uint32 // 0 before the first commit
	Seq       uint64 // journal entries in it
	Segments  []Segment
	Recent    []Object               // commits behind the segments
	Ranges    []Object               // what commits in packs merge to, for litestream and for plans
	Levels    [TopLevel + 1][]Object // [0] is not used
	Snapshots []Object
	Gaps      []Gap
	Labels    []Label
	Last      Object // the last commit or snapshot archived, zero before the first
	// Done is how far a level's windows are closed: later commits are not yet
	// compacted into it.
	Done [TopLevel + 1]uint64

	// owned are the levels whose list shares no memory with that of another State: see clone.
	owned [SnapshotLevel + 1]bool
}

// Kinds of changes in a journal entry.
const (
	changeAdd = iota + 1
	changeRemove
	changeSeal
	changeUnseal
	changeGap
	changeLabel
	changeUnlabel
	changeDone
	changePageSize
)

// change is one step of a journal entry.
type change struct {
	kind     int
	object   Object  // add; of remove only level and range
	segment  Segment // seal, unseal
	gap      Gap
	label    Label
	level    int // done
	txid     uint64
	pageSize uint32
}

var errInvalidChange = errors.New("invalid change of a manifest")

func (s *State) list(level int) *[]Object {
	switch {
	case level == 0:
		return &s.Recent
	case level == RangeLevel:
		return &s.Ranges
	case level == SnapshotLevel:
		return &s.Snapshots
	}
	return &s.Levels[level]
}

// clone returns a copy to which changes can be made. The lists of objects share their memory, so that an entry costs what
// it changes and not what there is: of s only what it has now may be read, and of its copies only one may get objects
// behind that. The Writer makes one at a time and forgets the others.
func (s *State) clone() *State {
	c := *s
	c.owned = [SnapshotLevel + 1]bool{}
	c.Segments, c.Gaps, c.Labels = slices.Clone(s.Segments), slices.Clone(s.Gaps), slices.Clone(s.Labels)
	return &c
}

// own makes a list one that can be changed anywhere, not only at its end.
func (s *State) own(level int) {
	if !s.owned[level] {
		list := s.list(level)
		*list, s.owned[level] = slices.Clone(*list), true
	}
}

// find returns the place of the first object of a level that ends at txid or
// behind it.
func find(list []Object, txid uint64) int {
	i, _ := slices.BinarySearchFunc(list, txid, func(o Object, t uint64) int { return cmp.Compare(o.MaxTXID, t) })
	return i
}

// apply makes a change, which must keep the order of everything.
func (s *State) apply(c change) error {
	bad := func(format string, args ...any) error {
		return fmt.Errorf("%w: %w", fmt.Errorf(format, args...), errInvalidChange)
	}
	switch c.kind {
	case changePageSize:
		if !snapshot.ValidPageSize(c.pageSize) || s.PageSize != 0 {
			return bad("page size %d after %d", c.pageSize, s.PageSize)
		}
		s.PageSize = c.pageSize
	case changeAdd:
		o := c.object
		if err := o.check(); err != nil {
			return err
		}
		list := s.list(o.Level)
		if o.Level == 0 {
			if o.MinTXID != s.Last.MaxTXID+1 || o.Time <= s.Last.Time && s.Last.MaxTXID != 0 {
				return bad("commit %016x of time %d after %016x of %d", o.MaxTXID, o.Time, s.Last.MaxTXID, s.Last.Time)
			}
		} else if o.MaxTXID > s.Last.MaxTXID && o.Level != SnapshotLevel {
			return bad("level %d file %s behind the last commit %016x", o.Level, o.name(), s.Last.MaxTXID)
		}
		i := find(*list, o.MaxTXID)
		if i < len(*list) && (*list)[i].MaxTXID == o.MaxTXID {
			return bad("level %d has a file up to %016x", o.Level, o.MaxTXID)
		}
		if o.Level != SnapshotLevel && (i > 0 && (*list)[i-1].MaxTXID >= o.MinTXID || i < len(*list) && (*list)[i].MinTXID <= o.MaxTXID) {
			return bad("level %d file %s overlaps another", o.Level, o.name())
		}
		if i < len(*list) {
			s.own(o.Level)
		}
		*list = slices.Insert(*list, i, o)
		if o.MaxTXID > s.Last.MaxTXID {
			s.Last = o
		}
	case changeRemove:
		list := s.list(c.object.Level)
		i := find(*list, c.object.MaxTXID)
		if i == len(*list) || (*list)[i].MaxTXID != c.object.MaxTXID || (*list)[i].MinTXID != c.object.MinTXID {
			return bad("level %d has no file %s", c.object.Level, c.object.name())
		}
		s.own(c.object.Level)
		*list = slices.Delete(*list, i, i+1)
	case changeSeal:
		n := find(s.Recent, c.segment.MaxTXID) + 1
		if len(s.Recent) < n || n == 0 || s.Recent[0].MinTXID != c.segment.MinTXID || s.Recent[n-1].MaxTXID != c.segment.MaxTXID || uint32(n) != c.segment.Count {
			return bad("commits %s are not the first ones", c.segment.name())
		}
		s.Recent, s.owned[0] = slices.Clone(s.Recent[n:]), true
		s.Segments = append(s.Segments, c.segment)
	case changeUnseal:
		i := slices.IndexFunc(s.Segments, func(x Segment) bool { return x.MinTXID == c.segment.MinTXID && x.MaxTXID == c.segment.MaxTXID })
		if i < 0 {
			return bad("no segment %s", c.segment.name())
		}
		s.Segments = slices.Delete(s.Segments, i, i+1)
	case changeGap:
		if c.gap.MinTXID > c.gap.MaxTXID || len(s.Gaps) > 0 && s.Gaps[len(s.Gaps)-1].MaxTXID >= c.gap.MinTXID {
			return bad("gap %016x-%016x", c.gap.MinTXID, c.gap.MaxTXID)
		}
		s.Gaps = append(s.Gaps, c.gap)
	case changeLabel:
		if c.label.Name == "" || len(c.label.Name) > maxName || slices.ContainsFunc(s.Labels, func(l Label) bool { return l.Name == c.label.Name }) {
			return bad("label %q", c.label.Name)
		}
		s.Labels = append(s.Labels, c.label)
	case changeUnlabel:
		i := slices.IndexFunc(s.Labels, func(l Label) bool { return l.Name == c.label.Name })
		if i < 0 {
			return bad("no label %q", c.label.Name)
		}
		s.Labels = slices.Delete(s.Labels, i, i+1)
	case changeDone:
		if c.level < 1 || c.level > TopLevel || c.txid < s.Done[c.level] || c.txid > s.Last.MaxTXID {
			return bad("level %d done up to %016x", c.level, c.txid)
		}
		s.Done[c.level] = c.txid
	default:
		return bad("kind %d", c.kind)
	}
	return nil
}

func (o Object) check() error {
	switch {
	case o.Level < 0 || o.Level > RangeLevel && o.Level != SnapshotLevel, o.MinTXID == 0, o.MaxTXID < o.MinTXID,
		o.Level == 0 && o.MinTXID != o.MaxTXID, o.Level == SnapshotLevel && o.MinTXID != 1,
		o.PageCount == 0, o.Size <= 0, o.Stored <= 0, o.IndexSize < 0, o.Time <= 0,
		o.packed() && (o.Level != 0 || o.PackMin > o.MinTXID || o.PackMax < o.MaxTXID || o.PackAt < 0 || o.PackIndex < packIndexMin || o.PackIndex > maxMetadata ||
			o.PackStored-o.Size < o.PackIndex):
		return fmt.Errorf("level %d file %s of %d pages, %d bytes: %w", o.Level, o.name(), o.PageCount, o.Size, errInvalidChange)
	}
	return nil
}

// A manifest, a journal entry and a segment are each
//
//	magic 4 | payload of uvarints and fixed 8-byte words | CRC-64/ISO 8, little-endian
//
// and are read by the same rules: a count is compared with the bytes that are
// left before anything is allocated for it.
const (
	manifestMagic = "HSM1"
	journalMagic  = "HSJ1"
	commitsMagic  = "HSC1"
)

var crcTable = crc64.MakeTable(crc64.ISO)

func crc(b []byte) uint64 { return crc64.Checksum(b, crcTable) }

type encoder struct {
	b      []byte
	before Object // the last one that was written
}

func (e *encoder) uint(v uint64)   { e.b = binary.AppendUvarint(e.b, v) }
func (e *encoder) fixed(v uint64)  { e.b = binary.LittleEndian.AppendUint64(e.b, v) }
func (e *encoder) string(s string) { e.uint(uint64(len(s))); e.b = append(e.b, s...) }
func (e *encoder) done() []byte    { e.fixed(crc(e.b)); return e.b }

// In the place of the level: commits are most of what there is, and most of them follow each other.
const (
	levelNext       = SnapshotLevel + 1 + iota // the commit after the object before, in an object of its own
	levelNextPacked                            // the same, behind it in its pack
)

// follows returns how o follows the object before it, 0 where it does not.
func (o Object) follows(before Object) int {
	if before.Level != 0 || before.MaxTXID == 0 || o.Level != 0 || o.MinTXID != before.MaxTXID+1 || o.MaxTXID != o.MinTXID || o.Time <= before.Time ||
		o.Stored != o.Size || o.IndexSize != 0 || o.IndexSum != 0 {
		return 0
	}
	if !o.packed() {
		return levelNext
	}
	if o.PackMin != before.PackMin || o.PackMax != before.PackMax || o.PackAt != before.PackAt+before.Size || o.PackStored != before.PackStored ||
		o.PackIndex != before.PackIndex || o.PackSum != before.PackSum {
		return 0
	}
	return levelNextPacked
}

func (e *encoder) object(o Object) {
	before := e.before
	e.before = o
	if level := o.follows(before); level != 0 {
		e.uint(uint64(level))
		e.uint(uint64(o.Time - before.Time))
		e.fixed(o.Post)
		e.b = binary.AppendVarint(e.b, int64(o.PageCount)-int64(before.PageCount))
		e.uint(uint64(o.Pages))
		e.uint(uint64(o.Size))
		e.fixed(o.Checksum)
		return
	}
	e.uint(uint64(o.Level))
	e.uint(o.MinTXID)
	e.uint(o.MaxTXID - o.MinTXID)
	e.uint(uint64(o.Time))
	e.fixed(o.Post)
	e.uint(uint64(o.PageCount))
	e.uint(uint64(o.Pages))
	e.uint(uint64(o.Size))
	e.uint(uint64(o.Stored))
	e.fixed(o.Checksum)
	e.uint(uint64(o.IndexSize))
	e.fixed(o.IndexSum)
	if !o.packed() {
		e.uint(0)
		return
	}
	e.uint(o.MinTXID - o.PackMin + 1)
	e.uint(o.PackMax - o.MaxTXID)
	e.uint(uint64(o.PackAt))
	e.uint(uint64(o.PackStored))
	e.uint(uint64(o.PackIndex))
	e.fixed(o.PackSum)
}

func (e *encoder) objects(list []Object) {
	e.uint(uint64(len(list)))
	for _, o := range list {
		e.object(o)
	}
}

func (e *encoder) segment(s Segment) {
	e.uint(s.MinTXID)
	e.uint(s.MaxTXID - s.MinTXID)
	e.uint(uint64(s.FirstTime))
	e.uint(uint64(s.LastTime))
	e.uint(uint64(s.Count))
	e.fixed(s.Sum)
}

type decoder struct {
	b      []byte
	err    error
	before Object // the last one that was read
}

// newDecoder checks the magic and the checksum.
func newDecoder(b []byte, magic string) *decoder {
	d := &decoder{}
	switch {
	case len(b) < len(magic)+8:
		d.fail("%d bytes", len(b))
	case string(b[:len(magic)]) != magic:
		d.fail("magic %q, want %q", b[:len(magic)], magic)
	case crc(b[:len(b)-8]) != binary.LittleEndian.Uint64(b[len(b)-8:]):
		d.fail("wrong checksum")
	default:
		d.b = b[len(magic) : len(b)-8]
	}
	return d
}

func (d *decoder) fail(format string, args ...any) {
	if d.err == nil {
		d.err = fmt.Errorf("%w: %w", fmt.Errorf(format, args...), ErrDamaged)
	}
	d.b = nil
}

func (d *decoder) uint() uint64 {
	v, n := binary.Uvarint(d.b)
	if n <= 0 {
		d.fail("it ends too early")
		return 0
	}
	d.b = d.b[n:]
	return v
}

// small is a uint that must be at most limit.
func (d *decoder) small(limit uint64) uint64 {
	v := d.uint()
	if v > limit {
		d.fail("%d, at most %d are possible", v, limit)
		return 0
	}
	return v
}

func (d *decoder) fixed() uint64 {
	if len(d.b) < 8 {
		d.fail("it ends too early")
		return 0
	}
	v := binary.LittleEndian.Uint64(d.b)
	d.b = d.b[8:]
	return v
}

func (d *decoder) fixed32() uint32 {
	if len(d.b) < 4 {
		d.fail("it ends too early")
		return 0
	}
	v := binary.LittleEndian.Uint32(d.b)
	d.b = d.b[4:]
	return v
}

// int is a signed number.
func (d *decoder) int() int64 {
	v, n := binary.Varint(d.b)
	if n <= 0 {
		d.fail("it ends too early")
		return 0
	}
	d.b = d.b[n:]
	return v
}

func (d *decoder) string(limit int) string {
	n := int(d.small(uint64(limit)))
	if n > len(d.b) {
		d.fail("it ends too early")
		return ""
	}
	s := string(d.b[:n])
	d.b = d.b[n:]
	return s
}

// count is the number of things of at least size bytes each that follow.
func (d *decoder) count(size int) int { return int(d.small(uint64(len(d.b) / size))) }

const (
	objectMinBytes  = 5 + 2*8
	segmentMinBytes = 5 + 8
	maxInt64        = 1<<63 - 1
)

func (d *decoder) object() Object {
	var o Object
	if level := int(d.small(levelNextPacked)); level > SnapshotLevel {
		o = d.next(level == levelNextPacked)
	} else {
		o = d.whole(level)
	}
	if d.err == nil {
		if err := o.check(); err != nil {
			d.fail("%v", err)
		}
	}
	d.before = o
	return o
}

// next is the commit that follows the one that was read last.
func (d *decoder) next(packed bool) Object {
	before := d.before
	if before.Level != 0 || before.MaxTXID == 0 || before.MaxTXID == ^uint64(0) || packed && !before.packed() {
		d.fail("a commit follows nothing")
		return Object{}
	}
	o := Object{MinTXID: before.MaxTXID + 1, MaxTXID: before.MaxTXID + 1}
	o.Time = before.Time + int64(d.small(uint64(maxInt64-before.Time)))
	o.Post = d.fixed()
	pages := d.int()
	if pages < -int64(before.PageCount) || pages > 1<<32-1-int64(before.PageCount) {
		d.fail("%d pages more than %d", pages, before.PageCount)
	}
	o.PageCount = uint32(int64(before.PageCount) + pages)
	o.Pages = uint32(d.small(1<<32 - 1))
	o.Size = int64(d.small(maxInt64))
	o.Stored = o.Size
	o.Checksum = d.fixed()
	if packed {
		o.PackMin, o.PackMax, o.PackAt = before.PackMin, before.PackMax, before.PackAt+before.Size
		o.PackStored, o.PackIndex, o.PackSum = before.PackStored, before.PackIndex, before.PackSum
	}
	return o
}

func (d *decoder) whole(level int) Object {
	o := Object{Level: level, MinTXID: d.uint()}
	o.MaxTXID = o.MinTXID + d.small(^uint64(0)-o.MinTXID)
	o.Time = int64(d.small(maxInt64))
	o.Post = d.fixed()
	o.PageCount = uint32(d.small(1<<32 - 1))
	o.Pages = uint32(d.small(1<<32 - 1))
	o.Size = int64(d.small(maxInt64))
	o.Stored = int64(d.small(maxInt64))
	o.Checksum = d.fixed()
	o.IndexSize = int64(d.small(maxInt64))
	o.IndexSum = d.fixed()
	if n := d.small(o.MinTXID); n > 0 {
		o.PackMin = o.MinTXID - (n - 1)
		o.PackMax = o.MaxTXID + d.small(^uint64(0)-o.MaxTXID)
		o.PackAt, o.PackStored = int64(d.small(maxInt64)), int64(d.small(maxInt64))
		o.PackIndex, o.PackSum = int64(d.small(maxInt64)), d.fixed()
	}
	return o
}

func (d *decoder) objects(level int) []Object {
	n := d.count(objectMinBytes)
	list := make([]Object, 0, n)
	for range n {
		o := d.object()
		if d.err == nil && (o.Level != level || len(list) > 0 && list[len(list)-1].MaxTXID >= o.MaxTXID) {
			d.fail("level %d file %s is out of order", o.Level, o.name())
		}
		list = append(list, o)
	}
	return list
}

func (d *decoder) segment() Segment {
	s := Segment{MinTXID: d.uint()}
	s.MaxTXID = s.MinTXID + d.small(^uint64(0)-s.MinTXID)
	s.FirstTime, s.LastTime = int64(d.small(maxInt64)), int64(d.small(maxInt64))
	s.Count = uint32(d.small(1<<32 - 1))
	s.Sum = d.fixed()
	return s
}

// end refuses what follows.
func (d *decoder) end() error {
	if d.err == nil && len(d.b) != 0 {
		d.fail("%d bytes too many", len(d.b))
	}
	return d.err
}

func encodeManifest(s *State) []byte {
	e := &encoder{b: []byte(manifestMagic)}
	e.string(s.Cluster)
	e.uint(s.Lineage)
	e.string(s.Database)
	e.string(s.Name)
	e.uint(uint64(s.PageSize))
	e.uint(s.Seq)
	e.uint(uint64(len(s.Segments)))
	for _, x := range s.Segments {
		e.segment(x)
	}
	e.objects(s.Recent)
	e.objects(s.Ranges)
	for level := 1; level <= TopLevel; level++ {
		e.objects(s.Levels[level])
		e.uint(s.Done[level])
	}
	e.objects(s.Snapshots)
	e.uint(uint64(len(s.Gaps)))
	for _, g := range s.Gaps {
		e.uint(g.MinTXID)
		e.uint(g.MaxTXID - g.MinTXID)
	}
	e.uint(uint64(len(s.Labels)))
	for _, l := range s.Labels {
		e.string(l.Name)
		e.uint(l.TXID)
	}
	if s.Last.MaxTXID != 0 {
		e.uint(1)
		e.object(s.Last)
	} else {
		e.uint(0)
	}
	return e.done()
}

func decodeManifest(b []byte) (*State, error) {
	d := newDecoder(b, manifestMagic)
	s := &State{}
	s.Cluster = d.string(maxName)
	s.Lineage = d.uint()
	s.Database = d.string(32)
	s.Name = d.string(maxName)
	s.PageSize = uint32(d.small(65536))
	s.Seq = d.uint()
	for range d.count(segmentMinBytes) {
		x := d.segment()
		if n := len(s.Segments); d.err == nil && n > 0 && (s.Segments[n-1].MaxTXID >= x.MinTXID || s.Segments[n-1].LastTime >= x.FirstTime) {
			d.fail("segment %s is out of order", x.name())
		}
		s.Segments = append(s.Segments, x)
	}
	s.Recent = d.objects(0)
	s.Ranges = d.objects(RangeLevel)
	for level := 1; level <= TopLevel; level++ {
		s.Levels[level] = d.objects(level)
		s.Done[level] = d.uint()
	}
	s.Snapshots = d.objects(SnapshotLevel)
	for range d.count(2) {
		g := Gap{MinTXID: d.uint()}
		g.MaxTXID = g.MinTXID + d.small(^uint64(0)-g.MinTXID)
		s.Gaps = append(s.Gaps, g)
	}
	for range d.count(2) {
		s.Labels = append(s.Labels, Label{Name: d.string(maxName), TXID: d.uint()})
	}
	if d.small(1) == 1 {
		s.Last = d.object()
	}
	if err := d.end(); err != nil {
		return nil, err
	}
	if err := s.Identity.check(); err != nil {
		return nil, fmt.Errorf("%w: %w", err, ErrDamaged)
	}
	if s.PageSize != 0 && !snapshot.ValidPageSize(s.PageSize) || s.PageSize == 0 && s.Last.MaxTXID != 0 {
		return nil, fmt.Errorf("page size %d: %w", s.PageSize, ErrDamaged)
	}
	return s, nil
}

func encodeJournal(seq uint64, changes []change) []byte {
	e := &encoder{b: []byte(journalMagic)}
	e.uint(seq)
	e.uint(uint64(len(changes)))
	for _, c := range changes {
		e.uint(uint64(c.kind))
		switch c.kind {
		case changeAdd:
			e.object(c.object)
		case changeRemove:
			e.uint(uint64(c.object.Level))
			e.uint(c.object.MinTXID)
			e.uint(c.object.MaxTXID - c.object.MinTXID)
		case changeSeal, changeUnseal:
			e.segment(c.segment)
		case changeGap:
			e.uint(c.gap.MinTXID)
			e.uint(c.gap.MaxTXID - c.gap.MinTXID)
		case changeLabel, changeUnlabel:
			e.string(c.label.Name)
			e.uint(c.label.TXID)
		case changeDone:
			e.uint(uint64(c.level))
			e.uint(c.txid)
		case changePageSize:
			e.uint(uint64(c.pageSize))
		}
	}
	return e.done()
}

func decodeJournal(b []byte) (seq uint64, changes []change, err error) {
	d := newDecoder(b, journalMagic)
	seq = d.uint()
	for range d.count(2) {
		c := change{kind: int(d.small(changePageSize))}
		switch c.kind {
		case changeAdd:
			c.object = d.object()
		case changeRemove:
			c.object.Level = int(d.small(SnapshotLevel))
			if c.object.Level > RangeLevel && c.object.Level != SnapshotLevel {
				d.fail("level %d", c.object.Level)
			}
			c.object.MinTXID = d.uint()
			c.object.MaxTXID = c.object.MinTXID + d.small(^uint64(0)-c.object.MinTXID)
		case changeSeal, changeUnseal:
			c.segment = d.segment()
		case changeGap:
			c.gap.MinTXID = d.uint()
			c.gap.MaxTXID = c.gap.MinTXID + d.small(^uint64(0)-c.gap.MinTXID)
		case changeLabel, changeUnlabel:
			c.label = Label{Name: d.string(maxName), TXID: d.uint()}
		case changeDone:
			c.level, c.txid = int(d.small(TopLevel)), d.uint()
		case changePageSize:
			c.pageSize = uint32(d.small(65536))
		default:
			d.fail("change of kind %d", c.kind)
		}
		if d.err != nil {
			break
		}
		changes = append(changes, c)
	}
	return seq, changes, d.end()
}

func encodeCommits(list []Object) []byte {
	e := &encoder{b: []byte(commitsMagic)}
	e.objects(list)
	return e.done()
}

func decodeCommits(b []byte) ([]Object, error) {
	d := newDecoder(b, commitsMagic)
	list := d.objects(0)
	return list, d.end()
}
