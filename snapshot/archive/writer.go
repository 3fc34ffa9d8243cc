package archive

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"time"

	"github.com/uglyer/ha-sqlite/snapshot"
	"github.com/uglyer/ha-sqlite/snapshot/store"
)

const (
	manifestEvery = 64   // journal entries
	manifestFrom  = 1024 // changes in them
	// A manifest lists all segments again: there is one change at least for so many of them, so that a commit costs no more
	// where there are many.
	manifestShare = 16
	// Single commits that are not in segments are in the memory of every node that has an archive of its own, for each
	// database that is written: about as many as sealFrom and manifestFrom, or that share of the segments, together, more
	// only while Compact or retention keeps manifests waiting, of some 140 bytes each.
	sealFrom  = 1024
	sealCount = 512
	putAtOnce = 8
)

// Body is the LTX file of a commit.
type Body interface {
	io.ReaderAt
	Size() int64
}

// Commit is one transaction that the cluster has decided.
type Commit struct {
	TXID uint64
	Time int64  // microseconds since 1970, later than that of the one before
	Post uint64 // checksum of the database after it
	LTX  Body   // file of this transaction alone

	// Sound says that whoever gives it has compared a checksum over all bytes of
	// the file.
	Sound bool
}

// Writer writes the archive of one database. There is one at a time, the
// leader's; if another one writes to the same archive, one of the two gets
// ErrForeign and has to make a new Writer.
//
// Two goroutines may use it: one that adds what is new, with Append and
// SnapshotOf, and one that looks after what is there, with all the rest. Both
// may call Manifest.
//
// Invariants:
//  1. Entries are written one at a time, each with changes that are valid in the
//     state that the one before has made, whatever state they were computed from.
//  2. Only the goroutine that adds changes what is last; only the other one
//     removes, merges and labels. So what that one has read of a state is there
//     until it changes it, and what is added meanwhile comes behind it.
//  3. While a segment is made or files are chosen to go, commits change their
//     lists: shape is held, so that the two do not meet.
type Writer struct {
	opts  WriterOptions
	entry sync.Mutex // while an entry is written
	shape sync.Mutex // before entry

	mu       sync.Mutex
	view     *View
	since    uint64 // journal entries since the last manifest
	changes  int    // in those that this Writer made
	manifest uint64 // sequence number of the last manifest
	broken   error

	// That the next number of an entry is free proves that nobody else was here only while the numbers that others have
	// taken are not free again: known is when this Writer last knew the newest entry, marks are the manifests since
	// which time has passed.
	known time.Time // guarded by entry
	marks []mark    // guarded by shape
}

// mark says that a manifest was there at a time.
type mark struct {
	seq uint64
	at  time.Time
}

const (
	// keepNumbers is for how long journal entries stay that a manifest has. An entry after which nothing was heard of
	// the archive for half of that is looked after: its number may have been taken and be free again.
	keepNumbers = time.Hour
	knownFor    = keepNumbers / 2
)

// passed is the time since t by whichever clock says more: one of them stands still while a machine sleeps.
func passed(t time.Time) time.Duration {
	now := time.Now()
	return max(now.Sub(t), now.Round(0).Sub(t.Round(0)))
}

// WriterOptions of a Writer. Zero values are the defaults.
type WriterOptions struct {
	Intervals [TopLevel + 1]time.Duration // of levels 1 to 3: 30 s, 5 min, 1 h
	MinInputs [TopLevel + 1]int           // files that are worth merging: 4, 2, 1
	Keep      [TopLevel + 1]time.Duration // single commits 24 h, level 1 24 h, level 2 7 days, level 3 30 days
	Snapshot  time.Duration               // between snapshots: 24 h
	Snapshots time.Duration               // for which snapshots are kept: 30 days
	Fanout    int                         // files merged at a time: 48
	PackFrom  int                         // commits of one upload, from so many on, share an object: 4

	// Room is asked before temporary files of at most so many bytes are made for a merge or a snapshot, which is put off
	// where it gives an error; else it returns what says that they are gone. Nil: there is always room.
	Room func(bytes int64) (release func(), err error)
}

