package replicate

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/uglyer/ha-sqlite/snapshot"
)

// spoolNode is what a node has of large transactions: a state machine and its spools.
type spoolNode struct {
	*script
	spools *spools
	log    map[uint64][]byte // of parts, by index
	mu     sync.Mutex
	wg     sync.WaitGroup
	cancel func()
}

func (n *spoolNode) Created(uint64, DatabaseState) {}
func (n *spoolNode) Accepted(uint64, *Transaction) {}
func (n *spoolNode) Part(index uint64, before Running, data []byte) {
	n.mu.Lock()
	n.log[index] = data
	n.mu.Unlock()
	n.spools.part(index, before, data)
}
func (n *spoolNode) AcceptedLarge(uint64, *Final)          {}
func (n *spoolNode) Dropped(index uint64, ids []EntryID)   { n.spools.drop(index, ids) }
func (n *spoolNode) Deleted(uint64, DatabaseID)            {}
func (n *spoolNode) TermStarted(uint64, uint64)            {}
func (n *spoolNode) ForkBegun(uint64, DatabaseState, bool) {}
func (n *spoolNode) ForkReady(uint64, DatabaseState)       {}
func (n *spoolNode) Archived(uint64, *Archived)            {}
func (n *spoolNode) MemberChanged(Member)                  {}
func (n *spoolNode) Stop(err error)                        { n.t.Errorf("stopped: %v", err) }
func (n *spoolNode) file(id EntryID) string                { return n.spools.path(id) }
func (n *spoolNode) exists(id EntryID) bool                { _, err := os.Stat(n.file(id)); return err == nil }
func (n *spoolNode) of(id EntryID) *spool {
	n.spools.mu.Lock()
	defer n.spools.mu.Unlock()
	return n.spools.all[id]
}
func (n *spoolNode) wait(id EntryID, size int64) error {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	return n.of(id).wait(ctx, size)
}

func newSpoolNode(t *testing.T, dir string) *spoolNode {
	ctx, cancel := context.WithCancel(context.Background())
	n := &spoolNode{log: map[uint64][]byte{}, cancel: cancel}
	n.script = newScript(t, n)
	n.spools = newSpools(dir, n.f.log, ctx, func(f func()) { n.wg.Go(f) })
	n.spools.back = func(index uint64) ([]byte, error) {
		n.mu.Lock()
		defer n.mu.Unlock()
		if b, ok := n.log[index]; ok {
			return b, nil
		}
		return nil, errors.New("compacted")
	}
	n.f.Spools = SpoolHooks{
		Listed: n.spools.noteListed, Persist: n.spools.persist, Persisted: n.spools.notePersisted,
		Restore: func(running []Running) error { return n.spools.restore(ctx, running, false) },
	}
	t.Cleanup(n.stop)
	return n
}

// stop ends the node as a kill does: nothing is tidied up.
func (n *spoolNode) stop() {
	n.cancel()
	n.wg.Wait()
}

// until waits for a condition.
func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain: %s", what)
		}
		<-tick.C
	}
}

func TestSpoolHoldsTheParts(t *testing.T) {
	n := newSpoolNode(t, filepath.Join(t.TempDir(), "parts"))
	l := n.large(n.create("shop.db"))
	n.applyParts(l, 3)
	if err := n.wait(l.final.ID, int64(len(l.ltx))); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(n.file(l.final.ID)); err != nil || !bytes.Equal(got, l.ltx) {
		t.Fatalf("%d bytes, %v, want %d", len(got), err, len(l.ltx))
	}
	n.apply(l.final)
	sp := n.spools.accept(n.index, l.final.ID, int64(len(l.ltx)))
	r, err := sp.ltx(int64(len(l.ltx)), l.final.Pages, 4711)
	if err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(r)
	if h, herr := snapshot.PeekHeader(got); err != nil || herr != nil || h.CommitTimeMillis != 4711 {
		t.Fatalf("%+v, %v, %v", h, err, herr)
	}
	if err := snapshot.Restamp(got, partsCommitMillis); err != nil || !bytes.Equal(got, l.ltx) {
		t.Fatal("read another file than was written")
	}
	sp.release()
	until(t, "the file goes with its last use", func() bool { return !n.exists(l.final.ID) })
}

