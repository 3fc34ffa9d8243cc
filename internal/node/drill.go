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

// driller restores sampled states of sampled databases from the archive by schedule, checks them, and drops them: on the
// node that writes the archive, and only if something was archived since the last one that went well.
type driller struct {
	interval time.Duration // 0: never
	dir      string        // for the files, emptied at each start
	rate     int64         // bytes a second
	archive  func() *archive.Archive
	mark     func() (mark uint64, writes bool)                     // as replicate.Service.ArchiveMark
	tell     func(context.Context, replicate.DrillNote)            // the other nodes
	sample   func(n func(int) int) (replicate.DatabaseState, bool) // one of the databases
	lineage  func() uint64
	room     func(bytes int64) error
	failed   func(msg string, args ...any)
	rand     *rand.Rand // of the one goroutine that drills

	mu    sync.Mutex
	st    api.DrillStatus
	found uint64    // mark of what was archived before the last one that went well, anywhere
	due   time.Time // when it was noticed that there is more; zero while there is not
}

func (n *Node) newDriller(archives bool) *driller {
	interval := n.cfg.DrillInterval
	if interval < 0 || !archives {
		interval = 0
	}
	return &driller{
		interval: interval, dir: filepath.Join(n.dir.Path(), "spool"), rate: drillRate,
		archive: func() *archive.Archive { return n.svc.Archive() },
		mark:    func() (uint64, bool) { return n.svc.ArchiveMark() },
		tell:    func(ctx context.Context, note replicate.DrillNote) { n.svc.TellDrill(ctx, note) },
		sample:  func(choose func(int) int) (replicate.DatabaseState, bool) { return n.svc.Sample(choose) },
		lineage: func() uint64 { return n.dir.Record().Lineage },
		room:    func(bytes int64) error { return n.room(bytes, 1) }, failed: n.log.Error,
		rand: rand.New(rand.NewPCG(rand.Uint64(), rand.Uint64())),
		st:   api.DrillStatus{IntervalMS: interval.Milliseconds()},
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

// begin says whether a drill is due, and why not. An archive that gets nothing costs no request.
func (d *driller) begin(now time.Time) (mark uint64, err error) {
	mark, writes := d.mark()
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case !writes:
		err = fmt.Errorf("another node writes the archive, and drills: %w", errNothingToDrill)
	case mark == 0:
		err = fmt.Errorf("nothing is archived: %w", errNothingToDrill)
	case mark == d.found:
		err = fmt.Errorf("nothing was archived since the last one that went well: %w", errNothingToDrill)
	case d.due.IsZero():
		d.due = now
	}
	if err != nil {
		d.due = time.Time{}
	}
	return mark, err
}

// told notes a drill of another node.
func (d *driller) told(n replicate.DrillNote) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if n.OK.After(d.st.LastOK) {
		d.st.LastOK, d.found, d.due = n.OK, n.Mark, time.Time{}
	}
}

// once makes one drill, if it is due, and notes what became of it.
func (d *driller) once(ctx context.Context) {
	if note := d.try(ctx); !note.OK.IsZero() {
		d.tell(ctx, note)
	}
}

// try returns what there is to tell the other nodes.
func (d *driller) try(ctx context.Context) (note replicate.DrillNote) {
	start := time.Now()
	r := api.DrillReport{Time: start.UTC()}
	mark, err := d.begin(start)
	if err == nil {
		err = d.drill(ctx, &r)
	}
	r.DurationMS = time.Since(start).Milliseconds()
	if ctx.Err() != nil {
		return note // the node stops
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if errors.Is(err, errNothingToDrill) {
		d.st.Skipped++
		d.st.Reason = err.Error()
		return note
	}
	d.st.Runs++
	d.st.Reason = ""
	if err != nil {
		d.st.Failures++
		r.Error = err.Error()
		d.failed("a restore drill failed: look at the archive with hasqlite archive verify", "db", r.Name, "err", err)
	} else {
		note = replicate.DrillNote{OK: time.Now().UTC(), Mark: mark}
		d.st.LastOK, d.found, d.due = note.OK, mark, time.Time{}
	}
	d.st.Last = &r
	return note
}

// status is what /v1/status shows.
func (d *driller) status(now time.Time) api.DrillStatus {
	d.mu.Lock()
	defer d.mu.Unlock()
	st := d.st
	if !st.LastOK.IsZero() {
		st.AgeMS = max(0, now.Sub(st.LastOK).Milliseconds())
	}
	if !d.due.IsZero() {
		st.DueMS = now.Sub(d.due).Milliseconds()
	}
	return st
}

func (d *driller) drill(ctx context.Context, r *api.DrillReport) error {
	var v *archive.View
	var p archive.Point
	err := archive.Again(ctx, func() (err error) {
		if v, err = d.choose(ctx, r); err != nil {
			return err
		}
		first, err := v.First(ctx)
		if err != nil {
			return err
		}
		// One of the states that can be restored: each transaction number leads to the next such one.
		span := v.Last().TXID - first.TXID + 1
		p, err = v.After(ctx, first.TXID-1+d.rand.Uint64N(span))
		return err
	})
	if err != nil {
		return err
	}
	r.Bookmark, r.SizeBytes = moment.Bookmark(v, p), int64(p.PageCount)*int64(v.State().PageSize)
	if err := d.room(r.SizeBytes); err != nil {
		return fmt.Errorf("%w: %w", err, errNothingToDrill)
	}
	err = v.Planned(ctx, p, func(v *archive.View, plan *archive.Plan) error { return d.restore(ctx, v, plan) })
	if errors.Is(err, archive.ErrNotArchived) {
		return fmt.Errorf("%w: %w", err, errNothingToDrill)
	}
	return err
}

// restore restores a state into a file, checks that, and removes it.
func (d *driller) restore(ctx context.Context, v *archive.View, plan *archive.Plan) error {
	if err := os.MkdirAll(d.dir, 0o770); err != nil {
		return fmt.Errorf("make the directory for drills: %w", err)
	}
	path := filepath.Join(d.dir, fmt.Sprintf("drill-%s-%016x-%08x", v.State().Database, plan.Target.TXID, d.rand.Uint32()))
	began := time.Now()
	err := v.RestoreFile(ctx, plan, path, archive.RestoreOptions{
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