func (o *WriterOptions) defaults() {
	set := func(v *time.Duration, d time.Duration) {
		if *v == 0 {
			*v = d
		}
	}
	set(&o.Intervals[1], 30*time.Second)
	set(&o.Intervals[2], 5*time.Minute)
	set(&o.Intervals[3], time.Hour)
	set(&o.Keep[0], 24*time.Hour)
	set(&o.Keep[1], 24*time.Hour)
	set(&o.Keep[2], 7*24*time.Hour)
	set(&o.Keep[3], 30*24*time.Hour)
	set(&o.Snapshot, 24*time.Hour)
	set(&o.Snapshots, 30*24*time.Hour)
	for level, n := range [...]int{1: 4, 2: 2, 3: 1} {
		if o.MinInputs[level] == 0 {
			o.MinInputs[level] = n
		}
	}
	if o.PackFrom < 1 {
		o.PackFrom = 4
	}
	if o.Fanout < 2 {
		o.Fanout = 48
	}
}

// Writer opens the archive of a database to write it, and makes it where there
// is none. What an earlier writer has stored and not entered is taken over.
func (a *Archive) Writer(ctx context.Context, id Identity, o WriterOptions) (*Writer, error) {
	if err := id.check(); err != nil {
		return nil, fmt.Errorf("write archive of %q: %w", id.Name, err)
	}
	if id.Cluster != a.cluster {
		return nil, fmt.Errorf("write archive of %s: the database is of cluster %s, the archive of %s: %w", id.Name, id.Cluster, a.cluster, ErrForeign)
	}
	o.defaults()
	known := time.Now()
	v, err := a.Load(ctx, id)
	if errors.Is(err, ErrNoDatabase) {
		empty := encodeManifest(&State{Identity: id})
		if err := a.announce(ctx, id); err != nil {
			return nil, fmt.Errorf("make archive of %s: %w", id.Name, err)
		}
		if _, err := a.put(ctx, a.seqKey(id.dir(), manifestDir, 0), bytes.NewReader(empty), int64(len(empty)), time.Time{}); err != nil {
			return nil, fmt.Errorf("make archive of %s: %w", id.Name, err)
		}
		v, err = a.Load(ctx, id)
	}
	if err != nil {
		return nil, err
	}
	return &Writer{view: v, opts: o, since: v.state.Seq - v.base, manifest: v.base, known: known, marks: []mark{{v.base, time.Now()}}}, nil
}

// View returns what the archive has. It changes with the next write.
func (w *Writer) View() *View {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.view
}

// Position returns the last transaction that is archived, 0 before the first.
func (w *Writer) Position() uint64 { return w.View().state.Last.MaxTXID }

// failed returns why nothing can be written any more.
func (w *Writer) failed() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.broken
}

// journal enters changes: with it they have happened, before it they have not.
func (w *Writer) journal(ctx context.Context, changes ...change) error {
	return w.enter(ctx, false, changes)
}

// journalAlone is journal for what cannot be taken back, as an answer or the end of an object: that no other writer was
// here is looked up, however short the time was.
func (w *Writer) journalAlone(ctx context.Context, changes ...change) error {
	return w.enter(ctx, true, changes)
}

