package replicate

import (
	"context"
	"testing"
	"testing/synctest"
	"time"
)

// A stream of transactions is written in groups, unless somebody waits for one; the first after a pause is written at once.
func TestAStreamIsGathered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &Service{replay: make(chan struct{}), ctx: context.Background()}
		close(s.replay)
		s.appliers = newPool(0, nil) // nothing runs: what would is in its line
		d := &replica{svc: s, known: true}
		txid := TXID(1)
		decide := func() {
			txid++
			d.enqueue(item{index: uint64(txid), position: Position{TXID: txid}, pre: Position{TXID: txid - 1}})
		}
		started := func() bool {
			d.mu.Lock()
			defer d.mu.Unlock()
			return d.applying
		}
		written := func() { // what the applier does
			d.mu.Lock()
			defer d.mu.Unlock()
			d.queue, d.queueBytes, d.applying, d.position, d.lastApply = nil, 0, false, Position{TXID: txid}, time.Now()
		}
		decide()
		if !started() {
			t.Fatal("the first one waits")
		}
		written()
		for range 3 {
			decide()
			if started() {
				t.Fatal("one of a stream is written alone")
			}
		}
		<-time.After(gatherTime)
		synctest.Wait()
		if !started() || len(d.queue) != 3 {
			t.Fatalf("started %v with %d in the queue after the time, want 3", started(), len(d.queue))
		}
		written()
		decide()
		ctx, cancel := context.WithCancel(t.Context())
		waited := make(chan error, 1)
		go func() { waited <- d.waitPosition(ctx, txid) }()
		synctest.Wait()
		if !started() {
			t.Error("somebody waits, and nothing is written")
		}
		decide() // beside that one
		written()
		cancel()
		<-waited
		synctest.Wait()

		decide()
		if started() {
			t.Error("a small one of a stream is written alone")
		}
		txid++
		d.enqueue(item{index: uint64(txid), position: Position{TXID: txid}, pre: Position{TXID: txid - 1}, ltx: make([]byte, gatherBytes)})
		if !started() {
			t.Error("many bytes wait")
		}
		written()
		decide()
		d.enqueue(item{index: 99, deleted: true})
		if !started() {
			t.Error("a deletion waits")
		}
		written()
		<-time.After(2 * gatherTime)
		synctest.Wait()
		d.deleted = false
		decide()
		if !started() {
			t.Error("the first one after a pause waits")
		}
	})
}

// The more databases have streams, the longer each gathers, to a bound; one that is alone again does not.
func TestManyStreamsGatherLonger(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s streams
		dbs := make([]replica, 100)
		round := func(n int) (gather time.Duration) {
			for i := range n {
				gather = s.sawLocked(&dbs[i], time.Now())
				s.sawLocked(&dbs[i], time.Now())
			}
			return gather
		}
		for _, c := range []struct {
			databases int
			want      time.Duration
		}{{1, gatherTime}, {4, gatherTime}, {16, 16 * gatherEach}, {100, gatherMost}} {
			<-time.After(2 * gatherMost) // what was before is forgotten
			if got := round(c.databases); got != c.want {
				t.Errorf("%d databases gather for %s, want %s", c.databases, got, c.want)
			}
			<-time.After(gatherMost)
			if got := round(1); got != c.want {
				t.Errorf("a period after %d databases one gathers for %s, want still %s", c.databases, got, c.want)
			}
		}
	})
}
