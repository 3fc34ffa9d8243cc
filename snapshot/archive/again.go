package archive

import (
	"context"
	"errors"
	"fmt"

	"github.com/uglyer/ha-sqlite/snapshot/store"
)

// readAgain is how often what the archive has is read again where retention has
// removed an object in the middle. The store of a database that is written for
// years removes files each hour.
const readAgain = 3

// missing returns the object that an error says is not there.
func missing(err error) (key string, ok bool) {
	var named *ObjectError
	if errors.Is(err, ErrDamaged) && errors.Is(err, store.ErrNotFound) && errors.As(err, &named) {
		return named.Key, true
	}
	return "", false
}

// Again calls f, and calls it again where an object was missing that was not so
// before: retention may have removed it after f had read that it is there. One that
// is missing twice is missing.
func Again(ctx context.Context, f func() error) error {
	last := ""
	for try := 0; ; try++ {
		err := f()
		key, ok := missing(err)
		if !ok || key == last || try == readAgain || ctx.Err() != nil {
			return err
		}
		last = key
	}
}

// Planned plans a restore of a state and calls f with the plan, which reads it.
// Where an object is missing which the archive does not list any more, f is called
// again, with what it has now, and has to begin anew. A state that is gone itself
// is ErrNotArchived.
func (v *View) Planned(ctx context.Context, p Point, f func(*View, *Plan) error) error {
	var failed error
	last := ""
	return Again(ctx, func() error {
		if failed != nil {
			now, err := v.Load(ctx, v.state.Identity)
			if err != nil {
				return err
			}
			at, err := now.PointOf(ctx, p.TXID)
			if errors.Is(err, ErrNotArchived) {
				return fmt.Errorf("it was removed while it was read: %w", err)
			}
			if err != nil {
				return err
			}
			v, p = now, at
		}
		plan, err := v.Plan(ctx, p)
		if err != nil {
			failed = err
			return err
		}
		if failed != nil && v.lists(plan, last) {
			return failed
		}
		failed = f(v, plan)
		last, _ = missing(failed)
		return failed
	})
}

// lists reports whether a plan needs an object.
func (v *View) lists(p *Plan, key string) bool {
	for _, o := range p.Objects {
		if v.Key(o) == key {
			return true
		}
	}
	return false
}