// A file that a manifest lists is there until a later manifest is durable: a restart begins from that one.
func TestSpoolStaysWhileAManifestListsIt(t *testing.T) {
	n := newSpoolNode(t, filepath.Join(t.TempDir(), "parts"))
	l := n.large(n.create("shop.db"))
	n.applyParts(l, 2)
	manifest := manifestOf(t, n.f)
	n.startTerm() // drops it
	if len(n.f.Running()) != 0 || n.of(l.final.ID) == nil || !n.exists(l.final.ID) {
		t.Fatal("the file went although a manifest lists it")
	}

	again := newSpoolNode(t, filepath.Dir(n.file(l.final.ID)))
	n.stop()
	if err := again.f.Restore(io.NopCloser(bytes.NewReader(manifest))); err != nil {
		t.Fatal(err)
	}
	if err := again.wait(l.final.ID, 2*PartBytes); err != nil {
		t.Fatalf("after a restart: %v", err)
	}
	again.index, again.term = 4, 1
	for _, p := range l.parts[2:] {
		if d := again.apply(p); !d.Accepted {
			t.Fatal(d.Reason)
		}
	}
	if err := again.wait(l.final.ID, int64(len(l.ltx))); err != nil {
		t.Fatal(err)
	}
	if got, _ := os.ReadFile(again.file(l.final.ID)); !bytes.Equal(got, l.ltx) {
		t.Fatal("taken up again it holds other bytes")
	}
	again.startTerm()
	manifestOf(t, again.f)
	until(t, "the file goes once a later manifest is durable", func() bool { return !again.exists(l.final.ID) })
}

// What the disk lost or damaged is fetched from a peer and compared with the hash; what no peer has is known to
// be lost, and nobody waits for it.
func TestSpoolIsFetchedFromAPeer(t *testing.T) {
	for _, tc := range []struct {
		name   string
		damage func(path string) error
		fetch  func(l *inParts, try int) ([]byte, error)
		tries  int
		lost   bool
	}{
		{"deleted", os.Remove, func(l *inParts, _ int) ([]byte, error) { return l.ltx[:2*PartBytes], nil }, 1, false},
		{"cut", func(p string) error { return os.Truncate(p, PartBytes+5) }, func(l *inParts, _ int) ([]byte, error) { return l.ltx[:2*PartBytes], nil }, 1, false},
		{"a bit changed", func(p string) error { return flip(p, PartBytes+5) }, func(l *inParts, _ int) ([]byte, error) { return l.ltx[:2*PartBytes], nil }, 1, false},
		{"a peer that sends other bytes first", os.Remove, func(l *inParts, try int) ([]byte, error) {
			if try == 0 {
				return make([]byte, 2*PartBytes), nil
			}
			return l.ltx[:2*PartBytes], nil
		}, 2, false},
		{"peers that cannot be reached at first", os.Remove, func(l *inParts, try int) ([]byte, error) {
			if try == 0 {
				return nil, ErrNoLeader
			}
			return l.ltx[:2*PartBytes], nil
		}, 2, false},
		{"a leader that has decided it", os.Remove, func(*inParts, int) ([]byte, error) { return nil, fmt.Errorf("%w: gone", errSpoolLost) }, 1, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			n := newSpoolNode(t, filepath.Join(t.TempDir(), "parts"))
			l := n.large(n.create("shop.db"))
			n.applyParts(l, 2)
			manifest := manifestOf(t, n.f)
			n.stop()
			if err := tc.damage(n.file(l.final.ID)); err != nil {
				t.Fatal(err)
			}
			again := newSpoolNode(t, filepath.Dir(n.file(l.final.ID)))
			tries := 0
			again.spools.ask = func(_ context.Context, r Running, w io.WriterAt) error {
				b, err := tc.fetch(l, tries)
				tries++
				if err == nil {
					_, err = w.WriteAt(b, 0)
				}
				return err
			}
			if err := again.f.Restore(io.NopCloser(bytes.NewReader(manifest))); err != nil {
				t.Fatal(err)
			}
			if err := again.wait(l.final.ID, 2*PartBytes); errors.Is(err, errSpoolLost) != tc.lost || !tc.lost && err != nil {
				t.Fatalf("got %v", err)
			}
			again.index, again.term = 4, 1
			again.apply(l.parts[2])
			err := again.wait(l.final.ID, int64(len(l.ltx)))
			if errors.Is(err, errSpoolLost) != tc.lost || !tc.lost && err != nil {
				t.Fatalf("with the last part: %v", err)
			}
			if d := again.apply(l.final); !d.Accepted {
				t.Fatalf("a file decides nothing, and yet: %s", d.Reason)
			}
			again.stop()
			if tries != tc.tries {
				t.Errorf("%d fetches, want %d", tries, tc.tries)
			}
		})
	}
}

