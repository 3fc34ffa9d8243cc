package archive

import (
	"bytes"
	"container/list"
	"context"
	"fmt"
	"io"
	"maps"
	"slices"
	"sync"

	"github.com/uglyer/ha-sqlite/snapshot"
)

const (
	readerCache = 16 << 20
	cacheEntry  = 64 // bytes that an entry costs besides its content
)

// Reader reads single pages of a database as it was, by ranges, with a bounded
// cache. Each page is verified: by the checksum in the page index, or as a part
// of a small file that was verified whole. It is safe for concurrent use.
type Reader struct {
	view  *View
	plan  *Plan
	limit []uint32 // of each file, behind which its pages are cut off
	ctx   context.Context
	runs  map[int]packRun // of the plan, read by the index of their pack

	warm  sync.Mutex
	has   map[int][]uint32 // pages of the small files of the plan, once they were read
	mu    sync.Mutex
	cache map[string]*list.Element
	order *list.List // the most recently used first
	used  int
}

type cached struct {
	key  string
	v    any
	size int
}

// NewReader makes a reader of the state that a plan gives. All its requests
// end with the context. cacheBytes bounds the cache; 0 is 16 MiB.
func (v *View) NewReader(ctx context.Context, p *Plan, cacheBytes int) *Reader {
	if cacheBytes <= 0 {
		cacheBytes = readerCache
	}
	r := &Reader{view: v, plan: p, ctx: ctx, cache: map[string]*list.Element{}, order: list.New(), used: -cacheBytes, limit: make([]uint32, len(p.Objects))}
	r.runs = p.runs()
	limit := p.Target.PageCount
	for i := len(p.Objects) - 1; i >= 0; i-- {
		limit = min(limit, p.Objects[i].PageCount)
		r.limit[i] = limit
	}
	return r
}

// PageSize is that of the database.
func (r *Reader) PageSize() uint32 { return r.view.state.PageSize }

// PageCount is that of the state.
func (r *Reader) PageCount() uint32 { return r.plan.Target.PageCount }

// cachedValue returns what is kept under a key, or makes it.
func (r *Reader) cachedValue(key string, load func() (any, int, error)) (any, error) {
	r.mu.Lock()
	if e, ok := r.cache[key]; ok {
		r.order.MoveToFront(e)
		r.mu.Unlock()
		return e.Value.(*cached).v, nil
	}
	r.mu.Unlock()
	v, size, err := load()
	if err != nil {
		return nil, err
	}
	size += len(key) + cacheEntry
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, ok := r.cache[key]; !ok {
		r.cache[key] = r.order.PushFront(&cached{key, v, size})
		r.used += size
	}
	for r.used > 0 && r.order.Len() > 1 {
		e := r.order.Back()
		c := r.order.Remove(e).(*cached)
		delete(r.cache, c.key)
		r.used -= c.size
	}
	return v, nil
}

// Page returns a page, which must not be changed.
func (r *Reader) Page(pgno uint32) ([]byte, error) {
	if pgno == 0 || pgno > r.PageCount() {
		return nil, fmt.Errorf("read page %d of %d: %w", pgno, r.PageCount(), ErrNotArchived)
	}
	if pgno == snapshot.LockPgno(r.PageSize()) {
		return make([]byte, r.PageSize()), nil
	}
	if err := r.readSmall(); err != nil {
		return nil, fmt.Errorf("read page %d: %w", pgno, err)
	}
	for i := len(r.plan.Objects) - 1; i >= 0; i-- {
		if pgno > r.limit[i] {
			break // what older files have of it was cut off
		}
		if run, ok := r.runs[i]; ok {
			data, ok, err := r.pageOfRun(run, pgno)
			if err != nil {
				return nil, fmt.Errorf("read page %d: %w", pgno, err)
			}
			if ok {
				return data, nil
			}
			i = run.first
			continue
		}
		if pages, small := r.has[i]; small {
			if _, ok := slices.BinarySearch(pages, pgno); !ok {
				continue
			}
		}
		data, ok, err := r.pageOf(r.plan.Objects[i], pgno)
		if err != nil {
			return nil, fmt.Errorf("read page %d: %w", pgno, err)
		}
		if ok {
			return data, nil
		}
	}
	return nil, fmt.Errorf("read page %d: %w", pgno, damaged(r.view.Key(r.plan.Objects[0]), "no file of the plan has the page"))
}

// readSmall reads the small files of the plan, once, and remembers which pages
// they have: the cache need not keep them all.
func (r *Reader) readSmall() error {
	r.warm.Lock()
	defer r.warm.Unlock()
	if r.has != nil {
		return nil
	}
	pages, errs := make([][]uint32, len(r.plan.Objects)), make([]error, len(r.plan.Objects))
	slots := make(chan struct{}, fetchAtOnce)
	var wg sync.WaitGroup
	for i, o := range r.plan.Objects {
		if _, ok := r.runs[i]; ok || o.IndexSize > 0 {
			continue
		}
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			v, err := r.cachedValue(r.view.Key(o)+o.part(), func() (any, int, error) { return r.small(o) })
			if err != nil {
				errs[i] = err
				return
			}
			pages[i] = slices.Sorted(maps.Keys(v.(*smallFile).places))
		})
	}
	wg.Wait()
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	r.has = map[int][]uint32{}
	for i, o := range r.plan.Objects {
		if _, ok := r.runs[i]; !ok && o.IndexSize == 0 {
			r.has[i] = pages[i]
		}
	}
	return nil
}

