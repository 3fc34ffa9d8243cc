package archive

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/uglyer/ha-sqlite/snapshot/store"
)

const (
	loadTries     = 3 // of a manifest, while its writer replaces it
	fetchAtOnce   = 8
	keptSegments  = 16
	segmentPrefix = "segment of commits"
)

// View is what an archive has of one database, as its manifest said when it
// was loaded. Objects may go away under an old view: load another one. It is
// safe for concurrent use.
type View struct {
	*Archive
	state *State
	base  uint64 // sequence number of the manifest that was read
	dir   string

	// Of the newest manifest where it is damaged and the one before was read; "" else. The entries since have all.
	damagedKey string
	damage     error

	mu       sync.Mutex
	segments map[uint64][]Object // by last TXID
	packs    packCache
}

// Load reads the manifest of a database: two listings and an object for each
// journal entry since the last manifest. Where that one is damaged the one before
// it serves, and Damage says so.
func (a *Archive) Load(ctx context.Context, id Identity) (*View, error) {
	var err error
	for range loadTries {
		var v *View
		if v, err = a.load(ctx, id); err == nil {
			return v, nil
		}
		if !errors.Is(err, ErrDamaged) || ctx.Err() != nil {
			break
		}
	}
	return nil, fmt.Errorf("load manifest of %s: %w", id.Name, err)
}

func (a *Archive) load(ctx context.Context, id Identity) (*View, error) {
	v := &View{Archive: a, dir: id.dir(), segments: map[uint64][]Object{}}
	before, newest := "", ""
	if err := a.store.List(ctx, store.Join(v.dir, manifestDir), "", func(i store.Info) error {
		before, newest = newest, i.Key
		return nil
	}); err != nil {
		return nil, err
	}
	if newest == "" {
		return nil, fmt.Errorf("%s has no manifest: %w", v.dir, ErrNoDatabase)
	}
	s, err := a.readManifest(ctx, id, newest)
	if errors.Is(err, ErrDamaged) && before != "" {
		if older, olderErr := a.readManifest(ctx, id, before); olderErr == nil {
			v.damagedKey, v.damage = newest, err
			s, err = older, nil
		}
	}
	if err != nil {
		return nil, err
	}
	v.state, v.base = s, s.Seq
	if err := a.follow(ctx, s); err != nil {
		return nil, err
	}
	if v.damage != nil && a.seqKey(v.dir, manifestDir, s.Seq) < newest {
		return nil, v.damage // of entries that it has some are gone
	}
	return v, nil
}

// Damage says that the newest manifest is damaged, which costs nothing of what is archived; nil else.
func (v *View) Damage() error { return v.damage }

func (a *Archive) readManifest(ctx context.Context, id Identity, key string) (*State, error) {
	if strings.HasSuffix(key, encryptedExt) != (a.keys != nil) {
		return nil, damaged(key, "encryption differs from that of the archive")
	}
	b, err := a.get(ctx, key)
	if err != nil {
		return nil, err
	}
	s, err := decodeManifest(b)
	if err != nil {
		return nil, &ObjectError{key, err}
	}
	if s.Identity != id {
		return nil, damaged(key, "it is that of database %s of cluster %s, lineage %d", s.Database, s.Cluster, s.Lineage)
	}
	if want := a.seqKey(id.dir(), manifestDir, s.Seq); key != want {
		return nil, damaged(key, "it belongs to %s", want)
	}
	return s, nil
}

// follow makes the changes that were entered since a manifest.
func (a *Archive) follow(ctx context.Context, s *State) error {
	dir := s.dir()
	var keys []string
	if err := a.store.List(ctx, store.Join(dir, journalDir), fmt.Sprintf("%016x%s", s.Seq, a.ext()), func(i store.Info) error {
		keys = append(keys, i.Key)
		return nil
	}); err != nil {
		return err
	}
	bodies, err := fetchAll(ctx, &a.objects, keys)
	if err != nil {
		return err
	}
	for i, key := range keys {
		seq, changes, err := decodeJournal(bodies[i])
		if err != nil {
			return &ObjectError{key, err}
		}
		if want := a.seqKey(dir, journalDir, s.Seq+1); key != want {
			return damaged(want, "it is missing, the next one is %s", key)
		}
		if seq != s.Seq+1 {
			return damaged(key, "it is entry %016x", seq)
		}
		for _, c := range changes {
			if err := s.apply(c); err != nil {
				return damaged(key, "%v", err)
			}
		}
		s.Seq = seq
	}
	return nil
}

