package replicate

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/uglyer/ha-sqlite/replicate/pagesums"
)

// What was durable before a copy was fenced, or found to be older than the log, says nothing about it now: no log may be
// compacted on its word (RULES A5).
func TestACopyThatIsNotTrustedVouchesForNothing(t *testing.T) {
	for name, test := range map[string]struct {
		spoil   func(d *replica)
		forgets bool // that it was durable
	}{
		"is fenced":       {func(d *replica) { d.fenced, d.known = errForeign, false }, false},
		"is behind":       {func(d *replica) { d.behind, d.known = true, false }, false},
		"is being fenced": {func(d *replica) { d.healing = true; d.fence(errForeign) }, true},
		"is found behind": {func(d *replica) { d.position = Position{TXID: 3}; d.settleFound() }, true},
	} {
		t.Run(name, func(t *testing.T) {
			s := newFilesNode(t)
			var err error
			if s.sums, err = pagesums.Open(t.TempDir()); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { s.sums.Close() })
			s.replay = make(chan struct{}) // no applier runs
			d := newCopy(s, "shop.db 16 bytes", nil)
			d.durable = 5
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			defer cancel()
			if c, err := d.makeDurable(ctx, 5); c != nil || err != nil {
				t.Fatalf("a sound copy: %v", err)
			}
			test.spoil(d)
			if _, err := d.makeDurable(ctx, 5); !errors.Is(err, errBlocked) {
				t.Errorf("got %v, want %v", err, errBlocked)
			}
			if yes, err := s.serveDurable(ctx, []durablePosition{{d.id, 5}}); err != nil || yes[0] {
				t.Errorf("it tells a peer %v, %v", yes, err)
			}
			d.mu.Lock()
			defer d.mu.Unlock()
			d.fenced, d.behind = nil, false
			if d.durableLocked(5) == test.forgets {
				t.Errorf("what was durable before counts again: %v, want %v", test.forgets, !test.forgets)
			}
		})
	}
}

// The queue of a copy that is blocked for long is no log of its own: what the log does not have any more is dropped, but
// for what the applier has in hand (RULES A4).
func TestTheQueueOfABlockedCopyIsTrimmed(t *testing.T) {
	s := newFilesNode(t)
	d := newCopy(s, "shop.db 16 bytes", nil)
	d.applying, d.inHand = true, 2
	for i := range uint64(100) {
		d.enqueue(item{index: 10 + i, position: Position{TXID: TXID(6 + i)}, pre: Position{TXID: TXID(5 + i)}, ltx: make([]byte, 10)})
	}
	d.trimRedo(100)
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.queue) != 12 || d.queue[1].index != 11 || d.queue[2].index != 100 || d.queueBytes != 120 || !d.behind {
		t.Errorf("%d items, the third of index %d, %d bytes, behind %v", len(d.queue), d.queue[2].index, d.queueBytes, d.behind)
	}
}

// What a peer has is installed while the log goes on: the copy is still behind if the queue does not continue from it.
func TestACopyIsBehindWhatTheQueueLacks(t *testing.T) {
	at := func(n TXID) Position { return Position{TXID: n} }
	for name, test := range map[string]struct {
		queue   []item
		decided TXID
		want    bool
	}{
		"nothing was decided":     {nil, 5, false},
		"the queue is empty":      {nil, 6, true},
		"a peer was further":      {[]item{{pre: at(3), position: at(4)}}, 4, false},
		"the queue goes on":       {[]item{{pre: at(4), position: at(5)}, {fork: &replica{}, position: at(9)}, {pre: at(5), position: at(6)}}, 6, false},
		"the queue goes on later": {[]item{{pre: at(4), position: at(5)}, {pre: at(6), position: at(7)}}, 7, true},
	} {
		d := &replica{known: true, position: at(5), decided: at(test.decided), queue: test.queue}
		if got := d.lacksLocked(); got != test.want {
			t.Errorf("%s: lacks %v", name, got)
		}
	}
}

// An install that waits for an application gives up what was fetched over since, and what is fetched next waits for one that
// reads what it would go over. A node vouches for neither (RULES A5).
func TestWhatWaitsToBeInstalledIsSuperseded(t *testing.T) {
	s := newFilesNode(t)
	d := newCopy(s, "shop.db 16 bytes", nil)
	d.known = false
	first, second := &target{position: Position{TXID: 7}}, &target{position: Position{TXID: 9}}
	d.pending, d.durable = second, 9
	if err := d.installPendingIO(t.Context(), first); !errors.Is(err, errIncomplete) || d.pending != second || d.behind || !d.durableLocked(9) {
		t.Fatalf("the first was installed: %v; pending %v, behind %v", err, d.pending, d.behind)
	}
	if err := d.claim(second); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := d.revoke(ctx); !errors.Is(err, context.Canceled) || d.pending != second {
		t.Errorf("the pages of %v are fetched over while they are read: %v", d.pending, err)
	}
	revoked := make(chan struct{})
	go func() {
		if err := d.revoke(t.Context()); err != nil {
			t.Error(err)
		}
		close(revoked)
	}()
	d.unclaim()
	within(t, "the next fetch", revoked)
	if d.pending != nil || d.durableLocked(1) {
		t.Errorf("pending %v, durable at %v", d.pending, d.durable)
	}
	if err := d.claim(second); !errors.Is(err, errIncomplete) {
		t.Errorf("it is installed nevertheless: %v", err)
	}
}
