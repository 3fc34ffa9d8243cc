package archive

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc64"
	"io"
	"log/slog"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pierrec/lz4/v4"

	"github.com/uglyer/ha-sqlite/snapshot"
	"github.com/uglyer/ha-sqlite/snapshot/store"
	"github.com/uglyer/ha-sqlite/snapshot/store/storetest"
)

// node is a Source: a database that is written, and its backlog.
type node struct {
	t       testing.TB
	backlog *Backlog
	mu      sync.Mutex
	r       *recorder
	told    uint64
	images  int
}

func newNode(t testing.TB, limit int64) *node {
	t.Helper()
	b, err := OpenBacklog(t.TempDir(), limit)
	if err != nil {
		t.Fatal(err)
	}
	n := &node{t: t, backlog: b, r: newRecorder(t, 7, 1024, 2)}
	n.r.commits, n.r.images, n.r.image = nil, nil, nil
	n.r.now = time.Now()
	return n
}

// commit makes so many commits, now.
func (n *node) commit(count int) {
	n.t.Helper()
	n.mu.Lock()
	defer n.mu.Unlock()
	for range count {
		if now := time.Now(); now.After(n.r.now) {
			n.r.now = now
		}
		n.r.step()
		if err := n.backlog.Add(testID.Database, n.r.commits[len(n.r.commits)-1]); err != nil {
			n.t.Error(err)
		}
	}
}

func (n *node) Position() (uint64, int64) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if len(n.r.commits) == 0 {
		return 0, 0
	}
	c := n.r.commits[len(n.r.commits)-1]
	return c.TXID, c.Time
}

func (n *node) Commits(_ context.Context, from uint64, count int, size int64) (*Batch, error) {
	return n.backlog.Range(testID.Database, from, count, size)
}

type fixedImage struct {
	c        Commit
	pageSize uint32
	b        []byte
}

func (i fixedImage) Position() (uint64, int64, uint64) { return i.c.TXID, i.c.Time, i.c.Post }
func (i fixedImage) PageSize() uint32                  { return i.pageSize }
func (i fixedImage) PageCount() uint32                 { return uint32(len(i.b)) / i.pageSize }
func (i fixedImage) ReadPage(pgno uint32, data []byte) error {
	copy(data, i.b[(pgno-1)*i.pageSize:])
	return nil
}

func (n *node) Image(context.Context) (Image, func(), error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.images++
	return fixedImage{n.r.commits[len(n.r.commits)-1], n.r.pageSize, n.r.image}, func() {}, nil
}

func (n *node) Archived(txid uint64) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.told = max(n.told, txid)
	if err := n.backlog.Trim(testID.Database, txid); err != nil {
		n.t.Error(err)
	}
}

func (n *node) uploader(a *Archive) *Uploader {
	return NewUploader(a, testID, n, UploaderOptions{Log: slog.New(slog.DiscardHandler)})
}

// lead runs an uploader until the function it returns is called.
func lead(u *Uploader) func() {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		u.Run(ctx)
	}()
	return func() {
		cancel()
		<-done
	}
}

// complete checks that the archive has every commit, but for gaps, and that each
// is the recorded image.
func (n *node) complete(a *Archive, gaps int) {
	n.t.Helper()
	ctx := context.Background()
	v, err := a.Load(ctx, testID)
	if err != nil {
		n.t.Fatal(err)
	}
	if len(v.state.Gaps) != gaps {
		n.t.Fatalf("gaps %v, want %d", v.state.Gaps, gaps)
	}
	if got := v.Last().TXID; got != uint64(len(n.r.commits)) {
		n.t.Fatalf("archived up to %d of %d", got, len(n.r.commits))
	}
	next := uint64(1)
	if err := v.Commits(ctx, 0, func(p Point) error {
		if gaps == 0 && p.TXID != next {
			return fmt.Errorf("commit %d is followed by %d", next-1, p.TXID)
		}
		next = p.TXID + 1
		got, err := restoreTX(ctx, v, p.TXID)
		if err == nil && !bytes.Equal(got, n.r.images[p.TXID-1]) {
			err = fmt.Errorf("commit %d is restored as another", p.TXID)
		}
		return err
	}); err != nil {
		n.t.Fatal(err)
	}
	report, err := v.Verify(ctx, nil)
	if err != nil || len(report.Problems) > 0 {
		n.t.Fatalf("verify: %v, %v", report.Problems, err)
	}
}