func (a *Archive) seqKey(dir, kind string, seq uint64) string {
	return store.Join(dir, kind, fmt.Sprintf("%016x%s", seq, a.ext()))
}

// fetchAll reads small objects, several at once.
func fetchAll(ctx context.Context, o *objects, keys []string) ([][]byte, error) {
	bodies, errs := make([][]byte, len(keys)), make([]error, len(keys))
	slots := make(chan struct{}, fetchAtOnce)
	var wg sync.WaitGroup
	for i, key := range keys {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			bodies[i], errs[i] = o.get(ctx, key)
		})
	}
	wg.Wait()
	for _, err := range errs {
		if err != nil {
			return nil, err
		}
	}
	return bodies, nil
}

// State returns what the manifest says. It must not be changed.
func (v *View) State() *State { return v.state }

// Key returns the key of the object that has a file.
func (v *View) Key(o Object) string {
	if o.packed() {
		return v.packKey(o.PackMin, o.PackMax)
	}
	level := o.Level
	if level == RangeLevel {
		level = 0
	}
	return store.Join(v.dir, v.store.LevelDir(level), o.name()+".ltx"+v.ext())
}

func (v *View) indexKey(o Object) string {
	return store.Join(v.dir, indexDir, fmt.Sprintf("%d-%s-%016x%s", o.Level, o.name(), o.Checksum, v.ext()))
}

func (v *View) segmentKey(s Segment) string { return store.Join(v.dir, commitsDir, s.name()+v.ext()) }

