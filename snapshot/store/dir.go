package store

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// tmpDir holds files that are being written. No database has a directory of
// that name, and litestream looks into level directories only.
const tmpDir = "_tmp"

// tmpKeep is the age at which an unfinished file is looked at: if nobody holds its lock it belongs to nobody any more.
// Younger ones may just be made and not be locked yet.
const tmpKeep = 24 * time.Hour

// Dir is a Store in a directory of a local file system.
type Dir struct {
	root  string
	next  atomic.Uint64
	clean sync.Once
	sync  func(path string) error // makes a file or a directory durable

	mu   sync.Mutex
	made map[string]bool // directories that exist durably
}

// OpenDir opens the store in root. The directory is made by the first Put.
func OpenDir(root string) (*Dir, error) {
	abs, err := filepath.Abs(root)
	if err != nil {
		return nil, fmt.Errorf("open archive directory %s: %w", root, err)
	}
	if info, err := os.Stat(abs); err == nil && !info.IsDir() {
		return nil, fmt.Errorf("open archive directory %s: it is not a directory", abs)
	} else if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("open archive directory: %w", err)
	}
	return &Dir{root: abs, made: map[string]bool{}, sync: syncPath}, nil
}

// cleanTmp removes what a process that died was writing long ago. Only who writes does it.
func (d *Dir) cleanTmp() {
	entries, err := os.ReadDir(filepath.Join(d.root, tmpDir))
	if err != nil {
		return
	}
	for _, e := range entries {
		if info, err := e.Info(); err == nil && info.Mode().IsRegular() && time.Since(info.ModTime()) > tmpKeep {
			removeUnlocked(filepath.Join(d.root, tmpDir, e.Name()))
		}
	}
}

// removeUnlocked removes a file that no process is writing. What it cannot remove is looked at again after the next start.
func removeUnlocked(name string) {
	f, err := os.Open(name)
	if err != nil {
		return
	}
	defer f.Close()
	if lock(f) == nil {
		_ = os.Remove(name)
	}
}

// lock says for as long as the file is open that somebody writes it: its time is that of the commit, not of the write.
func lock(f *os.File) error { return syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB) }

// URL implements Store.
func (d *Dir) URL() string {
	return (&url.URL{Scheme: "file", Path: filepath.ToSlash(d.root)}).String()
}

// LevelDir implements Store.
func (d *Dir) LevelDir(level int) string { return "ltx/" + strconv.Itoa(level) }

// Detect implements Store: nothing is to be found out.
func (d *Dir) Detect(context.Context) error { return nil }

// Conditional implements Store: a hard link is made to a name or is not.
func (d *Dir) Conditional() bool { return true }

func (d *Dir) path(key string) (string, error) {
	if err := CheckKey(key); err != nil {
		return "", err
	}
	return filepath.Join(d.root, filepath.FromSlash(key)), nil
}

// Put implements Store.
func (d *Dir) Put(ctx context.Context, key string, body io.ReaderAt, size int64, t time.Time) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("put %s into %s: %w", key, d.root, err)
		}
	}()
	path, err := d.path(key)
	if err != nil {
		return err
	}
	d.clean.Do(d.cleanTmp)
	if _, err := os.Lstat(path); err == nil {
		return d.exists(path)
	}
	if err := d.mkdir(filepath.Dir(path)); err != nil {
		return err
	}
	if err := d.mkdir(filepath.Join(d.root, tmpDir)); err != nil {
		return err
	}
	name := filepath.Join(d.root, tmpDir, fmt.Sprintf("%d-%d-%d", os.Getpid(), time.Now().UnixNano(), d.next.Add(1)))
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o640)
	if err != nil {
		return err
	}
	defer func() {
		if rm := os.Remove(name); err == nil {
			err = rm
		}
	}()
	_ = lock(f) // where files cannot be locked, none is found to be unlocked
	n, err := io.Copy(f, &contextReader{ctx, io.NewSectionReader(body, 0, size)})
	if err == nil && n != size {
		err = fmt.Errorf("%d bytes of %d: %w", n, size, io.ErrUnexpectedEOF)
	}
	if err == nil && !t.IsZero() {
		err = os.Chtimes(name, t, t)
	}
	if err == nil {
		err = f.Sync()
	}
	if err != nil {
		f.Close()
		return err
	}
	defer f.Close() // with the lock, when its other name is gone
	if err := os.Link(name, path); errors.Is(err, fs.ErrExist) {
		return d.exists(path)
	} else if err != nil {
		return err
	}
	return d.sync(filepath.Dir(path))
}

// exists says that an object is there, and makes that durable: whoever made it may have died before it had.
func (d *Dir) exists(path string) error {
	for _, p := range []string{path, filepath.Dir(path)} {
		if err := d.sync(p); err != nil {
			return err
		}
	}
	return ErrExists
}

