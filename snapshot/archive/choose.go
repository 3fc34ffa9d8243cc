package archive

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
)

// Views are the databases that had a name.
type Views struct {
	// List has those that can be read, the newest first: a later lineage of the cluster is newer than an earlier one,
	// whose nodes may have gone on for a while.
	List    []*View
	damaged []damagedDatabase
}

type damagedDatabase struct {
	id  Identity
	err error
}

// Damaged says why some of the databases cannot be read; nil where all can.
func (v Views) Damaged() error {
	var errs []error
	for _, d := range v.damaged {
		errs = append(errs, d.err)
	}
	return errors.Join(errs...)
}

// All returns the list where none is missing in it: any that is may be the newest, or the one that is meant.
func (v Views) All() ([]*View, error) {
	if err := v.Damaged(); err != nil {
		return nil, fmt.Errorf("%w; another database that had the name is found by its id, and a state of it by its bookmark", err)
	}
	return v.List, nil
}

// Of returns those of one database, in every lineage.
func (v Views) Of(database string) Views {
	return Views{
		slices.DeleteFunc(slices.Clone(v.List), func(x *View) bool { return x.state.Database != database }),
		slices.DeleteFunc(slices.Clone(v.damaged), func(x damagedDatabase) bool { return x.id.Database != database }),
	}
}

// Views loads the databases that had a name, of those that keep says yes to; with keep nil all of them. One that is damaged
// is left out, and known. One of which nothing is archived is none; where that leaves none at all it is ErrNoDatabase.
func (a *Archive) Views(ctx context.Context, name string, keep func(Identity) bool) (Views, error) {
	var views Views
	list, err := a.Find(ctx, name)
	if err != nil {
		return views, err
	}
	for _, id := range list {
		if keep != nil && !keep(id) {
			continue
		}
		v, err := a.Load(ctx, id)
		switch {
		case errors.Is(err, ErrNoDatabase): // it is just being made
		case errors.Is(err, ErrDamaged) && ctx.Err() == nil:
			views.damaged = append(views.damaged, damagedDatabase{id, err})
		case err != nil:
			return views, err
		case !v.Empty():
			views.List = append(views.List, v)
		}
	}
	if len(views.List) == 0 {
		if err := views.Damaged(); err != nil {
			return views, err
		}
		return views, fmt.Errorf("nothing is archived of %s: %w", name, ErrNoDatabase)
	}
	slices.SortFunc(views.List, func(x, y *View) int {
		return cmp.Or(cmp.Compare(y.state.Lineage, x.state.Lineage), cmp.Compare(y.state.Last.Time, x.state.Last.Time))
	})
	return views, nil
}

// FindState returns the state with a checksum after a transaction, in the first of the views that has it; one that is damaged
// is in the way only where no other one has it. With checksum 0 it is the state of the first one that has any, which a
// damaged one may be. Where none has it the error says what the first one has.
func FindState(ctx context.Context, views Views, txid, checksum uint64) (*View, Point, error) {
	damaged := views.Damaged()
	if checksum == 0 {
		if _, err := views.All(); err != nil {
			return nil, Point{}, err
		}
	}
	var first error
	for _, v := range views.List {
		p, err := v.PointOf(ctx, txid)
		if err == nil && checksum != 0 && p.Checksum != checksum {
			err = fmt.Errorf("transaction %016x of %s has checksum %016x in the archive, not %016x: that is of another history: %w",
				txid, v.state.Name, p.Checksum, checksum, ErrNotArchived)
		}
		switch {
		case err == nil:
			return v, p, nil
		case errors.Is(err, ErrDamaged) && checksum != 0 && ctx.Err() == nil:
			damaged = errors.Join(damaged, err)
		case !errors.Is(err, ErrNotArchived):
			return nil, Point{}, err
		case first == nil:
			first = err
		}
	}
	return nil, Point{}, cmp.Or(damaged, first)
}
