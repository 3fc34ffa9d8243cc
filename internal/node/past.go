package node

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/uglyer/ha-sqlite/internal/link"
	"github.com/uglyer/ha-sqlite/internal/moment"
	"github.com/uglyer/ha-sqlite/replicate"
	"github.com/uglyer/ha-sqlite/snapshot/archive"
)

const (
	pastDir      = "past" // in the data directory
	maxPastFiles = 64
	pastWait     = 5 * time.Second // for what was committed a moment ago to be archived
	pastPoll     = 20 * time.Millisecond
)

// pasts makes files of databases as they were, for applications, and removes each behind its last one. They are in a
// directory of their own, which is emptied at each start.
type pasts struct {
	dir      string
	files    files
	limit    int64 // bytes of all
	keepFree int64 // bytes of the disk
	free     func() (int64, error)
	archive  func() *archive.Archive                           // nil while there is none
	decided  func(name string) (replicate.DatabaseState, bool) // of the database that has the name now
	archived func(id replicate.DatabaseID) uint64              // of it
	hurry    func()                                            // the archive: somebody waits for it
	lineage  func() uint64                                     // of the cluster
	log      func(msg string, args ...any)
	run      func(f func()) // in the background; the node waits for it when it stops

	mu    sync.Mutex
	open  map[string]*pastFile // by the state
	bytes int64
	made  uint64 // files so far, each with a name of its own
}

// pastFile is a file that is there, or is being made.
type pastFile struct {
	state  string
	path   string
	bytes  int64
	users  int
	gone   bool // nobody can become a user any more
	moved  atomic.Int64
	cancel context.CancelFunc // of its making
	ready  chan struct{}      // closed when it is there, or err is set
	err    error
}

// startPasts empties the directory of past states.
func (n *Node) startPasts(f files) (*pasts, error) {
	p := &pasts{
		dir: filepath.Join(n.dir.Path(), pastDir), files: f, limit: n.cfg.PastLimit, keepFree: 4 * reserveBytes(n.cfg.LogLimit),
		free: n.space.Free, archive: n.svc.Archive, log: n.log.Warn, run: n.goroutine, open: map[string]*pastFile{},
		decided:  n.svc.Lookup,
		archived: func(id replicate.DatabaseID) uint64 { return uint64(n.svc.ArchivedPosition(id)) },
		hurry:    n.svc.HurryArchive,
		lineage:  func() uint64 { return n.dir.Record().Lineage },
	}
	if err := os.RemoveAll(p.dir); err != nil {
		return nil, fmt.Errorf("empty the directory of past states: %w", err)
	}
	if err := f.prepare(filepath.Join(p.dir, "x")); err != nil {
		return nil, fmt.Errorf("make the directory of past states: %w", err)
	}
	return p, nil
}

// Past makes the file of a database as it was, or finds it.
func (p *pasts) Past(ctx context.Context, req link.PastRequest, progress func()) (link.Past, error) {
	past, err := p.past(ctx, req, progress)
	if err != nil {
		return past, &link.Error{Code: link.CodeCantOpen, Text: err.Error()}
	}
	return past, nil
}

func (p *pasts) past(ctx context.Context, req link.PastRequest, progress func()) (link.Past, error) {
	m, err := moment.ParseURI(req.At, req.To, time.Now())
	if err != nil {
		return link.Past{}, err
	}
	f, err := p.find(ctx, req.Name, m, progress)
	if err != nil {
		return link.Past{}, err
	}
	file, err := p.take(f)
	if err != nil {
		return link.Past{}, err
	}
	if err := file.wait(ctx, progress); err != nil {
		p.release(file)
		return link.Past{}, err
	}
	out := link.Past{Path: file.path, Bookmark: f.Bookmark(), Close: sync.OnceFunc(func() { p.release(file) })}
	if f.Dropped {
		out.Note = moment.DroppedNote
	}
	return out, nil
}

