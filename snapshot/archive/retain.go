package archive

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"time"
)

// Retain removes what is older than the options keep. A file goes only where
// a file of a higher level has all of it, a chain of files to a later snapshot
// only as a whole, and everything that stays can be reached as before. It
// returns how many files went. An error that wraps errBlocked says that some
// had to stay.
func (w *Writer) Retain(ctx context.Context, now time.Time) (int, error) {
	n, err := w.retain(ctx, now)
	if err != nil {
		return n, fmt.Errorf("remove old files of %s: %w", w.View().state.Name, err)
	}
	return n, nil
}

func (w *Writer) retain(ctx context.Context, now time.Time) (int, error) {
	v := w.View()
	keys, n, err := w.drop(ctx, now)
	if err != nil && !errors.Is(err, errBlocked) {
		return 0, err
	}
	if gone := v.remove(ctx, keys); gone != nil {
		return n, errors.Join(errors.New("the manifest has dropped them already"), gone)
	}
	return n, err
}

// Removable returns the files that Retain would remove.
func (w *Writer) Removable(ctx context.Context, now time.Time) ([]Object, error) {
	v := w.View()
	changes, files, err := w.old(ctx, v, now)
	if err != nil && !errors.Is(err, errBlocked) {
		return nil, fmt.Errorf("look for old files of %s: %w", v.state.Name, err)
	}
	for _, c := range changes {
		if c.kind == changeRemove {
			files = append(files, c.object)
		}
	}
	return files, nil
}

// errBlocked is returned where something that retention would remove stays, since without it there were a hole. The
// rest of what is old goes nevertheless.
var errBlocked = errors.New("files that are older than what is kept cannot be removed")

// old finds what retention removes, and the files of segments that go. With errBlocked there may be some, too.
func (w *Writer) old(ctx context.Context, v *View, now time.Time) ([]change, []Object, error) {
	s := v.state
	var cutoff [TopLevel + 1]int64
	for level := TopLevel; level >= 0; level-- {
		// A lower level is never kept for longer than a higher one.
		cutoff[level] = now.Add(-w.opts.Keep[level]).UnixMicro()
		if level < TopLevel {
			cutoff[level] = max(cutoff[level], cutoff[level+1])
		}
	}
	base := s.retainBase(cutoff[TopLevel]) // chains up to here may go
	var chains []change                    // up to a snapshot
	var files []change                     // that others have
	ranges := max(cutoff[0], now.Add(-keepRanges).UnixMicro())
	for level := 0; level <= RangeLevel; level++ {
		cut := cutoff
		if level == RangeLevel {
			cut[0] = ranges
		}
		for _, o := range *s.list(level) {
			switch droppable(s, o, cut, base) {
			case dropContained:
				files = append(files, change{kind: changeRemove, object: o})
			case dropChain:
				chains = append(chains, change{kind: changeRemove, object: o})
			}
		}
	}
	files, chains, left := wholePacks(files, chains)
	segments := map[uint64][]Object{} // by last TXID
	for _, seg := range s.Segments {
		if seg.LastTime >= cutoff[0] {
			break
		}
		list, err := v.readSegment(ctx, seg)
		if err != nil {
			return nil, nil, err
		}
		drops := [...]int{dropNot: 0, dropContained: 0, dropChain: 0}
		for _, o := range list {
			drops[droppable(s, o, cutoff, base)]++
		}
		if drops[dropNot] > 0 {
			continue
		}
		segments[seg.MaxTXID] = list
		if unseal := (change{kind: changeUnseal, segment: seg}); drops[dropChain] == 0 {
			files = append(files, unseal)
		} else {
			chains = append(chains, unseal)
		}
	}
	snapshots, needless := w.oldSnapshots(s, now, base)
	// What one group needs does not keep the others.
	var changes []change
	var going []Object
	var blocked error
	next := s
	groups := [][]change{files, append(chains, snapshots...)}
	for _, c := range needless {
		groups = append(groups, []change{c})
	}
	for i, group := range groups {
		if len(group) == 0 {
			continue
		}
		group, try, lost, err := next.without(group, left)
		if err != nil {
			return nil, nil, err
		}
		if lost.MaxTXID != 0 {
			if i < 2 {
				blocked = errors.Join(blocked, fmt.Errorf("%d changes: level %d file %s could not be reached any more: %w", len(group), lost.Level, lost.name(), errBlocked))
			}
			continue // a snapshot that leads over a gap is needed
		}
		next, changes = try, append(changes, group...)
		for _, c := range group {
			if c.kind == changeUnseal {
				going = append(going, segments[c.segment.MaxTXID]...)
			}
		}
	}
	return changes, going, blocked
}

