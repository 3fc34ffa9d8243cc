package replicate

import (
	"context"
	"io"
	"sync"
	"time"
)

// throttle bounds what a node fetches from its peers to catch up, of all databases together.
type throttle struct {
	rate int64 // bytes per second; 0: no bound

	mu   sync.Mutex
	next time.Time // when what was granted so far is used up
}

// throttleBurst is how much may come at once after a pause.
const throttleBurst = 100 * time.Millisecond

// wait returns when n more bytes may be fetched.
func (t *throttle) wait(ctx context.Context, n int) error {
	if t.rate <= 0 {
		return ctx.Err()
	}
	t.mu.Lock()
	now := time.Now()
	if least := now.Add(-throttleBurst); t.next.Before(least) {
		t.next = least
	}
	pause := t.next.Sub(now)
	t.next = t.next.Add(time.Duration(float64(n) / float64(t.rate) * float64(time.Second)))
	t.mu.Unlock()
	if pause <= 0 {
		return ctx.Err()
	}
	timer := time.NewTimer(pause)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// spend returns when n bytes more than what was granted before might have been fetched.
func (t *throttle) spend(ctx context.Context, n int) error {
	for ; n > 0; n -= throttlePiece { // others get their turns between
		if err := t.wait(ctx, min(n, throttlePiece)); err != nil {
			return err
		}
	}
	return t.wait(ctx, 0)
}

// throttlePiece is how much one database takes at a time.
const throttlePiece = 64 << 10

// bulk is Port.Stream for what a node fetches in bulk to catch up: no faster than the rate.
func (s *Service) bulk(ctx context.Context, node string, method uint8, req []byte) (io.ReadCloser, error) {
	stream, err := s.port.Stream(ctx, node, method, req)
	if err != nil {
		return nil, err
	}
	return &throttled{stream, ctx, &s.catchup}, nil
}

// throttled is a stream whose bytes are counted when they came: the next ones wait for that.
type throttled struct {
	io.ReadCloser
	ctx  context.Context
	rate *throttle
}

func (t *throttled) Read(p []byte) (int, error) {
	n, err := t.ReadCloser.Read(p[:min(len(p), throttlePiece)])
	if werr := t.rate.wait(t.ctx, n); werr != nil {
		return 0, werr
	}
	return n, err
}