// find chooses the state. Where the archive does not have it yet what this node knows to be committed, it waits a
// moment: a state is never rounded without a word.
func (p *pasts) find(ctx context.Context, name string, m moment.Moment, progress func()) (moment.Found, error) {
	a := p.archive()
	if a == nil {
		return moment.Found{}, errors.New("this node has no archive, or it is not open yet")
	}
	st, exists := p.decided(name)
	f, err := m.Find(ctx, a, name)
	if !exists || !lateFor(m, f, err, st, p.lineage()) {
		return f, err
	}
	id, want := st.ID, uint64(st.Position.TXID)
	if m.TXID != 0 {
		want = m.TXID
	}
	if err != nil && p.archived(id) >= want {
		return f, err // it was there, and is no more
	}
	late := time.NewTimer(pastWait)
	defer late.Stop()
	tick := time.NewTicker(pastPoll)
	defer tick.Stop()
	for p.archived(id) < want {
		p.hurry()
		select {
		case <-tick.C:
			progress()
		case <-late.C:
			return f, fmt.Errorf("database %q: what was committed up to transaction %016x is not all in the archive yet", name, want)
		case <-ctx.Done():
			return f, ctx.Err()
		}
	}
	return m.Find(ctx, a, name)
}

// take counts a user of a file, and begins to make one within the limits.
func (p *pasts) take(found moment.Found) (*pastFile, error) {
	s := found.View.State()
	state := fmt.Sprintf("%s-%d-%016x", s.Database, s.Lineage, found.Point.TXID)
	bytes := int64(found.Point.PageCount) * int64(s.PageSize)
	p.mu.Lock()
	defer p.mu.Unlock()
	if f := p.open[state]; f != nil {
		f.users++
		return f, nil
	}
	free, err := p.free()
	switch {
	case err != nil:
		return nil, fmt.Errorf("look how much room there is for a past state: %w", err)
	case len(p.open) >= maxPastFiles:
		return nil, fmt.Errorf("%d past states are open on this node, the most there may be", len(p.open))
	case bytes > p.limit-p.bytes:
		return nil, fmt.Errorf("the state has %d bytes, of %d for past states on this node %d are in use", bytes, p.limit, p.bytes)
	case bytes > free-p.keepFree:
		return nil, fmt.Errorf("the state has %d bytes, and only %d of the disk are free", bytes, max(0, free-p.keepFree))
	}
	p.made++
	ctx, cancel := context.WithCancel(context.Background())
	f := &pastFile{state: state, path: filepath.Join(p.dir, fmt.Sprintf("%s-%d", state, p.made)), bytes: bytes, users: 1, cancel: cancel, ready: make(chan struct{})}
	p.open[state] = f
	p.bytes += bytes
	p.run(func() {
		err := p.restore(ctx, found, f)
		p.mu.Lock()
		defer p.mu.Unlock()
		if f.err = err; err != nil {
			p.forgetLocked(f)
		} else if f.gone {
			p.removeLocked(f)
		}
		close(f.ready)
	})
	return f, nil
}

// restore makes the file, whole or not at all.
func (p *pasts) restore(ctx context.Context, found moment.Found, f *pastFile) error {
	err := found.View.Planned(ctx, found.Point, func(v *archive.View, plan *archive.Plan) error {
		return v.RestoreFile(ctx, plan, f.path, archive.RestoreOptions{Progress: func(done, _ int64) { f.moved.Store(done) }})
	})
	if err != nil {
		return err
	}
	err = os.Chmod(f.path, p.files.fileMode&^0o222)
	if err == nil && p.files.gid >= 0 {
		err = os.Chown(f.path, -1, p.files.gid)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("make %s readable for applications: %w", f.path, err), os.Remove(f.path))
	}
	return nil
}

// wait returns when the file is there, and tells that it grows.
func (f *pastFile) wait(ctx context.Context, progress func()) error {
	tick := time.NewTicker(pastPoll)
	defer tick.Stop()
	for seen := int64(0); ; {
		select {
		case <-f.ready:
			return f.err
		case <-tick.C:
			if now := f.moved.Load(); now != seen {
				seen = now
				progress()
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// release forgets a user of a file, and the file with its last one.
func (p *pasts) release(f *pastFile) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if f.users--; f.users > 0 || f.gone {
		return
	}
	p.forgetLocked(f)
	select {
	case <-f.ready:
		p.removeLocked(f)
	default: // it is still being made
	}
}

func (p *pasts) forgetLocked(f *pastFile) {
	if f.gone {
		return
	}
	f.gone = true
	f.cancel()
	delete(p.open, f.state)
	p.bytes -= f.bytes
}

func (p *pasts) removeLocked(f *pastFile) {
	if err := os.Remove(f.path); err != nil {
		p.log("a past state could not be removed, the next start does it", "path", f.path, "err", err)
	}
}
