package snapshot

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"slices"
)

// Combine merges files of transactions that follow each other, oldest first, as
// Merge does, but in memory and without a look into pages that a later file
// replaces. Files are verified whole unless sound says that a checksum over all
// their bytes was right. read is told what each file is, from the last to the
// first, and written of each page that was written.
func Combine(w io.Writer, files [][]byte, sound func(i int) bool, read func(i int, info FileInfo) error, written func(Frame)) (FileInfo, error) {
	headers := make([]FileHeader, len(files))
	pages := map[uint32]Frame{}
	limit := ^uint32(0)
	var page []byte
	for i := len(files) - 1; i >= 0; i-- {
		b := files[i]
		l, err := parse(b)
		if err == nil && !sound(i) {
			_, err = VerifyFile(bytes.NewReader(b))
		}
		if err != nil {
			return FileInfo{}, fmt.Errorf("combine file %d of %d bytes: %w", i, len(b), err)
		}
		h := FileHeader{PageSize: l.header.PageSize, PageCount: l.header.PageCount, MinTXID: l.header.TXID, MaxTXID: l.header.TXID, CommitTimeMillis: l.header.CommitTimeMillis}
		headers[i], limit = h, min(limit, h.PageCount)
		if err := read(i, FileInfo{FileHeader: h, Pages: l.frames, Size: int64(len(b)), Checksum: binary.BigEndian.Uint64(b[len(b)-8:])}); err != nil {
			return FileInfo{}, err
		}
		if page == nil {
			page = make([]byte, h.PageSize)
		}
		if len(page) != int(h.PageSize) {
			return FileInfo{}, fmt.Errorf("combine file %d: pages of %d bytes after pages of %d: %w", i, len(page), h.PageSize, ErrNotContiguous)
		}
		for at := headerSize; at < l.end; { // parse has checked that the frames lie within b
			raw := b[at : at+frameHeaderSize+int(binary.BigEndian.Uint32(b[at+6:]))]
			at += len(raw)
			pgno := binary.BigEndian.Uint32(raw)
			if _, newer := pages[pgno]; newer || pgno > limit {
				continue
			}
			fr, err := expand(raw, pgno, page, shiftOfPage(h.PageSize))
			if err != nil {
				return FileInfo{}, fmt.Errorf("combine file %d: %w", i, err)
			}
			fr.Data = nil // the next one has the same memory
			pages[pgno] = fr
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