// without returns the state after a group of changes that remove files, and the group with what nothing leads to then and
// nobody needs: ranges, of which there are the commits, and commits of left, which stay for the sake of others in their
// packs. Another file to which nothing leads is lost.
func (s *State) without(group, left []change) (all []change, next *State, lost Object, err error) {
	next = s.clone()
	for add := group; ; {
		for _, c := range add {
			if err := next.apply(c); err != nil {
				return nil, nil, Object{}, err
			}
		}
		o, bad := next.unreachable()
		if !bad {
			return group, next, Object{}, nil
		}
		add = nil
		if o.Level == RangeLevel {
			add = []change{{kind: changeRemove, object: o}}
		} else if i := slices.IndexFunc(left, func(c change) bool { return o.packed() && c.object.Level == o.Level && c.object.MaxTXID == o.MaxTXID }); i >= 0 {
			add = left[i : i+1]
		}
		if add == nil {
			return group, next, o, nil
		}
		group = append(slices.Clip(group), add...)
	}
}

// retainBase returns the last transaction of the snapshot with which the history is to begin: the newest one from before
// a time, 0 where there is none. Commits of a segment stay or go together, so it is not in the middle of one.
func (s *State) retainBase(cutoff int64) uint64 {
	for _, o := range slices.Backward(s.Snapshots) {
		if o.Time < cutoff && !slices.ContainsFunc(s.Segments, func(x Segment) bool { return x.MinTXID <= o.MaxTXID && o.MaxTXID < x.MaxTXID }) {
			return o.MaxTXID
		}
	}
	return 0
}

// oldSnapshots finds snapshots that are kept no longer: those before base, with which the history begins, and, where
// snapshots are kept for a shorter time than the files of the highest level, needless ones behind it. Of these one in
// that time stays, to be base later.
func (w *Writer) oldSnapshots(s *State, now time.Time, base uint64) (before, needless []change) {
	old := now.Add(-w.opts.Snapshots).UnixMicro()
	stays := int64(0)
	for i, o := range s.Snapshots {
		labelled := slices.ContainsFunc(s.Labels, func(l Label) bool { return l.TXID == o.MaxTXID })
		remove := change{kind: changeRemove, object: o}
		switch {
		case i == len(s.Snapshots)-1 || o.Time >= old:
		case o.MaxTXID < base:
			if !labelled {
				before = append(before, remove)
			}
		case o.MaxTXID > base && stays != 0 && o.Time-stays < w.opts.Snapshots.Microseconds():
			if !labelled {
				needless = append(needless, remove)
			}
		default:
			stays = o.Time
		}
	}
	return before, needless
}

// keepRanges is for how long ranges are kept that files of level 1 have. Plans
// get longer without them, and manifests with them.
const keepRanges = time.Hour

// wholePacks leaves out commits of packs of which others stay, and returns them: a pack that goes in parts goes late, as a
// stray.
func wholePacks(files, chains []change) (whole, wholeChains, left []change) {
	going := map[uint64]uint64{} // commits, by the last TXID of the pack
	for _, c := range slices.Concat(files, chains) {
		if c.object.packed() {
			going[c.object.PackMax]++
		}
	}
	stays := func(c change) bool {
		if !c.object.packed() || going[c.object.PackMax] == c.object.PackMax-c.object.PackMin+1 {
			return false
		}
		left = append(left, c)
		return true
	}
	return slices.DeleteFunc(files, stays), slices.DeleteFunc(chains, stays), left
}

const (
	dropNot = iota
	dropContained
	dropChain
)

