package archive

import (
	"fmt"
	"slices"
	"testing"
	"time"
)

// BenchmarkAppend is what a commit of one row costs that is archived with others.
func BenchmarkAppend(b *testing.B) {
	r := newRecorder(b, 7, 4096, 0)
	r.keep = false
	for len(r.commits) < 1000 {
		r.exec("INSERT INTO item(name) VALUES('one row')")
		r.commit()
		r.commits[len(r.commits)-1].Sound = true // as those of the log are
	}
	for _, each := range []int{40, 1000} {
		b.Run(fmt.Sprint(each), func(b *testing.B) {
			n := 0
			for b.Loop() {
				b.StopTimer()
				w, err := claim(b, openDir(b), nil).Writer(b.Context(), testID, WriterOptions{})
				if err != nil {
					b.Fatal(err)
				}
				b.StartTimer()
				for list := range slices.Chunk(r.commits, each) {
					if err := w.Append(b.Context(), list); err != nil {
						b.Fatal(err)
					}
					n += len(list)
				}
			}
			b.ReportMetric(float64(b.Elapsed().Microseconds())/float64(n), "µs/commit")
		})
	}
}

// Small files that are not merged yet are what a query has to read: past a bound they are merged before their window of time has passed.
func TestManySmallFilesAreMergedEarly(t *testing.T) {
	ctx := t.Context()
	r := newRecorder(t, 8, 4096, 0)
	r.keep = false
	a := claim(t, openDir(t), nil)
	w := openWriter(t, a, WriterOptions{PackFrom: 1 << 30, Intervals: [TopLevel + 1]time.Duration{1: time.Hour}})
	r.exec("INSERT INTO item(name, data) VALUES('first', randomblob(9000))")
	r.commit()
	sent := 0
	for !w.Crowded() {
		if err := w.Compact(ctx, r.now); err != nil {
			t.Fatal(err)
		}
		if len(w.view.state.Levels[1]) > 0 {
			t.Fatalf("merged at %d bytes", w.view.state.small())
		}
		if w.view.state.small() >= crowdedFrom || len(r.commits) > 100 {
			t.Fatalf("%d bytes of small files are not crowded", w.view.state.small())
		}
		r.exec("UPDATE item SET data = randomblob(9000) WHERE name = 'first'")
		r.commit()
		if err := w.Append(ctx, r.commits[sent:]); err != nil {
			t.Fatal(err)
		}
		sent = len(r.commits)
	}
	if err := w.Compact(ctx, r.now); err != nil {
		t.Fatal(err)
	}
	if s := w.view.state; w.Crowded() || len(s.Levels[1]) != 1 || s.Levels[1][0].MaxTXID != s.Last.MaxTXID || len(s.Levels[2]) != 0 {
		t.Errorf("%d bytes of small files are left, level 1 has %+v", s.small(), s.Levels[1])
	}
}

// Packs of more commits than a segment is to have are in one segment each, and segments of few commits are no more than a full one
// needs: each costs an entry.
func TestSegmentsHaveWholePacks(t *testing.T) {
	for _, each := range []int{packCommits, packCommits - 1, sealCount + 1, sealCount, 400, 3, 1} {
		t.Run(fmt.Sprint(each), func(t *testing.T) {
			ctx := t.Context()
			c := &counter{t: t}
			w := openWriter(t, claim(t, newMemoryStore(), nil), WriterOptions{})
			for c.txid < 4*packCommits {
				if err := w.Append(ctx, c.commits(each, epoch.Add(time.Duration(c.txid)*time.Millisecond), time.Millisecond)); err != nil {
					t.Fatal(err)
				}
				if err := w.Manifest(ctx, false); err != nil {
					t.Fatal(err)
				}
			}
			if err := w.Manifest(ctx, true); err != nil {
				t.Fatal(err)
			}
			s := w.view.state
			if len(s.Recent) >= sealFrom {
				t.Errorf("%d commits are in the manifest", len(s.Recent))
			}
			for i, seg := range s.Segments {
				list, err := w.view.segment(ctx, seg)
				if err != nil {
					t.Fatal(err)
				}
				if last := list[len(list)-1]; last.packed() && last.PackMax != last.MaxTXID {
					t.Fatalf("segment %d of %d ends at commit %d of a pack up to %d", i, len(s.Segments), last.MaxTXID, last.PackMax)
				}
				if len(list) > max(each, sealCount) || len(list)+each <= sealCount {
					t.Fatalf("segment %d of %d has %d commits, packs have %d", i, len(s.Segments), len(list), each)
				}
			}
		})
	}
}

