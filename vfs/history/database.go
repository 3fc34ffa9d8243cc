package history

import (
	"context"
	"fmt"
	"io"
	"net/url"
	"strconv"
	"sync"

	"github.com/uglyer/ha-sqlite/internal/moment"
	"github.com/uglyer/ha-sqlite/snapshot/archive"
)

// Database is a state of a database that connections of this process can
// open. All of them share its cache.
type Database struct {
	found  moment.Found
	reader *archive.Reader
	cancel context.CancelFunc
	id     uint64 // 0: no connection can name it

	mu  sync.Mutex
	err error // of the last read that failed
}

var (
	openMu  sync.Mutex
	opened  = map[uint64]*Database{}
	openSeq uint64
)

// Open makes a state readable. All its requests end with the context.
// cacheBytes bounds the cache; 0 is 16 MiB. Close it after its connections.
func Open(ctx context.Context, f moment.Found, cacheBytes int) (*Database, error) {
	d, err := newDatabase(ctx, f, cacheBytes)
	if err != nil {
		return nil, err
	}
	openMu.Lock()
	defer openMu.Unlock()
	openSeq++
	d.id = openSeq
	opened[d.id] = d
	return d, nil
}

func newDatabase(ctx context.Context, f moment.Found, cacheBytes int) (*Database, error) {
	plan, err := f.View.Plan(ctx, f.Point)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	return &Database{found: f, reader: f.View.NewReader(ctx, plan, cacheBytes), cancel: cancel}, nil
}

// DSN is the data source name with which github.com/mattn/go-sqlite3 opens it.
func (d *Database) DSN() string {
	return "file:" + (&url.URL{Path: d.found.View.State().Name}).EscapedPath() + "?mode=ro&vfs=" + Name + "&open=" + strconv.FormatUint(d.id, 10)
}

// Err returns why the last read that failed did, nil if none has.
func (d *Database) Err() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.err
}

// Close ends all reads. Connections that are still open get errors.
func (d *Database) Close() {
	openMu.Lock()
	defer openMu.Unlock()
	delete(opened, d.id)
	d.cancel()
}

func databaseOf(id string) (*Database, error) {
	n, err := strconv.ParseUint(id, 10, 64)
	openMu.Lock()
	defer openMu.Unlock()
	if d := opened[n]; err == nil && d != nil {
		return d, nil
	}
	return nil, fmt.Errorf("state %q is not open", id)
}

func (d *Database) size() int64 { return int64(d.reader.PageCount()) * int64(d.reader.PageSize()) }

// Offsets in page 1, https://sqlite.org/fileformat2.html#the_database_header
const (
	writeVersion = 18
	readVersion  = 19
	legacy       = 1 // no WAL: SQLite would look for one, and for its shared memory
)

// readAt reads bytes of the database as a file. What is behind its end is io.EOF.
func (d *Database) readAt(p []byte, off int64) (int, error) {
	size, pageSize := d.size(), int64(d.reader.PageSize())
	n := 0
	for n < len(p) {
		at := off + int64(n)
		if at >= size {
			return n, io.EOF
		}
		page, err := d.reader.Page(uint32(at/pageSize) + 1)
		if err != nil {
			err = fmt.Errorf("database %s as of %s: %w", d.found.View.State().Name, moment.TimeText(d.found.Point.Time), err)
			d.mu.Lock()
			d.err = err
			d.mu.Unlock()
			return n, err
		}
		n += copy(p[n:], page[at%pageSize:])
	}
	for _, field := range []int64{writeVersion, readVersion} {
		if i := field - off; i >= 0 && i < int64(len(p)) {
			p[i] = legacy
		}
	}
	return n, nil
}
