package archive

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/uglyer/ha-sqlite/snapshot/store"
)

// Report is what Verify found.
type Report struct {
	Objects  int      // files that were read to their end
	Bytes    int64    // of them, in the store
	Points   int      // states that can be restored, from the first to the last
	Problems []string // each with the object at fault
	Unknown  []string // files of levels that the manifest does not list
}

// Verify reads every file of a database, follows a chain of files to every
// state that the manifest lists, and restores the last one, page by page,
// without keeping it. It goes on behind a problem.
func (v *View) Verify(ctx context.Context, progress Progress) (*Report, error) {
	r := &Report{}
	problem := func(err error) error {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		r.Problems = append(r.Problems, err.Error())
		return nil
	}
	if v.damage != nil {
		r.Problems = append(r.Problems, v.damage.Error())
	}
	var all []Object
	for _, list := range v.state.lists() {
		all = append(all, list...)
	}
	for _, s := range v.state.Segments {
		list, err := v.segment(ctx, s)
		if err != nil {
			if err := problem(err); err != nil {
				return r, err
			}
			continue
		}
		all = append(all, list...)
	}
	known := map[string]bool{}
	total := int64(0)
	for _, o := range all {
		total += o.Stored
		known[v.Key(o)] = true
	}
	for _, o := range all {
		if err := v.VerifyObject(ctx, o); err != nil {
			if err := problem(err); err != nil {
				return r, err
			}
		}
		if o.IndexSize > 0 {
			if _, err := v.readDirectory(ctx, o); err != nil {
				if err := problem(err); err != nil {
					return r, err
				}
			}
		}
		if o.packed() && o.MaxTXID == o.PackMax {
			if _, err := v.readPackIndex(ctx, o); err != nil {
				if err := problem(err); err != nil {
					return r, err
				}
			}
		}
		r.Objects++
		r.Bytes += o.Stored
		if progress != nil {
			progress(r.Bytes, total)
		}
	}
	if lost, bad := v.state.unreachable(); bad {
		r.Problems = append(r.Problems, fmt.Sprintf("no chain of files leads to %s", v.Key(lost)))
	}
	if err := v.Commits(ctx, 0, func(Point) error { r.Points++; return nil }); err != nil {
		if err := problem(err); err != nil {
			return r, err
		}
	}
	if !v.Empty() {
		plan, err := v.Plan(ctx, v.Last())
		if err == nil {
			err = v.Restore(ctx, plan, nowhere{}, nil)
		}
		if err != nil {
			if err := problem(err); err != nil {
				return r, err
			}
		}
	}
	dirs := []string{packsDir}
	for _, level := range []int{0, 1, 2, 3, SnapshotLevel} {
		dirs = append(dirs, v.store.LevelDir(level))
	}
	for _, dir := range dirs {
		if err := v.store.List(ctx, store.Join(v.dir, dir), "", func(i store.Info) error {
			if !known[i.Key] && (dir == packsDir || strings.HasSuffix(i.Key, ".ltx"+v.ext())) {
				r.Unknown = append(r.Unknown, i.Key)
			}
			return nil
		}); err != nil {
			return r, err
		}
	}
	return r, nil
}

// nowhere is a Target that keeps nothing.
type nowhere struct{}

// Truncate implements Target.
func (nowhere) Truncate(int64) error { return nil }

// WriteAt implements io.WriterAt.
func (nowhere) WriteAt(p []byte, _ int64) (int, error) { return len(p), nil }

// Description counts what a database has in the archive, by level.
type Description struct {
	Files [SnapshotLevel + 1]int
	Bytes [SnapshotLevel + 1]int64
}

// Describe counts the files of each level and their bytes in the store.
func (v *View) Describe(ctx context.Context) (Description, error) {
	var d Description
	add := func(list []Object) {
		for _, o := range list {
			d.Files[o.Level]++
			d.Bytes[o.Level] += o.Stored
		}
	}
	for _, list := range v.state.lists() {
		add(list)
	}
	for _, s := range v.state.Segments {
		list, err := v.segment(ctx, s)
		if err != nil {
			return d, err
		}
		add(list)
	}
	return d, nil
}

// Choose finds which of the databases that had a name the archive means at a
// time: the one that was made last before it.
func (a *Archive) Choose(ctx context.Context, name string, at func(*View) (bool, error)) (*View, error) {
	list, err := a.Find(ctx, name)
	if err != nil {
		return nil, err
	}
	var views []*View
	for _, id := range list {
		v, err := a.Load(ctx, id)
		if errors.Is(err, ErrNoDatabase) {
			continue // it is just being made
		}
		if err != nil {
			// It may be the one that is meant.
			return nil, fmt.Errorf("%w; a state of another database that had the name is found by its bookmark", err)
		}
		if !v.Empty() {
			views = append(views, v)
		}
	}
	if len(views) == 0 {
		return nil, fmt.Errorf("nothing is archived of %s: %w", name, ErrNoDatabase)
	}
	var best *View
	for _, v := range views {
		ok, err := at(v)
		if err != nil {
			return nil, err
		}
		if ok && (best == nil || v.state.Last.Time > best.state.Last.Time) {
			best = v
		}
	}
	if best == nil {
		// None fits; the last one says why.
		best = views[0]
		for _, v := range views[1:] {
			if v.state.Last.Time > best.state.Last.Time {
				best = v
			}
		}
	}
	return best, nil
}

// ChooseID finds the database of an id among those that had a name, in its last lineage. Of the others it reads nothing.
func (a *Archive) ChooseID(ctx context.Context, name, database string) (*View, error) {
	list, err := a.Find(ctx, name)
	if err != nil {
		return nil, err
	}
	var best *View
	for _, id := range list {
		if id.Database != database {
			continue
		}
		v, err := a.Load(ctx, id)
		if errors.Is(err, ErrNoDatabase) {
			continue // it is just being made
		}
		if err != nil {
			return nil, err
		}
		if !v.Empty() && (best == nil || v.state.Last.Time > best.state.Last.Time) {
			best = v
		}
	}
	if best == nil {
		return nil, fmt.Errorf("nothing is archived of database %s under the name %s: %w", database, name, ErrNoDatabase)
	}
	return best, nil
}
