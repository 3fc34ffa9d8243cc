package replicate

import "testing"

// The timer that lends a worker's place may have fired when it is stopped, and its goroutine runs whenever it likes. The
// place is given back once all the same.
func TestAPlaceLentTooLateIsGivenBackOnce(t *testing.T) {
	p := newPool(1, func(f func()) { f() })
	var late *worker
	p.run(func(w *worker) { late = w })
	late.lend()
	if p.free != 1 {
		t.Errorf("%d places are free, want 1", p.free)
	}
	second := false
	p.run(func(*worker) {
		p.run(func(*worker) { second = true })
		late.lend()
		if second {
			t.Error("two work at a time")
		}
	})
	if !second || p.free != 1 {
		t.Errorf("the second ran: %v, and %d places are free, want 1", second, p.free)
	}
}
