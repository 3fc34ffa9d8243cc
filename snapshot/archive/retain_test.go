package archive

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/uglyer/ha-sqlite/snapshot"
	"github.com/uglyer/ha-sqlite/snapshot/store"
	"github.com/uglyer/ha-sqlite/snapshot/store/storetest"
	"github.com/uglyer/ha-sqlite/wal"
)

// counter is a database of one page, whose commits each change it.
type counter struct {
	t    testing.TB
	txid uint64
	page []byte
}

func (c *counter) commits(count int, first time.Time, every time.Duration) []Commit {
	c.t.Helper()
	if c.page == nil {
		c.page = make([]byte, 512)
	}
	list := make([]Commit, count)
	for i := range list {
		c.txid++
		binary.BigEndian.PutUint64(c.page[100:], c.txid)
		at := first.Add(time.Duration(i) * every).UnixMicro()
		f, err := snapshot.EncodeTransaction(nil, snapshot.Header{PageSize: 512, PageCount: 1, TXID: c.txid, CommitTimeMillis: at / 1000}, []wal.Page{{Pgno: 1, Data: c.page}})
		if err != nil {
			c.t.Fatal(err)
		}
		list[i] = Commit{TXID: c.txid, Time: at, Post: snapshot.Roll(snapshot.ChecksumFlag, snapshot.PageSum(1, c.page)), LTX: bytes.NewReader(f)}
	}
	return list
}

// What is kept does not grow: for two months a database is written each hour, after so many commits at once that some of
// them are in segments, and what is older than the options say goes, but for what the rest needs.
func TestWhatIsKeptDoesNotGrow(t *testing.T) {
	const day = 24 * time.Hour
	for _, tt := range []struct {
		name      string
		options   WriterOptions
		snapshots int           // at most
		first     time.Duration // the first state is at most so old
		single    time.Duration // single commits are
	}{
		{"defaults", WriterOptions{}, 32, 31 * day, day + time.Hour},
		{"snapshots for a week", WriterOptions{Snapshots: 7 * day}, 7 + 30/7 + 3, 39 * day, day + time.Hour},
		{"snapshots for longer than files", WriterOptions{Snapshots: 40 * day}, 42, 41 * day, day + time.Hour},
		{"all for 10 days", WriterOptions{Keep: [TopLevel + 1]time.Duration{10 * day, 10 * day, 10 * day, 10 * day}, Snapshots: 10 * day}, 12, 11 * day, 11 * day},
	} {
		t.Run(tt.name, func(t *testing.T) {
			ctx := t.Context()
			c := &counter{t: t}
			w := openWriter(t, claim(t, newMemoryStore(), nil), tt.options)
			for range 3 {
				if err := w.Append(ctx, c.commits(sealCount, epoch.Add(time.Duration(c.txid)*time.Millisecond), time.Millisecond)); err != nil {
					t.Fatal(err)
				}
				if err := w.Manifest(ctx, true); err != nil {
					t.Fatal(err)
				}
			}
			if len(w.view.state.Segments) == 0 {
				t.Fatal("no commit is in a segment")
			}
			for hour := 1; hour <= 60*24; hour++ {
				now := epoch.Add(time.Duration(hour) * time.Hour)
				if err := w.Append(ctx, c.commits(1, now, 0)); err != nil {
					t.Fatal(err)
				}
				if err := w.Compact(ctx, now.Add(time.Hour)); err != nil {
					t.Fatal(err)
				}
				if _, err := w.Retain(ctx, now.Add(time.Hour)); err != nil {
					t.Fatalf("in hour %d: %v", hour, err)
				}
				if err := w.Manifest(ctx, false); err != nil {
					t.Fatal(err)
				}
				if hour%24 != 0 {
					continue
				}
				s := w.view.state
				if len(s.Snapshots) > tt.snapshots {
					t.Fatalf("on day %d there are %d snapshots, want at most %d", hour/24, len(s.Snapshots), tt.snapshots)
				}
				first, err := w.view.First(ctx)
				if err != nil || now.Sub(first.Time) > tt.first {
					t.Fatalf("on day %d the first state is of %s, %s ago, want at most %s: %v", hour/24, first.Time, now.Sub(first.Time), tt.first, err)
				}
				for _, x := range s.Segments {
					if now.Sub(time.UnixMicro(x.LastTime)) > tt.single {
						t.Fatalf("on day %d there are commits of %s in a segment", hour/24, time.UnixMicro(x.LastTime))
					}
				}
				// Those of an hour stand in for a file of level 2.
				if old := now.Add(-max(tt.single, 7*day+time.Hour)); len(s.Recent) > 0 && s.Recent[0].Time < old.UnixMicro() {
					t.Fatalf("on day %d there is a commit of %s", hour/24, time.UnixMicro(s.Recent[0].Time))
				}
				if lost, bad := s.unreachable(); bad {
					t.Fatalf("on day %d nothing leads to %s of level %d", hour/24, lost.name(), lost.Level)
				}
				if _, err := w.view.Plan(ctx, first); err != nil {
					t.Fatalf("on day %d: %v", hour/24, err)
				}
			}
			if err := w.view.Commits(ctx, 0, func(p Point) error {
				_, err := w.view.Plan(ctx, p)
				return err
			}); err != nil {
				t.Fatal(err)
			}
			report, err := w.view.Verify(ctx, nil)
			if err != nil || len(report.Problems)+len(report.Unknown) > 0 {
				t.Errorf("%+v, %v", report, err)
			}
		})
	}
}

