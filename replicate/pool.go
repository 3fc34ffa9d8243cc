package replicate

import (
	"sync"
	"sync/atomic"
	"time"
)

// pool runs the appliers of all databases in a bounded number of goroutines, in the order in which they have work. A
// database that has more to do after its turn stands in line again, so that one with much to do keeps none with
// little waiting for longer than one turn of each. A database that waits takes no goroutine.
type pool struct {
	start func(func()) // starts a goroutine
	mu    sync.Mutex
	free  int
	line  []func(*worker)
}

// worker is a goroutine of a pool.
type worker struct {
	pool *pool
	lent atomic.Bool // its place in the pool is somebody else's
}

func newPool(width int, start func(func())) *pool { return &pool{start: start, free: width} }

// run runs f when its turn has come.
func (p *pool) run(f func(*worker)) {
	p.mu.Lock()
	if p.free == 0 {
		p.line = append(p.line, f)
		p.mu.Unlock()
		return
	}
	p.free--
	p.mu.Unlock()
	p.start(func() { p.work(f) })
}

func (p *pool) work(f func(*worker)) {
	w := &worker{pool: p}
	for f != nil {
		f(w)
		if w.lent.Load() {
			return
		}
		p.mu.Lock()
		// A timer of lendSoon that has fired may lend as late as now: the place is given back once.
		if f = p.nextLocked(); f == nil && w.lent.CompareAndSwap(false, true) {
			p.free++
		}
		p.mu.Unlock()
	}
}

func (p *pool) nextLocked() func(*worker) {
	if len(p.line) == 0 {
		return nil
	}
	f := p.line[0]
	p.line[0] = nil
	if p.line = p.line[1:]; len(p.line) == 0 {
		p.line = nil
	}
	return f
}

// crowded reports whether somebody waits for a turn.
func (p *pool) crowded() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.line) > 0
}

// lend gives the worker's place to the next in line: what follows may take long and needs no processor and no disk.
// What it does after that, until its function returns, comes on top of the bound.
func (w *worker) lend() {
	if w == nil || !w.lent.CompareAndSwap(false, true) {
		return
	}
	p := w.pool
	p.mu.Lock()
	f := p.nextLocked()
	if f == nil {
		p.free++
	}
	p.mu.Unlock()
	if f != nil {
		p.start(func() { p.work(f) })
	}
}

// lendAfter is for how long an applier keeps its place while it waits for an application.
const lendAfter = 2 * time.Millisecond

// lendSoon lends the place unless stop is called within a moment.
func (w *worker) lendSoon() (stop func() bool) {
	if w == nil || w.lent.Load() {
		return func() bool { return true }
	}
	return time.AfterFunc(lendAfter, w.lend).Stop
}

// lockApplier takes the database's files for its applier. Who else has them may be waiting for an application.
func (d *replica) lockApplier() {
	if !d.ioMu.TryLock() {
		d.worker.lend()
		d.ioMu.Lock()
	}
	d.turn = d.worker
}

func (d *replica) unlockApplier() {
	d.turn = nil
	d.ioMu.Unlock()
}
