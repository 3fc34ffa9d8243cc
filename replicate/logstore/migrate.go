package logstore

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/hashicorp/raft"
)

// Migrate copies the log and the stable values below dir from one kind to the
// other while no node runs, compares the copy, has record remember the new kind
// (datadir's SetLogKind), and removes the old log. Whatever happens in between,
// the kind that is on record is whole, and Migrate can be run again.
func Migrate(dir string, from, to Kind, opt Options, record func() error) error {
	if from == to {
		return fmt.Errorf("migrate raft log in %s: it is %s already", dir, to)
	}
	fromPath, err := path(dir, from)
	if err != nil {
		return err
	}
	toPath, err := path(dir, to)
	if err != nil {
		return err
	}
	if ok, err := exists(dir, from); err != nil {
		return err
	} else if !ok {
		return fmt.Errorf("migrate raft log in %s: there is no %s log: %w", dir, from, ErrLogLost)
	}
	tmp := toPath + ".migrating"
	for _, p := range []string{tmp, toPath} { // of an attempt that was cut short
		if err := os.RemoveAll(p); err != nil {
			return fmt.Errorf("migrate raft log: %w", err)
		}
	}
	if err := copyLog(fromPath, from, tmp, to, opt); err != nil {
		return fmt.Errorf("migrate raft log in %s: %w", dir, err)
	}
	if err := os.Rename(tmp, toPath); err != nil {
		return fmt.Errorf("migrate raft log: %w", err)
	}
	if err := syncDir(filepath.Dir(toPath)); err != nil {
		return err
	}
	if err := record(); err != nil {
		return fmt.Errorf("migrate raft log: record kind %s: %w", to, err)
	}
	if err := os.RemoveAll(fromPath); err != nil {
		return fmt.Errorf("migrate raft log: remove the old one: %w", err)
	}
	return syncDir(filepath.Dir(fromPath))
}

func copyLog(fromPath string, from Kind, toPath string, to Kind, opt Options) (err error) {
	src, err := openAt(fromPath, from, opt)
	if err != nil {
		return err
	}
	defer src.Close() //nolint:errcheck // only read
	dst, err := openAt(toPath, to, opt)
	if err != nil {
		return err
	}
	closed := false
	defer func() {
		if !closed {
			dst.Close() //nolint:errcheck // the first error counts
		}
	}()
	first, err := src.FirstIndex()
	if err != nil {
		return fmt.Errorf("read first index: %w", err)
	}
	last, err := src.LastIndex()
	if err != nil {
		return fmt.Errorf("read last index: %w", err)
	}
	var batch []*raft.Log
	size := 0
	for i := first; i <= last && last > 0; i++ {
		l := new(raft.Log)
		if err := src.GetLog(i, l); err != nil {
			return fmt.Errorf("read log entry %d: %w", i, err)
		}
		batch = append(batch, l)
		size += cost(l)
		if i == last || size >= MaxBatchBytes {
			if err := dst.StoreLogs(batch); err != nil {
				return fmt.Errorf("store log entries up to %d: %w", i, err)
			}
			batch, size = nil, 0
		}
	}
	if err := copyStable(src, dst); err != nil {
		return err
	}
	if err := dst.Close(); err != nil {
		return fmt.Errorf("close the copy: %w", err)
	}
	closed = true
	return compare(src, toPath, to, opt, first, last)
}

// The values are 8 bytes in both stores, but not in the same byte order.
var numbers = [][]byte{keyCurrentTerm, keyLastVoteTerm}
var texts = [][]byte{keyLastVoteCand, keyStarted, keyBootstrap}

func copyStable(src, dst backend) error {
	for _, k := range numbers {
		v, err := src.GetUint64(k)
		if err == nil && v != 0 {
			err = dst.SetUint64(k, v)
		}
		if err != nil {
			return fmt.Errorf("copy %s: %w", k, err)
		}
	}
	for _, k := range texts {
		v, err := src.Get(k)
		if err == nil && len(v) > 0 {
			err = dst.Set(k, v)
		}
		if err != nil {
			return fmt.Errorf("copy %s: %w", k, err)
		}
	}
	return nil
}

var errDiffers = errors.New("the copy differs")

// compare reads the copy back from disk.
func compare(src backend, toPath string, to Kind, opt Options, first, last uint64) error {
	dst, err := openAt(toPath, to, opt)
	if err != nil {
		return err
	}
	defer dst.Close() //nolint:errcheck // only read
	gotFirst, err := dst.FirstIndex()
	if err != nil {
		return fmt.Errorf("read first index: %w", err)
	}
	gotLast, err := dst.LastIndex()
	if err != nil {
		return fmt.Errorf("read last index: %w", err)
	}
	if gotFirst != first || gotLast != last {
		return fmt.Errorf("entries %d to %d, not %d to %d: %w", gotFirst, gotLast, first, last, errDiffers)
	}
	for i := first; i <= last && last > 0; i++ {
		var a, b raft.Log
		if err := src.GetLog(i, &a); err != nil {
			return fmt.Errorf("read log entry %d: %w", i, err)
		}
		if err := dst.GetLog(i, &b); err != nil {
			return fmt.Errorf("read log entry %d back: %w", i, err)
		}
		if a.Index != b.Index || a.Term != b.Term || a.Type != b.Type || !bytes.Equal(a.Data, b.Data) ||
			!bytes.Equal(a.Extensions, b.Extensions) || !a.AppendedAt.Equal(b.AppendedAt) {
			return fmt.Errorf("entry %d: %w", i, errDiffers)
		}
	}
	for _, k := range numbers {
		a, err := src.GetUint64(k)
		if err != nil {
			return fmt.Errorf("read %s: %w", k, err)
		}
		b, err := dst.GetUint64(k)
		if err != nil {
			return fmt.Errorf("read %s back: %w", k, err)
		}
		if a != b {
			return fmt.Errorf("%s is %d, not %d: %w", k, b, a, errDiffers)
		}
	}
	return nil
}
