package history

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	_ "github.com/mattn/go-sqlite3" // the SQLite that the VFS registers with
	"github.com/psanford/sqlite3vfs"

	"github.com/uglyer/ha-sqlite/internal/moment"
	"github.com/uglyer/ha-sqlite/internal/storeurl"
	"github.com/uglyer/ha-sqlite/snapshot/archive"
)

// Name is the VFS name for URIs.
const Name = "hasqlite-history"

// maxPath bounds what FullPathname returns: a name of a database has at most
// 255 bytes.
const maxPath = 512

func init() {
	if err := sqlite3vfs.RegisterVFS(Name, vfs{}, sqlite3vfs.WithMaxPathName(maxPath)); err != nil {
		panic(fmt.Sprintf("register VFS %s: %v", Name, err))
	}
}

var (
	lastMu  sync.Mutex
	lastErr error
)

// LastError returns why the last open of a URI in this process failed. SQLite
// itself says no more than "unable to open database file".
func LastError() error {
	lastMu.Lock()
	defer lastMu.Unlock()
	return lastErr
}

// vfs is the sqlite3vfs.VFS.
type vfs struct{}

// fullNames makes the full path of each open its own.
var fullNames atomic.Uint64

const fullMark = "#hasqlite-history-"

// FullPathname implements sqlite3vfs.VFS. SQLite shares the cache of
// connections with cache=shared whose paths are equal, and never sees the
// parameters that make them different.
func (vfs) FullPathname(name string) string {
	return fmt.Sprintf("%s%s%d", name, fullMark, fullNames.Add(1))
}

// Access implements sqlite3vfs.VFS: there is no file beside a database.
func (vfs) Access(string, sqlite3vfs.AccessFlag) (bool, error) { return false, nil }

// Delete implements sqlite3vfs.VFS.
func (vfs) Delete(string, bool) error { return sqlite3vfs.ReadOnlyError }

// Open implements sqlite3vfs.VFS. It is not called: there is OpenURI.
func (v vfs) Open(name string, flags sqlite3vfs.OpenFlag) (sqlite3vfs.File, sqlite3vfs.OpenFlag, error) {
	return v.OpenURI(name, nil, flags)
}

const temporary = sqlite3vfs.OpenTempDB | sqlite3vfs.OpenTransientDB | sqlite3vfs.OpenTempJournal | sqlite3vfs.OpenSubJournal

// OpenURI implements sqlite3vfs.URIOpener. It never fails: see failedFile.
func (vfs) OpenURI(name string, params map[string]string, flags sqlite3vfs.OpenFlag) (sqlite3vfs.File, sqlite3vfs.OpenFlag, error) {
	var f sqlite3vfs.File
	var err error
	switch {
	case flags&temporary != 0:
		var t *tempFile
		if t, err = newTempFile(); err == nil {
			return t, flags, nil
		}
	case flags&sqlite3vfs.OpenMainDB == 0:
		err = fmt.Errorf("SQLite asked for %s: an archive has no such file", name)
	default:
		name, _, _ = strings.Cut(name, fullMark)
		if f, err = openURI(name, params); err == nil {
			return f, sqlite3vfs.OpenMainDB | sqlite3vfs.OpenReadOnly, nil
		}
		err = fmt.Errorf("open %s: %w", name, err)
	}
	lastMu.Lock()
	lastErr = err
	lastMu.Unlock()
	return failedFile{}, flags, nil
}

func openURI(name string, params map[string]string) (sqlite3vfs.File, error) {
	if id, ok := params["open"]; ok {
		d, err := databaseOf(id)
		if err != nil {
			return nil, err
		}
		return &file{db: d}, nil
	}
	at, to := params["at"], params["to"]
	if at == "" && to == "" {
		return nil, errors.New("which state is not said: give at= or to=")
	}
	m, err := moment.ParseURI(at, to, time.Now())
	if err != nil {
		return nil, err
	}
	ctx := context.Background()
	a, err := openArchive(ctx, params)
	if err != nil {
		return nil, err
	}
	found, err := m.Find(ctx, a, name)
	if err != nil {
		return nil, err
	}
	d, err := newDatabase(ctx, found, 0)
	if err != nil {
		return nil, err
	}
	return &file{db: d, own: true}, nil
}

func openArchive(ctx context.Context, params map[string]string) (*archive.Archive, error) {
	get := func(param, env string) string {
		if v := params[param]; v != "" {
			return v
		}
		return os.Getenv(env)
	}
	url := get("archive", "HASQLITE_ARCHIVE")
	if url == "" {
		return nil, errors.New("no archive: give archive= or set HASQLITE_ARCHIVE")
	}
	s, err := storeurl.Open(ctx, url)
	if err != nil {
		return nil, err
	}
	var keys *archive.Keys
	if path := get("identity", "HASQLITE_IDENTITY"); path != "" {
		if keys, err = archive.ReadIdentities(path); err != nil {
			return nil, err
		}
	}
	return archive.Open(ctx, s, archive.Options{Keys: keys})
}
