package node

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/uglyer/ha-sqlite/internal/api"
	"github.com/uglyer/ha-sqlite/replicate"
)

// backend gives the HTTP interface what it asks for.
type backend struct{ n *Node }

func position(p replicate.Position) api.Position {
	return api.Position{TXID: api.Hex64(p.TXID), Checksum: api.Hex64(p.Checksum)}
}

// apiError gives an error of package replicate the sentinel of the HTTP interface.
func apiError(err error) error {
	if busy := (*replicate.BusyError)(nil); errors.As(err, &busy) { // nothing was written
		return &kindError{err, api.ErrUnavailable}
	}
	for _, k := range []struct{ from, to error }{
		{replicate.ErrInvalid, api.ErrInvalid},
		{replicate.ErrNotFound, api.ErrNotFound},
		{replicate.ErrDeleted, api.ErrNotFound},
		{replicate.ErrNoMember, api.ErrNotFound},
		{replicate.ErrExists, api.ErrExists},
		{replicate.ErrForking, api.ErrUnavailable},
		{replicate.ErrHeldLong, api.ErrUnavailable},
		{replicate.ErrConflict, api.ErrInUse},
		{replicate.ErrQuota, api.ErrQuota},
		{replicate.ErrNoLeader, api.ErrNoLeader},
		{replicate.ErrNotLeader, api.ErrNoLeader},
		{replicate.ErrShutdown, api.ErrUnavailable},
		{replicate.ErrFenced, api.ErrUnavailable},
		{replicate.ErrDiskFull, api.ErrUnavailable},
		{replicate.ErrUnknown, api.ErrTimeout},
	} {
		if errors.Is(err, k.from) {
			return &kindError{err, k.to}
		}
	}
	return err
}

// kindError gives an error the sentinel of the HTTP interface without changing its text.
type kindError struct{ err, kind error }

func (e *kindError) Error() string   { return e.err.Error() }
func (e *kindError) Unwrap() []error { return []error{e.err, e.kind} }

// Status implements api.Backend.
func (b backend) Status(ctx context.Context, q api.DatabaseQuery) (api.Status, error) {
	st := b.n.svc.Status(ctx, databaseQuery(q))
	r := api.Status{
		Node: api.NodeStatus{
			ID: b.n.id, Version: b.n.cfg.Version, Started: b.n.started, Raft: b.n.raftAddr, HTTP: b.n.httpAddr, Socket: b.n.socket,
		},
		Log: api.LogStatus{
			Bytes: st.Log.Bytes, LimitBytes: st.Log.Limit, FirstIndex: st.Log.First, LastIndex: st.Log.Last, SnapshotIndex: st.Log.Snapshot,
			Blocked: st.Log.Blocked, BlockedMS: st.Log.BlockedMS,
		},
		Cluster: b.cluster(st), State: st.State, Stale: st.Stale, Databases: []api.DatabaseStatus{},
		Disk: api.DiskStatus{Full: st.Disk.Full, Since: st.Disk.Since, FreeBytes: st.Disk.Free, ReservedBytes: st.Disk.Reserved},
	}
	r.Archive = b.archive()
	r.Totals = api.DatabaseTotals(st.Totals)
	for _, q := range b.n.svc.Quotas() {
		r.Quotas = append(r.Quotas, api.QuotaStatus{Pattern: q.Pattern, Databases: q.Used, MaxDatabases: q.Databases, MaxBytes: q.Size, MaxTransactionBytes: q.Transaction})
	}
	page := databasePage(st.Databases, st.More)
	r.Databases, r.Next = page.Databases, page.Next
	return r, nil
}

func databaseQuery(q api.DatabaseQuery) replicate.DatabaseQuery {
	if q.Limit == 0 {
		q.Limit = api.DefaultLimit
	}
	return replicate.DatabaseQuery(q)
}

func databasePage(list []replicate.DatabaseStatus, more bool) api.DatabasePage {
	p := api.DatabasePage{Databases: make([]api.DatabaseStatus, 0, len(list))}
	for _, d := range list {
		p.Databases = append(p.Databases, database(d))
	}
	if more && len(list) > 0 {
		p.Next = list[len(list)-1].Name
	}
	return p
}

