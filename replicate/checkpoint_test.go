package replicate

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/uglyer/ha-sqlite/wal"
)

// A writer is a reader too, for a moment, and is met in it again and again. That must not pass for a reader
// that does not end, for which no writer is held back: the log would never be cut.
func TestAReaderThatWasMetOnceIsNotStuck(t *testing.T) {
	now := time.Now()
	c := &checkpoints{readers: map[readerKey]reader{{slot: 4, mark: 7}: {pid: 1, from: now, seen: now}}}
	if c.stuck() {
		t.Error("a reader that was seen once is stuck")
	}
	c.readers[readerKey{slot: 5, mark: 9}] = reader{pid: 2, from: now, seen: now.Add(stuckAfter)}
	if r, age, ok := c.oldest(); !c.stuck() || !ok || r.pid != 2 || age != stuckAfter {
		t.Errorf("the oldest reader is %+v for %v", r, age)
	}
}

func TestTheNextCheckpointFollowsTheLog(t *testing.T) {
	c := &checkpoints{}
	c.notice(10)
	if c.next != checkpointFrames {
		t.Errorf("first checkpoint at %d frames", c.next)
	}
	c.next = 5000 // readers held one up
	c.notice(4000)
	if c.next != 5000 {
		t.Errorf("the log grew, next checkpoint at %d", c.next)
	}
	c.notice(3) // it was begun anew
	if c.next != checkpointFrames {
		t.Errorf("the log began anew, next checkpoint at %d", c.next)
	}
}

// A writer that shares the slot of a reader which holds up the log is not taken for it.
func TestTheReaderIsOneThatIsThereAtEveryLook(t *testing.T) {
	marks := wal.Marks{MaxFrame: 100, Backfilled: 10}
	slot := func(n, pid int) slotHolder { return slotHolder{slot: n, pid: pid} }
	const at = firstReadSlot + 2
	marks.Read[2], marks.Read[3] = 10, wal.MarkNotUsed
	key := readerKey{slot: at, mark: 10}
	c := &checkpoints{backlog: 90}
	for name, looks := range map[string][][]slotHolder{
		"it writes at the first look":            {{slot(at, 7), slot(at, 8), slot(0, 7)}, {slot(at, 7), slot(at, 8)}},
		"it is not there at the second":          {{slot(at, 7), slot(at, 8)}, {slot(at, 8)}, {slot(at, 7), slot(at, 8)}},
		"it comes later":                         {{slot(at, 8)}, {slot(at, 7), slot(at, 8)}},
		"the first one ends":                     {{slot(at, 7)}, {slot(at, 8)}},
		"nobody reads by a mark that is not set": {{slot(at+1, 9)}, {slot(at, 8), slot(at+1, 9)}},
		"only the writer is there":               {{slot(at, 8), slot(0, 8)}},
	} {
		var r reader
		for _, holders := range looks {
			met := c.met(holders, marks)
			for other := range met {
				if other != key {
					t.Errorf("%s: %+v counts as a reader", name, other)
				}
			}
			if pids := met[key]; pids != nil {
				r.meet(pids)
			}
		}
		if r.pid != 8 {
			t.Errorf("%s: process %d is the reader, want 8", name, r.pid)
		}
	}
}

// A writer that waits at the gate with a snapshot of the log would keep the log from being copied, or cut, for as long as it
// waits. It is sent back until its snapshot is one of the database file.
func TestWritersWaitAtTheGateWithoutASnapshotOfTheLog(t *testing.T) {
	g := &walGate{copied: make(chan struct{}), open: make(chan struct{})}
	early, late := &Handle{}, &Handle{}
	for range 3 {
		if err := g.pass(t.Context(), early); !errors.Is(err, errCut) {
			t.Errorf("before all is copied: %v", err)
		}
	}
	close(g.copied)
	for _, h := range []*Handle{early, late} {
		if err := g.pass(t.Context(), h); !errors.Is(err, errCut) {
			t.Errorf("with a snapshot that may be from before: %v", err)
		}
	}
	passed := make(chan error)
	for _, h := range []*Handle{early, late} {
		go func() { passed <- g.pass(t.Context(), h) }()
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := g.pass(ctx, early); !errors.Is(err, context.Canceled) {
		t.Errorf("an end of patience: %v", err)
	}
	select {
	case err := <-passed:
		t.Errorf("a writer was let through, or sent back, while the log was cut: %v", err)
	case <-time.After(20 * sentBackAfter):
	}
	close(g.open)
	for range 2 {
		if err := <-passed; err != nil {
			t.Error(err)
		}
	}
	if err := g.pass(t.Context(), &Handle{}); err != nil {
		t.Errorf("where the gate is open: %v", err)
	}
}