func (r *Reader) pageOf(o Object, pgno uint32) ([]byte, bool, error) {
	key := r.view.Key(o)
	if o.IndexSize == 0 {
		v, err := r.cachedValue(key+o.part(), func() (any, int, error) { return r.small(o) })
		if err != nil {
			return nil, false, err
		}
		f := v.(*smallFile)
		p, ok := f.places[pgno]
		if !ok {
			return nil, false, nil
		}
		data, err := r.expand(key, f.raw[p.offset:p.offset+int64(p.size)], pgno, p.sum)
		return data, err == nil, err
	}
	v, err := r.cachedValue(key, func() (any, int, error) {
		d, err := r.view.readDirectory(r.ctx, o)
		return d, len(d) * 32, err
	})
	if err != nil {
		return nil, false, err
	}
	e, ok := v.(directory).find(pgno)
	if !ok {
		return nil, false, nil
	}
	indexKey := r.view.indexKey(o)
	v, err = r.cachedValue(fmt.Sprintf("%s@%d", indexKey, e.at), func() (any, int, error) {
		b, err := r.view.readRange(r.ctx, indexKey, o.IndexSize, e.at, e.size)
		return b, len(b), err
	})
	if err != nil {
		return nil, false, err
	}
	p, ok, err := findInBlock(e, v.([]byte), pgno)
	if err != nil {
		return nil, false, objectError(indexKey, err)
	}
	if !ok {
		return nil, false, nil
	}
	v, err = r.cachedValue(fmt.Sprintf("%s#%d", key, pgno), func() (any, int, error) {
		raw, err := r.view.readRange(r.ctx, key, o.Stored, p.offset, p.size)
		if err != nil {
			return nil, 0, err
		}
		data, err := r.expand(key, raw, pgno, p.sum)
		return data, len(data), err
	})
	if err != nil {
		return nil, false, err
	}
	return v.([]byte), true, nil
}

// expand makes a page of a frame and compares its checksum.
func (r *Reader) expand(key string, raw []byte, pgno uint32, sum uint64) ([]byte, error) {
	fr, err := snapshot.ExpandFrame(raw, r.PageSize())
	if err != nil {
		return nil, fileError(key, err)
	}
	if fr.Pgno != pgno || fr.Sum != sum {
		return nil, damaged(key, "page %d has checksum %016x, want page %d with %016x", fr.Pgno, fr.Sum, pgno, sum)
	}
	return fr.Data, nil
}

// smallFile is a file that was fetched and verified whole.
type smallFile struct {
	raw    []byte
	places map[uint32]place
}

func (r *Reader) small(o Object) (*smallFile, int, error) {
	key := r.view.Key(o)
	if o.Size > maxMetadata {
		return nil, 0, &ObjectError{key, fmt.Errorf("it has %d bytes and no page index: restore the state instead", o.Size)}
	}
	raw, err := r.view.content(r.ctx, o, false)
	if err != nil {
		return nil, 0, err
	}
	in, err := r.view.newFile(key, o, bytes.NewReader(raw), io.NopCloser(nil))
	if err != nil {
		return nil, 0, err
	}
	f := &smallFile{raw, map[uint32]place{}}
	for {
		fr, err := in.next()
		if err == io.EOF {
			return f, len(raw) + 48*len(f.places), nil
		}
		if err != nil {
			return nil, 0, err
		}
		f.places[fr.Pgno] = place{fr.Offset, fr.Size, fr.Sum}
	}
}

// readRange reads a part of an object.
func (v *View) readRange(ctx context.Context, key string, stored, offset int64, size int) ([]byte, error) {
	r, plain, err := v.ranges(ctx, key, stored)
	if err != nil {
		return nil, err
	}
	if offset < 0 || size < 0 || offset > plain || int64(size) > plain-offset {
		return nil, damaged(key, "%d bytes from %d of %d", size, offset, plain)
	}
	b := make([]byte, size)
	if n, err := r.ReadAt(b, offset); n < size {
		return nil, fileError(key, err)
	}
	return b, nil
}

// readDirectory reads the directory of a page index, most often with one
// request.
func (v *View) readDirectory(ctx context.Context, o Object) (directory, error) {
	key := v.indexKey(o)
	r, plain, err := v.ranges(ctx, key, o.IndexSize)
	if err != nil {
		return nil, err
	}
	b := make([]byte, min(plain, max(indexHead, min(indexFirstRead, directoryLikely(o.Pages)))))
	if n, err := r.ReadAt(b, 0); n < len(b) {
		return nil, fileError(key, err)
	}
	size, err := directorySize(b, plain)
	if err != nil {
		return nil, objectError(key, err)
	}
	if size > maxMetadata {
		return nil, damaged(key, "directory of %d bytes", size)
	}
	if size > int64(len(b)) {
		rest := make([]byte, size-int64(len(b)))
		if n, err := r.ReadAt(rest, int64(len(b))); n < len(rest) {
			return nil, fileError(key, err)
		}
		b = append(b, rest...)
	}
	d, err := decodeDirectory(b[:size], plain, o.IndexSum)
	if err != nil {
		return nil, objectError(key, err)
	}
	return d, nil
}