func (w *Writer) enter(ctx context.Context, alone bool, changes []change) error {
	w.entry.Lock()
	defer w.entry.Unlock()
	if err := w.failed(); err != nil {
		return err
	}
	v := w.View()
	next := v.state.clone()
	removes := false
	for _, c := range changes {
		if err := next.apply(c); err != nil {
			return fmt.Errorf("write archive of %s: %w", next.Name, err)
		}
		removes = removes || c.kind == changeRemove || c.kind == changeUnseal
	}
	if removes {
		if lost, ok := next.unreachable(); ok {
			return fmt.Errorf("write archive of %s: level %d file %s could not be reached any more: %w", next.Name, lost.Level, lost.name(), errInvalidChange)
		}
	}
	next.Seq++
	b := encodeJournal(next.Seq, changes)
	begun := time.Now()
	_, err := v.put(ctx, v.seqKey(v.dir, journalDir, next.Seq), bytes.NewReader(b), int64(len(b)), time.Time{})
	if err == nil && (alone || passed(w.known) > knownFor) {
		err = w.newest(ctx, v, next.Seq)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if errors.Is(err, ErrForeign) {
		w.broken = fmt.Errorf("write archive of %s: another writer was here: %w", next.Name, err)
		return w.broken
	}
	if err != nil {
		return err
	}
	w.known = begun // the number after it cannot have been taken before
	w.setStateLocked(next)
	w.since++
	w.changes += len(changes)
	return nil
}

// newest makes sure that an entry is the newest one: no manifest has one of that number. Those that this Writer makes
// meanwhile have lower ones.
func (w *Writer) newest(ctx context.Context, v *View, seq uint64) error {
	w.mu.Lock()
	from := w.manifest
	w.mu.Unlock()
	return v.list(ctx, store.Join(v.dir, manifestDir), fmt.Sprintf("%016x%s", from, v.ext()), func(i store.Info) error {
		if i.Key >= v.seqKey(v.dir, manifestDir, seq) {
			return &ObjectError{i.Key, fmt.Errorf("it has an entry %016x already: %w", seq, ErrForeign)}
		}
		return nil
	})
}

// setStateLocked makes a new view, so that one that was handed out stays as it was.
func (w *Writer) setStateLocked(s *State) {
	old := w.view
	old.mu.Lock()
	defer old.mu.Unlock()
	w.view = &View{Archive: old.Archive, state: s, base: old.base, dir: old.dir, segments: old.segments, damagedKey: old.damagedKey, damage: old.damage}
	old.segments = map[uint64][]Object{}
}

// Append archives commits that follow the last one archived, as files of level
// 0, and then enters them. What it had stored before an error is found again by
// the next try. The bodies are read several times.
func (w *Writer) Append(ctx context.Context, commits []Commit) error {
	if err := w.failed(); err != nil || len(commits) == 0 {
		return err
	}
	s := w.View().state
	objects, err := w.upload(ctx, commits)
	if err != nil {
		return fmt.Errorf("archive %s: %w", s.Name, err)
	}
	changes := make([]change, 0, len(objects)+1)
	if s.PageSize == 0 {
		head := make([]byte, 100)
		if _, err := commits[0].LTX.ReadAt(head, 0); err != nil {
			return fmt.Errorf("archive %s: %w", s.Name, err)
		}
		h, err := snapshot.ParseFileHeader(head)
		if err != nil {
			return fmt.Errorf("archive %s: %w", s.Name, err)
		}
		changes = append(changes, change{kind: changePageSize, pageSize: h.PageSize})
	}
	for _, o := range objects {
		changes = append(changes, change{kind: changeAdd, object: o})
	}
	return w.journal(ctx, changes...)
}

func (w *Writer) upload(ctx context.Context, commits []Commit) ([]Object, error) {
	last := w.View().state.Last
	for _, c := range commits {
		if c.TXID != last.MaxTXID+1 || last.MaxTXID != 0 && c.Time <= last.Time {
			return nil, fmt.Errorf("commit %016x of time %d after %016x of %d: %w", c.TXID, c.Time, last.MaxTXID, last.Time, errInvalidChange)
		}
		last = Object{MaxTXID: c.TXID, Time: c.Time}
	}
	var steps []func(context.Context) ([]Object, error)
	for len(commits) > 0 {
		n := w.run(commits)
		list := commits[:n]
		commits = commits[n:]
		if n >= w.opts.PackFrom {
			steps = append(steps, func(ctx context.Context) ([]Object, error) { return w.putRun(ctx, list) })
			continue
		}
		for _, c := range list {
			steps = append(steps, func(ctx context.Context) ([]Object, error) {
				o, err := w.putCommit(ctx, c)
				return []Object{o}, err
			})
		}
	}
	return together(ctx, steps)
}

// together takes steps, some at a time, and returns what they give, in order.
func together(ctx context.Context, steps []func(context.Context) ([]Object, error)) ([]Object, error) {
	lists, errs := make([][]Object, len(steps)), make([]error, len(steps))
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	slots := make(chan struct{}, putAtOnce)
	var wg sync.WaitGroup
	for i, step := range steps {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			if errs[i] = ctx.Err(); errs[i] == nil {
				lists[i], errs[i] = step(ctx)
			}
			if errs[i] != nil {
				cancel()
			}
		})
	}
	wg.Wait()
	for _, err := range errs {
		if err != nil && !errors.Is(err, context.Canceled) {
			return nil, err
		}
	}
	return slices.Concat(lists...), errors.Join(errs...)
}