// segment returns the commits of a segment, and keeps them for the next call.
func (v *View) segment(ctx context.Context, s Segment) ([]Object, error) {
	v.mu.Lock()
	list, ok := v.segments[s.MaxTXID]
	v.mu.Unlock()
	if ok {
		return list, nil
	}
	list, err := v.readSegment(ctx, s)
	if err != nil {
		return nil, err
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if len(v.segments) >= keptSegments {
		clear(v.segments)
	}
	v.segments[s.MaxTXID] = list
	return list, nil
}

// readSegment is segment for somebody who reads all of them, or one for the last time: it keeps nothing.
func (v *View) readSegment(ctx context.Context, s Segment) ([]Object, error) {
	key := v.segmentKey(s)
	b, err := v.get(ctx, key)
	if err != nil {
		return nil, err
	}
	list, err := decodeCommits(b)
	if err != nil {
		return nil, &ObjectError{key, err}
	}
	if crc(b) != s.Sum || len(list) != int(s.Count) || len(list) == 0 || list[0].MinTXID != s.MinTXID || list[len(list)-1].MaxTXID != s.MaxTXID ||
		list[0].Time != s.FirstTime || list[len(list)-1].Time != s.LastTime {
		return nil, damaged(key, "it is not the %s that the manifest lists", segmentPrefix)
	}
	return list, nil
}

// restorable returns the commits of a segment to which files lead. A segment stays as a whole while one of its commits is
// kept one by one; what leads to those before may be gone, as a file of a higher level has all of them.
func (v *View) restorable(ctx context.Context, s Segment) ([]Object, error) {
	list, err := v.segment(ctx, s)
	if err != nil || s.MinTXID == 1 {
		return list, err
	}
	reached := s.MaxTXID // where the first file from s on ends, or one right before it
	for _, files := range v.state.lists() {
		if i := find(files, s.MinTXID-1); i < len(files) {
			reached = min(reached, files[i].MaxTXID)
		}
	}
	if i, ok := slices.BinarySearchFunc(v.state.Segments, s.MinTXID-1, func(x Segment, t uint64) int { return cmp.Compare(x.MaxTXID, t) }); ok {
		reached = v.state.Segments[i].MaxTXID
	}
	if reached == s.MaxTXID { // nothing leads there: Plan and Verify say so
		return list, nil
	}
	return list[find(list, reached+1):], nil
}

// Point is a state of the database that can be restored.
type Point struct {
	TXID      uint64
	Time      time.Time // of the commit
	Checksum  uint64    // of all pages
	PageCount uint32
	object    Object
}

func point(o Object) Point {
	return Point{TXID: o.MaxTXID, Time: time.UnixMicro(o.Time).UTC(), Checksum: o.Post, PageCount: o.PageCount, object: o}
}

// lists returns the objects of all levels that the manifest holds itself.
func (s *State) lists() [][]Object {
	return [][]Object{s.Recent, s.Levels[1], s.Levels[2], s.Levels[3], s.Snapshots, s.Ranges}
}

// Empty reports whether nothing is archived.
func (v *View) Empty() bool { return v.state.Last.MaxTXID == 0 }

// Last returns the last state that is archived; the view must not be empty.
func (v *View) Last() Point { return point(v.state.Last) }

// First returns the first state that can be restored; the view must not be empty.
func (v *View) First(ctx context.Context) (Point, error) { return v.After(ctx, 0) }

// After returns the first state behind a transaction that can be restored.
func (v *View) After(ctx context.Context, txid uint64) (Point, error) {
	var best Object
	take := func(o Object) {
		if best.MaxTXID == 0 || o.MaxTXID < best.MaxTXID {
			best = o
		}
	}
	for _, list := range v.state.lists() {
		if i := find(list, txid+1); i < len(list) {
			take(list[i])
		}
	}
	for _, s := range v.state.Segments {
		if s.MaxTXID <= txid {
			continue
		}
		list, err := v.restorable(ctx, s)
		if err != nil {
			return Point{}, err
		}
		take(list[find(list, txid+1)])
		break
	}
	if best.MaxTXID == 0 {
		return Point{}, fmt.Errorf("a state behind transaction %016x: %w", txid, ErrNotArchived)
	}
	return point(best), nil
}

// Before returns the last state that keep says yes to; it must say no to all
// that follow one to which it says no.
func (v *View) before(ctx context.Context, keep func(Object) bool, segment func(Segment) bool) (Object, error) {
	var best Object
	last := func(list []Object) bool {
		i, _ := slices.BinarySearchFunc(list, true, func(o Object, _ bool) int {
			if keep(o) {
				return -1
			}
			return 0
		})
		if i > 0 && list[i-1].MaxTXID > best.MaxTXID {
			best = list[i-1]
		}
		return i > 0
	}
	for _, list := range v.state.lists() {
		last(list)
	}
	for i := len(v.state.Segments) - 1; i >= 0; i-- {
		if !segment(v.state.Segments[i]) {
			continue
		}
		list, err := v.restorable(ctx, v.state.Segments[i])
		if err != nil {
			return Object{}, err
		}
		if last(list) {
			break
		}
	}
	return best, nil
}

// Before returns the last state before a transaction that can be restored.
func (v *View) Before(ctx context.Context, txid uint64) (Point, error) {
	o, err := v.before(ctx, func(o Object) bool { return o.MaxTXID < txid }, func(s Segment) bool { return s.MinTXID < txid })
	if err == nil && o.MaxTXID == 0 {
		err = fmt.Errorf("a state before transaction %016x: %w", txid, ErrNotArchived)
	}
	return point(o), err
}

// RangeError is returned for a time before the first commit that is archived.
type RangeError struct {
	At, First, Last time.Time
}

func (e *RangeError) Error() string {
	return fmt.Sprintf("nothing is archived of %s; the archive has %s to %s", e.At.UTC().Format(timeFormat), e.First.UTC().Format(timeFormat), e.Last.UTC().Format(timeFormat))
}

// Unwrap makes it an ErrNotArchived.
func (e *RangeError) Unwrap() error { return ErrNotArchived }

const timeFormat = "2006-01-02T15:04:05.000000Z07:00"

// At returns the last state at or before a time that can be restored. dropped
// says that there were commits behind it, of which at least one may have been
// made before that time, that cannot be restored one by one any more.
func (v *View) At(ctx context.Context, t time.Time) (p Point, dropped bool, err error) {
	if v.Empty() {
		return Point{}, false, fmt.Errorf("nothing is archived of %s: %w", v.state.Name, ErrNotArchived)
	}
	micros := t.UnixMicro()
	o, err := v.before(ctx, func(o Object) bool { return o.Time <= micros }, func(s Segment) bool { return s.FirstTime <= micros })
	if err != nil {
		return Point{}, false, err
	}
	if o.MaxTXID == 0 {
		first, err := v.First(ctx)
		if err != nil {
			return Point{}, false, err
		}
		return Point{}, false, &RangeError{At: t, First: first.Time, Last: v.Last().Time}
	}
	if o.MaxTXID < v.state.Last.MaxTXID && o.Time < micros { // no two commits have one time
		next, err := v.After(ctx, o.MaxTXID)
		if err != nil {
			return Point{}, false, err
		}
		dropped = next.TXID != o.MaxTXID+1
	}
	return point(o), dropped, nil
}

// PointOf returns the state after a transaction. Where it cannot be restored
// the error says which ones can.
func (v *View) PointOf(ctx context.Context, txid uint64) (Point, error) {
	o, err := v.before(ctx, func(o Object) bool { return o.MaxTXID <= txid }, func(s Segment) bool { return s.MinTXID <= txid })
	switch {
	case err != nil:
		return Point{}, err
	case o.MaxTXID == txid && txid != 0:
		return point(o), nil
	}
	text := "nothing before it"
	if o.MaxTXID != 0 {
		text = fmt.Sprintf("%016x before it", o.MaxTXID)
	}
	if next, err := v.After(ctx, txid); err == nil {
		text += fmt.Sprintf(" and %016x behind it", next.TXID)
	} else if !errors.Is(err, ErrNotArchived) {
		return Point{}, err
	} else {
		text += " and nothing behind it"
	}
	return Point{}, fmt.Errorf("transaction %016x of %s: restorable are %s: %w", txid, v.state.Name, text, ErrNotArchived)
}

// Commits calls f for every state that can be restored, in order.
func (v *View) Commits(ctx context.Context, from uint64, f func(Point) error) error {
	lists := v.state.lists()
	at := make([]int, len(lists))
	for i, list := range lists {
		at[i] = find(list, from)
	}
	give := func(until uint64) error {
		for {
			best := -1
			for i, list := range lists {
				if at[i] < len(list) && list[at[i]].MaxTXID <= until && (best < 0 || list[at[i]].MaxTXID < lists[best][at[best]].MaxTXID) {
					best = i
				}
			}
			if best < 0 {
				return nil
			}
			o := lists[best][at[best]]
			for i, list := range lists {
				if at[i] < len(list) && list[at[i]].MaxTXID == o.MaxTXID {
					at[i]++
				}
			}
			if err := f(point(o)); err != nil {
				return err
			}
		}
	}
	for _, s := range v.state.Segments {
		if s.MaxTXID < from {
			continue
		}
		list, err := v.restorable(ctx, s)
		if err != nil {
			return err
		}
		if s.MinTXID > 0 {
			if err := give(s.MinTXID - 1); err != nil {
				return err
			}
		}
		lists, at = append(lists, list), append(at, find(list, from))
		if err := give(s.MaxTXID); err != nil {
			return err
		}
		lists, at = lists[:len(lists)-1], at[:len(at)-1]
	}
	return give(^uint64(0))
}

// File returns the file that ends at the point; of several, that of the lowest
// level.
func (p Point) File() Object { return p.object }

// HasSnapshot reports whether there is a file of every page of the state.
func (v *View) HasSnapshot(p Point) bool {
	i := find(v.state.Snapshots, p.TXID)
	return i < len(v.state.Snapshots) && v.state.Snapshots[i].MaxTXID == p.TXID
}

// Batch returns single commits from one on, as Backlog.Range does, for an
// archive that lacks them.
func (v *View) Batch(ctx context.Context, from uint64, count int, size int64) (*Batch, error) {
	batch := &Batch{}
	for txid := from; len(batch.Commits) < count; txid++ {
		o, ok, err := v.commit(ctx, txid)
		if err != nil {
			return nil, err
		}
		if size -= o.Size; !ok || o.Size > maxMetadata || size < 0 && len(batch.Commits) > 0 {
			break
		}
		b, err := v.content(ctx, o, true)
		if err != nil {
			return nil, err
		}
		batch.Commits = append(batch.Commits, Commit{TXID: txid, Time: o.Time, Post: o.Post, LTX: bytes.NewReader(b)})
	}
	if len(batch.Commits) == 0 {
		return nil, fmt.Errorf("commit %016x of %s: %w", from, v.state.Name, ErrNotInBacklog)
	}
	return batch, nil
}
