package archive

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"strings"
	"time"

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

// Verify reads every file of a database and its page index, compares the times
// by which litestream restores, follows a chain of files to every state that the
// manifest lists, and restores the last one, page by page, without keeping it.
// It goes on behind a problem.
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
		list, err := v.readSegment(ctx, s)
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
		for _, err := range v.verify(ctx, o) {
			if err := problem(err); err != nil {
				return r, err
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

// verify returns what is wrong with a file and with what belongs to it.
func (v *View) verify(ctx context.Context, o Object) (problems []error) {
	note := func(err error) {
		if err != nil {
			problems = append(problems, err)
		}
	}
	switch {
	case o.IndexSize > 0:
		note(v.verifyIndexed(ctx, o))
	default:
		note(v.VerifyObject(ctx, o))
	}
	last := o.packed() && o.MaxTXID == o.PackMax
	if last {
		_, err := v.readPackIndex(ctx, o)
		note(err)
	}
	if !o.packed() || last {
		note(v.verifyTime(ctx, o))
	}
	return problems
}

// verifyIndexed reads a file to its end, and compares its page index, directory
// and blocks, with the one that the file gives.
func (v *View) verifyIndexed(ctx context.Context, o Object) error {
	in, err := v.openFile(ctx, o)
	if err != nil {
		return err
	}
	defer in.c.Close()
	index := &indexWriter{}
	for {
		fr, err := in.next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return err
		}
		index.add(fr)
	}
	key := v.indexKey(o)
	want, sum := index.bytes()
	if sum != o.IndexSum {
		return damaged(key, "the manifest lists checksum %016x, its file gives %016x", o.IndexSum, sum)
	}
	r, err := v.open(ctx, key)
	if err != nil {
		return err
	}
	defer r.Close()
	same, err := sameContent(r, bytes.NewReader(want))
	if err != nil {
		return fileError(key, err)
	}
	if !same {
		return damaged(key, "it is not the page index of its file")
	}
	return nil
}

// timeUnits are the precisions in which stores keep times: S3 and most file
// systems a microsecond, others less.
var timeUnits = []time.Duration{time.Microsecond, time.Millisecond, time.Second, 2 * time.Second}

// verifyTime compares the time of an object, which litestream restores by, with
// that of its last commit.
func (v *View) verifyTime(ctx context.Context, o Object) error {
	key := v.Key(o)
	info, err := v.store.Stat(ctx, key)
	if err != nil {
		return objectError(key, err)
	}
	want := time.UnixMicro(o.Time)
	for _, unit := range timeUnits {
		if info.Time.Equal(want.Truncate(unit)) {
			return nil
		}
	}
	return damaged(key, "its time is %s, its last commit was made at %s", info.Time.UTC().Format(timeFormat), want.UTC().Format(timeFormat))
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
		list, err := v.readSegment(ctx, s)
		if err != nil {
			return d, err
		}
		add(list)
	}
	return d, nil
}
