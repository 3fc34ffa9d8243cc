package datadir

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Each refusal of Open; its message says what to do.
var (
	// ErrInUse is matched by *InUseError: another process has the directory open.
	ErrInUse = errors.New("data directory is in use by a running node")
	// ErrFormat: written by another version. Use that one, or migrate.
	ErrFormat = errors.New("data directory has an unknown format: use the version of the program that wrote it")
	// ErrSync is wrapped by the error of a sync that failed: what is on disk is not known. The process has to end.
	ErrSync = errors.New("sync failed, and what is on disk is not known")
	// ErrCorrupt: the record cannot be read. Restore it, or add the node anew.
	ErrCorrupt = errors.New("record of the data directory is damaged: restore hasqlite.json, or remove this node from the cluster and add it again with an empty directory")
	// ErrOtherNode: the flags name another node than the record.
	ErrOtherNode = errors.New("data directory belongs to another node: drop --id, or use that node's own directory")
	// ErrOtherCluster: the flags or the peers name another cluster than the record.
	ErrOtherCluster = errors.New("data directory belongs to another cluster: use an empty directory to join this one")
	// ErrOtherLogKind: --raft-log differs from the record.
	ErrOtherLogKind = errors.New("raft log was written with another --raft-log: start with that one, or convert it with hasqlite-node migrate")
	// ErrNotEmpty: no record, but there are files of somebody else.
	ErrNotEmpty = errors.New("directory is not empty and is no data directory: give --data an empty or a new one")
	// ErrNotDirectory: the path is a file.
	ErrNotDirectory = errors.New("path is not a directory: give --data another one")
	// ErrPermission: this user may not read and write there.
	ErrPermission = errors.New("no permission for the data directory: run as its owner or change its mode")
	// ErrNetworkFS: SQLite's locks and shared memory do not work there.
	ErrNetworkFS = errors.New("data directory is on a network file system: give --data a local disk")
	// ErrProbe: locks or shared memory do not work there, whatever it is.
	ErrProbe = errors.New("file system has no working record locks and shared memory: give --data a local disk")
)

// InUseError says who has the directory open.
type InUseError struct {
	// Dir is the directory.
	Dir string
	// PID is the process, 0 if it did not say.
	PID int
}

// Error implements error.
func (e *InUseError) Error() string {
	who := "an unknown process"
	if e.PID > 0 {
		who = "process " + strconv.Itoa(e.PID)
	}
	return fmt.Sprintf("data directory %s is in use by a running node (%s): stop it, or give --data another directory", e.Dir, who)
}

// Is matches ErrInUse.
func (e *InUseError) Is(target error) bool { return target == ErrInUse }

const (
	lockFile     = "hasqlite.lock"
	raftDir      = "raft"
	databasesDir = "databases"

	// DefaultFileMode is of files that applications open.
	DefaultFileMode os.FileMode = 0o660
)

// Want is what the caller expects or would like to have. Zero fields accept
// what the directory has.
type Want struct {
	// NodeID has to be the record's; it becomes that of a new directory, which
	// otherwise gets a random one.
	NodeID string
	// LogKind has to be the record's; a new directory gets it, or "wal".
	LogKind string
	// Cluster has to be the record's, where both have one.
	Cluster ClusterID
	// Group is the name or number of the group that applications are in; empty
	// keeps the process's own.
	Group string
	// FileMode is of database files, 0 = DefaultFileMode.
	FileMode os.FileMode
	// Existing refuses to make a new directory.
	Existing bool
}

// Dir is an open data directory. Its methods may be called concurrently.
type Dir struct {
	path string
	mode os.FileMode
	gid  int
	lock *os.File
	made bool

	mu     sync.Mutex
	record Record
}