// A commit costs no more in an archive of many segments, all of which a manifest lists.
func TestManifestsAreFewerWhereTheyAreLarge(t *testing.T) {
	ctx := t.Context()
	const each, uploads = 600, 60
	stored := func(segments uint64) int64 {
		c := &counter{t: t, txid: segments}
		m := newMemoryStore()
		w := openWriter(t, claim(t, m, nil), WriterOptions{})
		s := w.view.state
		for i := range segments {
			s.Segments = append(s.Segments, Segment{MinTXID: i + 1, MaxTXID: i + 1, FirstTime: int64(i + 1), LastTime: int64(i + 1), Count: 1})
		}
		s.Last.MaxTXID, s.PageSize = segments, 512
		n := int64(0)
		for range uploads {
			if err := w.Append(ctx, c.commits(each, epoch.Add(time.Duration(c.txid)*time.Millisecond), time.Millisecond)); err != nil {
				t.Fatal(err)
			}
			before := w.manifest
			if err := w.Manifest(ctx, false); err != nil {
				t.Fatal(err)
			}
			if w.manifest != before {
				n += int64(len(encodeManifest(w.view.state)))
			}
		}
		return n / (each * uploads)
	}
	few, many := stored(4), stored(64<<10)
	if t.Logf("bytes of manifests for a commit: %d with few segments, %d with many", few, many); many > few+64*manifestShare {
		t.Errorf("%d bytes of manifests for a commit", many)
	}
}

// However many commits come in an upload, what has to be read to know the archive stays small.
func TestManifestFollowsManyCommits(t *testing.T) {
	ctx := t.Context()
	r := newRecorder(t, 9, 4096, 0)
	r.keep = false
	s := &counting{Store: openDir(t)}
	a := claim(t, s, nil)
	w := openWriter(t, a, WriterOptions{})
	r.exec("INSERT INTO item(name) VALUES('x')")
	const uploads, each = 24, 600
	sent := 0
	for range uploads {
		for len(r.commits) < sent+each {
			r.exec("UPDATE item SET name = ?", len(r.commits))
			r.commit()
		}
		if err := w.Append(ctx, r.commits[sent:]); err != nil {
			t.Fatal(err)
		}
		sent = len(r.commits)
		if err := w.Manifest(ctx, false); err != nil {
			t.Fatal(err)
		}
	}
	s.reset()
	v, err := a.Load(ctx, testID)
	if err != nil {
		t.Fatal(err)
	}
	if _, n := s.get(); n > int64(32*(sealFrom+manifestFrom+2*each)) {
		t.Errorf("the manifest of %d commits is read with %d bytes", uploads*each, n)
	}
	if len(v.state.Segments) == 0 || len(v.state.Recent) > sealFrom+manifestFrom+2*each {
		t.Errorf("%d segments, %d commits in the manifest", len(v.state.Segments), len(v.state.Recent))
	}
	n := uint64(0)
	if err := v.Commits(ctx, 0, func(p Point) error {
		if n++; p.TXID != n || p.Checksum != r.commits[n-1].Post || p.Time.UnixMicro() != r.commits[n-1].Time {
			return fmt.Errorf("commit %d is listed as %+v", n, p)
		}
		return nil
	}); err != nil || n != uploads*each {
		t.Errorf("%d commits are listed: %v", n, err)
	}
}
