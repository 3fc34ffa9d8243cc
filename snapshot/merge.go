package snapshot

import (
	"container/heap"
	"errors"
	"fmt"
	"io"
)

// ErrNotContiguous is returned for files that do not follow each other: a
// transaction is missing between them, or they belong to different databases.
var ErrNotContiguous = errors.New("LTX files do not follow each other")

// merger merges LTX files of ranges that follow each other, or overlap, into one
// of the whole range: of each page the last image, without the pages that a
// later file cut off. It keeps one page of each file in memory.
type merger struct {
	w     *FileWriter
	pages mergeHeap
}

// mergeInput is one file of a merge and its current page.
type mergeInput struct {
	r     *FileReader
	order int    // later files have larger ones
	limit uint32 // pages behind it are cut off by this file or a later one
	frame Frame
}

// MergeHeader returns the header of what files merge to.
func MergeHeader(files []FileHeader) (FileHeader, error) {
	if len(files) == 0 {
		return FileHeader{}, fmt.Errorf("merge LTX files: there are none: %w", ErrNotContiguous)
	}
	for i := 1; i < len(files); i++ {
		last, next := files[i-1], files[i]
		if next.PageSize != last.PageSize || next.MinTXID < last.MinTXID || next.MinTXID > last.MaxTXID+1 || next.MaxTXID <= last.MaxTXID {
			return FileHeader{}, fmt.Errorf("merge LTX files: %016x-%016x of %d byte pages after %016x-%016x of %d: %w",
				next.MinTXID, next.MaxTXID, next.PageSize, last.MinTXID, last.MaxTXID, last.PageSize, ErrNotContiguous)
		}
	}
	h := files[len(files)-1]
	h.MinTXID = files[0].MinTXID
	return h, nil
}

// Merge merges the files, oldest first, into w. An error of any file, found
// even behind its last page, makes what was written worthless. onFrame, unless
// nil, is told of each page written.
func Merge(w io.Writer, files []*FileReader, onFrame func(Frame) error) (FileInfo, error) {
	headers := make([]FileHeader, len(files))
	for i, f := range files {
		headers[i] = f.Header()
	}
	h, err := MergeHeader(headers)
	if err != nil {
		return FileInfo{}, err
	}
	out, err := NewFileWriter(w, h)
	if err != nil {
		return FileInfo{}, err
	}
	m := &merger{w: out}
	limit := h.PageCount
	for i := len(files) - 1; i >= 0; i-- {
		limit = min(limit, headers[i].PageCount)
		in := &mergeInput{r: files[i], order: i, limit: limit}
		if err := m.advance(in, true); err != nil {
			return FileInfo{}, err
		}
	}
	heap.Init(&m.pages)
	last := uint32(0)
	for len(m.pages) > 0 {
		in := m.pages[0]
		if in.frame.Pgno != last && in.frame.Pgno <= in.limit {
			last = in.frame.Pgno
			fr, err := out.Copy(in.frame)
			if err != nil {
				return FileInfo{}, err
			}
			if onFrame != nil {
				if err := onFrame(fr); err != nil {
					return FileInfo{}, err
				}
			}
		}
		if err := m.advance(in, false); err != nil {
			return FileInfo{}, err
		}
	}
	return out.Close()
}

// advance moves a file to its next page; at its end it leaves the merge.
func (m *merger) advance(in *mergeInput, first bool) error {
	fr, err := in.r.Next()
	switch {
	case err == io.EOF:
		if !first {
			heap.Pop(&m.pages)
		}
		return nil
	case err != nil:
		h := in.r.Header()
		return &MergeError{Index: in.order, Err: fmt.Errorf("merge %016x-%016x: %w", h.MinTXID, h.MaxTXID, err)}
	}
	in.frame = fr
	if first {
		m.pages = append(m.pages, in)
	} else {
		heap.Fix(&m.pages, 0)
	}
	return nil
}

// MergeError says which file of a merge could not be read.
type MergeError struct {
	Index int // in the list given to Merge
	Err   error
}

func (e *MergeError) Error() string { return e.Err.Error() }

// Unwrap returns the cause.
func (e *MergeError) Unwrap() error { return e.Err }

// mergeHeap has the lowest page first, and of one page the latest file's.
type mergeHeap []*mergeInput

func (h mergeHeap) Len() int { return len(h) }
func (h mergeHeap) Less(i, j int) bool {
	if h[i].frame.Pgno != h[j].frame.Pgno {
		return h[i].frame.Pgno < h[j].frame.Pgno
	}
	return h[i].order > h[j].order
}
func (h mergeHeap) Swap(i, j int) { h[i], h[j] = h[j], h[i] }

// Push implements heap.Interface.
func (h *mergeHeap) Push(x any) { *h = append(*h, x.(*mergeInput)) }

// Pop implements heap.Interface.
func (h *mergeHeap) Pop() any {
	old := *h
	x := old[len(old)-1]
	*h = old[:len(old)-1]
	return x
}