func settle(d time.Duration) {
	<-time.After(d)
	synctest.Wait()
}

func TestCommitsAreArchivedWithinTheIntervalAndIdleCostsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := storetest.NewFaulty(openDir(t), 1)
		a := claim(t, s, nil)
		n := newNode(t, 1<<30)
		u := n.uploader(a)
		stop := lead(u)
		defer stop()
		for range 5 {
			n.commit(3)
			u.Notify()
			settle(1100 * time.Millisecond)
			if got, _ := n.Position(); u.Status().Archived != got || u.Status().Lag(time.Now()) != 0 {
				t.Fatalf("after the interval: %+v, last commit %d", u.Status(), got)
			}
		}
		if st := n.backlog.Status(); st.Bytes != 0 || n.told != 15 {
			t.Errorf("backlog %+v, told %d", st, n.told)
		}
		settle(2 * time.Hour) // the last windows close
		calls := s.Calls("")
		settle(20 * time.Hour)
		if got := s.Calls("") - calls; got != 0 {
			t.Errorf("an idle database costs %d requests in 20 hours", got)
		}
		n.complete(a, 0)
		n.commit(1)
		u.Notify()
		settle(1100 * time.Millisecond)
		n.complete(a, 0)
	})
}

// busyNode is a node whose writers commit, up to a bound, whenever commits are read, which takes a while.
type busyNode struct {
	*node
	takes time.Duration
	until uint64
	reads int
}

func (n *busyNode) Commits(ctx context.Context, from uint64, count int, size int64) (*Batch, error) {
	n.reads++
	batch, err := n.node.Commits(ctx, from, count, size)
	<-time.After(n.takes)
	if last, _ := n.Position(); last < n.until {
		n.commit(2)
	}
	return batch, err
}

func TestWritersThatGoOnDoNotMakeUploadsSmaller(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := claim(t, openDir(t), nil)
		n := &busyNode{node: newNode(t, 1<<30), takes: 100 * time.Millisecond, until: 400}
		n.commit(2)
		stop := lead(NewUploader(a, testID, n, UploaderOptions{Log: slog.New(slog.DiscardHandler)}))
		defer stop()
		settle(20 * time.Second)
		if n.reads < 18 || n.reads > 26 {
			t.Errorf("in 20 s there were %d uploads, want one in an interval of 1 s", n.reads)
		}
	})
}

func TestCommitsOfABusyDatabaseAreArchivedWithinTheInterval(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := claim(t, openDir(t), nil)
		n := &busyNode{node: newNode(t, 1<<30), takes: 100 * time.Millisecond}
		n.commit(2)
		u := NewUploader(a, testID, n, UploaderOptions{Log: slog.New(slog.DiscardHandler)})
		stop := lead(u)
		defer stop()
		for range 1000 {
			n.commit(1)
			settle(10 * time.Millisecond)
			last, _ := n.Position()
			n.mu.Lock()
			told, c := n.told, n.r.commits
			n.mu.Unlock()
			if told < last && time.Since(time.UnixMicro(c[told].Time)) > time.Second+20*time.Millisecond {
				t.Fatalf("commit %d was made %s ago and is not archived", told+1, time.Since(time.UnixMicro(c[told].Time)))
			}
		}
	})
}

func TestAnUploaderOfAnIdleDatabaseSendsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := storetest.NewFaulty(openDir(t), 1)
		a := claim(t, s, nil)
		n := newNode(t, 1<<30)
		n.commit(2)
		calls := s.Calls("")
		u := NewUploader(a, testID, n, UploaderOptions{Archived: 2, Log: slog.New(slog.DiscardHandler)})
		stop := lead(u)
		defer stop()
		settle(time.Hour)
		if got := s.Calls("") - calls; got != 0 {
			t.Errorf("%d requests", got)
		}
	})
}

