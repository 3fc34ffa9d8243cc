package datadir

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"
)

const (
	// Format is the version of the directory that this program reads and writes.
	Format = 1

	recordFile    = "hasqlite.json"
	maxRecordSize = 64 << 10
)

// ClusterID names a cluster; zero means that the node belongs to none yet. Its
// text is 32 hex digits, or empty for zero.
type ClusterID [16]byte

// String is the text form.
func (c ClusterID) String() string {
	if c == (ClusterID{}) {
		return ""
	}
	return hex.EncodeToString(c[:])
}

// MarshalText implements encoding.TextMarshaler.
func (c ClusterID) MarshalText() ([]byte, error) { return []byte(c.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (c *ClusterID) UnmarshalText(b []byte) error {
	*c = ClusterID{}
	if len(b) == 0 {
		return nil
	}
	if len(b) != 2*len(c) {
		return fmt.Errorf("cluster id %q has not 32 hex digits", b)
	}
	if _, err := hex.Decode(c[:], b); err != nil {
		return fmt.Errorf("cluster id %q: %w", b, err)
	}
	return nil
}

// Record says what a data directory is.
type Record struct {
	// Format is the directory's version.
	Format int `json:"format"`
	// Cluster is zero until the node is a member.
	Cluster ClusterID `json:"cluster_id"`
	// Lineage counts recoveries by force.
	Lineage uint64 `json:"lineage"`
	// NodeID never changes.
	NodeID string `json:"node_id"`
	// LogKind is how the raft log is stored, "wal" or "boltdb".
	LogKind string `json:"raft_log"`
	// Created is when the directory was made.
	Created time.Time `json:"created"`
}

// decodeRecord reads a record and checks what does not depend on flags.
func decodeRecord(b []byte) (Record, error) {
	var r Record
	// The format first: a later one may look different in all else.
	var f struct {
		Format *int `json:"format"`
	}
	if err := json.Unmarshal(b, &f); err != nil {
		return r, fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	if f.Format == nil {
		return r, fmt.Errorf("no format number: %w", ErrCorrupt)
	}
	if *f.Format != Format {
		return r, fmt.Errorf("format %d, this program knows %d: %w", *f.Format, Format, ErrFormat)
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(&r); err != nil {
		return Record{}, fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return Record{}, fmt.Errorf("something follows the record: %w", ErrCorrupt)
	}
	if r.NodeID == "" || r.LogKind == "" {
		return Record{}, fmt.Errorf("no node id or log kind: %w", ErrCorrupt)
	}
	return r, nil
}

func encodeRecord(r Record) ([]byte, error) {
	b, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("encode record: %w", err)
	}
	return append(b, '\n'), nil
}

// readRecord returns os.ErrNotExist if there is none.
func readRecord(dir string) (Record, error) {
	p := filepath.Join(dir, recordFile)
	f, err := os.Open(p)
	if err != nil {
		return Record{}, fmt.Errorf("read record: %w", err)
	}
	defer f.Close() //nolint:errcheck // opened for reading
	b, err := io.ReadAll(io.LimitReader(f, maxRecordSize+1))
	if err != nil {
		return Record{}, fmt.Errorf("read record: %w", err)
	}
	if len(b) > maxRecordSize {
		return Record{}, fmt.Errorf("read record %s: more than %d bytes: %w", p, maxRecordSize, ErrCorrupt)
	}
	r, err := decodeRecord(b)
	if err != nil {
		return Record{}, fmt.Errorf("read record %s: %w", p, err)
	}
	return r, nil
}

// writeRecord replaces the record so that a crash leaves the old or the new.
func writeRecord(dir string, r Record, mode os.FileMode, gid int) error {
	b, err := encodeRecord(r)
	if err != nil {
		return err
	}
	p := filepath.Join(dir, recordFile)
	tmp := p + ".tmp"
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return fmt.Errorf("write record: %w", err)
	}
	_, err = f.Write(b)
	if err == nil {
		err = own(f, mode, gid)
	}
	if err == nil {
		err = syncFile(f)
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(tmp, p)
	}
	if err == nil {
		err = syncDir(dir)
	}
	if err != nil {
		return fmt.Errorf("write record %s: %w", p, err)
	}
	return nil
}

func syncDir(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close() //nolint:errcheck // opened for reading
	return syncFile(f)
}

// fsync makes a file durable. Tests only: they let it fail.
var fsync = (*os.File).Sync

func syncFile(f *os.File) error {
	if err := fsync(f); err != nil {
		return fmt.Errorf("%w: %w", ErrSync, err)
	}
	return nil
}

// own gives an open file its mode and group.
func own(f *os.File, mode os.FileMode, gid int) error {
	if gid >= 0 {
		if err := f.Chown(-1, gid); err != nil {
			return err
		}
	}
	return f.Chmod(mode)
}
