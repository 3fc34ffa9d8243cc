package archive

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
)

// Views loads the databases that had a name, of those that keep says yes to, the newest first: a later lineage of the
// cluster is newer than an earlier one, whose nodes may have gone on for a while. One of which nothing is archived is
// none; where that leaves none at all it is ErrNoDatabase. With keep nil it is all of them.
func (a *Archive) Views(ctx context.Context, name string, keep func(Identity) bool) ([]*View, error) {
	list, err := a.Find(ctx, name)
	if err != nil {
		return nil, err
	}
	var views []*View
	for _, id := range list {
		if keep != nil && !keep(id) {
			continue
		}
		v, err := a.Load(ctx, id)
		if errors.Is(err, ErrNoDatabase) {
			continue // it is just being made
		}
		if err != nil {
			return nil, err
		}
		if !v.Empty() {
			views = append(views, v)
		}
	}
	if len(views) == 0 {
		return nil, fmt.Errorf("nothing is archived of %s: %w", name, ErrNoDatabase)
	}
	slices.SortFunc(views, func(x, y *View) int {
		return cmp.Or(cmp.Compare(y.state.Lineage, x.state.Lineage), cmp.Compare(y.state.Last.Time, x.state.Last.Time))
	})
	return views, nil
}

// FindState returns the state with a checksum after a transaction, in the first of the views that has it; with checksum 0 it
// is that of the first one that has any. Where none has it the view is the first one, and the error says what that has.
func FindState(ctx context.Context, views []*View, txid, checksum uint64) (*View, Point, error) {
	var first error
	for _, v := range views {
		p, err := v.PointOf(ctx, txid)
		if err == nil && checksum != 0 && p.Checksum != checksum {
			err = fmt.Errorf("transaction %016x of %s has checksum %016x in the archive, not %016x: that is of another history: %w",
				txid, v.state.Name, p.Checksum, checksum, ErrNotArchived)
		}
		if err == nil {
			return v, p, nil
		}
		if !errors.Is(err, ErrNotArchived) {
			return v, Point{}, err
		}
		if first == nil {
			first = err
		}
	}
	return views[0], Point{}, first
}