func (w *Writer) putCommit(ctx context.Context, c Commit) (Object, error) {
	o, index, err := describe(bufio.NewReaderSize(io.NewSectionReader(c.LTX, 0, c.LTX.Size()), 64<<10))
	if err != nil {
		return Object{}, fmt.Errorf("commit %016x: %w", c.TXID, err)
	}
	if o, err = c.object(o); err != nil {
		return Object{}, err
	}
	return w.putFile(ctx, o, c.LTX, index)
}

// object completes what was read of the file of a commit.
func (c Commit) object(o Object) (Object, error) {
	if o.MinTXID != c.TXID || o.MaxTXID != c.TXID || o.Size != c.LTX.Size() || o.Time != c.Time/1000*1000 {
		return Object{}, fmt.Errorf("commit %016x of time %d: its file is of %016x-%016x, %d µs: %w", c.TXID, c.Time, o.MinTXID, o.MaxTXID, o.Time, snapshot.ErrCorrupt)
	}
	o.Level, o.Time, o.Post = 0, c.Time, c.Post
	return o, nil
}

// describe reads and verifies an LTX file and makes its page index, of which a
// small file has none. Level, time and checksum are for the caller to set.
func describe(r io.Reader) (Object, *indexWriter, error) {
	f, err := snapshot.NewFileReader(r)
	if err != nil {
		return Object{}, nil, err
	}
	index := &indexWriter{}
	for {
		fr, err := f.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return Object{}, nil, err
		}
		index.add(fr)
	}
	return objectOf(f.Info()), index, nil
}

func objectOf(i snapshot.FileInfo) Object {
	return Object{
		MinTXID: i.MinTXID, MaxTXID: i.MaxTXID, Time: i.CommitTimeMillis * 1000, PageCount: i.PageCount, Pages: uint32(i.Pages),
		Size: i.Size, Checksum: i.Checksum,
	}
}

// putFile stores a file that was verified, and its index. Where an earlier
// writer has stored the same pages, compressed otherwise, and not entered them,
// its file is taken.
func (w *Writer) putFile(ctx context.Context, o Object, body io.ReaderAt, index *indexWriter) (Object, error) {
	key := w.View().Key(o)
	stored, err := w.View().put(ctx, key, body, o.Size, time.UnixMicro(o.Time))
	if errors.Is(err, ErrForeign) {
		there, found, err := w.describeStored(ctx, key, err)
		if err != nil {
			return Object{}, err
		}
		if there.MinTXID != o.MinTXID || there.MaxTXID != o.MaxTXID || there.Time/1000 != o.Time/1000 || there.PageCount != o.PageCount ||
			there.Pages != o.Pages || found.roll != index.roll {
			return Object{}, &ObjectError{key, fmt.Errorf("it exists with another content: %w", ErrForeign)}
		}
		info, err := w.View().store.Stat(ctx, key)
		if err != nil {
			return Object{}, err
		}
		o.Size, o.Checksum, stored, index = there.Size, there.Checksum, info.Size, found
	} else if err != nil {
		return Object{}, err
	}
	o.Stored = stored
	if o.Size < indexedFrom {
		return o, nil
	}
	b, sum := index.bytes()
	stored, err = w.View().put(ctx, w.View().indexKey(o), bytes.NewReader(b), int64(len(b)), time.Time{})
	o.IndexSize, o.IndexSum = stored, sum
	return o, err
}

// describeStored is describe for an object; cause is why it was asked.
func (w *Writer) describeStored(ctx context.Context, key string, cause error) (Object, *indexWriter, error) {
	r, err := w.View().open(ctx, key)
	if err != nil {
		return Object{}, nil, err
	}
	defer r.Close()
	o, index, err := describe(bufio.NewReaderSize(r, readBuffer))
	if err != nil {
		return Object{}, nil, errors.Join(cause, &ObjectError{key, err})
	}
	return o, index, nil
}

