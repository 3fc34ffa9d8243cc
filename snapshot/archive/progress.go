package archive

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/uglyer/ha-sqlite/snapshot/store"
)

// stallTimeout is for how long work on an archive may move nothing before it is
// given up. There is no limit to how long it takes: that depends on the size of the database.
const stallTimeout = 10 * time.Minute

var errStalled = errors.New("nothing was read or written")

type progressKey struct{}

// watcher ends work that does not get on.
type watcher struct {
	timer *time.Timer
	limit time.Duration
}

// watch returns a context that ends when progressed is not told of anything for
// so long, and a function that ends it and gives an error of the work its cause.
func watch(ctx context.Context, limit time.Duration) (context.Context, func(error) error) {
	ctx, cancel := context.WithCancelCause(ctx)
	w := &watcher{limit: limit}
	w.timer = time.AfterFunc(limit, func() { cancel(errStalled) })
	return context.WithValue(ctx, progressKey{}, w), func(err error) error {
		if err != nil && errors.Is(context.Cause(ctx), errStalled) {
			err = fmt.Errorf("%w for %s: %w", errStalled, limit, err)
		}
		w.timer.Stop()
		cancel(nil)
		return err
	}
}

// progressed says that the work of a context gets on.
func progressed(ctx context.Context) {
	if w, ok := ctx.Value(progressKey{}).(*watcher); ok && ctx.Err() == nil {
		w.timer.Reset(w.limit)
	}
}

// moving is a body, or what is written, whose bytes count as progress.
type moving struct {
	ctx context.Context
	at  io.ReaderAt
	r   io.Reader
}

// ReadAt implements io.ReaderAt.
func (m moving) ReadAt(p []byte, off int64) (int, error) {
	n, err := m.at.ReadAt(p, off)
	progressed(m.ctx)
	return n, err
}

// Read implements io.Reader.
func (m moving) Read(p []byte) (int, error) {
	n, err := m.r.Read(p)
	progressed(m.ctx)
	return n, err
}

// deleteBatch is how many objects are removed between two signs of progress.
const deleteBatch = 1000

// remove deletes objects.
func (o *objects) remove(ctx context.Context, keys []string) error {
	for len(keys) > 0 {
		n := min(len(keys), deleteBatch)
		if err := o.store.Delete(ctx, keys[:n]...); err != nil {
			return err
		}
		progressed(ctx)
		keys = keys[n:]
	}
	return nil
}

// list is a listing of the store that counts as progress.
func (o *objects) list(ctx context.Context, dir, after string, f func(store.Info) error) error {
	return o.store.List(ctx, dir, after, func(i store.Info) error {
		progressed(ctx)
		return f(i)
	})
}
