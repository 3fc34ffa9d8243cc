package archive

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"
)

// Retain removes what is older than the options keep. A file goes only where
// a file of a higher level has all of it, a chain of files to a later snapshot
// only as a whole, and everything that stays can be reached as before. It
// returns how many files went.
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
	if err != nil {
		return 0, err
	}
	if err := v.remove(ctx, keys); err != nil {
		return n, errors.Join(errors.New("the manifest has dropped them already"), err)
	}
	return n, nil
}

// Removable returns the files that Retain would remove.
func (w *Writer) Removable(ctx context.Context, now time.Time) ([]Object, error) {
	v := w.View()
	changes, files, err := w.old(ctx, v, now)
	if err != nil {
		return nil, fmt.Errorf("look for old files of %s: %w", v.state.Name, err)
	}
	for _, c := range changes {
		if c.kind == changeRemove {
			files = append(files, c.object)
		}
	}
	return files, nil
}

// old finds what retention removes, and the files of segments that go.
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
	var chains []change // up to a snapshot
	var files []change  // that others have
	base := uint64(0)   // chains up to here may go
	for _, o := range s.Snapshots {
		if o.Time < cutoff[TopLevel] {
			base = o.MaxTXID
		}
	}
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
	files, chains = wholePacks(files, chains)
	var segments []Object
	for _, seg := range s.Segments {
		if seg.LastTime >= cutoff[0] {
			break
		}
		list, err := v.segment(ctx, seg)
		if err != nil {
			return nil, nil, err
		}
		if slices.ContainsFunc(list, func(o Object) bool { return droppable(s, o, cutoff, base) == dropNot }) {
			continue
		}
		segments = append(segments, list...)
		chains = append(chains, change{kind: changeUnseal, segment: seg})
	}
	old := now.Add(-w.opts.Snapshots).UnixMicro()
	for i, o := range s.Snapshots {
		if i == len(s.Snapshots)-1 || o.Time >= old || slices.ContainsFunc(s.Labels, func(l Label) bool { return l.TXID == o.MaxTXID }) {
			continue
		}
		chains = append(chains, change{kind: changeRemove, object: o})
	}
	if len(files)+len(chains) == 0 {
		return nil, nil, nil
	}
	for _, changes := range [][]change{append(slices.Clone(files), chains...), files} {
		if len(changes) == 0 {
			continue
		}
		next := s.clone()
		for _, c := range changes {
			if err := next.apply(c); err != nil {
				return nil, nil, err
			}
		}
		if lost, ok := next.unreachable(); ok {
			if len(changes) == len(files) {
				return nil, nil, fmt.Errorf("level %d file %s could not be reached any more", lost.Level, lost.name())
			}
			continue
		}
		if len(changes) == len(files) {
			segments = nil
		}
		return changes, segments, nil
	}
	return nil, nil, nil
}

// keepRanges is for how long ranges are kept that files of level 1 have. Plans
// get longer without them, and manifests with them.
const keepRanges = time.Hour

// wholePacks leaves out commits of packs of which others stay.
func wholePacks(files, chains []change) (keptFiles, keptChains []change) {
	going := map[uint64]uint64{} // commits, by the last TXID of the pack
	for _, c := range slices.Concat(files, chains) {
		if c.object.packed() {
			going[c.object.PackMax]++
		}
	}
	stays := func(c change) bool {
		return c.object.packed() && going[c.object.PackMax] != c.object.PackMax-c.object.PackMin+1
	}
	return slices.DeleteFunc(files, stays), slices.DeleteFunc(chains, stays)
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
			return dropNot
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

// unreachable returns a file to whose end no chain leads.
func (s *State) unreachable() (Object, bool) {
	var all []Object
	for _, list := range s.lists() {
		all = append(all, list...)
	}
	for _, seg := range s.Segments {
		all = append(all, Object{MinTXID: seg.MinTXID, MaxTXID: seg.MaxTXID})
	}
	slices.SortFunc(all, func(a, b Object) int {
		if a.MaxTXID != b.MaxTXID {
			if a.MaxTXID < b.MaxTXID {
				return -1
			}
			return 1
		}
		return a.Level - b.Level
	})
	var reached []uint64 // ascending
	for _, o := range all {
		ok := o.MinTXID == 1
		if !ok {
			i, _ := slices.BinarySearch(reached, o.MinTXID-1)
			ok = i < len(reached) && reached[i] <= o.MaxTXID
		}
		if !ok && !slices.ContainsFunc(all, func(x Object) bool { return x.MaxTXID == o.MaxTXID && x.MinTXID == 1 }) {
			return o, true
		}
		if len(reached) == 0 || reached[len(reached)-1] != o.MaxTXID {
			reached = append(reached, o.MaxTXID)
		}
	}
	return Object{}, false
}

// drop enters that old files are gone, and returns the keys of what may be
// removed then, and how many files these are. What is left by a crash in between
// nobody looks at.
func (w *Writer) drop(ctx context.Context, now time.Time) (keys []string, n int, err error) {
	w.shape.Lock()
	defer w.shape.Unlock()
	v := w.View()
	changes, more, err := w.old(ctx, v, now)
	if err != nil || len(changes) == 0 {
		return nil, 0, err
	}
	add := func(o Object) {
		n++
		if key := v.Key(o); len(keys) == 0 || keys[len(keys)-1] != key { // of a pack there are many
			keys = append(keys, key)
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
	return keys, n, w.journal(ctx, changes...)
}
