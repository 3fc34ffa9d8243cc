package archive

import (
	"bytes"
	"context"
	"io"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/uglyer/ha-sqlite/snapshot/store"
)

// memoryStore is a store that a test can fill for months of its clock.
type memoryStore struct {
	mu   sync.Mutex
	objs map[string]memoryObject
}

type memoryObject struct {
	b []byte
	t time.Time
}

func newMemoryStore() *memoryStore { return &memoryStore{objs: map[string]memoryObject{}} }

func (m *memoryStore) URL() string               { return "memory:" }
func (m *memoryStore) LevelDir(level int) string { return "ltx/" + string(rune('0'+level)) }
func (m *memoryStore) Conditional() bool         { return true }

func (m *memoryStore) Detect(context.Context) error { return nil }

func (m *memoryStore) Put(ctx context.Context, key string, body io.ReaderAt, size int64, t time.Time) error {
	if err := store.CheckKey(key); err != nil {
		return err
	}
	b := make([]byte, size)
	if _, err := io.ReadFull(io.NewSectionReader(body, 0, size), b); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, ok := m.objs[key]; ok {
		return store.ErrExists
	}
	m.objs[key] = memoryObject{b, t}
	return ctx.Err()
}

func (m *memoryStore) Get(_ context.Context, key string, offset, length int64) (io.ReadCloser, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	o, ok := m.objs[key]
	if !ok {
		return nil, store.ErrNotFound
	}
	if length < 0 {
		length = int64(len(o.b)) - offset
	}
	if offset < 0 || offset+length > int64(len(o.b)) {
		return nil, io.ErrUnexpectedEOF
	}
	return io.NopCloser(bytes.NewReader(o.b[offset : offset+length])), nil
}

func (m *memoryStore) Stat(_ context.Context, key string) (store.Info, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	o, ok := m.objs[key]
	if !ok {
		return store.Info{}, store.ErrNotFound
	}
	return store.Info{Key: key, Size: int64(len(o.b)), Time: o.t}, nil
}

func (m *memoryStore) List(_ context.Context, dir, after string, f func(store.Info) error) error {
	var list []store.Info
	m.mu.Lock()
	for key, o := range m.objs {
		if name, ok := strings.CutPrefix(key, dir+"/"); ok && !strings.Contains(name, "/") && name > after {
			list = append(list, store.Info{Key: key, Size: int64(len(o.b))})
		}
	}
	m.mu.Unlock()
	slices.SortFunc(list, func(a, b store.Info) int { return strings.Compare(a.Key, b.Key) })
	for _, i := range list {
		if err := f(i); err != nil {
			return err
		}
	}
	return nil
}

func (m *memoryStore) Dirs(_ context.Context, dir string) ([]string, error) {
	found := map[string]bool{}
	m.mu.Lock()
	defer m.mu.Unlock()
	for key := range m.objs {
		if dir != "" {
			var ok bool
			if key, ok = strings.CutPrefix(key, dir+"/"); !ok {
				continue
			}
		}
		if name, _, ok := strings.Cut(key, "/"); ok {
			found[name] = true
		}
	}
	var names []string
	for name := range found {
		names = append(names, name)
	}
	slices.Sort(names)
	return names, nil
}

func (m *memoryStore) Delete(_ context.Context, keys ...string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, key := range keys {
		delete(m.objs, key)
	}
	return nil
}

// hungStore does not answer to a listing, if it is told so.
type hungStore struct {
	store.Store
	hangs bool
}

func (h *hungStore) List(ctx context.Context, dir, after string, f func(store.Info) error) error {
	if h.hangs {
		<-ctx.Done()
		return ctx.Err()
	}
	return h.Store.List(ctx, dir, after, f)
}