func TestWithTheStoreDownTheBacklogGrowsAndDrainsByItself(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := storetest.NewFaulty(openDir(t), 1)
		a := claim(t, s, nil)
		n := newNode(t, 1<<30)
		u := n.uploader(a)
		stop := lead(u)
		defer stop()
		n.commit(3)
		u.Notify()
		settle(2 * time.Second)
		s.Down(true)
		for range 30 {
			n.commit(1)
			u.Notify()
			settle(10 * time.Second)
		}
		st := u.Status()
		if st.Archived != 3 || st.Error == "" || st.Lag(time.Now()) < 4*time.Minute || n.backlog.Status().Bytes == 0 {
			t.Errorf("while the store is down: %+v, lag %s", st, st.Lag(time.Now()))
		}
		s.Down(false)
		settle(maxRetry + 2*time.Second)
		if st := u.Status(); st.Archived != 33 || st.Error != "" || st.Lag(time.Now()) != 0 || n.backlog.Status().Bytes != 0 {
			t.Errorf("after it came back: %+v", st)
		}
		n.complete(a, 0)
	})
}

func TestLeadersChangeWhileTheStoreFails(t *testing.T) {
	for seed := range uint64(4) {
		synctest.Test(t, func(t *testing.T) {
			s := storetest.NewFaulty(openDir(t), seed)
			a := claim(t, s, nil)
			n := newNode(t, 1<<30)
			r := rand.New(rand.NewPCG(seed, 3))
			s.Rate(0.15)
			for range 8 {
				u := n.uploader(a)
				stop := lead(u)
				// Now and then the one before does not know yet that it leads no more.
				stopOld := func() {}
				if r.IntN(2) == 0 {
					stopOld = lead(n.uploader(a))
				}
				for range 1 + r.IntN(6) {
					n.commit(1 + r.IntN(3))
					u.Notify()
					settle(time.Duration(r.IntN(40_000)) * time.Millisecond)
				}
				stop()
				stopOld()
			}
			s.Rate(0)
			stop := lead(n.uploader(a))
			settle(2 * maxRetry)
			stop()
			n.complete(a, 0)
		})
	}
}

func TestCommitsThatAreGoneBecomeAGapAndNoHole(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := claim(t, openDir(t), nil)
		n := newNode(t, 1<<30)
		u := n.uploader(a)
		n.commit(5)
		stop := lead(u)
		settle(2 * time.Second)
		stop()
		n.commit(4)
		if err := n.backlog.Drop(testID.Database); err != nil {
			t.Fatal(err)
		}
		n.commit(3) // the backlog begins here
		u = n.uploader(a)
		stop = lead(u)
		settle(2 * time.Second)
		n.commit(3)
		u.Notify()
		settle(3 * time.Hour) // compaction goes over the gap
		stop()
		if n.images != 1 || u.Status().Gaps != 1 {
			t.Errorf("%d images, %+v", n.images, u.Status())
		}
		n.complete(a, 1)
		v, err := a.Load(t.Context(), testID)
		if err != nil {
			t.Fatal(err)
		}
		if g := v.state.Gaps[0]; g != (Gap{6, 11}) {
			t.Errorf("gap %v", g)
		}
		if _, err := v.PointOf(t.Context(), 8); !errors.Is(err, ErrNotArchived) {
			t.Errorf("a state in the gap: %v", err)
		}
		if _, dropped, err := v.At(t.Context(), time.UnixMicro(n.r.commits[8].Time)); err != nil || !dropped {
			t.Errorf("a time in the gap: %v, %v", dropped, err)
		}
	})
}

// A database that was not archived from its first commit on has a history that begins with a snapshot: nothing is
// missing in it, and no time before it has a state.
func TestAHistoryThatBeginsWithASnapshotHasNoGap(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := claim(t, openDir(t), nil)
		n := newNode(t, 1<<30)
		n.commit(4)
		if err := n.backlog.Drop(testID.Database); err != nil {
			t.Fatal(err)
		}
		n.commit(3) // the backlog begins here
		u := n.uploader(a)
		stop := lead(u)
		settle(2 * time.Second)
		n.commit(3)
		u.Notify()
		settle(3 * time.Hour)
		stop()
		if n.images != 1 || u.Status().Gaps != 0 {
			t.Errorf("%d images, %+v", n.images, u.Status())
		}
		v, err := a.Load(t.Context(), testID)
		if err != nil {
			t.Fatal(err)
		}
		if first, err := v.First(t.Context()); err != nil || first.TXID != 7 || !v.HasSnapshot(first) || len(v.state.Gaps) != 0 {
			t.Errorf("it begins with %+v, gaps %v, %v", first, v.state.Gaps, err)
		}
		var before *RangeError
		if _, _, err := v.At(t.Context(), time.UnixMicro(n.r.commits[5].Time)); !errors.As(err, &before) {
			t.Errorf("a time before the snapshot: %v", err)
		}
		for txid := uint64(7); txid <= 10; txid++ {
			if got, err := restoreTX(t.Context(), v, txid); err != nil || !bytes.Equal(got, n.r.images[txid-1]) {
				t.Errorf("commit %d: %v", txid, err)
			}
		}
		if r, err := v.Verify(t.Context(), nil); err != nil || len(r.Problems) > 0 {
			t.Errorf("verify: %v, %v", r, err)
		}
	})
}

