package replicate

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/uglyer/ha-sqlite/snapshot"
)

// A kept image is a database that a restore fetched and could not install, because an application held native
// slot 0. It is durable, so that this node may acknowledge what follows it (RULES A5), and installed as soon as
// slot 0 is free. In the spool directory it is a file of its pages in order, then the head of the fetch
// stream (TXID, checksum, page size, page count) and a CRC32C of that head.
const (
	keptSuffix      = ".image"
	keptTrailerSize = fetchHeaderSize + 4
)

func (d *replica) keptPath() string { return filepath.Join(d.svc.spoolDir(), d.id.String()+keptSuffix) }

func (m *image) head() []byte {
	b := make([]byte, 0, fetchHeaderSize)
	b = binary.LittleEndian.AppendUint64(b, uint64(m.position.TXID))
	b = binary.LittleEndian.AppendUint64(b, uint64(m.position.Checksum))
	b = binary.LittleEndian.AppendUint32(b, m.pageSize)
	return binary.LittleEndian.AppendUint32(b, m.pageCount)
}

// keep makes the image durable under the database's name in the spool, and the database wait for it.
func (d *replica) keep(m *image) error {
	head := m.head()
	trailer := binary.LittleEndian.AppendUint32(head, crc32.Checksum(head, castagnoli))
	if _, err := m.file.WriteAt(trailer, int64(m.pageCount)*int64(m.pageSize)); err != nil {
		return fmt.Errorf("keep the image of database %q: %w", d.name, err)
	}
	if err := syncFile(m.file); err != nil {
		return fmt.Errorf("keep the image of database %q: %w", d.name, err)
	}
	if err := os.Rename(m.file.Name(), d.keptPath()); err != nil {
		return fmt.Errorf("keep the image of database %q: %w", d.name, err)
	}
	if err := syncDir(d.svc.spoolDir()); err != nil {
		return fmt.Errorf("keep the image of database %q: %w", d.name, err)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.kept != nil {
		d.kept.file.Close()
	}
	d.kept, d.known = m, false
	d.durable = max(d.durable, m.position.TXID)
	d.log.Warn("this node's copy is brought up to date when the application that holds its write lock lets go", "txid", m.position.TXID.String())
	d.svc.goroutine(func() { d.locate(d.svc.ctx) })
	return nil
}

// dropKeptLocked forgets the kept image: the files have it, or are gone.
func (d *replica) dropKeptLocked() {
	if d.kept != nil {
		d.kept.file.Close()
		d.kept = nil
	}
	if err := os.Remove(d.keptPath()); err != nil && !errors.Is(err, os.ErrNotExist) {
		d.log.Warn("an installed image stays behind", "err", err)
	}
}

// loadKept returns the image that a former life of this node kept, nil if there is none that is whole.
func (d *replica) loadKept() *image {
	m, err := openKept(d.keptPath(), d.pageSize)
	if err != nil {
		if !errors.Is(err, os.ErrNotExist) {
			d.log.Warn("a kept image cannot be used", "err", err)
		}
		return nil
	}
	d.mu.Lock()
	base := d.base
	d.mu.Unlock()
	if m.position.TXID < base.TXID {
		m.file.Close()
		return nil
	}
	return m
}

func openKept(path string, pageSize uint32) (_ *image, err error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			f.Close()
		}
	}()
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if st.Size() < keptTrailerSize {
		return nil, fmt.Errorf("read image %s: %d bytes are too few", path, st.Size())
	}
	var trailer [keptTrailerSize]byte
	if _, err := f.ReadAt(trailer[:], st.Size()-keptTrailerSize); err != nil {
		return nil, fmt.Errorf("read image %s: %w", path, err)
	}
	head := trailer[:fetchHeaderSize]
	if crc32.Checksum(head, castagnoli) != binary.LittleEndian.Uint32(trailer[fetchHeaderSize:]) {
		return nil, fmt.Errorf("read image %s: checksum of its trailer differs", path)
	}
	m := &image{
		file:     f,
		position: Position{TXID(binary.LittleEndian.Uint64(head)), Checksum(binary.LittleEndian.Uint64(head[8:]))},
		pageSize: binary.LittleEndian.Uint32(head[16:]), pageCount: binary.LittleEndian.Uint32(head[20:]),
	}
	if m.pageSize != pageSize || int64(m.pageCount)*int64(m.pageSize) != st.Size()-keptTrailerSize {
		return nil, fmt.Errorf("read image %s: %d pages of %d bytes in a file of %d", path, m.pageCount, m.pageSize, st.Size())
	}
	acc := uint64(snapshot.ChecksumFlag)
	page := make([]byte, m.pageSize)
	in := io.NewSectionReader(f, 0, st.Size())
	for pgno := uint32(1); pgno <= m.pageCount; pgno++ {
		if _, err := io.ReadFull(in, page); err != nil {
			return nil, fmt.Errorf("read page %d of image %s: %w", pgno, path, err)
		}
		s := pageSum(m.pageSize, pgno, page)
		m.sums = append(m.sums, s)
		acc ^= s
	}
	if sum := Checksum(acc | snapshot.ChecksumFlag); sum != m.position.Checksum {
		return nil, fmt.Errorf("image %s has checksum %s, not %s", path, sum, m.position.Checksum)
	}
	return m, nil
}

// installKeptIO installs the image that the database waits for, once slot 0 is free.
func (d *replica) installKeptIO(ctx context.Context, m *image) error {
	if err := d.installIO(ctx, m); err != nil {
		return err
	}
	d.log.Info("this node's copy is up to date", "txid", m.position.TXID.String())
	return nil
}

// clearSpool removes what a killed node was fetching. Kept images stay.
func (s *Service) clearSpool() error {
	entries, err := os.ReadDir(s.spoolDir())
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("clear the spool: %w", err)
	}
	for _, e := range entries {
		if strings.HasSuffix(e.Name(), keptSuffix) {
			continue
		}
		if err := os.Remove(filepath.Join(s.spoolDir(), e.Name())); err != nil {
			return fmt.Errorf("clear the spool: %w", err)
		}
	}
	return nil
}