// Open locks and checks the data directory at path, or makes it.
func Open(path string, want Want) (*Dir, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, fmt.Errorf("open data directory: %w", err)
	}
	d := &Dir{path: path, mode: want.FileMode, gid: -1}
	if d.mode == 0 {
		d.mode = DefaultFileMode
	}
	if want.Group != "" {
		if d.gid, err = LookupGroup(want.Group); err != nil {
			return nil, fmt.Errorf("open data directory %s: %w", path, err)
		}
	}
	if err := d.open(want); err != nil {
		d.Close() //nolint:errcheck // the first error counts
		var use *InUseError
		if errors.As(err, &use) {
			return nil, err
		}
		if errors.Is(err, fs.ErrPermission) || errors.Is(err, syscall.EROFS) {
			err = fmt.Errorf("%w: %w", ErrPermission, err)
		}
		return nil, fmt.Errorf("open data directory %s: %w", path, err)
	}
	return d, nil
}

func (d *Dir) open(want Want) error {
	if err := d.ensure(want.Existing); err != nil {
		return err
	}
	if err := refuseNetwork(d.path); err != nil {
		return err
	}
	// Before the lock file is made: a directory of somebody else stays as it is.
	_, err := os.Lstat(filepath.Join(d.path, recordFile))
	fresh := errors.Is(err, fs.ErrNotExist)
	if err != nil && !fresh {
		return err
	}
	if fresh {
		if want.Existing {
			return fmt.Errorf("no record: %w", ErrCorrupt)
		}
		if err := d.onlyOurs(); err != nil {
			return err
		}
	}
	if err := d.acquire(); err != nil {
		return err
	}
	if err := d.relieve(); err != nil {
		return err
	}
	if err := probe(d.path); err != nil {
		return err
	}
	r, err := readRecord(d.path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if err := d.create(want); err != nil {
			return err
		}
	case err != nil:
		return err
	default:
		if err := check(r, want); err != nil {
			return err
		}
		d.record = r
	}
	for _, name := range []string{raftDir, databasesDir} {
		if err := d.makeDir(filepath.Join(d.path, name), name == databasesDir); err != nil {
			return err
		}
	}
	return nil
}

// ensure makes the directory itself.
func (d *Dir) ensure(existing bool) error {
	fi, err := os.Stat(d.path)
	switch {
	case err == nil && !fi.IsDir():
		return ErrNotDirectory
	case err == nil:
		return nil
	case errors.Is(err, syscall.ENOTDIR):
		return fmt.Errorf("%w: %w", ErrNotDirectory, err)
	case !errors.Is(err, fs.ErrNotExist) || existing:
		return err
	}
	parent := filepath.Dir(d.path)
	if err := os.MkdirAll(parent, 0o755); err != nil {
		if errors.Is(err, syscall.ENOTDIR) {
			return fmt.Errorf("%w: %w", ErrNotDirectory, err)
		}
		return err
	}
	// Applications pass through it to the database files.
	return d.makeDir(d.path, true)
}

// makeDir makes a directory if it is missing; shared ones are for the group, and
// what is made in them inherits the group.
func (d *Dir) makeDir(path string, shared bool) error {
	err := os.Mkdir(path, 0o700)
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if shared {
		if err := d.shareDir(path); err != nil {
			return err
		}
	}
	return syncDir(filepath.Dir(path))
}

func (d *Dir) shareDir(path string) error {
	if d.gid >= 0 {
		if err := os.Chown(path, -1, d.gid); err != nil {
			return err
		}
	}
	return os.Chmod(path, 0o770|fs.ModeSetgid)
}

// onlyOurs refuses files that a start cut short cannot have left behind.
func (d *Dir) onlyOurs() error {
	entries, err := os.ReadDir(d.path)
	if err != nil {
		return err
	}
	for _, e := range entries {
		switch e.Name() {
		case lockFile, recordFile + ".tmp", ballastFile, "lost+found":
		case raftDir, databasesDir:
			sub, err := os.ReadDir(filepath.Join(d.path, e.Name()))
			if err != nil {
				return err
			}
			if len(sub) > 0 {
				return fmt.Errorf("%s without a record: %w", e.Name(), ErrCorrupt)
			}
		default:
			if strings.HasPrefix(e.Name(), probePrefix) {
				continue
			}
			return fmt.Errorf("found %q: %w", e.Name(), ErrNotEmpty)
		}
	}
	return nil
}

