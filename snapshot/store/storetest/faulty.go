package storetest

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/uglyer/ha-sqlite/snapshot/store"
)

// ErrInjected is the error of a call that was made to fail.
var ErrInjected = errors.New("injected fault")

// Faulty is a store whose calls fail when it is told to: before they take
// effect, or after. The zero Rate never fails.
type Faulty struct {
	store.Store

	mu     sync.Mutex
	rand   *rand.Rand
	rate   float64
	down   bool
	hook   func(op, key string) error
	counts map[string]int
}

// NewFaulty wraps s; the seed decides which calls fail.
func NewFaulty(s store.Store, seed uint64) *Faulty {
	return &Faulty{Store: s, rand: rand.New(rand.NewPCG(seed, seed)), counts: map[string]int{}}
}

// Rate makes that share of the calls fail.
func (f *Faulty) Rate(r float64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.rate = r
}

// Down makes all calls fail, or none.
func (f *Faulty) Down(down bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.down = down
}

// Hook is asked before each call; an error of it is that of the call.
func (f *Faulty) Hook(h func(op, key string) error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.hook = h
}

// Calls is how many calls of an operation came in: put, get, stat, list, dirs,
// delete, or "" for all.
func (f *Faulty) Calls(op string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	if op != "" {
		return f.counts[op]
	}
	n := 0
	for _, c := range f.counts {
		n += c
	}
	return n
}

// before decides about a call: fail before it, fail after it, or neither.
func (f *Faulty) before(op, key string) (err error, after bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.counts[op]++
	if f.hook != nil {
		if err := f.hook(op, key); err != nil {
			return err, false
		}
	}
	if f.down {
		return ErrInjected, false
	}
	if f.rand.Float64() < f.rate {
		return ErrInjected, f.rand.IntN(2) == 0
	}
	return nil, false
}

// Put implements store.Store.
func (f *Faulty) Put(ctx context.Context, key string, body io.ReaderAt, size int64, t time.Time) error {
	fail, after := f.before("put", key)
	if fail != nil && !after {
		return fail
	}
	if err := f.Store.Put(ctx, key, body, size, t); err != nil {
		return err
	}
	return fail
}

// Get implements store.Store. A Get that fails after it began tears the body.
func (f *Faulty) Get(ctx context.Context, key string, offset, length int64) (io.ReadCloser, error) {
	fail, after := f.before("get", key)
	if fail != nil && !after {
		return nil, fail
	}
	r, err := f.Store.Get(ctx, key, offset, length)
	if err != nil || fail == nil {
		return r, err
	}
	return &tornBody{r, 64}, nil
}

type tornBody struct {
	io.ReadCloser
	left int
}

func (t *tornBody) Read(p []byte) (int, error) {
	if t.left == 0 {
		return 0, ErrInjected
	}
	n, err := t.ReadCloser.Read(p[:min(len(p), t.left)])
	t.left -= n
	return n, err
}

// Stat implements store.Store.
func (f *Faulty) Stat(ctx context.Context, key string) (store.Info, error) {
	if fail, _ := f.before("stat", key); fail != nil {
		return store.Info{}, fail
	}
	return f.Store.Stat(ctx, key)
}

// List implements store.Store.
func (f *Faulty) List(ctx context.Context, dir, after string, fn func(store.Info) error) error {
	if fail, _ := f.before("list", dir); fail != nil {
		return fail
	}
	return f.Store.List(ctx, dir, after, fn)
}

// Dirs implements store.Store.
func (f *Faulty) Dirs(ctx context.Context, dir string) ([]string, error) {
	if fail, _ := f.before("dirs", dir); fail != nil {
		return nil, fail
	}
	return f.Store.Dirs(ctx, dir)
}

// Delete implements store.Store.
func (f *Faulty) Delete(ctx context.Context, keys ...string) error {
	fail, after := f.before("delete", "")
	if fail != nil && !after {
		return fail
	}
	if err := f.Store.Delete(ctx, keys...); err != nil {
		return err
	}
	return fail
}