func flip(path string, at int64) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	var b [1]byte
	if _, err := f.ReadAt(b[:], at); err != nil {
		return err
	}
	b[0] ^= 4
	_, err = f.WriteAt(b[:], at)
	return err
}

// A disk that takes nothing delays the file, not the decision, and keeps the manifest from being persisted. Once it
// takes something again, the parts come from the log.
func TestSpoolOnADiskThatTakesNothing(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "parts")
	if err := os.WriteFile(dir, nil, 0o600); err != nil { // no directory can be made there
		t.Fatal(err)
	}
	n := newSpoolNode(t, dir)
	l := n.large(n.create("shop.db"))
	n.applyParts(l, 2)
	snap, err := n.f.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	persisted := make(chan error, 1)
	var sink memorySink
	go func() { persisted <- snap.Persist(&sink) }()
	n.applyParts(&inParts{parts: l.parts[2:]}, 1)
	if d := n.apply(l.final); !d.Accepted {
		t.Fatal(d.Reason)
	}
	sp := n.spools.accept(n.index, l.final.ID, int64(len(l.ltx)))
	snap.Release() // as raft does when it gives up
	if err := <-persisted; err == nil || sink.closed {
		t.Fatalf("persisted without the parts: %v", err)
	}
	if err := os.Remove(dir); err != nil {
		t.Fatal(err)
	}
	if err := n.wait(l.final.ID, int64(len(l.ltx))); err != nil {
		t.Fatal(err)
	}
	if got, _ := os.ReadFile(n.file(l.final.ID)); !bytes.Equal(got, l.ltx) {
		t.Fatal("the file holds other bytes")
	}
	sp.release()
}

// Parts beyond the bound are read back from the log; what is not there any more is lost.
func TestSpoolReadsBackWhatDidNotFitIntoMemory(t *testing.T) {
	for _, compacted := range []bool{false, true} {
		n := newSpoolNode(t, filepath.Join(t.TempDir(), "parts"))
		n.spools.queued = maxSpoolQueueBytes // taken by others
		if compacted {
			n.spools.back = func(uint64) ([]byte, error) { return nil, errors.New("compacted") }
		}
		l := n.large(n.create("shop.db"))
		n.applyParts(l, 3)
		err := n.wait(l.final.ID, int64(len(l.ltx)))
		if got, _ := os.ReadFile(n.file(l.final.ID)); !compacted && (err != nil || !bytes.Equal(got, l.ltx)) || compacted && !errors.Is(err, errSpoolLost) {
			t.Fatalf("compacted %v: %d bytes, %v", compacted, len(got), err)
		}
	}
}

