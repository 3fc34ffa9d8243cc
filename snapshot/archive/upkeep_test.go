package archive

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/uglyer/ha-sqlite/snapshot/store"
	"github.com/uglyer/ha-sqlite/snapshot/store/storetest"
)

// slowStore stores files that hold every page as slowly as it is told to.
type slowStore struct {
	store.Store
	hold   chan struct{} // until it is closed, if it is not nil
	pace   time.Duration // between two pieces of a body
	piece  int           // in bytes
	began  atomic.Int64
	stored atomic.Int64
}

func (s *slowStore) Put(ctx context.Context, key string, body io.ReaderAt, size int64, t time.Time) error {
	if !strings.HasPrefix(key[strings.LastIndexByte(key, '/')+1:], "0000000000000001-") || !strings.Contains(key, "/"+s.LevelDir(SnapshotLevel)+"/") {
		return s.Store.Put(ctx, key, body, size, t)
	}
	s.began.Add(1)
	if s.hold != nil {
		select {
		case <-s.hold:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	for at := int64(0); s.pace > 0 && at < size; at += int64(s.piece) {
		if _, err := body.ReadAt(make([]byte, min(int64(s.piece), size-at)), at); err != nil {
			return err
		}
		select {
		case <-time.After(s.pace):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	if err := s.Store.Put(ctx, key, body, size, t); err != nil {
		return err
	}
	s.stored.Add(1)
	return nil
}

// snapshots makes one due as soon as there is a later commit.
func (n *node) snapshots(u *Uploader) *Uploader {
	u.opts.Writer.Snapshot = time.Second
	return u
}

// While a snapshot is made, for however long, commits are archived within their interval, and manifests are written.
func TestCommitsAreArchivedWhileASnapshotIsMade(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &slowStore{Store: openDir(t), hold: make(chan struct{})}
		a := claim(t, s, nil)
		n := newNode(t, 1<<30)
		u := n.snapshots(n.uploader(a))
		stop := lead(u)
		defer stop()
		for round := range 200 {
			n.commit(1)
			u.Notify()
			settle(1100 * time.Millisecond)
			if got, _ := n.Position(); u.Status().Archived != got || u.Status().Error != "" {
				t.Fatalf("round %d: last commit %d, %+v", round, got, u.Status())
			}
		}
		if s.began.Load() != 1 || s.stored.Load() != 0 {
			t.Fatalf("%d snapshots were begun, %d ended", s.began.Load(), s.stored.Load())
		}
		v, err := a.Load(t.Context(), testID)
		if err != nil {
			t.Fatal(err)
		}
		if behind := v.state.Seq - v.base; behind > manifestEvery || len(v.state.Snapshots) != 0 {
			t.Errorf("%d entries behind the manifest, snapshots %v", behind, v.state.Snapshots)
		}
		close(s.hold)
		settle(3 * time.Hour)
		if v, err = a.Load(t.Context(), testID); err != nil || len(v.state.Snapshots) == 0 || v.state.Done[TopLevel] != v.state.Last.MaxTXID {
			t.Errorf("snapshots %v, merged %v of %d, %v", v.state.Snapshots, v.state.Done, v.state.Last.MaxTXID, err)
		}
		n.complete(a, 0)
	})
}

// What takes longer than the limit and gets on ends well; what does not get on is given up, with the reason, and the
// rest is done all the same.
func TestUpkeepIsGivenUpOnlyWhereItDoesNotGetOn(t *testing.T) {
	for _, moves := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			s := &slowStore{Store: openDir(t), pace: time.Minute, piece: 256}
			if !moves {
				s.pace, s.hold = 0, make(chan struct{})
			}
			a := claim(t, s, nil)
			n := newNode(t, 1<<30)
			u := n.snapshots(n.uploader(a))
			u.opts.Writer.Intervals[1], u.opts.Writer.MinInputs[1], u.opts.Writer.Keep[0] = 2*time.Minute, 1, 20*time.Minute
			stop := lead(u)
			defer stop()
			begun, failed := time.Now(), 0
			for time.Since(begun) < 3*time.Hour {
				n.commit(1)
				u.Notify()
				settle(time.Minute)
				if st := u.Status(); st.Error != "" {
					failed++
					if !strings.Contains(st.Error, errStalled.Error()) {
						t.Fatalf("it was given up with %q", st.Error)
					}
				}
			}
			v, err := a.Load(t.Context(), testID)
			if err != nil {
				t.Fatal(err)
			}
			switch {
			case len(v.state.Levels[1]) == 0 || v.state.Recent[0].MinTXID == 1:
				t.Errorf("moves %v: %d files were merged, single commits begin with %d", moves, len(v.state.Levels[1]), v.state.Recent[0].MinTXID)
			case moves && (s.stored.Load() == 0 || len(v.state.Snapshots) == 0 || failed > 0):
				t.Errorf("%d snapshots of %d were made, %d times upkeep failed", s.stored.Load(), s.began.Load(), failed)
			case !moves && (s.stored.Load() != 0 || s.began.Load() < 2 || failed == 0):
				t.Errorf("%d snapshots of %d were made, %d times upkeep failed", s.stored.Load(), s.began.Load(), failed)
			}
			if got, _ := n.Position(); v.Last().TXID < got-1 {
				t.Errorf("archived up to %d of %d", v.Last().TXID, got)
			}
		})
	}
}

