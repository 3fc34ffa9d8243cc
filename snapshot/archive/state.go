package archive

import (
	"cmp"
	"errors"
	"fmt"
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

	// Levels whose list shares no memory with that of another State, and whether that of segments shares none: see clone.
	owned         [SnapshotLevel + 1]bool
	ownedSegments bool
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

// clone returns a copy to which changes can be made. The lists of objects and of segments share their memory, so that an
// entry costs what it changes and not what there is: of s only what it has now may be read, and of its copies only one may
// get objects or segments behind that. The Writer makes one at a time and forgets the others.
func (s *State) clone() *State {
	c := *s
	c.owned, c.ownedSegments = [SnapshotLevel + 1]bool{}, false
	c.Gaps, c.Labels = slices.Clone(s.Gaps), slices.Clone(s.Labels)
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
		if !s.ownedSegments {
			s.Segments, s.ownedSegments = slices.Clone(s.Segments), true
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
