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