// A database that is written all the time has segments that begin in the middle of files of higher levels. What these
// segments are reached by stays with them, and the rest goes.
func TestRetentionOfABusyDatabase(t *testing.T) {
	const (
		every  = 2 * time.Second
		upload = 6 * time.Second
		merge  = 30 * time.Second
		retain = 10 * time.Minute
	)
	for _, tt := range []struct {
		name    string
		options WriterOptions
	}{
		{"single commits and level 1 for as long", WriterOptions{Keep: [TopLevel + 1]time.Duration{2 * time.Hour, 2 * time.Hour, 20 * time.Hour, 720 * time.Hour}}},
		{"each level for longer", WriterOptions{Keep: [TopLevel + 1]time.Duration{time.Hour, 2 * time.Hour, 3 * time.Hour, 720 * time.Hour}}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			ctx := t.Context()
			c := &counter{t: t}
			w := openWriter(t, claim(t, newMemoryStore(), nil), tt.options)
			const segment = sealCount * every
			keep := w.opts.Keep
			for at := upload; at < keep[1]+8*segment; at += upload {
				now := epoch.Add(at)
				if err := w.Append(ctx, c.commits(int(upload/every), now.Add(-upload), every)); err != nil {
					t.Fatal(err)
				}
				if at%merge != 0 {
					continue
				}
				if err := errors.Join(w.Compact(ctx, now), w.Manifest(ctx, false)); err != nil {
					t.Fatal(err)
				}
				if at%retain != 0 {
					continue
				}
				if _, err := w.Retain(ctx, now); err != nil {
					t.Fatalf("after %s: %v", at, err)
				}
				s := w.view.state
				oldest := func(what string, last int64, most time.Duration) {
					t.Helper()
					if age := now.Sub(time.UnixMicro(last)); age > most {
						t.Fatalf("after %s there is %s whose last commit is %s old, want %s at most", at, what, age, most)
					}
				}
				if len(s.Recent) > 0 {
					oldest("a commit", s.Recent[0].Time, keep[0]+segment)
				}
				if len(s.Segments) > 0 {
					oldest("a segment", s.Segments[0].LastTime, keep[0]+retain)
				}
				if list := s.Levels[1]; len(list) > 0 {
					oldest("a file of level 1", list[0].Time, keep[1]+segment+retain)
				}
			}
			v := w.view
			seg := v.state.Segments[0]
			if seg.MinTXID < 2*sealCount {
				t.Fatalf("the first segment is %s", seg.name())
			}
			whole, err := v.segment(ctx, seg)
			if err != nil {
				t.Fatal(err)
			}
			left, err := v.restorable(ctx, seg)
			if err != nil || len(left) == len(whole) || len(left) == 0 {
				t.Fatalf("%d of the first segment's %d commits can be restored: %v", len(left), len(whole), err)
			}
			// What leads to its first commits is gone.
			gone := whole[0]
			if _, err := v.PointOf(ctx, gone.MaxTXID); !errors.Is(err, ErrNotArchived) {
				t.Errorf("commit %d: %v", gone.MaxTXID, err)
			}
			for what, find := range map[string]func() (Point, error){
				"after":  func() (Point, error) { return v.After(ctx, gone.MaxTXID-1) },
				"before": func() (Point, error) { return v.Before(ctx, gone.MaxTXID+1) },
				"at":     func() (Point, error) { p, _, err := v.At(ctx, time.UnixMicro(gone.Time)); return p, err },
			} {
				p, err := find()
				if err == nil {
					_, err = v.Plan(ctx, p)
				}
				if err != nil || p.TXID == gone.MaxTXID || (p.TXID > gone.MaxTXID) != (what == "after") {
					t.Errorf("%s commit %d: %d, %v", what, gone.MaxTXID, p.TXID, err)
				}
			}
			if err := v.Commits(ctx, 0, func(p Point) error {
				_, err := v.Plan(ctx, p)
				return err
			}); err != nil {
				t.Fatal(err)
			}
			report, err := v.Verify(ctx, nil)
			if err != nil || len(report.Problems)+len(report.Unknown) > 0 {
				t.Errorf("%+v, %v", report, err)
			}
		})
	}
}