// What a writer has stored and not entered, the next one takes over, also where
// it was compressed by another program.
func TestWhatAWriterLeftBehindIsTakenOver(t *testing.T) {
	s := storetest.NewFaulty(openDir(t), 1)
	a := claim(t, s, nil)
	r := newRecorder(t, 3, 4096, 0)
	r.exec("WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i<60) INSERT INTO item(data) SELECT randomblob(1500) FROM n")
	r.commit()
	w := openWriter(t, a, quick())
	if err := w.Append(t.Context(), r.commits); err != nil {
		t.Fatal(err)
	}
	stop := errors.New("stop")
	for _, step := range []string{"hasqlite/index", "hasqlite/journal"} {
		s.Hook(func(op, key string) error {
			if op == "put" && strings.Contains(key, step) {
				return stop
			}
			return nil
		})
		if err := openWriter(t, a, quick()).Snapshot(t.Context()); !errors.Is(err, stop) {
			t.Fatalf("%s: %v", step, err)
		}
	}
	s.Hook(nil)
	// The file lies there with the same pages, not compressed the same way.
	v := w.View()
	key := v.Key(Object{Level: SnapshotLevel, MinTXID: 1, MaxTXID: 3})
	b := recompress(t, mustGet(t, s, key))
	if err := errors.Join(s.Delete(t.Context(), key), s.Put(t.Context(), key, bytes.NewReader(b), int64(len(b)), time.UnixMicro(r.commits[2].Time))); err != nil {
		t.Fatal(err)
	}
	w = openWriter(t, a, quick())
	if err := w.Snapshot(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := w.View().state.Snapshots[0]; got.Size != int64(len(b)) || got.IndexSize == 0 {
		t.Errorf("the file entered has %d bytes, the one in the store %d", got.Size, len(b))
	}
	if got, err := restoreTX(t.Context(), w.View(), 3); err != nil || !bytes.Equal(got, r.image) {
		t.Errorf("restored: %v", err)
	}
	if r, err := w.View().Verify(t.Context(), nil); err != nil || len(r.Problems) != 0 {
		t.Errorf("verify: %+v, %v", r, err)
	}
}

func mustGet(t testing.TB, s store.Store, key string) []byte {
	t.Helper()
	b, err := (&objects{store: s}).get(t.Context(), key)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// recompress writes a file with another compressor.
func recompress(t testing.TB, b []byte) []byte {
	t.Helper()
	in, err := snapshot.NewFileReader(bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	out := bytes.Clone(b[:100])
	sum := crc64.Update(0, crcTable, out)
	var index []byte
	for {
		fr, err := in.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		block := make([]byte, lz4.CompressBlockBound(len(fr.Data)))
		n, err := lz4.CompressBlockHC(fr.Data, block, lz4.Level9, nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		if n == 0 {
			n = copy(block, b[fr.Offset+10:fr.Offset+int64(fr.Size)])
		}
		for _, v := range []uint64{uint64(fr.Pgno), uint64(len(out)), uint64(10 + n)} {
			index = binary.AppendUvarint(index, v)
		}
		head := binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint32(nil, fr.Pgno), 1), uint32(n))
		sum = crc64.Update(crc64.Update(sum, crcTable, head), crcTable, fr.Data)
		out = append(append(out, head...), block[:n]...)
	}
	tail := append(make([]byte, 6), index...)
	tail = binary.BigEndian.AppendUint64(append(tail, 0), uint64(len(index)+1))
	tail = append(tail, make([]byte, 8)...)
	out = binary.BigEndian.AppendUint64(append(out, tail...), 1<<63|crc64.Update(sum, crcTable, tail))
	if _, err := snapshot.VerifyFile(bytes.NewReader(out)); err != nil || bytes.Equal(out, b) {
		t.Fatalf("compressed again: %v", err)
	}
	return out
}
