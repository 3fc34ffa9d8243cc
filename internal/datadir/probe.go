package datadir

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/user"
	"strconv"

	"golang.org/x/sys/unix"
)

const probePrefix = ".hasqlite-probe-"

// LookupGroup returns the number of a group given by name or number.
func LookupGroup(group string) (int, error) {
	if n, err := strconv.ParseUint(group, 10, 31); err == nil {
		return int(n), nil
	}
	g, err := user.LookupGroup(group)
	if err != nil {
		return -1, fmt.Errorf("find group %q: %w", group, err)
	}
	n, err := strconv.Atoi(g.Gid)
	if err != nil {
		return -1, fmt.Errorf("find group %q: number %q: %w", group, g.Gid, err)
	}
	return n, nil
}

// probe tries on the spot what SQLite's WAL mode needs between processes:
// record locks that exclude, and a shared mapping that shows what another
// descriptor wrote. Open-file-description locks stand for the second process,
// because they exclude one another between descriptors of one process too, and
// go through the same code of the file system as the process-wide ones.
//
// What it cannot show: a second machine. That is what refuseNetwork is for.
func probe(dir string) error {
	f, err := os.CreateTemp(dir, probePrefix)
	if err != nil {
		return err
	}
	name := f.Name()
	defer os.Remove(name) //nolint:errcheck // a start removes nothing it may need
	defer f.Close()       //nolint:errcheck // nothing in it counts
	g, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer g.Close() //nolint:errcheck // nothing in it counts
	if err := probeLocks(f, g); err != nil {
		return fmt.Errorf("try record locks: %w: %w", err, ErrProbe)
	}
	// A full disk is no reason not to start, and what it has no block for was tried at a former start.
	if err := probeMapping(f, g); err != nil && !errors.Is(err, unix.ENOSPC) && !errors.Is(err, unix.EDQUOT) {
		return fmt.Errorf("try shared memory: %w: %w", err, ErrProbe)
	}
	return nil
}

func probeMapping(f, g *os.File) error {
	const size = 32 << 10 // a page of SQLite's wal-index
	// A mapping that has no block behind it cannot be written on a full disk: the process would end by SIGBUS.
	if _, err := f.WriteAt(make([]byte, size), 0); err != nil {
		return err
	}
	a, err := unix.Mmap(int(f.Fd()), 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return err
	}
	defer unix.Munmap(a) //nolint:errcheck // ends with the process
	b, err := unix.Mmap(int(g.Fd()), 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return err
	}
	defer unix.Munmap(b) //nolint:errcheck // ends with the process
	word := []byte("hasqlite")
	copy(a[4096:], word)
	if !bytes.Equal(b[4096:4096+len(word)], word) {
		return errors.New("a mapping does not show what another one wrote")
	}
	got := make([]byte, len(word))
	if _, err := g.ReadAt(got, 4096); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	if !bytes.Equal(got, word) {
		return errors.New("a read does not show what a mapping wrote")
	}
	return nil
}
