package archive

import (
	"cmp"
	"context"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"slices"
	"sort"

	"github.com/uglyer/ha-sqlite/snapshot"
)

// A pack ends with an index, so that a page can be read as any of its commits
// left it without the rest:
//
//	magic 4 | pages | CRC-64 8
//
// For each page, in order, as uvarints: what is added to the page number before,
// and how many commits have it; for each of these what is added to the number of
// the commit in the pack before, the offset in the pack of the page's frame, and
// its size; then the frame's CRC-32C.
const (
	packMagic       = "HSP1"
	packIndexMin    = 4 + 8
	packVersionMin  = 3 + 4
	packIndexedFrom = 8 // commits
)

// packVersion is where a page is as a commit left it.
type packVersion struct {
	pgno   uint32
	commit uint32 // 0 is the first one of the pack
	offset int64
	size   int
	sum    uint32
}

type packIndex []packVersion

// add enters the frames of a commit's file, which is at an offset of the pack.
func (x *packIndex) add(commit int, at int64, file []byte) error {
	return snapshot.Frames(file, func(pgno uint32, offset int, raw []byte) {
		*x = append(*x, packVersion{pgno, uint32(commit), at + int64(offset), len(raw), crc32.Checksum(raw, castagnoli)})
	})
}

// bytes returns the index and the checksum that the manifest keeps.
func (x packIndex) bytes() ([]byte, uint64) {
	slices.SortStableFunc(x, func(a, b packVersion) int { return cmp.Compare(a.pgno, b.pgno) })
	e := &encoder{b: []byte(packMagic)}
	last := uint32(0)
	for len(x) > 0 {
		n := 1
		for n < len(x) && x[n].pgno == x[0].pgno {
			n++
		}
		e.uint(uint64(x[0].pgno - last))
		e.uint(uint64(n))
		commit := uint32(0)
		for _, v := range x[:n] {
			e.uint(uint64(v.commit - commit))
			e.uint(uint64(v.offset))
			e.uint(uint64(v.size))
			e.b = binary.LittleEndian.AppendUint32(e.b, v.sum)
			commit = v.commit
		}
		last, x = x[0].pgno, x[n:]
	}
	b := e.done()
	return b, crc(b)
}

// decodePackIndex reads the index of a pack of so many commits, whose files
// take size bytes.
func decodePackIndex(b []byte, sum uint64, commits uint64, size int64) (packIndex, error) {
	if crc(b) != sum {
		return nil, fmt.Errorf("index of a pack: checksum %016x, want %016x: %w", crc(b), sum, ErrDamaged)
	}
	d := newDecoder(b, packMagic)
	x := make(packIndex, 0, len(d.b)/packVersionMin)
	last := uint64(0)
	for d.err == nil && len(d.b) > 0 {
		delta := d.small(1<<32 - 1 - last)
		if last += delta; delta == 0 {
			d.fail("page %d twice", last)
		}
		commit, n := uint64(0), d.count(packVersionMin)
		if n == 0 {
			d.fail("page %d of no commit", last)
		}
		for i := range n {
			step := d.small(1<<32 - 1 - commit)
			v := packVersion{pgno: uint32(last), offset: int64(d.small(uint64(size))), size: int(d.small(maxFrameSize)), sum: d.fixed32()}
			if step >= commits-min(commit, commits) || i > 0 && step == 0 || v.size == 0 || int64(v.size) > size-v.offset {
				d.fail("page %d: %d bytes from %d", last, v.size, v.offset)
			}
			if d.err != nil {
				break
			}
			commit += step
			v.commit = uint32(commit)
			x = append(x, v)
		}
	}
	if err := d.end(); err != nil {
		return nil, fmt.Errorf("index of a pack: %w", err)
	}
	return x, nil
}

// find returns where the page is as the commits of a range, of which to is the
// last, left it.
func (x packIndex) find(pgno, from, to uint32) (packVersion, bool) {
	i := sort.Search(len(x), func(i int) bool { return x[i].pgno > pgno || x[i].pgno == pgno && x[i].commit > to })
	if i == 0 || x[i-1].pgno != pgno || x[i-1].commit < from {
		return packVersion{}, false
	}
	return x[i-1], true
}

// readPackIndex reads the index of the pack that has a commit.
func (v *View) readPackIndex(ctx context.Context, o Object) (packIndex, error) {
	key := v.Key(o)
	r, plain, err := v.ranges(ctx, key, o.PackStored)
	if err != nil {
		return nil, err
	}
	if o.PackIndex > plain {
		return nil, damaged(key, "index of %d bytes in a pack of %d", o.PackIndex, plain)
	}
	b := make([]byte, o.PackIndex)
	if n, err := r.ReadAt(b, plain-o.PackIndex); n < len(b) {
		return nil, fileError(key, err)
	}
	x, err := decodePackIndex(b, o.PackSum, o.PackMax-o.PackMin+1, plain-o.PackIndex)
	if err != nil {
		return nil, &ObjectError{key, err}
	}
	return x, nil
}

// packRun is a part of a plan whose commits are in one pack.
type packRun struct{ first, last int }

// runs finds the commits of the plan for which reading the index of their pack
// costs less than reading them.
func (p *Plan) runs() map[int]packRun {
	runs := map[int]packRun{}
	for i := 0; i < len(p.Objects); i++ {
		o, first, size := p.Objects[i], i, int64(0)
		if !o.packed() {
			continue
		}
		for ; i < len(p.Objects) && p.Objects[i].PackMax == o.PackMax; i++ {
			size += p.Objects[i].Size
		}
		i--
		if size <= o.PackIndex && i-first+1 < packIndexedFrom {
			continue
		}
		for k := first; k <= i; k++ {
			runs[k] = packRun{first, i}
		}
	}
	return runs
}

// pageOfRun reads a page as the last commit of a run, or one before it, left it.
func (r *Reader) pageOfRun(run packRun, pgno uint32) ([]byte, bool, error) {
	first, last := r.plan.Objects[run.first], r.plan.Objects[run.last]
	key := r.view.Key(last)
	v, err := r.cachedValue(key, func() (any, int, error) {
		x, err := r.view.readPackIndex(r.ctx, last)
		return x, len(x) * 32, err
	})
	if err != nil {
		return nil, false, err
	}
	place, ok := v.(packIndex).find(pgno, uint32(first.MinTXID-first.PackMin), uint32(last.MinTXID-last.PackMin))
	if !ok || pgno > r.limit[run.first+int(place.commit-uint32(first.MinTXID-first.PackMin))] {
		return nil, false, nil // it is not there, or was cut off
	}
	v, err = r.cachedValue(fmt.Sprintf("%s@%d", key, place.offset), func() (any, int, error) {
		raw, err := r.view.readRange(r.ctx, key, last.PackStored, place.offset, place.size)
		if err != nil {
			return nil, 0, err
		}
		if crc32.Checksum(raw, castagnoli) != place.sum {
			return nil, 0, damaged(key, "page %d at offset %d has another checksum", pgno, place.offset)
		}
		fr, err := snapshot.ExpandFrame(raw, r.PageSize())
		if err != nil {
			return nil, 0, fileError(key, err)
		}
		if fr.Pgno != pgno {
			return nil, 0, damaged(key, "page %d at offset %d, want page %d", fr.Pgno, place.offset, pgno)
		}
		return fr.Data, len(fr.Data), nil
	})
	if err != nil {
		return nil, false, err
	}
	return v.([]byte), true, nil
}