func (b backend) cluster(st *replicate.Status) api.ClusterStatus {
	c := api.ClusterStatus{
		ID: st.Cluster.ID, Lineage: b.n.dir.Record().Lineage, Leader: st.Cluster.Leader, LeaderHTTP: st.Cluster.LeaderHTTP,
		Term: st.Cluster.Term, CommitIndex: st.Cluster.CommitIndex, AppliedIndex: st.Cluster.AppliedIndex,
		Members: []api.MemberStatus{}, Warnings: append([]string{}, st.Cluster.Warnings...),
	}
	for _, m := range st.Cluster.Members {
		c.Members = append(c.Members, api.MemberStatus(m))
	}
	return c
}

func database(d replicate.DatabaseStatus) api.DatabaseStatus {
	r := api.DatabaseStatus{
		Name: d.Name, ID: d.ID, Decided: position(d.Decided), Archived: api.Hex64(d.Archived), Lag: d.Lag, PageSize: d.PageSize, Pages: d.Pages,
		WALBytes: d.WALBytes, Handles: d.Handles, State: d.State, Detail: d.Detail, HolderPID: d.HolderPID, HolderAgeMS: d.HolderAgeMS,
		CatchupPages: d.CatchupPages, CatchupTotal: d.CatchupTotal,
		BacklogFrames: d.BacklogFrames, BacklogMS: d.BacklogMS, ReaderPID: d.ReaderPID, ReaderAgeMS: d.ReaderAgeMS,
	}
	if d.File != nil {
		r.File = position(*d.File)
	}
	if q := d.Quota; q != nil {
		r.Quota = &api.DatabaseQuota{Pattern: q.Pattern, MaxBytes: q.Size, MaxTransactionBytes: q.Transaction}
	}
	return r
}

// Databases implements api.Backend.
func (b backend) Databases(_ context.Context, q api.DatabaseQuery) (api.DatabasePage, error) {
	return databasePage(b.n.svc.Databases(databaseQuery(q))), nil
}

// Database implements api.Backend.
func (b backend) Database(_ context.Context, name string) (api.DatabaseStatus, error) {
	d, ok := b.n.svc.Database(name)
	if !ok {
		return api.DatabaseStatus{}, fmt.Errorf("database %q: %w", name, api.ErrNotFound)
	}
	return database(d), nil
}

// CreateDatabase implements api.Backend.
func (b backend) CreateDatabase(ctx context.Context, req api.CreateDatabaseRequest) (api.DatabaseStatus, error) {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	_, created, err := b.n.svc.Create(ctx, req.Name, replicate.DatabaseID{}, req.PageSize, uint8(req.AutoVacuum))
	if err != nil {
		return api.DatabaseStatus{}, apiError(err)
	}
	if !created {
		return api.DatabaseStatus{}, fmt.Errorf("create database %q: %w", req.Name, api.ErrExists)
	}
	return b.Database(ctx, req.Name)
}

// DeleteDatabase implements api.Backend.
func (b backend) DeleteDatabase(ctx context.Context, name string, force bool) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	return apiError(b.n.svc.Delete(ctx, name, force))
}

// Cluster implements api.Backend.
func (b backend) Cluster(ctx context.Context) (api.ClusterStatus, error) {
	return b.cluster(b.n.svc.Status(ctx, replicate.DatabaseQuery{})), nil
}

// AddMember implements api.Backend.
func (b backend) AddMember(ctx context.Context, req api.AddMemberRequest) error {
	return apiError(b.n.svc.AddMember(ctx, req.ID, req.Raft, req.Voter))
}

// RemoveMember implements api.Backend.
func (b backend) RemoveMember(ctx context.Context, id string, force bool) error {
	return apiError(b.n.svc.RemoveMember(ctx, id, force))
}

// ReplaceMember implements api.Backend.
func (b backend) ReplaceMember(ctx context.Context, req api.ReplaceRequest) (api.Replacement, error) {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	r, err := b.n.svc.Replace(ctx, req.Old, req.Raft, req.Force)
	return api.Replacement(r), apiError(err)
}

// TransferLeadership implements api.Backend.
func (b backend) TransferLeadership(ctx context.Context, req api.TransferRequest) error {
	return apiError(b.n.svc.TransferLeadership(ctx, req.ID))
}