// acquire takes the lock and leaves our pid in its file.
func (d *Dir) acquire() error {
	f, err := os.OpenFile(filepath.Join(d.path, lockFile), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		defer f.Close() //nolint:errcheck // opened for reading so far
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return fmt.Errorf("lock: %w", err)
		}
		use := &InUseError{Dir: d.path}
		if b, err := io.ReadAll(io.LimitReader(f, 32)); err == nil {
			use.PID, _ = strconv.Atoi(strings.TrimSpace(string(b))) //nolint:errcheck // 0 = unknown
		}
		return use
	}
	d.lock = f
	if err := f.Truncate(0); err != nil {
		return fmt.Errorf("write pid: %w", err)
	}
	if _, err := f.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0); err != nil {
		return fmt.Errorf("write pid: %w", err)
	}
	return nil
}

func (d *Dir) create(want Want) error {
	r := Record{Format: Format, NodeID: want.NodeID, LogKind: want.LogKind, Created: time.Now().UTC().Truncate(time.Second)}
	if r.NodeID == "" {
		var b [8]byte
		rand.Read(b[:]) //nolint:errcheck // never fails
		r.NodeID = "node-" + hex.EncodeToString(b[:])
	}
	if r.LogKind == "" {
		r.LogKind = "wal"
	}
	if err := writeRecord(d.path, r, 0o640, d.gid); err != nil {
		return err
	}
	d.record, d.made = r, true
	return nil
}

func check(r Record, want Want) error {
	if want.NodeID != "" && want.NodeID != r.NodeID {
		return fmt.Errorf("it is of node %q, --id is %q: %w", r.NodeID, want.NodeID, ErrOtherNode)
	}
	if want.Cluster != (ClusterID{}) && r.Cluster != (ClusterID{}) && want.Cluster != r.Cluster {
		return fmt.Errorf("it is of cluster %s, not %s: %w", r.Cluster, want.Cluster, ErrOtherCluster)
	}
	if want.LogKind != "" && want.LogKind != r.LogKind {
		return fmt.Errorf("it was written with --raft-log=%s, not %s: %w", r.LogKind, want.LogKind, ErrOtherLogKind)
	}
	return nil
}

// Path is the absolute path of the directory.
func (d *Dir) Path() string { return d.path }

// RaftDir is where the log and the snapshots go.
func (d *Dir) RaftDir() string { return filepath.Join(d.path, raftDir) }

// DatabasesDir is where the databases go.
func (d *Dir) DatabasesDir() string { return filepath.Join(d.path, databasesDir) }

// DatabaseDir is the directory of a database, for its id as 32 hex digits.
func (d *Dir) DatabaseDir(id string) string { return filepath.Join(d.path, databasesDir, id) }

// FileMode is the mode of database files.
func (d *Dir) FileMode() os.FileMode { return d.mode }

// Group is the group of database files, -1 for the process's own.
func (d *Dir) Group() int { return d.gid }

// Created tells that Open made the record.
func (d *Dir) Created() bool { return d.made }

// Record is what the directory is.
func (d *Dir) Record() Record {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.record
}

// SetCluster records durably of which cluster and lineage the node is a member.
// A cluster once set stays; a lineage never goes back.
func (d *Dir) SetCluster(id ClusterID, lineage uint64) error {
	return d.update(func(r *Record) error {
		if id == (ClusterID{}) {
			return fmt.Errorf("cluster id is zero: %w", ErrOtherCluster)
		}
		if r.Cluster != (ClusterID{}) && r.Cluster != id {
			return fmt.Errorf("it is of cluster %s, not %s: %w", r.Cluster, id, ErrOtherCluster)
		}
		if r.Cluster == id && lineage < r.Lineage {
			return fmt.Errorf("it is of lineage %d, later than %d: %w", r.Lineage, lineage, ErrOtherCluster)
		}
		r.Cluster, r.Lineage = id, lineage
		return nil
	})
}