func TestUnreachable(t *testing.T) {
	file := func(level int, first, last uint64) Object { return Object{Level: level, MinTXID: first, MaxTXID: last} }
	segments := []Segment{{MinTXID: 10, MaxTXID: 20, Count: 11}}
	for _, tt := range []struct {
		name     string
		segments []Segment
		files    []Object
		lost     string // "": none
	}{
		{"right before the segment", segments, []Object{file(1, 1, 9)}, ""},
		{"into the segment", segments, []Object{file(1, 1, 12)}, ""},
		{"up to the last commit but one", segments, []Object{file(1, 1, 19)}, ""},
		{"not up to the segment", segments, []Object{file(1, 1, 8)}, "10-20"},
		{"to its end, but not into it", segments, []Object{file(1, 1, 5), file(2, 6, 20)}, "10-20"},
		{"a range in it", segments, []Object{file(1, 1, 9), file(RangeLevel, 14, 16)}, ""},
		{"a range in it behind what leads into it", segments, []Object{file(1, 1, 12), file(RangeLevel, 14, 16)}, ""},
		{"a range that begins before what leads into it", segments, []Object{file(1, 1, 12), file(RangeLevel, 11, 16)}, ""},
		{"a range before what leads into it", segments, []Object{file(1, 1, 15), file(RangeLevel, 12, 13)}, "12-13"},
		{"a file from its middle on", segments, []Object{file(1, 1, 9), file(1, 16, 30), file(0, 31, 31)}, ""},
		{"a commit behind it", segments, []Object{file(1, 1, 9), file(0, 21, 21)}, ""},
		{"a commit behind a hole", segments, []Object{file(1, 1, 9), file(0, 22, 22)}, "22-22"},
		{"a snapshot leads over a hole", segments, []Object{file(1, 1, 9), file(SnapshotLevel, 1, 21), file(0, 22, 22)}, ""},
		{"the first commits", []Segment{{MinTXID: 1, MaxTXID: 4, Count: 4}}, []Object{file(RangeLevel, 2, 3), file(0, 5, 5)}, ""},
		{"two segments", append(segments, Segment{MinTXID: 21, MaxTXID: 30, Count: 10}), []Object{file(1, 1, 12), file(2, 19, 22)}, ""},
		{"nothing leads to the second one", append(segments, Segment{MinTXID: 23, MaxTXID: 30, Count: 8}), []Object{file(1, 1, 12)}, "23-30"},
	} {
		s := &State{Segments: tt.segments}
		for _, o := range tt.files {
			*s.list(o.Level) = append(*s.list(o.Level), o)
		}
		got := ""
		if o, bad := s.unreachable(); bad {
			got = fmt.Sprintf("%d-%d", o.MinTXID, o.MaxTXID)
		}
		if got != tt.lost {
			t.Errorf("%s: lost is %q, want %q", tt.name, got, tt.lost)
		}
	}
}