// A job waits for no upload, and no upload for a job; what a label keeps is the state that was there when it began.
func TestALabelIsMadeBesideUploads(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &slowStore{Store: openDir(t), hold: make(chan struct{})}
		a := claim(t, s, nil)
		n := newNode(t, 1<<30)
		u := n.uploader(a)
		stop := lead(u)
		defer stop()
		n.commit(3)
		u.Notify()
		settle(2 * time.Second)
		var p Point
		done := make(chan error, 1)
		go func() {
			done <- u.Do(t.Context(), func(ctx context.Context, w *Writer) (err error) {
				p, err = w.Label(ctx, "v1")
				return err
			})
		}()
		for range 5 {
			settle(time.Second)
			n.commit(2)
			u.Notify()
		}
		settle(2 * time.Second)
		if got, _ := n.Position(); s.began.Load() != 1 || u.Status().Archived != got {
			t.Fatalf("%d snapshots begun, %+v", s.began.Load(), u.Status())
		}
		close(s.hold)
		if err := <-done; err != nil || p.TXID != 3 {
			t.Fatalf("labelled was %+v, %v", p, err)
		}
		settle(2 * time.Second)
		v, err := a.Load(t.Context(), testID)
		if err != nil || len(v.state.Labels) != 1 || v.state.Labels[0] != (Label{Name: "v1", TXID: 3}) || v.state.Snapshots[0].MaxTXID != 3 {
			t.Errorf("%+v, %v", v.state.Labels, err)
		}
		n.complete(a, 0)
	})
}

