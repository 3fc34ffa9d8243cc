package archive

import (
	"context"
	"fmt"
	"path"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/uglyer/ha-sqlite/snapshot/store"
)

const (
	tidyEvery = 24 * time.Hour
	strayKeep = 24 * time.Hour
)

// strays are objects that no manifest listed when they were found: what could not be deleted after it was removed from
// the manifest, or what a writer had stored and did not come to enter. They outlive Writers, not the process: another
// one finds them anew.
type strays struct {
	mu  sync.Mutex
	dbs map[string]*tidied // by directory
}

type tidied struct {
	seq   uint64 // of the journal then
	at    time.Time
	found map[string]time.Time
}

// Tidy deletes objects that the manifest has not listed for a day, and that nobody can come to list: those behind what is
// archived, and merged, already. Writers take over what others have stored, but none goes back. It looks once a day at
// most, and only where something was written since.
func (w *Writer) Tidy(ctx context.Context) error {
	v := w.View()
	v.strays.mu.Lock()
	if v.strays.dbs == nil {
		v.strays.dbs = map[string]*tidied{}
	}
	last := v.strays.dbs[v.dir]
	v.strays.mu.Unlock()
	if last != nil && (last.seq == v.state.Seq && len(last.found) == 0 || time.Since(last.at) < tidyEvery) {
		return nil
	}
	next := &tidied{seq: v.state.Seq, at: time.Now(), found: map[string]time.Time{}}
	old, err := v.findStrays(ctx, last, next)
	if err == nil {
		err = v.remove(ctx, old)
	}
	if err != nil {
		return fmt.Errorf("remove what %s does not need: %w", v.state.Name, err)
	}
	v.strays.mu.Lock()
	defer v.strays.mu.Unlock()
	v.strays.dbs[v.dir] = next
	return nil
}

// findStrays looks for objects that the manifest does not list, and returns those that were there long ago already. What
// is archived meanwhile is behind all that it looks at.
func (v *View) findStrays(ctx context.Context, last, next *tidied) (old []string, err error) {
	known := map[string]bool{}
	add := func(list []Object) {
		for _, o := range list {
			known[v.Key(o)] = true
			if o.IndexSize > 0 {
				known[v.indexKey(o)] = true
			}
		}
	}
	for _, list := range v.state.lists() {
		add(list)
	}
	for _, s := range v.state.Segments {
		list, err := v.readSegment(ctx, s)
		if err != nil {
			return nil, err
		}
		known[v.segmentKey(s)] = true
		add(list)
	}
	passed := v.state.passed()
	dirs := map[string]int{packsDir: 0, commitsDir: commitsLevel, indexDir: -1}
	for _, level := range []int{0, 1, 2, 3, SnapshotLevel} {
		dirs[v.store.LevelDir(level)] = level
	}
	for dir, level := range dirs {
		if err := v.list(ctx, store.Join(v.dir, dir), "", func(i store.Info) error {
			var first, end uint64
			level, name := level, path.Base(i.Key)
			if dir == indexDir {
				text, rest, _ := strings.Cut(name, "-")
				n, err := strconv.Atoi(text)
				if err != nil {
					return nil
				}
				level, name = n, rest
			}
			if n, _ := fmt.Sscanf(name, "%016x-%016x", &first, &end); known[i.Key] || n != 2 || end > passed[level] {
				return nil
			}
			since := next.at
			if last != nil && !last.found[i.Key].IsZero() {
				since = last.found[i.Key]
			}
			if next.at.Sub(since) >= strayKeep {
				old = append(old, i.Key)
			} else {
				next.found[i.Key] = since
			}
			return nil
		}); err != nil {
			return nil, err
		}
	}
	return old, nil
}

// commitsLevel stands for segments of commits.
const commitsLevel = -2

// passed is up to where a writer makes no file of a level any more. Snapshots it makes of the last state.
func (s *State) passed() map[int]uint64 {
	sealed := uint64(0)
	if n := len(s.Segments); n > 0 {
		sealed = s.Segments[n-1].MaxTXID
	}
	return map[int]uint64{
		0: s.Last.MaxTXID, RangeLevel: s.Last.MaxTXID, 1: s.Done[1], 2: s.Done[2], 3: s.Done[3], SnapshotLevel: max(s.Last.MaxTXID, 1) - 1,
		commitsLevel: sealed,
	}
}