// mkdir makes a directory below the root, and the root, durably.
func (d *Dir) mkdir(path string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.mkdirLocked(path)
}

func (d *Dir) mkdirLocked(path string) error {
	if d.made[path] {
		if _, err := os.Stat(path); err == nil {
			return nil
		}
	}
	parent := filepath.Dir(path)
	if len(path) > len(d.root) {
		if err := d.mkdirLocked(parent); err != nil {
			return err
		}
	} else if err := os.MkdirAll(parent, 0o750); err != nil {
		return err
	}
	if err := os.Mkdir(path, 0o750); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	if err := d.sync(parent); err != nil {
		return err
	}
	d.made[path] = true
	return nil
}

func syncPath(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	err = f.Sync()
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	return err
}

// contextReader ends reading when the context does.
type contextReader struct {
	ctx context.Context
	r   io.Reader
}

func (c *contextReader) Read(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	return c.r.Read(p)
}

// Get implements Store.
func (d *Dir) Get(ctx context.Context, key string, offset, length int64) (io.ReadCloser, error) {
	fail := func(err error) (io.ReadCloser, error) {
		if errors.Is(err, fs.ErrNotExist) {
			err = ErrNotFound
		}
		return nil, fmt.Errorf("get %s from %s: %w", key, d.root, err)
	}
	path, err := d.path(key)
	if err != nil {
		return fail(err)
	}
	f, err := os.Open(path)
	if err != nil {
		return fail(err)
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = ErrNotFound
	}
	if err == nil && (offset < 0 || offset > info.Size() || length > info.Size()-offset) {
		err = fmt.Errorf("%d bytes from %d of %d: %w", length, offset, info.Size(), io.ErrUnexpectedEOF)
	}
	if err != nil {
		f.Close()
		return fail(err)
	}
	if length < 0 {
		length = info.Size() - offset
	}
	return &dirReader{contextReader{ctx, io.NewSectionReader(f, offset, length)}, f}, nil
}

type dirReader struct {
	contextReader
	f *os.File
}

// Close implements io.Closer.
func (r *dirReader) Close() error { return r.f.Close() }

// Stat implements Store.
func (d *Dir) Stat(_ context.Context, key string) (Info, error) {
	path, err := d.path(key)
	if err == nil {
		var info fs.FileInfo
		if info, err = os.Stat(path); err == nil && info.Mode().IsRegular() {
			return Info{Key: key, Size: info.Size(), Time: info.ModTime().UTC()}, nil
		}
		if err == nil || errors.Is(err, fs.ErrNotExist) {
			err = ErrNotFound
		}
	}
	return Info{}, fmt.Errorf("describe %s in %s: %w", key, d.root, err)
}

// entries returns what is in a directory of the store, none where there is no
// directory.
func (d *Dir) entries(dir string) ([]fs.DirEntry, error) {
	path := d.root
	if dir != "" {
		var err error
		if path, err = d.path(dir); err != nil {
			return nil, err
		}
	}
	list, err := os.ReadDir(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return list, err
}

// List implements Store.
func (d *Dir) List(ctx context.Context, dir, after string, f func(Info) error) error {
	list, err := d.entries(dir)
	if err != nil {
		return fmt.Errorf("list %s in %s: %w", dir, d.root, err)
	}
	for _, e := range list {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("list %s in %s: %w", dir, d.root, err)
		}
		if e.Name() <= after || !e.Type().IsRegular() {
			continue
		}
		info, err := e.Info()
		if errors.Is(err, fs.ErrNotExist) {
			continue
		} else if err != nil {
			return fmt.Errorf("list %s in %s: %w", dir, d.root, err)
		}
		if err := f(Info{Key: Join(dir, e.Name()), Size: info.Size(), Time: info.ModTime().UTC()}); err != nil {
			return err
		}
	}
	return nil
}

// Dirs implements Store.
func (d *Dir) Dirs(_ context.Context, dir string) ([]string, error) {
	list, err := d.entries(dir)
	if err != nil {
		return nil, fmt.Errorf("list %s in %s: %w", dir, d.root, err)
	}
	var names []string
	for _, e := range list {
		if e.IsDir() && !strings.HasPrefix(Join(dir, e.Name()), tmpDir) {
			names = append(names, e.Name())
		}
	}
	return names, nil
}

// Delete implements Store.
func (d *Dir) Delete(ctx context.Context, keys ...string) error {
	for _, key := range keys {
		path, err := d.path(key)
		if err == nil {
			err = ctx.Err()
		}
		if err == nil {
			if err = os.Remove(path); errors.Is(err, fs.ErrNotExist) {
				err = nil
			}
		}
		if err != nil {
			return fmt.Errorf("delete %s from %s: %w", key, d.root, err)
		}
	}
	return nil
}