// NextLineage records durably that the cluster goes on without its former
// members, and returns the number of its lineage: a node of another one is
// refused by every peer.
func (d *Dir) NextLineage() (uint64, error) {
	err := d.update(func(r *Record) error {
		if r.Cluster == (ClusterID{}) {
			return fmt.Errorf("the node is of no cluster: %w", ErrOtherCluster)
		}
		r.Lineage++
		return nil
	})
	return d.Record().Lineage, err
}

// setAsidePrefix begins the names of directories that SetAside makes.
const setAsidePrefix = "set-aside-"

// SetAside moves the state of a node out of the way, into a directory below,
// and makes the node one that belongs to no cluster. It returns the path of
// that directory, empty if there was nothing to move. What is named in keep
// stays where it is.
func (d *Dir) SetAside(now time.Time, keep ...string) (string, error) {
	entries, err := os.ReadDir(d.path)
	if err != nil {
		return "", fmt.Errorf("set aside: %w", err)
	}
	aside := ""
	for _, e := range entries {
		if !e.IsDir() || strings.HasPrefix(e.Name(), setAsidePrefix) || slices.Contains(keep, e.Name()) {
			continue
		}
		if sub, err := os.ReadDir(filepath.Join(d.path, e.Name())); err == nil && len(sub) == 0 {
			continue
		}
		if aside == "" {
			aside = filepath.Join(d.path, setAsidePrefix+now.UTC().Format("20060102T150405.000000000"))
			if err := os.Mkdir(aside, 0o700); err != nil {
				return "", fmt.Errorf("set aside: %w", err)
			}
		}
		if err := os.Rename(filepath.Join(d.path, e.Name()), filepath.Join(aside, e.Name())); err != nil {
			return aside, fmt.Errorf("set aside: %w", err)
		}
	}
	if aside != "" {
		if err := errors.Join(syncDir(aside), syncDir(d.path)); err != nil {
			return aside, fmt.Errorf("set aside: %w", err)
		}
	}
	err = d.update(func(r *Record) error {
		r.Cluster, r.Lineage = ClusterID{}, 0
		return nil
	})
	return aside, err
}

// SetLogKind records durably how the raft log is stored.
func (d *Dir) SetLogKind(kind string) error {
	return d.update(func(r *Record) error {
		if kind == "" {
			return errors.New("log kind is empty")
		}
		r.LogKind = kind
		return nil
	})
}

func (d *Dir) update(change func(*Record) error) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	r := d.record
	if err := change(&r); err != nil {
		return fmt.Errorf("change record of %s: %w", d.path, err)
	}
	if r == d.record {
		return nil
	}
	if err := writeRecord(d.path, r, 0o640, d.gid); err != nil {
		return err
	}
	d.record = r
	return nil
}

// MakeShared makes the directory of a database, durably, for node and
// applications: mode 2770 and the group.
func (d *Dir) MakeShared(path string) error {
	if rel, err := filepath.Rel(d.path, path); err != nil || !filepath.IsLocal(rel) {
		return fmt.Errorf("make %s: not in data directory %s", path, d.path)
	}
	if err := d.makeDir(path, true); err != nil {
		return fmt.Errorf("make directory: %w", err)
	}
	return nil
}

// ShareFile gives a file the group and mode of database files. It works on the
// path, without opening it (closing a descriptor of a database drops SQLite's
// locks).
func (d *Dir) ShareFile(path string) error {
	if d.gid >= 0 {
		if err := os.Chown(path, -1, d.gid); err != nil {
			return fmt.Errorf("share file: %w", err)
		}
	}
	if err := os.Chmod(path, d.mode); err != nil {
		return fmt.Errorf("share file: %w", err)
	}
	return nil
}

// Close releases the lock.
func (d *Dir) Close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.lock == nil {
		return nil
	}
	err := d.lock.Close()
	d.lock = nil
	if err != nil {
		return fmt.Errorf("close data directory: %w", err)
	}
	return nil
}
