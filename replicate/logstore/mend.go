package logstore

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/hashicorp/raft-wal/segment"
	"github.com/hashicorp/raft-wal/types"
)

// What raft-wal writes into a segment; see segment/format.go there. A file has a
// header of 32 bytes, then frames: a head of 8 bytes (type, three zeros, length
// or checksum), the payload, and zeros up to the next multiple of 8. A commit
// frame carries the CRC-32C of everything since the one before.
const (
	segmentHeader = 32
	frameHead     = 8
	frameEntry    = 1
	frameIndex    = 2
	frameCommit   = 3
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// tail is what the last segment holds up to its last good commit frame.
type tail struct {
	end        int64 // of the last good commit frame, 0: there is none
	entries    int
	indexStart int64 // of the index, if the segment was sealed; else 0
	stop       int64 // where the frames that can be read end
}

// mendTail prepares the last segment for raft-wal, which cannot append any more,
// not even after a restart, to one that a crash left
//
//   - sealed, while the metadata do not say so yet: raft-wal writes them in a
//     goroutine of its own, after StoreLogs has returned;
//   - torn in the very batch that would have sealed it.
//
// The first is entered into the metadata, with the segment that follows. In the
// second case what follows the last good commit frame is zeroed: nobody was told
// that it is there.
//
// All of the segment is on the disk afterwards: a process that was killed in an append
// leaves what only the kernel has, and from here on it counts as stored.
func mendTail(dir string, meta types.MetaStore, fs *segmentFS) error {
	state, err := meta.Load(dir)
	if err != nil {
		return fmt.Errorf("read metadata: %w", err)
	}
	n := len(state.Segments)
	if n == 0 || !state.Segments[n-1].SealTime.IsZero() {
		return nil
	}
	info := state.Segments[n-1]
	path := filepath.Join(dir, segment.FileName(info))
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if errors.Is(err, os.ErrNotExist) {
		return nil // it was to be made next; raft-wal makes it
	}
	if err != nil {
		return err
	}
	defer f.Close() //nolint:errcheck // synced below
	st, err := f.Stat()
	if err != nil {
		return err
	}
	got, err := readTail(io.NewSectionReader(f, 0, st.Size()), st.Size())
	if err != nil {
		return fmt.Errorf("read last log segment %s: %w", path, err)
	}
	sealed := got.indexStart > 0 && got.entries > 0
	if !sealed {
		behind, err := batchBehind(f, got, info.BaseIndex+uint64(got.entries))
		if err != nil {
			return fmt.Errorf("read last log segment %s: %w", path, err)
		}
		if behind > 0 {
			return fmt.Errorf("read last log segment %s: its frames end at offset %d, the batch that ends at offset %d is good: %w", path, got.stop, behind, ErrDamaged)
		}
		fs.found = got.end
		if err := clearFrom(f, got.end, st.Size()); err != nil {
			return err
		}
	}
	if err := fsync(f); err != nil {
		return fmt.Errorf("sync last log segment %s: %w: %w", path, ErrSync, err)
	}
	if err := syncDir(dir); err != nil || !sealed {
		return err
	}
	info.SealTime = time.Now()
	info.IndexStart = uint64(got.indexStart)
	info.MaxIndex = info.BaseIndex + uint64(got.entries) - 1
	state.Segments[n-1] = info
	state.Segments = append(state.Segments, types.SegmentInfo{
		ID: state.NextSegmentID, BaseIndex: info.MaxIndex + 1, MinIndex: info.MaxIndex + 1,
		Codec: info.Codec, SizeLimit: info.SizeLimit, CreateTime: time.Now(),
	})
	state.NextSegmentID++
	if err := meta.CommitState(state); err != nil {
		return fmt.Errorf("note that log segment %s is full: %w", path, err)
	}
	return nil
}

// ErrDamaged is returned by Open: entries before the last ones are damaged, which
// no crash does.
var ErrDamaged = errors.New("the raft log is damaged: remove this node from the cluster and add it again with an empty data directory")

// readTail finds the last good commit frame. A bad one before a good one is
// damage.
func readTail(r io.Reader, size int64) (t tail, _ error) {
	in := bufio.NewReaderSize(r, 256<<10)
	var head [segmentHeader]byte
	if _, err := io.ReadFull(in, head[:]); err != nil {
		return t, endOfTail(err)
	}
	crc := crc32.Checksum(head[:], castagnoli)
	off := int64(segmentHeader)
	defer func() { t.stop = off }()
	entries, indexStart := 0, int64(0)
	bad := int64(-1)
	buf := make([]byte, 32<<10)
	for off+frameHead <= size {
		h := buf[:frameHead]
		if _, err := io.ReadFull(in, h); err != nil {
			return t, endOfTail(err)
		}
		value := binary.LittleEndian.Uint32(h[4:])
		switch h[0] {
		case frameEntry, frameIndex:
			length := (int64(value) + frameHead - 1) / frameHead * frameHead
			if off+frameHead+length > size {
				return t, nil // torn
			}
			crc = crc32.Update(crc, castagnoli, h)
			if h[0] == frameEntry {
				entries++
			} else {
				indexStart = off + frameHead
			}
			for rest := length; rest > 0; {
				b := buf[:min(rest, int64(len(buf)))]
				if _, err := io.ReadFull(in, b); err != nil {
					return t, endOfTail(err)
				}
				crc = crc32.Update(crc, castagnoli, b)
				rest -= int64(len(b))
			}
			off += frameHead + length
		case frameCommit:
			off += frameHead
			switch {
			case crc != value && bad < 0:
				bad = off - frameHead
			case crc == value && bad >= 0:
				return t, fmt.Errorf("the batch that ends at offset %d has another checksum, a later one is good: %w", bad, ErrDamaged)
			case crc == value:
				t = tail{end: off, entries: entries, indexStart: indexStart}
				if indexStart > 0 {
					return t, nil // nothing follows an index
				}
			}
			crc = 0
		default:
			return t, nil // zeros, or a torn head
		}
	}
	return t, nil
}

// batchBehind looks behind the last good commit frame for a batch that is good all the same, and returns where that
// ends, 0: there is none. It was stored after what readTail could not read, which then is damaged and no torn write.
// next is the index of the first entry behind the commit frame.
//
// A crash leaves no such batch. A batch is one write, synced before the next one; mendTail syncs what it found; and where
// a batch is written there were zeros. So only blocks of the one batch that begins with entry next can be there. To be
// taken for another, the data of its entries would have to hold a batch whose checksum is right and whose entries
// come after next: a copy of this log has earlier ones.
func batchBehind(f io.ReaderAt, t tail, next uint64) (int64, error) {
	from := max(t.end, segmentHeader)
	buf := make([]byte, 256<<10)
	for off := from; ; {
		n, err := f.ReadAt(buf, off)
		if err != nil && !errors.Is(err, io.EOF) {
			return 0, err
		}
		for b := buf[:n]; len(b) >= frameHead; b, off = b[frameHead:], off+frameHead {
			// It begins behind a commit frame, which may be the one that cannot be read.
			if binary.LittleEndian.Uint32(b) != frameCommit && off != t.stop {
				continue
			}
			// What is before it has an entry at least, and each takes 32 bytes or more.
			end, err := goodBatch(f, off+frameHead, next+1, next+uint64(off-from)/32)
			if end > 0 || err != nil {
				return end, err
			}
		}
		if n < len(buf) {
			return 0, nil
		}
	}
}

// goodBatch returns where the batch that begins at off ends, 0 if none does that is good and whose first entry has an
// index from least to most.
func goodBatch(f io.ReaderAt, off int64, least, most uint64) (int64, error) {
	crc, entries := crc32.New(castagnoli), 0
	h := make([]byte, frameHead)
	for {
		if _, err := f.ReadAt(h, off); err != nil {
			return 0, endOfTail(err)
		}
		value := binary.LittleEndian.Uint32(h[4:])
		switch binary.LittleEndian.Uint32(h) {
		case frameEntry, frameIndex:
			length := (int64(value) + frameHead - 1) / frameHead * frameHead
			in := bufio.NewReader(io.NewSectionReader(f, off+frameHead, length))
			if h[0] == frameEntry {
				b, _ := in.Peek(binary.MaxVarintLen64) //nolint:errcheck // what is there is enough, or no index
				index, _ := binary.Uvarint(b)          // raft-wal's BinaryCodec begins with it
				if index < least || index > most {
					return 0, nil
				}
				least, most = index+1, index+1
				entries++
			}
			crc.Write(h) //nolint:errcheck // a hash gives none
			if n, err := io.Copy(crc, in); n < length {
				return 0, err
			}
			off += frameHead + length
		case frameCommit:
			if entries == 0 || crc.Sum32() != value {
				return 0, nil
			}
			return off + frameHead, nil
		default:
			return 0, nil
		}
	}
}

// endOfTail is nil for the end of the file, wherever it is.
func endOfTail(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return nil
	}
	return err
}

// clearFrom zeroes what is not zero from off to the end.
func clearFrom(f *os.File, off, size int64) error {
	buf, zero := make([]byte, 256<<10), make([]byte, 256<<10)
	for off < size {
		b := buf[:min(size-off, int64(len(buf)))]
		n, err := f.ReadAt(b, off)
		if err != nil && !errors.Is(err, io.EOF) {
			return fmt.Errorf("read after the last log entry: %w", err)
		}
		if n == 0 {
			break
		}
		if string(b[:n]) != string(zero[:n]) {
			if _, err := f.WriteAt(zero[:n], off); err != nil {
				return fmt.Errorf("clear after the last log entry: %w", err)
			}
		}
		off += int64(n)
	}
	return nil
}