// Manifest writes a new manifest where it is due, and removes what it replaces.
// An archive to which nothing is written costs no request. While files are
// chosen to go it is not due, unless it is forced.
func (w *Writer) Manifest(ctx context.Context, force bool) error {
	w.mu.Lock()
	due, err := w.since > 0 && (force || w.since >= manifestEvery || w.changes >= max(manifestFrom, len(w.view.state.Segments)/manifestShare)), w.broken
	w.mu.Unlock()
	if err != nil || !due {
		return err
	}
	if force {
		w.shape.Lock()
	} else if !w.shape.TryLock() {
		return nil
	}
	defer w.shape.Unlock()
	if err := w.seal(ctx); err != nil {
		return err
	}
	w.mu.Lock()
	v, changes, before := w.view, w.changes, w.manifest
	w.mu.Unlock()
	s := v.state
	key := v.seqKey(v.dir, manifestDir, s.Seq)
	if key == v.damagedKey {
		return nil // there is one, which is damaged: the next entry makes room for another
	}
	b := encodeManifest(s)
	if _, err := v.put(ctx, key, bytes.NewReader(b), int64(len(b)), time.Time{}); err != nil {
		return fmt.Errorf("write manifest of %s: %w", s.Name, err)
	}
	w.mu.Lock()
	// What was entered meanwhile is behind it.
	w.since, w.changes, w.manifest = w.view.state.Seq-s.Seq, w.changes-changes, s.Seq
	w.mu.Unlock()
	w.marks = append(w.marks, mark{s.Seq, time.Now()})
	return w.sweep(ctx, before)
}

// seal moves the oldest commits into segments, so that the manifest stays small.
func (w *Writer) seal(ctx context.Context) error {
	for {
		s := w.View().state
		if len(s.Recent) < sealFrom {
			return nil
		}
		if err := w.sealFirst(ctx, s.Recent[:sealable(s.Recent)]); err != nil {
			return err
		}
	}
}

// sealFirst moves the first commits, as many as are given, into a segment.
func (w *Writer) sealFirst(ctx context.Context, list []Object) error {
	v := w.View()
	b := encodeCommits(list)
	seg := Segment{
		MinTXID: list[0].MinTXID, MaxTXID: list[len(list)-1].MaxTXID, FirstTime: list[0].Time, LastTime: list[len(list)-1].Time,
		Count: uint32(len(list)), Sum: crc(b),
	}
	if _, err := v.put(ctx, v.segmentKey(seg), bytes.NewReader(b), int64(len(b)), time.Time{}); err != nil {
		return fmt.Errorf("write commits of %s: %w", v.state.Name, err)
	}
	return w.journal(ctx, change{kind: changeSeal, segment: seg})
}

// sealable returns how many of the first commits make a segment: one without gaps, of whole packs, and of at most sealCount commits
// where the first pack has no more.
func sealable(list []Object) int {
	n := 0
	for n < len(list) && (n == 0 || list[n].MinTXID == list[n-1].MaxTXID+1) {
		end := n + 1
		for list[n].packed() && end < len(list) && list[end].PackMax == list[n].PackMax {
			end++
		}
		if n > 0 && end > sealCount {
			break
		}
		n = end
	}
	return n
}

// sweep removes manifests before the last two, and the journal up to the older
// of them: a reader that has just found it needs what follows. Entries stay for
// some time at least, so that their numbers are not free again.
func (w *Writer) sweep(ctx context.Context, keep uint64) error {
	v := w.View()
	var old []string
	take := func(until uint64, kind string) error {
		return v.list(ctx, store.Join(v.dir, kind), "", func(i store.Info) error {
			if i.Key < v.seqKey(v.dir, kind, until) {
				old = append(old, i.Key)
			}
			return nil
		})
	}
	if err := take(keep, manifestDir); err != nil {
		return err
	}
	for len(w.marks) > 1 && passed(w.marks[1].at) > keepNumbers {
		w.marks = w.marks[1:]
	}
	if first := w.marks[0]; passed(first.at) > keepNumbers {
		if err := take(min(keep, first.seq)+1, journalDir); err != nil {
			return err
		}
	}
	return v.remove(ctx, old)
}
