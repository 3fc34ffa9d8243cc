package archive

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"time"

	"github.com/uglyer/ha-sqlite/snapshot"
	"github.com/uglyer/ha-sqlite/snapshot/store"
)

const (
	// A pack is read whole where several of its commits are wanted.
	packBytes   = 1 << 20
	packCommits = 1024
	// A run is merged in memory: the pages in it, and what is read of one commit.
	runBytes  = 16 << 20
	keptPacks = 4
)

func (v *View) packKey(first, last uint64) string {
	return store.Join(v.dir, packsDir, fmt.Sprintf("%016x-%016x%s", first, last, v.ext()))
}

// part tells the files in a pack from each other.
func (o Object) part() string {
	if !o.packed() {
		return ""
	}
	return fmt.Sprintf("#%d", o.PackAt)
}

// run returns how many of the commits, at least one, share objects: small ones.
func (w *Writer) run(commits []Commit) int {
	n, size := 0, int64(0)
	for n < len(commits) && commits[n].LTX.Size() < indexedFrom && (n == 0 || size+commits[n].LTX.Size() <= runBytes) {
		size += commits[n].LTX.Size()
		n++
	}
	return max(n, 1)
}

// putRun stores commits that follow each other in packs, and one file of level 0
// that they merge to: litestream restores the state after the last of them,
// and a plan that passes all of them needs that file alone.
func (w *Writer) putRun(ctx context.Context, commits []Commit) ([]Object, error) {
	size := int64(0)
	for _, c := range commits {
		size += c.LTX.Size()
	}
	all, at := make([]byte, size), int64(0)
	bodies, objects := make([][]byte, len(commits)), make([]Object, len(commits))
	for i, c := range commits {
		bodies[i] = all[at : at+c.LTX.Size()]
		at += c.LTX.Size()
		if _, err := io.ReadFull(io.NewSectionReader(c.LTX, 0, c.LTX.Size()), bodies[i]); err != nil {
			return nil, fmt.Errorf("commit %016x: %w", c.TXID, err)
		}
	}
	var merged bytes.Buffer
	index := &indexWriter{}
	info, err := snapshot.Combine(&merged, bodies, func(i int) bool { return commits[i].Sound }, func(i int, info snapshot.FileInfo) (err error) {
		objects[i], err = commits[i].object(objectOf(info))
		return err
	}, index.add)
	if err != nil {
		return nil, fmt.Errorf("commits %016x-%016x: %w", commits[0].TXID, commits[len(commits)-1].TXID, err)
	}
	last := objects[len(objects)-1]
	rng := objectOf(info)
	rng.Level, rng.Time, rng.Post = RangeLevel, last.Time, last.Post
	var steps []func(context.Context) ([]Object, error)
	for from, at := 0, int64(0); from < len(commits); {
		n, size := 0, int64(0)
		for from+n < len(commits) && n < packCommits && (n == 0 || size+objects[from+n].Size <= packBytes) {
			size += objects[from+n].Size
			n++
		}
		part, list, body := commits[from:from+n], objects[from:from+n], all[at:at+size]
		steps = append(steps, func(ctx context.Context) ([]Object, error) { return w.putPack(ctx, part, list, body) })
		from, at = from+n, at+size
	}
	steps = append(steps, func(ctx context.Context) ([]Object, error) {
		o, err := w.putFile(ctx, rng, bytes.NewReader(merged.Bytes()), index)
		return []Object{o}, err
	})
	return together(ctx, steps)
}

// putPack stores the files of commits as one object, with an index.
func (w *Writer) putPack(ctx context.Context, commits []Commit, objects []Object, body []byte) ([]Object, error) {
	first, last := objects[0].MinTXID, objects[len(objects)-1]
	var x packIndex
	at := int64(0)
	for i, o := range objects {
		if err := x.add(i, at, body[at:at+o.Size]); err != nil {
			return nil, fmt.Errorf("commit %016x: %w", o.MinTXID, err)
		}
		at += o.Size
	}
	index, sum := x.bytes()
	body = slices.Concat(body, index)
	stored, err := w.View().put(ctx, w.View().packKey(first, last.MaxTXID), bytes.NewReader(body), int64(len(body)), time.UnixMicro(last.Time))
	if errors.Is(err, ErrForeign) {
		// An earlier writer compressed otherwise and did not enter it: nobody knows of its object.
		for i, c := range commits {
			if objects[i], err = w.putCommit(ctx, c); err != nil {
				return nil, err
			}
		}
		return objects, nil
	}
	at = 0
	for i := range objects {
		o := &objects[i]
		o.PackMin, o.PackMax, o.PackAt, o.PackStored, o.Stored = first, last.MaxTXID, at, stored, o.Size
		o.PackIndex, o.PackSum = int64(len(index)), sum
		at += o.Size
	}
	return objects, err
}

// packCache keeps the packs that were read last.
type packCache struct {
	mu    sync.Mutex
	packs []*cachedPack
}

type cachedPack struct {
	key  string
	once sync.Once
	body []byte
	err  error
}

// content returns the file of a small object; whole says that more of its pack
// will be asked for.
func (v *View) content(ctx context.Context, o Object, whole bool) ([]byte, error) {
	key := v.Key(o)
	if !o.packed() {
		return v.get(ctx, key)
	}
	if !whole {
		return v.readRange(ctx, key, o.PackStored, o.PackAt, int(o.Size))
	}
	v.packs.mu.Lock()
	var p *cachedPack
	for _, have := range v.packs.packs {
		if have.key == key {
			p = have
		}
	}
	if p == nil {
		p = &cachedPack{key: key}
		v.packs.packs = append(v.packs.packs, p)
		if n := len(v.packs.packs); n > keptPacks {
			v.packs.packs = v.packs.packs[n-keptPacks:]
		}
	}
	v.packs.mu.Unlock()
	p.once.Do(func() { p.body, p.err = v.get(ctx, key) })
	if p.err != nil {
		v.packs.drop(p) // it may be there the next time
		return nil, p.err
	}
	if o.PackAt > int64(len(p.body)) || o.Size > int64(len(p.body))-o.PackAt {
		return nil, damaged(key, "%d bytes from %d of %d", o.Size, o.PackAt, len(p.body))
	}
	return p.body[o.PackAt : o.PackAt+o.Size], nil
}

func (c *packCache) drop(p *cachedPack) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for i, have := range c.packs {
		if have == p {
			c.packs = append(c.packs[:i:i], c.packs[i+1:]...)
			return
		}
	}
}