// What keeps retention from its work is said, and no reason to stop archiving.
func TestRetentionThatIsBlockedSaysSo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newMemoryStore()
		a := claim(t, s, nil)
		n := newNode(t, 1<<30)
		n.commit(8)
		r := &run{Uploader: n.uploader(a)}
		round := func() error {
			if !r.upload(t.Context()) {
				t.Fatal("the context has ended")
			}
			r.keepUp(t.Context(), nil)
			o := <-r.upkeep.running
			r.upkeepOver(t.Context(), o)
			return o.err
		}
		if err := round(); err != nil {
			t.Fatal(err)
		}
		<-time.After(2 * time.Hour)
		n.commit(1)
		if err := round(); err != nil {
			t.Fatal(err)
		}
		later := func(passed time.Duration) {
			t.Helper()
			<-time.After(passed)
			n.commit(1)
			r.seen = evidence{r.w.view.state.Last.Time, time.Now().Add(-believeClock)}
			if err := round(); err != nil {
				t.Fatal(err)
			}
		}
		w := r.w
		w.opts.Snapshot = 1000 * 24 * time.Hour
		later(8 * 24 * time.Hour)
		broken := w.view.state.clone()
		if len(broken.Levels[3]) != 2 || broken.Levels[3][1].name() != "0000000000000009-0000000000000009" || len(broken.Recent) != 1 {
			t.Fatalf("files of level 3: %+v; commits: %+v", broken.Levels[3], broken.Recent)
		}
		broken.Levels[3] = broken.Levels[3][:1:1] // a hole before commit 10
		w.mu.Lock()
		w.setStateLocked(broken)
		w.mu.Unlock()
		later(8 * 24 * time.Hour)
		if st := r.Status(); !strings.Contains(st.Blocked, "could not be reached") || st.Error != "" || !r.upkeep.retain.After(time.Now()) {
			t.Errorf("status %+v, next at %s", st, r.upkeep.retain)
		}
		n.commit(1)
		if err := r.round(t.Context()); err != nil || w.Position() != 12 {
			t.Errorf("archived up to %d: %v", w.Position(), err)
		}
	})
}

// A new leader whose clock is ten days ahead removes nothing that is to be kept, though the commits that it makes have
// times of that clock.
func TestAClockThatIsAheadRemovesNoHistory(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := claim(t, newMemoryStore(), nil)
		n := newNode(t, 1<<30)
		u := n.uploader(a)
		stop := lead(u)
		write := func(hours, commits int) {
			for range hours {
				n.commit(commits)
				u.Notify()
				settle(time.Hour)
			}
		}
		write(10, 2)
		stop()
		kept := len(mustLoad(t, a).state.Recent)
		if kept != 20 {
			t.Fatalf("%d commits are there one by one", kept)
		}
		// For a process that starts it is the same whether that time has passed or the clock says so.
		<-time.After(10 * 24 * time.Hour)
		u = n.uploader(a)
		stop = lead(u)
		defer func() { stop() }()
		write(10, 1)
		if got := len(mustLoad(t, a).state.Recent); got != kept+10 {
			t.Errorf("%d commits are left one by one, want %d", got, kept+10)
		}
		// It was right: what was idle for long is not kept for much longer.
		write(20, 1)
		if s := mustLoad(t, a).state; s.Recent[0].MinTXID <= uint64(kept) {
			t.Errorf("commit %d is still there", s.Recent[0].MinTXID)
		}
	})
}

func mustLoad(t testing.TB, a *Archive) *View {
	t.Helper()
	v, err := a.Load(t.Context(), testID)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// Whoever has a job for an uploader that ends is told so at once, and nothing of the job runs any more when it is.
func TestAJobOfAnUploaderThatHasEndedIsRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := claim(t, newMemoryStore(), nil)
		n := newNode(t, 1<<30)
		u := n.uploader(a)
		stop := lead(u)
		n.commit(1)
		ctx, cancel := context.WithCancel(t.Context())
		ran := false
		if err := u.Do(ctx, func(ctx context.Context, _ *Writer) error {
			cancel()
			<-time.After(time.Second) // until it has noticed
			ran = true
			return ctx.Err()
		}); !errors.Is(err, context.Canceled) || !ran {
			t.Errorf("%v, ran %v", err, ran)
		}
		stop()
		begun := time.Now()
		if err := u.Do(t.Context(), func(context.Context, *Writer) error { return nil }); !errors.Is(err, ErrEnded) || time.Since(begun) != 0 {
			t.Errorf("after %s: %v", time.Since(begun), err)
		}
	})
}

// Whoever has a job while the store does not answer waits for it no longer than for the job.
func TestAJobEndsWhileTheArchiveIsOpened(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &hungStore{Store: newMemoryStore()}
		a := claim(t, s, nil)
		s.hangs = true
		u := newNode(t, 1<<30).uploader(a)
		stop := lead(u)
		defer stop()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		begun := time.Now()
		if err := u.Do(ctx, func(context.Context, *Writer) error { return nil }); err == nil || time.Since(begun) != time.Second {
			t.Errorf("after %s: %v", time.Since(begun), err)
		}
	})
}