// droppable says whether retention may drop a file of levels 0 to 3.
func droppable(s *State, o Object, cutoff [TopLevel + 1]int64, base uint64) int {
	effective := o.Level
	if effective == RangeLevel {
		effective = 0
	}
	for level := effective + 1; level <= TopLevel; level++ {
		list := s.Levels[level]
		if i := find(list, o.MaxTXID); i < len(list) && list[i].MinTXID <= o.MinTXID {
			// All that the larger file has goes at once, or a chain would begin in
			// the middle of it.
			if list[i].Time < cutoff[effective] {
				return dropContained
			}
			break // nobody needs it for what it has before base
		}
		if s.Done[level] < o.MaxTXID {
			return dropNot
		}
		effective = level // it stands in for one of this level
	}
	if o.MaxTXID <= base && o.Time < cutoff[TopLevel] {
		return dropChain
	}
	return dropNot
}

// unreachable returns a file to whose end no chain leads. Of a segment the last commit has to be reached: its first ones
// may be older than what is kept, see restorable.
func (s *State) unreachable() (Object, bool) {
	type file struct {
		Object
		segment bool
	}
	var all []file
	for _, list := range s.lists() {
		for _, o := range list {
			all = append(all, file{Object: o})
		}
	}
	for _, seg := range s.Segments {
		all = append(all, file{Object{MinTXID: seg.MinTXID, MaxTXID: seg.MaxTXID}, true})
	}
	slices.SortFunc(all, func(a, b file) int {
		return cmp.Or(cmp.Compare(a.MaxTXID, b.MaxTXID), cmp.Compare(a.Level, b.Level))
	})
	var reached []uint64 // ascending; of segments the ends
	from := func(txid uint64) uint64 {
		if txid == 0 {
			return 0
		}
		if i, _ := slices.BinarySearch(reached, txid); i < len(reached) {
			return reached[i]
		}
		return math.MaxUint64
	}
	// within says that commits of a segment lead to where a file begins, or into it.
	within := func(o file) bool {
		i, _ := slices.BinarySearchFunc(s.Segments, o.MinTXID-1, func(x Segment, t uint64) int { return cmp.Compare(x.MaxTXID, t) })
		for _, seg := range s.Segments[i:] {
			if seg.MinTXID > o.MaxTXID {
				break
			}
			if max(o.MinTXID-1, from(seg.MinTXID-1)) <= min(o.MaxTXID, seg.MaxTXID) {
				return true
			}
		}
		return false
	}
	for _, o := range all {
		at := from(o.MinTXID - 1)
		ok := at <= o.MaxTXID && !o.segment || at < o.MaxTXID || !o.segment && within(o)
		if !ok && !slices.ContainsFunc(all, func(x file) bool { return x.MaxTXID == o.MaxTXID && x.MinTXID == 1 }) {
			return o.Object, true
		}
		if len(reached) == 0 || reached[len(reached)-1] != o.MaxTXID {
			reached = append(reached, o.MaxTXID)
		}
	}
	return Object{}, false
}

// drop enters that old files are gone, and returns the keys of what may be
// removed then, and how many files these are, also with errBlocked. What is left by
// a crash in between Tidy finds.
func (w *Writer) drop(ctx context.Context, now time.Time) (keys []string, n int, err error) {
	w.shape.Lock()
	defer w.shape.Unlock()
	v := w.View()
	changes, more, blocked := w.old(ctx, v, now)
	if len(changes) == 0 {
		return nil, 0, blocked
	}
	packs := map[uint64]uint64{} // commits that go, by the last TXID of the pack
	add := func(o Object) {
		n++
		if o.packed() {
			// A pack goes where all of its commits go at once. One of which others stay, in another segment, goes after the
			// last of them, as a stray: see Tidy.
			if packs[o.PackMax]++; packs[o.PackMax] == o.PackMax-o.PackMin+1 {
				keys = append(keys, v.Key(o))
			}
		} else {
			keys = append(keys, v.Key(o))
		}
		if o.IndexSize > 0 {
			keys = append(keys, v.indexKey(o))
		}
	}
	for _, c := range changes {
		if c.kind == changeUnseal {
			keys = append(keys, v.segmentKey(c.segment))
			for _, o := range more {
				if o.MinTXID >= c.segment.MinTXID && o.MaxTXID <= c.segment.MaxTXID {
					add(o)
				}
			}
			continue
		}
		add(c.object)
	}
	if err := w.journalAlone(ctx, changes...); err != nil {
		return nil, 0, err
	}
	return keys, n, blocked
}
