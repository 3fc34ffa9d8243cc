package replicate

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/uglyer/ha-sqlite/snapshot/archive"
)

// ArchiveOptions say how commits are archived.
type ArchiveOptions struct {
	// URL names the store for people, without secrets.
	URL string
	// Local says that every node keeps an archive of its own. Otherwise there is one, and the leader writes it.
	Local bool
	// Open opens the archive of a cluster. An error that wraps archive.ErrForeign or archive.ErrKey stops the
	// node, after others it is tried again.
	Open func(ctx context.Context, cluster [16]byte) (*archive.Archive, error)
	// Interval is the time from a commit to its upload.
	Interval time.Duration
	// Writer says what is kept of what was uploaded.
	Writer archive.WriterOptions
	// BacklogLimit bounds the bytes of commits on disk that wait.
	BacklogLimit int64
}

const openArchiveRetry = 5 * time.Second

// archiver keeps the archive complete: on every node what is not archived yet, and on the one that leads, or on each
// that has an archive of its own, what writes it.
type archiver struct {
	s    *Service
	opts ArchiveOptions

	mu      sync.Mutex
	archive *archive.Archive // nil before it is open
	failed  error            // why it is not
}

func newArchiver(s *Service, o ArchiveOptions) (*archiver, error) {
	return &archiver{s: s, opts: o}, nil
}

// Archive returns the archive of the cluster, or of this node where each has one; nil while it is not open, or nothing
// is archived.
func (s *Service) Archive() *archive.Archive {
	a := s.archiver
	if a == nil {
		return nil
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.archive
}

// ArchivedPosition returns the last transaction of a database that this node knows to be archived, 0 for none.
func (s *Service) ArchivedPosition(id DatabaseID) TXID {
	st, _ := s.fsm.Get(id)
	return st.Archived
}

// open opens the archive, which has to wait for the node to belong to a cluster.
func (a *archiver) open() bool {
	for first := true; ; first = false {
		cluster := a.s.opts.Cluster()
		if cluster == ([16]byte{}) {
			cluster = a.s.fsm.Cluster()
		}
		wait := openArchiveRetry
		if cluster == ([16]byte{}) {
			wait = 100 * time.Millisecond
		} else {
			opened, err := a.opts.Open(a.s.ctx, cluster)
			a.mu.Lock()
			a.archive, a.failed = opened, err
			a.mu.Unlock()
			switch {
			case err == nil:
				return true
			case a.s.ctx.Err() != nil:
				return false
			case errors.Is(err, archive.ErrForeign), errors.Is(err, archive.ErrKey):
				a.s.stop(err)
				return false
			case first:
				a.s.log.Warn("the archive cannot be opened, writes go on and wait on the disk", "err", err)
			}
		}
		if !a.s.pauseFor(a.s.ctx, wait) {
			return false
		}
	}
}

func (a *archiver) run() {
	if !a.open() {
		return
	}
}

// decided hears which commits the cluster knows to be archived.
func (a *archiver) decided(*Archived) {}