// An entry is valid in the state that it meets, not only in the one that it was computed from: what another goroutine
// has changed meanwhile is refused, and nothing is written.
func TestAnEntryIsCheckedAgainstWhatItMeets(t *testing.T) {
	a := claim(t, openDir(t), nil)
	r := newRecorder(t, 4, 1024, 0)
	for len(r.commits) < 8 {
		r.step()
	}
	w := openWriter(t, a, quick())
	if err := errors.Join(w.Append(t.Context(), r.commits), w.Snapshot(t.Context())); err != nil {
		t.Fatal(err)
	}
	v := w.View()
	seq := v.state.Seq
	for what, changes := range map[string][]change{
		"a file that something hangs on": {{kind: changeRemove, object: v.state.Snapshots[0]}, {kind: changeRemove, object: v.state.Recent[0]}},
		"a file that is not there":       {{kind: changeRemove, object: Object{Level: 1, MinTXID: 1, MaxTXID: 2}}},
	} {
		if err := w.journal(t.Context(), changes...); !errors.Is(err, errInvalidChange) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if got := w.View().state.Seq; got != seq {
		t.Errorf("entry %d was written", got)
	}
}

// Uploads and upkeep of one Writer at the same time: the archive has all, and a Writer made later agrees with it.
func TestUploadsAndUpkeepShareAWriter(t *testing.T) {
	a := claim(t, openDir(t), nil)
	r := newRecorder(t, 5, 1024, 0)
	for len(r.commits) < 400 {
		r.step()
	}
	o := quick()
	o.PackFrom = 2
	w := openWriter(t, a, o)
	if err := w.Append(t.Context(), r.commits[:4]); err != nil {
		t.Fatal(err)
	}
	over := make(chan error, 1)
	var stop atomic.Bool
	go func() {
		for round := 0; ; round++ {
			now := time.UnixMicro(w.View().Last().Time.UnixMicro())
			_, removed := w.Retain(t.Context(), now)
			if err := errors.Join(w.Compact(t.Context(), now), removed, w.Manifest(t.Context(), round%3 == 0)); err != nil || stop.Load() {
				over <- err
				return
			}
		}
	}()
	for at := 4; at < len(r.commits); at += 4 {
		if err := errors.Join(w.Append(t.Context(), r.commits[at:at+4]), w.Manifest(t.Context(), at%5 == 0)); err != nil {
			t.Error(err)
			break
		}
	}
	stop.Store(true)
	if err := <-over; err != nil {
		t.Fatal(err)
	}
	v, err := a.Load(t.Context(), testID)
	if err != nil {
		t.Fatal(err)
	}
	if x, y := encodeManifest(v.state), encodeManifest(w.View().state); string(x) != string(y) {
		t.Errorf("the store has another state than the writer")
	}
	if err := v.Commits(t.Context(), 0, func(p Point) error {
		got, err := restoreTX(t.Context(), v, p.TXID)
		if err == nil && string(got) != string(r.images[p.TXID-1]) {
			t.Errorf("commit %d is restored as another", p.TXID)
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	if report, err := v.Verify(t.Context(), nil); err != nil || len(report.Problems) > 0 || v.Last().TXID != 400 {
		t.Errorf("up to %d, %+v, %v", v.Last().TXID, report, err)
	}
}

// What is claimed of the disk is at least what temporary files take of it, and where nothing can be had none is made.
func TestTemporaryFilesAreClaimedBeforeTheyAreMade(t *testing.T) {
	for what, keys := range map[string]*Keys{"plain": nil, "encrypted": newKeys(t)} {
		t.Run(what, func(t *testing.T) {
			s := storetest.NewFaulty(openDir(t), 1)
			a := claim(t, s, keys)
			var claimed, most int64
			asked, full := 0, true
			o := quick()
			o.Fanout = 3
			o.Room = func(bytes int64) (func(), error) {
				asked++
				if full {
					return nil, errFull
				}
				claimed += bytes
				return func() { claimed -= bytes }, nil
			}
			measure := func(op, _ string) error {
				entries, err := os.ReadDir(a.tmp)
				used := int64(0)
				for _, e := range entries {
					info, err := e.Info()
					if err != nil {
						return err
					}
					used += info.Size()
				}
				if used > claimed {
					t.Errorf("%s: files have %d bytes, %d were claimed", op, used, claimed)
				}
				most = max(most, used)
				return err
			}
			s.Hook(measure)
			r := newRecorder(t, 9, 4096, 0)
			r.exec("WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i<900) INSERT INTO item(data) SELECT randomblob(1500) FROM n")
			r.commit()
			n := len(r.commits)
			for range 12 {
				r.step()
			}
			first := fixedImage{r.commits[n-1], 4096, r.images[n-1]}
			w := openWriter(t, a, o)
			if err := w.SnapshotOf(t.Context(), first); !errors.Is(err, errFull) {
				t.Fatalf("of an image: %v", err)
			}
			full = false
			if err := w.SnapshotOf(t.Context(), first); err != nil {
				t.Fatal(err)
			}
			s.Hook(nil) // commits have no such files, but for large ones that are encrypted
			if err := w.Append(t.Context(), r.commits[n:]); err != nil {
				t.Fatal(err)
			}
			s.Hook(measure)
			full, most = true, 0
			files := s.Calls("put")
			if err := w.Snapshot(t.Context()); !errors.Is(err, errFull) || s.Calls("put") != files {
				t.Fatalf("from the archive: %v", err)
			}
			full = false
			if err := w.Snapshot(t.Context()); err != nil || claimed != 0 || asked != 4 || most < 1<<20 {
				t.Errorf("%v, %d bytes are claimed, asked %d times, files of %d bytes", err, claimed, asked, most)
			}
		})
	}
}

var errFull = errors.New("full")

// What is kept for minutes does not stay for an hour.
func TestAShortWindowIsNotKeptForAnHour(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newMemoryStore()
		n := newNode(t, 1<<30)
		n.commit(2)
		window := 5 * time.Minute
		stop := lead(NewUploader(claim(t, s, nil), testID, n, UploaderOptions{
			Writer: WriterOptions{Keep: [TopLevel + 1]time.Duration{window, window, 2 * window, 24 * time.Hour}},
			Log:    slog.New(slog.DiscardHandler),
		}))
		defer stop()
		singles := func() (count int) {
			s.mu.Lock()
			defer s.mu.Unlock()
			for key := range s.objs {
				if strings.Contains(key, "/ltx/0/") {
					count++
				}
			}
			return count
		}
		const perMinute = 3
		for minute := range 50 {
			n.commit(perMinute)
			settle(time.Minute)
			// The window, the time to the next retention, and what has to be merged first.
			if got, most := singles(), 13*perMinute; got > most {
				t.Fatalf("%d single commits are there after %d minutes, want at most %d", got, minute+1, most)
			}
		}
		if got := singles(); got < 5*perMinute {
			t.Errorf("%d single commits are there, fewer than in the window", got)
		}
	})
}
