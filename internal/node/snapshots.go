package node

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/uglyer/ha-sqlite/internal/api"
	"github.com/uglyer/ha-sqlite/internal/moment"
	"github.com/uglyer/ha-sqlite/replicate"
	"github.com/uglyer/ha-sqlite/snapshot/archive"
	"github.com/uglyer/ha-sqlite/snapshot/store"
)

// ArchiveStore implements api.Archives.
func (b backend) ArchiveStore(context.Context) (store.Store, error) {
	a := b.n.Archive()
	if a == nil {
		return nil, fmt.Errorf("this node has no archive, or it is not open yet: %w", api.ErrUnavailable)
	}
	return a.Store(), nil
}

// job does an archive job on the database of a name.
func (b backend) job(ctx context.Context, name string, j replicate.ArchiveJob) (string, []replicate.ArchiveDone, map[string]string, error) {
	// A database that was made a moment ago, through another node, is not unknown here.
	late, cancel := context.WithTimeout(ctx, writerWait)
	defer cancel()
	if err := b.n.svc.CatchUp(late); err != nil {
		return "", nil, nil, fmt.Errorf("archive of %q: %w", name, apiError(err))
	}
	st, ok := b.n.svc.Lookup(name)
	if !ok {
		return "", nil, nil, fmt.Errorf("database %q: %w", name, api.ErrNotFound)
	}
	j.DB = st.ID
	all, err := b.n.svc.ArchiveJob(ctx, j)
	if err != nil {
		return "", nil, nil, fmt.Errorf("archive of %q: %w", name, apiError(err))
	}
	failed := map[string]string{}
	var done []replicate.ArchiveDone
	for _, d := range all {
		if d.Err != "" {
			failed[d.Node] = d.Err
		} else {
			done = append(done, d)
		}
	}
	return st.ID.String(), done, failed, nil
}

// Label implements api.Archives.
func (b backend) Label(ctx context.Context, req api.SnapshotRequest, progress func(api.Progress)) (api.SnapshotReport, error) {
	if req.To != "" {
		return api.SnapshotReport{}, fmt.Errorf("only the state as it is now can be labelled: %w", api.ErrInvalid)
	}
	progress(api.Progress{Step: "snapshot"})
	return b.label(ctx, req, replicate.ArchiveLabel)
}

// Unlabel implements api.Archives.
func (b backend) Unlabel(ctx context.Context, req api.SnapshotRequest, progress func(api.Progress)) (api.SnapshotReport, error) {
	progress(api.Progress{Step: "unlabel"})
	if req.To != "" && req.Label == "" {
		var err error
		if req.Label, err = b.labelOf(ctx, req.Name, req.To); err != nil {
			return api.SnapshotReport{Name: req.Name}, err
		}
		req.To = ""
	}
	return b.label(ctx, req, replicate.ArchiveUnlabel)
}

// labelOf finds the label of a state in the archive that this node reads. Where each node has an archive of its own the
// states of one label may differ, so what is asked for of all nodes is the label.
func (b backend) labelOf(ctx context.Context, name, to string) (string, error) {
	m, err := moment.Parse("", to, time.Now())
	if err != nil {
		return "", fmt.Errorf("%w: %w", err, api.ErrInvalid)
	}
	a := b.n.Archive()
	if a == nil {
		return "", fmt.Errorf("the archive of this node cannot be read (%s): %w", b.n.ArchiveURL(), api.ErrUnavailable)
	}
	f, err := m.Find(ctx, a, name)
	if errors.Is(err, archive.ErrNotArchived) || errors.Is(err, archive.ErrNoDatabase) {
		return "", fmt.Errorf("%w: %w", err, api.ErrNotFound)
	}
	if err != nil {
		return "", err
	}
	var labels []string
	for _, l := range f.View.State().Labels {
		if l.TXID == f.Point.TXID {
			labels = append(labels, l.Name)
		}
	}
	switch len(labels) {
	case 0:
		return "", fmt.Errorf("the state %s of %q has no label: %w", f.Bookmark(), name, api.ErrNotFound)
	case 1:
		return labels[0], nil
	}
	return "", fmt.Errorf("the state %s of %q has the labels %q: say which: %w", f.Bookmark(), name, labels, api.ErrInvalid)
}

func (b backend) label(ctx context.Context, req api.SnapshotRequest, op string) (api.SnapshotReport, error) {
	r := api.SnapshotReport{Name: req.Name, Label: req.Label, DryRun: req.DryRun}
	if err := req.Validate(); err != nil {
		return r, err
	}
	id, done, failed, err := b.job(ctx, req.Name, replicate.ArchiveJob{Op: op, Label: req.Label, DryRun: req.DryRun})
	if err != nil {
		return r, err
	}
	r.ID, r.Failed = id, failed
	for _, d := range done {
		if d.Position.TXID == 0 || r.Commit.TXID != 0 && d.Node != b.n.id {
			continue // of several archives the answer gives the state of this node's
		}
		dbid, err := replicate.ParseDatabaseID(id)
		if err != nil {
			return r, err
		}
		r.Commit = commit(dbid, d.Position, d.Time, d.Pages)
	}
	return r, nil
}

// Prune implements api.Archives.
func (b backend) Prune(ctx context.Context, req api.PruneRequest, progress func(api.Progress)) (api.PruneReport, error) {
	progress(api.Progress{Step: "prune"})
	r := api.PruneReport{Name: req.Name, DryRun: req.DryRun}
	id, done, failed, err := b.job(ctx, req.Name, replicate.ArchiveJob{Op: replicate.ArchivePrune, DryRun: req.DryRun})
	if err != nil {
		return r, err
	}
	r.ID, r.Failed = id, failed
	for _, d := range done {
		for _, f := range d.Files {
			r.Bytes += f.Bytes
			r.Files = append(r.Files, api.PrunedFile{
				Node: d.Node, Level: f.Level, First: api.Hex64(f.First), Last: api.Hex64(f.Last), Time: time.UnixMicro(f.Time).UTC(), Bytes: f.Bytes, Key: f.Key,
			})
		}
	}
	return r, nil
}
