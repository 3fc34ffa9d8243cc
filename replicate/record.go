package replicate

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
	"time"

	"github.com/uglyer/ha-sqlite/snapshot"
)

// record is what a database leaves behind when it is closed with everything checkpointed: the position
// of its file, the checksum of each page, and the file's stat, by which a later open knows that nobody
// wrote it meanwhile (RULES B13).
type record struct {
	Position Position
	PageSize uint32
	Stat     FileStat
	Sums     []uint64
}

const (
	recordMagic      = "HASQREC1"
	recordHeaderSize = 8 + 8 + 8 + 4 + 4*8 + 8
)

func (r *record) encode() []byte {
	b := make([]byte, 0, recordHeaderSize+8*len(r.Sums)+4)
	b = append(b, recordMagic...)
	for _, v := range []uint64{uint64(r.Position.TXID), uint64(r.Position.Checksum)} {
		b = binary.LittleEndian.AppendUint64(b, v)
	}
	b = binary.LittleEndian.AppendUint32(b, r.PageSize)
	for _, v := range []uint64{uint64(r.Stat.SizeBytes), uint64(r.Stat.ModTimeNanos), uint64(r.Stat.ChangeNanos), r.Stat.Inode, uint64(len(r.Sums))} {
		b = binary.LittleEndian.AppendUint64(b, v)
	}
	for _, s := range r.Sums {
		b = binary.LittleEndian.AppendUint64(b, s)
	}
	return binary.LittleEndian.AppendUint32(b, crc32.Checksum(b, castagnoli))
}

func decodeRecord(b []byte) (*record, error) {
	if len(b) < recordHeaderSize+4 || string(b[:8]) != recordMagic {
		return nil, fmt.Errorf("decode database record: %d bytes without its magic", len(b))
	}
	body := b[:len(b)-4]
	if crc32.Checksum(body, castagnoli) != binary.LittleEndian.Uint32(b[len(b)-4:]) {
		return nil, errors.New("decode database record: checksum differs")
	}
	u64 := func(off int) uint64 { return binary.LittleEndian.Uint64(body[off:]) }
	r := &record{
		Position: Position{TXID(u64(8)), Checksum(u64(16))},
		PageSize: binary.LittleEndian.Uint32(body[24:]),
		Stat:     FileStat{SizeBytes: int64(u64(28)), ModTimeNanos: int64(u64(36)), ChangeNanos: int64(u64(44)), Inode: u64(52)},
	}
	n := u64(60)
	if n != uint64(len(body)-recordHeaderSize)/8 || uint64(len(body)-recordHeaderSize)%8 != 0 {
		return nil, fmt.Errorf("decode database record: %d page sums announced, %d bytes follow", n, len(body)-recordHeaderSize)
	}
	r.Sums = make([]uint64, n)
	for i := range r.Sums {
		r.Sums[i] = u64(recordHeaderSize + 8*i)
	}
	return r, nil
}

func (d *replica) recordPath() string { return filepath.Join(filepath.Dir(d.path), "record") }

// readRecord returns the record if the files are still those it describes, nil if they are not.
func (d *replica) readRecord() (*record, error) {
	b, err := os.ReadFile(d.recordPath())
	if err != nil {
		return nil, err
	}
	r, err := decodeRecord(b)
	if err != nil {
		return nil, err
	}
	st, err := d.svc.files.Stat(d.path)
	if err != nil || st != r.Stat || r.PageSize != d.pageSize || !d.svc.files.WALEmpty(d.path) {
		return nil, err
	}
	return r, nil
}

// removeRecord makes it certain that nobody reads the record again. The files change from now on: a record
// that came back after a power failure could look as if it described them, because a checkpoint syncs the
// pages of the file and not its times.
func (d *replica) removeRecord() error {
	err := os.Remove(d.recordPath())
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err == nil {
		err = syncDir(filepath.Dir(d.path))
	}
	if err != nil {
		return fmt.Errorf("remove the record of database %q: %w", d.name, err)
	}
	return nil
}

func syncDir(path string) error {
	dir, err := os.Open(path)
	if err != nil {
		return err
	}
	defer dir.Close()
	return syncFile(dir)
}

// closeIdle checkpoints, closes and records a database that nobody uses. It reports whether it is closed.
func (d *replica) closeIdle(idle time.Duration) bool {
	if !d.ioMu.TryLock() {
		return false
	}
	defer d.ioMu.Unlock()
	d.mu.Lock()
	live := d.live
	busy := live == nil || len(d.handles) > 0 || d.local != nil || len(d.queue) > 0 || d.healing || len(d.pins) > 0 ||
		len(d.waiters) > 0 || time.Since(d.lastUsed) < idle
	d.mu.Unlock()
	if busy {
		return live == nil
	}
	walFrames, backfilled, err := live.Checkpoint(true)
	if err != nil || backfilled < walFrames {
		return false // somebody else reads it: try again later
	}
	// The stat comes before the look at the wal-index: who writes after that look changes the stat once more,
	// when the log is copied into the file.
	stat, statErr := d.svc.files.Stat(d.path)
	fp, _, _, err := live.Peek()
	if err != nil {
		return false
	}
	d.mu.Lock()
	if len(d.handles) > 0 || d.local != nil { // an application came meanwhile
		d.mu.Unlock()
		return false
	}
	rec := &record{Position: d.position, PageSize: d.pageSize, Sums: d.sums, Stat: stat}
	known := d.known && d.fenced == nil
	d.live, d.known, d.sums = nil, false, nil
	d.decoder, d.oldPage = snapshot.Decoder{}, nil
	d.attendLocked()
	if known { // the queue has forgotten what came before: this is where a later search begins
		d.base, d.durable = rec.Position, max(d.durable, rec.Position.TXID)
	}
	known = known && statErr == nil && fp.Matches(d.fingerprint)
	d.mu.Unlock()
	if err := live.Close(); err != nil {
		d.log.Warn("close idle database", "err", err)
		return true
	}
	if !known {
		return true
	}
	if after, err := d.svc.files.Stat(d.path); err != nil || after != stat {
		return true // somebody wrote: the next open reads every page
	}
	if err := writeFileSync(d.recordPath(), rec.encode()); err != nil {
		d.svc.stopIfSyncFailed(err)
		d.log.Warn("write the record of an idle database", "err", err)
		return true
	}
	d.mu.Lock()
	if d.live == nil {
		d.closedStat = stat
	}
	d.mu.Unlock()
	return true
}

// writeFileSync replaces a file so that a crash leaves the old or the new content, whole.
func writeFileSync(path string, b []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".new-*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	if _, err = f.Write(b); err == nil {
		err = syncFile(f)
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}