// A pack of which commits are in two segments, as earlier versions made them, stays while one of them does, and goes as a stray.
func TestAPackStaysWhileOneOfItsCommitsDoes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx := t.Context()
		c := &counter{t: t}
		w := openWriter(t, claim(t, newMemoryStore(), nil), WriterOptions{})
		begun := time.Now()
		if err := w.Append(ctx, c.commits(sealCount, begun, time.Minute)); err != nil {
			t.Fatal(err)
		}
		pack := w.view.Key(w.view.state.Recent[0])
		// With the file that they merge to they would be in one file of each level, and go together.
		if err := w.journal(ctx, change{kind: changeRemove, object: w.view.state.Ranges[0]}); err != nil {
			t.Fatal(err)
		}
		for _, n := range []int{10, sealCount - 10} {
			if err := w.sealFirst(ctx, w.view.state.Recent[:n]); err != nil {
				t.Fatal(err)
			}
		}
		<-time.After(24*time.Hour + 15*time.Minute) // the first segment is older than single commits are kept, the second is not
		if err := w.Compact(ctx, time.Now()); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Retain(ctx, time.Now()); err != nil {
			t.Fatal(err)
		}
		if s := w.view.state; len(s.Segments) != 1 || s.Segments[0].MinTXID != 11 {
			t.Fatalf("segments %+v, want the second one", s.Segments)
		}
		if report, err := w.view.Verify(ctx, nil); err != nil || len(report.Problems) > 0 {
			t.Errorf("with one segment left: %+v, %v", report, err)
		}
		<-time.After(24 * time.Hour)
		if _, err := w.Retain(ctx, time.Now()); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			if err := w.Tidy(ctx); err != nil {
				t.Fatal(err)
			}
			<-time.After(25 * time.Hour)
		}
		if _, err := w.view.store.Stat(ctx, pack); len(w.view.state.Segments) != 0 || !errors.Is(err, store.ErrNotFound) {
			t.Errorf("%d segments are left, the pack: %v", len(w.view.state.Segments), err)
		}
	})
}

// What could not be deleted after it was removed from the manifest goes later, and so does what a writer did not come to
// enter; an idle database costs nothing for it.
func TestWhatNothingListsIsDeletedAfterADay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx := t.Context()
		m := newMemoryStore()
		s := storetest.NewFaulty(m, 1)
		a := claim(t, s, nil)
		c := &counter{t: t}
		w := openWriter(t, a, WriterOptions{})
		if err := errors.Join(w.Append(ctx, c.commits(20, time.Now(), time.Second)), w.Compact(ctx, time.Now().Add(2*time.Hour))); err != nil {
			t.Fatal(err)
		}
		s.Hook(func(op, _ string) error {
			if op == "delete" {
				return storetest.ErrInjected
			}
			return nil
		})
		<-time.After(8 * 24 * time.Hour)
		if n, err := w.Retain(ctx, time.Now()); n == 0 || !errors.Is(err, storetest.ErrInjected) {
			t.Fatalf("%d files went: %v", n, err)
		}
		s.Hook(nil)
		left := func() []string {
			report, err := w.view.Verify(ctx, nil)
			if err != nil || len(report.Problems) > 0 {
				t.Fatalf("%+v, %v", report, err)
			}
			return report.Unknown
		}
		before := left()
		if len(before) == 0 {
			t.Fatal("all was deleted")
		}
		tidy := func() int {
			lists := s.Calls("list")
			if err := w.Tidy(ctx); err != nil {
				t.Fatal(err)
			}
			return s.Calls("list") - lists
		}
		if n := tidy(); n == 0 || len(left()) != len(before) {
			t.Errorf("at first, in %d listings: %q", n, left())
		}
		<-time.After(23 * time.Hour)
		if n := tidy(); n != 0 {
			t.Errorf("%d listings within a day", n)
		}
		<-time.After(2 * time.Hour)
		w = openWriter(t, a, WriterOptions{}) // another one knows what was found
		if err := w.Append(ctx, c.commits(1, time.Now(), 0)); err != nil {
			t.Fatal(err)
		}
		stray := w.view.Key(Object{Level: 2, MinTXID: 1, MaxTXID: 7})
		if err := m.Put(ctx, stray, strings.NewReader("x"), 1, time.Time{}); err != nil {
			t.Fatal(err)
		}
		if n := tidy(); n == 0 || len(left()) != 1 || left()[0] != stray {
			t.Errorf("after a day, in %d listings: %q", n, left())
		}
		<-time.After(25 * time.Hour)
		if tidy(); len(left()) != 0 {
			t.Errorf("after another day: %q", left())
		}
		<-time.After(1000 * time.Hour)
		if n := tidy(); n != 0 {
			t.Errorf("%d listings of what was not written", n)
		}
	})
}
