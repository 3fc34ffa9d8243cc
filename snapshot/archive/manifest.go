package archive

import (
	"encoding/binary"
	"fmt"
	"hash/crc64"

	"github.com/uglyer/ha-sqlite/snapshot"
)

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