// Verify implements api.Backend.
func (b backend) Verify(ctx context.Context, name string, deep bool) (api.VerifyReport, error) {
	start := time.Now()
	st, ok := b.n.svc.Lookup(name)
	if !ok {
		return api.VerifyReport{}, fmt.Errorf("verify database %q: %w", name, api.ErrNotFound)
	}
	all, err := b.n.svc.Verify(ctx, name, deep)
	if err != nil {
		return api.VerifyReport{}, apiError(err)
	}
	r := api.VerifyReport{Name: name, ID: st.ID.String(), Deep: deep, Equal: true}
	ref := reference(all)
	if ref != nil {
		r.Position = position(ref.Position)
	}
	for _, v := range all {
		n := compare(v, ref, deep)
		r.Equal = r.Equal && n.State == api.VerifyEqual
		r.Nodes = append(r.Nodes, n)
	}
	r.DurationMS = time.Since(start).Milliseconds()
	return r, nil
}

// reference is the copy that the others are compared with: one whose bytes are what its position says.
func reference(all []replicate.Verification) *replicate.Verification {
	var ref *replicate.Verification
	for i := range all {
		v := &all[i]
		if v.Err == "" && v.Checksum == v.Position.Checksum && (ref == nil || v.Position.TXID > ref.Position.TXID) {
			ref = v
		}
	}
	return ref
}

// maxDiffering bounds the page numbers that a report lists.
const maxDiffering = 100

func compare(v replicate.Verification, ref *replicate.Verification, deep bool) api.VerifyNode {
	n := api.VerifyNode{Node: v.Node, State: api.VerifyEqual, Position: position(v.Position), Pages: v.Pages, Detail: v.Err}
	switch {
	case v.Err != "":
		n.State = api.VerifyUnreachable
		if v.Fenced {
			n.State = api.VerifyFenced
		}
		return n
	case ref == nil:
		n.State = api.VerifyDiffers
		return n
	case v.Position.TXID != ref.Position.TXID:
		n.State = api.VerifyBehind
		return n
	case v.Checksum != ref.Checksum || v.Pages != ref.Pages || v.Position != ref.Position:
		n.State = api.VerifyDiffers
		n.Detail = fmt.Sprintf("the bytes have checksum %s, not %s", v.Checksum, ref.Checksum)
	}
	if !deep {
		return n
	}
	for i := range max(len(v.Sums), len(ref.Sums)) {
		if i < len(v.Sums) && i < len(ref.Sums) && v.Sums[i] == ref.Sums[i] {
			continue
		}
		n.State = api.VerifyDiffers
		if n.DifferingPages++; len(n.Differing) < maxDiffering {
			n.Differing = append(n.Differing, uint32(i)+1)
		}
	}
	return n
}

// Health implements api.Backend.
func (b backend) Health(context.Context) error { return b.n.failure() }

// Ready implements api.Backend.
func (b backend) Ready(context.Context) error {
	if !b.n.svc.Ready() {
		return fmt.Errorf("this node knows no leader or replays its log: %w", api.ErrUnavailable)
	}
	return nil
}

// Metrics implements api.MetricsSource.
func (b backend) Metrics() api.Metrics {
	st, m := b.n.svc.LocalStatus(), b.n.svc.Metrics()
	r := api.Metrics{
		IsLeader: st.State == api.StateLeader, Stale: st.Stale, Term: st.Cluster.Term, DiskFull: st.Disk.Full, DiskFreeBytes: st.Disk.Free,
		CommitIndex: st.Cluster.CommitIndex, AppliedIndex: st.Cluster.AppliedIndex,
		LogSizeBytes: st.Log.Bytes, LogLimitBytes: st.Log.Limit, LogBlockedSeconds: float64(st.Log.BlockedMS) / 1000,
		Begins: m.Begins, Commits: m.Commits, Applied: m.Applied, ReplicatedBytes: m.ReplicatedBytes,
		Checkpoints: map[api.CheckpointKey]uint64{}, LeaderChanges: m.LeaderChanges, Fences: m.Fences, Heals: m.Heals, FetchedPages: m.FetchedPages, ShippedPages: m.ShippedPages, Errors: m.Errors,
		BeginSeconds: m.BeginSeconds, CommitSeconds: m.CommitSeconds, ApplySeconds: m.ApplySeconds,
	}
	for k, v := range m.Checkpoints {
		r.Checkpoints[api.CheckpointKey(k)] = v
	}
	r.Archive = b.archive()
	t := st.Totals
	r.Databases, r.Handles, r.WALSizeBytes, r.ApplyLagEntries = t.States, t.Handles, t.WALBytes, t.Lag
	r.BacklogFrames, r.BacklogSeconds, r.OldestReaderSeconds = t.BacklogFrames, float64(t.BacklogMS)/1000, float64(t.ReaderAgeMS)/1000
	return r
}
