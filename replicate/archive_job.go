package replicate

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/uglyer/ha-sqlite/snapshot/archive"
)

// What an ArchiveJob does.
const (
	ArchiveLabel   = "label"   // keep the state as it is now, under a label
	ArchiveUnlabel = "unlabel" // give a labelled state back to retention
	ArchivePrune   = "prune"   // remove now what retention removes
)

// ArchiveJob is a change of the archive of one database.
type ArchiveJob struct {
	Op     string     `json:"op"`
	DB     DatabaseID `json:"db"`
	Label  string     `json:"label,omitempty"`
	From   TXID       `json:"from,omitempty"` // what has to be archived before it is done
	DryRun bool       `json:"dry_run,omitempty"`
}

// ArchiveDone says what an ArchiveJob did on one node.
type ArchiveDone struct {
	Node     string        `json:"node"`
	Position Position      `json:"position"` // of the labelled state
	Time     int64         `json:"time"`     // of it, microseconds since 1970
	Pages    uint32        `json:"pages"`    // of it
	Files    []ArchiveFile `json:"files,omitempty"`
	Err      string        `json:"error,omitempty"` // why a node whose archive is its own did not do it
}

// ArchiveFile is a file of an archive.
type ArchiveFile struct {
	Level int    `json:"level"`
	First TXID   `json:"first"`
	Last  TXID   `json:"last"`
	Time  int64  `json:"time"` // of its last commit, microseconds since 1970
	Bytes int64  `json:"bytes"`
	Key   string `json:"key"`
}

const (
	archiveJobPoll = 50 * time.Millisecond
	// archiveJobLate is for how long a job waits until the archive has what was acknowledged before it. The job itself
	// takes as long as it takes, as long as it gets on.
	archiveJobLate = 10 * time.Minute
)

// ArchiveJob changes the archive of a database: on the node that writes it or, where each node has its own, on all. There
// the answers of nodes that did not do it say why; an error means that none did.
func (s *Service) ArchiveJob(ctx context.Context, j ArchiveJob) ([]ArchiveDone, error) {
	if s.archiver == nil {
		return nil, fmt.Errorf("nothing is archived: %w", ErrConflict)
	}
	// What was acknowledged anywhere before the job was asked for is in it.
	if err := s.CatchUp(ctx); err != nil {
		return nil, err
	}
	st, ok := s.fsm.Get(j.DB)
	if !ok {
		return nil, ErrNotFound
	}
	j.From = st.Position.TXID
	if !s.archiver.opts.Local {
		done, err := onLeader(ctx, s, methodArchiveJob, j, s.archiveJob)
		return []ArchiveDone{done}, err
	}
	var mu sync.Mutex
	var wg sync.WaitGroup
	var first error
	var all []ArchiveDone
	for _, srv := range s.servers() {
		id := string(srv.ID)
		wg.Go(func() {
			var done ArchiveDone
			var err error
			if id == s.opts.NodeID {
				done, err = s.archiveJob(ctx, j)
			} else {
				done, err = callJSON[ArchiveJob, ArchiveDone](ctx, s, id, methodArchiveJob, j)
			}
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				done = ArchiveDone{Node: id, Err: err.Error()}
				if first == nil || id == s.opts.NodeID {
					first = err
				}
			}
			all = append(all, done)
		})
	}
	wg.Wait()
	slices.SortFunc(all, func(a, b ArchiveDone) int {
		if a.Node < b.Node {
			return -1
		}
		return 1
	})
	if !slices.ContainsFunc(all, func(d ArchiveDone) bool { return d.Err == "" }) {
		return all, first
	}
	return all, nil
}

// archiveJob does a job on this node.
func (s *Service) archiveJob(ctx context.Context, j ArchiveJob) (ArchiveDone, error) {
	done := ArchiveDone{Node: s.opts.NodeID}
	patience, cancel := context.WithTimeout(ctx, archiveJobLate)
	defer cancel()
	for {
		late := false
		err := s.ArchiveWriter(ctx, j.DB, func(ctx context.Context, w *archive.Writer) error {
			if late = w.Position() < uint64(j.From); late {
				return nil
			}
			return j.do(ctx, w, &done)
		})
		if err != nil || !late {
			return done, err
		}
		if !s.pauseFor(patience, archiveJobPoll) {
			return done, fmt.Errorf("wait until transaction %s is archived: %w", j.From, cmp.Or(context.Cause(patience), error(ErrShutdown)))
		}
	}
}

func (j ArchiveJob) do(ctx context.Context, w *archive.Writer, done *ArchiveDone) error {
	s := w.View().State()
	labelled := slices.ContainsFunc(s.Labels, func(l archive.Label) bool { return l.Name == j.Label })
	switch j.Op {
	case ArchiveLabel:
		if labelled {
			return fmt.Errorf("the label %q is taken: %w", j.Label, ErrConflict)
		}
		if j.DryRun {
			return nil
		}
		p, err := w.Label(ctx, j.Label)
		done.Position, done.Time, done.Pages = Position{TXID(p.TXID), Checksum(p.Checksum)}, p.Time.UnixMicro(), p.PageCount
		return err
	case ArchiveUnlabel:
		if !labelled {
			return fmt.Errorf("there is no label %q: %w", j.Label, ErrNotFound)
		}
		if j.DryRun {
			return nil
		}
		return w.Unlabel(ctx, j.Label)
	case ArchivePrune:
		files, err := w.Removable(ctx, time.Now())
		if err != nil {
			return err
		}
		for _, o := range files {
			done.Files = append(done.Files, ArchiveFile{Level: o.Level, First: TXID(o.MinTXID), Last: TXID(o.MaxTXID), Time: o.Time, Bytes: o.Stored, Key: w.View().Key(o)})
		}
		if j.DryRun || len(files) == 0 {
			return nil
		}
		_, err = w.Retain(ctx, time.Now())
		return err
	}
	return fmt.Errorf("archive job %q: %w", j.Op, ErrInvalid)
}
