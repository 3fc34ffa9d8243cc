package snapshot

import (
	"fmt"
	"io"
	"slices"
)

// Combine merges the files of transactions that follow each other, oldest
// first, as Merge does, but reads them one after the other: what it writes has
// to fit into memory, and there may be thousands of them. read is told of each
// file once it was verified whole, from the last to the first, and written of
// each page.
func Combine(w io.Writer, files []io.Reader, read func(i int, info FileInfo) error, written func(Frame)) (FileInfo, error) {
	headers := make([]FileHeader, len(files))
	pages := map[uint32]Frame{}
	limit := ^uint32(0)
	for i := len(files) - 1; i >= 0; i-- {
		f, err := NewFileReader(files[i])
		if err != nil {
			return FileInfo{}, err
		}
		headers[i] = f.Header()
		limit = min(limit, headers[i].PageCount)
		for {
			fr, err := f.Next()
			if err == io.EOF {
				break
			}
			if err != nil {
				return FileInfo{}, fmt.Errorf("merge %016x-%016x: %w", headers[i].MinTXID, headers[i].MaxTXID, err)
			}
			if _, newer := pages[fr.Pgno]; newer || fr.Pgno > limit {
				continue
			}
			fr.raw, fr.Data = slices.Clone(fr.raw), nil
			pages[fr.Pgno] = fr
		}
		if err := read(i, f.Info()); err != nil {
			return FileInfo{}, err
		}
	}
	h, err := MergeHeader(headers)
	if err != nil {
		return FileInfo{}, err
	}
	out, err := NewFileWriter(w, h)
	if err != nil {
		return FileInfo{}, err
	}
	numbers := make([]uint32, 0, len(pages))
	for pgno := range pages {
		numbers = append(numbers, pgno)
	}
	slices.Sort(numbers)
	for _, pgno := range numbers {
		fr, err := out.put(pages[pgno])
		if err != nil {
			return FileInfo{}, err
		}
		written(fr)
	}
	return out.Close()
}