// A snapshot of the leader arrives while a part is being read back from the log: the restore takes the place of what was
// queued, and the part that ends then is none of its.
func TestSpoolIsRestoredBesideAPartThatIsWritten(t *testing.T) {
	n := newSpoolNode(t, filepath.Join(t.TempDir(), "parts"))
	n.spools.queued = maxSpoolQueueBytes // taken by others
	back, began, release := n.spools.back, make(chan struct{}, 3), make(chan struct{})
	n.spools.back = func(index uint64) ([]byte, error) {
		began <- struct{}{}
		<-release
		return back(index)
	}
	l := n.large(n.create("shop.db"))
	n.spools.ask = func(_ context.Context, _ Running, w io.WriterAt) error {
		_, err := w.WriteAt(l.ltx, 0)
		return err
	}
	n.applyParts(l, 3)
	<-began
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	restored := make(chan error, 1)
	go func() { restored <- n.spools.restore(ctx, n.f.Running(), true) }()
	sp := n.of(l.final.ID)
	until(t, "the restore is queued", func() bool {
		n.spools.mu.Lock()
		defer n.spools.mu.Unlock()
		return len(sp.ops) == 1 && sp.ops[0].restore != nil
	})
	close(release)
	if err := <-restored; err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(n.file(l.final.ID)); err != nil || !bytes.Equal(got, l.ltx) {
		t.Fatalf("%d bytes, %v, want %d", len(got), err, len(l.ltx))
	}
}

// A restore that fails leaves the state as it was. The parts that the leader's snapshot does not list are gone by then, or
// there are more than the state knows of: nobody waits for what never comes, or takes one for another.
func TestSpoolAfterARestoreThatFailed(t *testing.T) {
	for _, tc := range []struct{ before, listed int }{{1, 0}, {2, 0}, {3, 0}, {1, 2}} {
		t.Run(fmt.Sprintf("%d parts, a snapshot with %d", tc.before, tc.listed), func(t *testing.T) {
			n := newSpoolNode(t, filepath.Join(t.TempDir(), "parts"))
			l := n.large(n.create("shop.db"))
			n.applyParts(l, tc.before)
			if err := n.wait(l.final.ID, min(int64(tc.before)*PartBytes, int64(len(l.ltx)))); err != nil {
				t.Fatal(err)
			}
			leader := newScript(t, nil)
			leader.applyParts(leader.large(leader.create("shop.db")), tc.listed)
			n.spools.ask = func(_ context.Context, r Running, w io.WriterAt) error {
				_, err := w.WriteAt(l.ltx[:r.Bytes], 0)
				return err
			}
			n.f.OnRestore = func([]DatabaseState) error { return errors.New("no space") }
			if err := n.f.Restore(io.NopCloser(bytes.NewReader(manifestOf(t, leader.f)))); err == nil {
				t.Fatal("restored")
			}
			n.applyParts(&inParts{parts: l.parts[tc.before:]}, 3-tc.before)
			if d := n.apply(l.final); !d.Accepted {
				t.Fatalf("a file decides nothing, and yet: %s", d.Reason)
			}
			sp := n.spools.accept(n.index, l.final.ID, int64(len(l.ltx)))
			if err := n.wait(l.final.ID, int64(len(l.ltx))); !errors.Is(err, errSpoolLost) {
				t.Fatalf("got %v", err)
			}
			sp.release()
			until(t, "the file goes with its last use", func() bool { return !n.exists(l.final.ID) })
		})
	}
}

func TestSpoolsOfAFormerLifeAreCleared(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "parts")
	n := newSpoolNode(t, dir)
	l := n.large(n.create("shop.db"))
	n.applyParts(l, 1)
	if err := n.wait(l.final.ID, PartBytes); err != nil {
		t.Fatal(err)
	}
	old := n.spools.path(EntryID{1})
	if err := os.WriteFile(old, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := n.spools.clear(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(old); !errors.Is(err, os.ErrNotExist) || !n.exists(l.final.ID) {
		t.Fatalf("the old one: %v; the one in use: %v", err, n.exists(l.final.ID))
	}
}
