package node

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/uglyer/ha-sqlite/internal/api"
	"github.com/uglyer/ha-sqlite/internal/moment"
	"github.com/uglyer/ha-sqlite/internal/sqlitefile"
	"github.com/uglyer/ha-sqlite/replicate"
	"github.com/uglyer/ha-sqlite/snapshot/archive"
)

const (
	// NoDrills is the value of Config.DrillInterval with which none is made.
	NoDrills = time.Duration(-1)
	// drillRate is how many bytes of an archive a drill reads in a second.
	drillRate = 32 << 20
	// drillLookups is how many databases are looked at for one that is archived.
	drillLookups = 8
)

// driller restores sampled states of sampled databases from the archive by schedule, checks them, and drops them.
type driller struct {
	interval time.Duration
	dir      string // for the files, emptied at each start
	rate     int64  // bytes a second
	archive  func() *archive.Archive
	sample   func(n func(int) int) (replicate.DatabaseState, bool) // one of the databases
	lineage  func() uint64
	room     func(bytes int64) error
	failed   func(msg string, args ...any)
	rand     *rand.Rand // of the one goroutine that drills

	mu sync.Mutex
	st api.DrillStatus
}

func (n *Node) newDriller() *driller {
	return &driller{
		interval: n.cfg.DrillInterval, dir: filepath.Join(n.dir.Path(), "spool"), rate: drillRate, archive: n.svc.Archive, sample: n.svc.Sample,
		lineage: func() uint64 { return n.dir.Record().Lineage }, room: func(bytes int64) error { return n.room(bytes, 1) }, failed: n.log.Error,
		rand: rand.New(rand.NewPCG(rand.Uint64(), rand.Uint64())),
		st:   api.DrillStatus{IntervalMS: max(0, n.cfg.DrillInterval).Milliseconds()},
	}
}

// run drills until the context ends. The nodes of a cluster do it at different times.
func (d *driller) run(ctx context.Context) {
	wait := time.Duration(d.rand.Int64N(int64(d.interval) + 1))
	for {
		t := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			t.Stop()
			return
		case <-t.C:
		}
		d.once(ctx)
		wait = d.interval*9/10 + time.Duration(d.rand.Int64N(int64(d.interval)/5+1))
	}
}

// errNothingToDrill is why there was no drill, and no failure either.
var errNothingToDrill = errors.New("nothing to restore")

// once makes one drill and notes what became of it.
func (d *driller) once(ctx context.Context) {
	start := time.Now()
	r := api.DrillReport{Time: start.UTC()}
	err := d.drill(ctx, &r)
	r.DurationMS = time.Since(start).Milliseconds()
	if ctx.Err() != nil {
		return // the node stops
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if errors.Is(err, errNothingToDrill) {
		d.st.Skipped++
		d.st.Reason = err.Error()
		return
	}
	d.st.Runs++
	d.st.Reason = ""
	if err != nil {
		d.st.Failures++
		r.Error = err.Error()
		d.failed("a restore drill failed: look at the archive with hasqlite archive verify", "db", r.Name, "err", err)
	} else {
		d.st.LastOK = time.Now().UTC()
	}
	d.st.Last = &r
}

// status is what /v1/status shows.
func (d *driller) status(now time.Time) api.DrillStatus {
	d.mu.Lock()
	defer d.mu.Unlock()
	st := d.st
	if !st.LastOK.IsZero() {
		st.AgeMS = now.Sub(st.LastOK).Milliseconds()
	}
	return st
}

func (d *driller) drill(ctx context.Context, r *api.DrillReport) error {
	v, err := d.choose(ctx, r)
	if err != nil {
		return err
	}
	first, err := v.First(ctx)
	if err != nil {
		return err
	}
	// One of the states that can be restored: each transaction number leads to the next such one.
	span := v.Last().TXID - first.TXID + 1
	p, err := v.After(ctx, first.TXID-1+d.rand.Uint64N(span))
	if err != nil {
		return err
	}
	r.Bookmark, r.SizeBytes = moment.Bookmark(v, p), int64(p.PageCount)*int64(v.State().PageSize)
	if err := d.room(r.SizeBytes); err != nil {
		return fmt.Errorf("%w: %w", err, errNothingToDrill)
	}
	err = d.restore(ctx, v, p)
	if !errors.Is(err, archive.ErrDamaged) {
		return err
	}
	// Retention may have removed files in the middle. What is there now has to be whole.
	again, loadErr := d.archive().Load(ctx, v.State().Identity)
	if loadErr != nil {
		return errors.Join(err, loadErr)
	}
	if p, loadErr = again.PointOf(ctx, p.TXID); errors.Is(loadErr, archive.ErrNotArchived) {
		return fmt.Errorf("the state was removed while it was restored: %w", errNothingToDrill)
	} else if loadErr != nil {
		return errors.Join(err, loadErr)
	}
	return d.restore(ctx, again, p)
}

// restore restores a state into a file, checks that, and removes it.
func (d *driller) restore(ctx context.Context, v *archive.View, p archive.Point) error {
	plan, err := v.Plan(ctx, p)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(d.dir, 0o770); err != nil {
		return fmt.Errorf("make the directory for drills: %w", err)
	}
	path := filepath.Join(d.dir, fmt.Sprintf("drill-%s-%016x-%08x", v.State().Database, p.TXID, d.rand.Uint32()))
	began := time.Now()
	err = v.RestoreFile(ctx, plan, path, archive.RestoreOptions{
		Progress: func(done, _ int64) { d.pace(ctx, began, done) },
		Check:    func(path string) error { return sqlitefile.Check(ctx, path) },
	})
	if err != nil {
		return err
	}
	return os.Remove(path)
}

// choose finds a database that has something archived.
func (d *driller) choose(ctx context.Context, r *api.DrillReport) (*archive.View, error) {
	a := d.archive()
	if a == nil {
		return nil, fmt.Errorf("the archive is not open: %w", errNothingToDrill)
	}
	for range drillLookups {
		st, ok := d.sample(d.rand.IntN)
		if !ok {
			return nil, fmt.Errorf("there is no database: %w", errNothingToDrill)
		}
		r.Name = st.Name
		v, err := a.Load(ctx, archive.Identity{Cluster: a.Cluster(), Lineage: d.lineage(), Database: st.ID.String(), Name: st.Name})
		if errors.Is(err, archive.ErrNoDatabase) || err == nil && v.Empty() {
			continue // it is new
		}
		return v, err
	}
	return nil, fmt.Errorf("nothing is archived of the databases that were looked at: %w", errNothingToDrill)
}

// pace waits where more was read than the rate allows.
func (d *driller) pace(ctx context.Context, began time.Time, done int64) {
	ahead := time.Duration(float64(done)/float64(d.rate)*float64(time.Second)) - time.Since(began)
	if ahead <= 0 {
		return
	}
	t := time.NewTimer(ahead)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}
