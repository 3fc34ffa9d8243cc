package replicate

import (
	"context"
	"sync"
	"time"
)

// localGate is where uploads into an archive on the node's own disk wait. The log is synced to that disk, too, so it
// opens for a small part of the time; and those that are there go through together, since a file system syncs many
// files at once about as fast as one.
type localGate struct {
	room    int                                    // at a time
	rest    func(took time.Duration) time.Duration // how long it stays closed after that time
	mu      sync.Mutex
	inside  int
	begun   time.Time
	closed  bool        // nobody may enter any more, until all are out and the rest is over
	resting *time.Timer // ends the rest
	changed chan struct{}
}

func newLocalGate(room int, rest func(time.Duration) time.Duration) *localGate {
	return &localGate{room: room, rest: rest, changed: make(chan struct{})}
}

// enter waits until the gate is open.
func (g *localGate) enter(ctx context.Context) error {
	for {
		g.mu.Lock()
		if !g.closed && g.inside < g.room {
			if g.inside == 0 {
				g.begun = time.Now()
			}
			g.inside++
			g.mu.Unlock()
			return nil
		}
		changed := g.changed
		g.mu.Unlock()
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// leave closes the gate; with the last one that is inside the rest begins.
func (g *localGate) leave() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.closed = true
	if g.inside--; g.inside > 0 {
		return
	}
	g.resting = time.AfterFunc(g.rest(time.Since(g.begun)), g.open)
}

func (g *localGate) open() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed && g.inside == 0 {
		g.closed = false
		close(g.changed)
		g.changed = make(chan struct{})
	}
}

// hurry ends a rest, for somebody who waits for what is not archived yet.
func (g *localGate) hurry() {
	g.mu.Lock()
	over := g.resting != nil && g.resting.Stop()
	g.mu.Unlock()
	if over {
		g.open()
	}
}
