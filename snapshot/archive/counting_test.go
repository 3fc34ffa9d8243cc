package archive

import (
	"context"
	"io"
	"sync/atomic"

	"github.com/uglyer/ha-sqlite/snapshot/store"
)

// counting counts the reads of a store.
type counting struct {
	store.Store
	requests, bytes atomic.Int64
}

func (c *counting) reset() { c.requests.Store(0); c.bytes.Store(0) }

func (c *counting) get() (requests, bytes int64) { return c.requests.Load(), c.bytes.Load() }

func (c *counting) Get(ctx context.Context, key string, offset, length int64) (io.ReadCloser, error) {
	c.requests.Add(1)
	r, err := c.Store.Get(ctx, key, offset, length)
	if err != nil {
		return nil, err
	}
	return &countingBody{r, c}, nil
}

type countingBody struct {
	io.ReadCloser
	c *counting
}

func (b *countingBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	b.c.bytes.Add(int64(n))
	return n, err
}
