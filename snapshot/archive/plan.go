package archive

import (
	"cmp"
	"context"
	"fmt"
	"slices"
)

// Plan is what has to be read to restore a state.
type Plan struct {
	Target  Point
	Objects []Object // oldest first; the first one holds every page
	Bytes   int64    // in the store
}

// Plan finds the objects that give the state after a transaction: the latest
// snapshot, then as few files as possible, which the manifest lists. It reads
// segments of commits where single ones are needed, most often one.
func (v *View) Plan(ctx context.Context, p Point) (*Plan, error) {
	return v.plan(ctx, p, TopLevel, true)
}

// plan uses files of at most a level, and snapshots if it is told so.
func (v *View) plan(ctx context.Context, p Point, level int, snapshots bool) (*Plan, error) {
	var bases []Object
	lists := v.state.lists()[:level+1]
	lists = append(slices.Clone(lists), v.state.Ranges)
	if snapshots {
		lists = append(lists, v.state.Snapshots)
	}
	for _, list := range lists {
		for _, o := range list {
			if o.MinTXID == 1 && o.MaxTXID <= p.TXID {
				bases = append(bases, o)
			}
		}
	}
	if s := v.state.Segments; len(s) > 0 && s[0].MinTXID == 1 {
		list, err := v.segment(ctx, s[0])
		if err != nil {
			return nil, err
		}
		bases = append(bases, list[0])
	}
	slices.SortStableFunc(bases, func(a, b Object) int {
		if c := cmp.Compare(b.MaxTXID, a.MaxTXID); c != 0 {
			return c
		}
		return cmp.Compare(b.Level, a.Level)
	})
	for _, base := range bases {
		plan := &Plan{Target: p, Objects: []Object{base}, Bytes: base.Stored}
		at := base.MaxTXID
		for at < p.TXID {
			o, ok, err := v.next(ctx, at, p.TXID, level)
			if err != nil {
				return nil, err
			}
			if !ok {
				break
			}
			plan.Objects = append(plan.Objects, o)
			plan.Bytes += o.Stored
			at = o.MaxTXID
		}
		if at == p.TXID {
			if last := plan.Objects[len(plan.Objects)-1]; last.Post != p.Checksum || last.PageCount != p.PageCount {
				return nil, damaged(v.Key(last), "it ends at checksum %016x, another file at %016x", last.Post, p.Checksum)
			}
			return plan, nil
		}
	}
	return nil, fmt.Errorf("plan a restore of transaction %016x of %s: no chain of files leads there: %w", p.TXID, v.state.Name, ErrDamaged)
}

// next returns the file, of at most a level, that leads furthest from the
// state after transaction at without passing target.
func (v *View) next(ctx context.Context, at, target uint64, level int) (best Object, ok bool, err error) {
	for ; level >= 1; level-- {
		list := v.state.Levels[level]
		if i := find(list, at+1); i < len(list) && list[i].MinTXID <= at+1 && list[i].MaxTXID <= target && list[i].MaxTXID > best.MaxTXID {
			best = list[i]
		}
	}
	if best.MaxTXID != 0 {
		return best, true, nil
	}
	if i := find(v.state.Ranges, at+1); i < len(v.state.Ranges) && v.state.Ranges[i].MinTXID <= at+1 && v.state.Ranges[i].MaxTXID <= target {
		return v.state.Ranges[i], true, nil
	}
	return v.commit(ctx, at+1)
}

// commit returns the file of one commit.
func (v *View) commit(ctx context.Context, txid uint64) (Object, bool, error) {
	if i := find(v.state.Recent, txid); i < len(v.state.Recent) {
		if o := v.state.Recent[i]; o.MaxTXID == txid {
			return o, true, nil
		}
	}
	i, _ := slices.BinarySearchFunc(v.state.Segments, txid, func(s Segment, t uint64) int { return cmp.Compare(s.MaxTXID, t) })
	if i == len(v.state.Segments) || v.state.Segments[i].MinTXID > txid {
		return Object{}, false, nil
	}
	list, err := v.segment(ctx, v.state.Segments[i])
	if err != nil {
		return Object{}, false, err
	}
	j := find(list, txid)
	if j == len(list) || list[j].MaxTXID != txid {
		return Object{}, false, nil
	}
	return list[j], true, nil
}
