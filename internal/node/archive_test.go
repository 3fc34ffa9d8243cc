package node

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/uglyer/ha-sqlite/internal/api"
	"github.com/uglyer/ha-sqlite/internal/moment"
	"github.com/uglyer/ha-sqlite/snapshot/archive"
	"github.com/uglyer/ha-sqlite/snapshot/store"
	"github.com/uglyer/ha-sqlite/snapshot/store/storetest"
)

const archiveInterval = 50 * time.Millisecond

// archiving gives all nodes one archive in S3, and a short interval.
func archiving(url string) func(int, *Config) {
	return func(_ int, cfg *Config) {
		cfg.Archive, cfg.ArchiveInterval = url, archiveInterval
	}
}

// archived waits until the archive that node i sees has everything that is decided of a database, and checks that every
// commit from the first one on can be restored, but for gaps.
func (c *cluster) archived(i int, name string, gaps int) *archive.View {
	c.t.Helper()
	v := c.archivedLate(i, name, gaps)
	if first, err := v.First(c.t.Context()); err != nil || first.TXID != 1 {
		c.t.Errorf("the archive of %s begins with %d, %v", name, first.TXID, err)
	}
	return v
}

// backlogsEmpty waits until no node keeps commits for the archive on its disk.
func (c *cluster) backlogsEmpty() {
	c.t.Helper()
	eventually(c.t, "the backlogs are empty", func() error {
		for i, n := range c.nodes {
			if b := n.svc.ArchiveStatus().Backlog; b.Bytes != 0 || b.Dropped != 0 {
				return fmt.Errorf("node %d: %+v", i, b)
			}
		}
		return nil
	})
}

// archivedLate is archived for a history that may begin with a snapshot.
func (c *cluster) archivedLate(i int, name string, gaps int) *archive.View {
	c.t.Helper()
	ctx := context.Background()
	var v *archive.View
	eventually(c.t, "node "+fmt.Sprint(i)+" has all of "+name+" in the archive", func() error {
		a := c.nodes[i].Archive()
		st, ok := c.nodes[c.leader()].svc.Lookup(name)
		if a == nil || !ok {
			return errors.New("not open")
		}
		var err error
		v, err = a.Load(ctx, archive.Identity{Cluster: a.Cluster(), Lineage: c.nodes[i].dir.Record().Lineage, Database: st.ID.String(), Name: name})
		if err != nil {
			return err
		}
		if v.Empty() || v.Last().TXID != uint64(st.Position.TXID) {
			return fmt.Errorf("decided is %s, archived %v", st.Position, v.State().Last)
		}
		if v.Last().Checksum != uint64(st.Position.Checksum) {
			c.t.Fatalf("decided is %s, archived %+v", st.Position, v.Last())
		}
		return nil
	})
	if got := len(v.State().Gaps); got != gaps {
		c.t.Errorf("gaps %v, want %d", v.State().Gaps, gaps)
	}
	first, err := v.First(ctx)
	if err != nil {
		c.t.Fatal(err)
	}
	next := first.TXID
	if err := v.Commits(ctx, 0, func(p archive.Point) error {
		if gaps == 0 && p.TXID != next {
			return fmt.Errorf("commit %d is followed by %d", next-1, p.TXID)
		}
		next = p.TXID + 1
		plan, err := v.Plan(ctx, p)
		if err != nil {
			return err
		}
		return v.Restore(ctx, plan, nowhere{}, nil)
	}); err != nil {
		c.t.Fatal(err)
	}
	report, err := v.Verify(ctx, nil)
	if err != nil || len(report.Problems) > 0 {
		c.t.Fatalf("verify: %v, %v", report, err)
	}
	return v
}

// nowhere takes a restored database and keeps nothing.
type nowhere struct{}

func (nowhere) Truncate(int64) error                   { return nil }
func (nowhere) WriteAt(p []byte, _ int64) (int, error) { return len(p), nil }

func TestEveryCommitIsInTheArchiveAcrossLeaders(t *testing.T) {
	g := storetest.StartGateway(t)
	c := newCluster(t, 3, archiving(g.URL("p")))
	exec(t, c.open(0, "shop"), `CREATE TABLE t(v)`)
	for round := range 3 {
		for i := range c.nodes {
			db := c.open(i, "shop")
			for range 5 {
				exec(t, db, `INSERT INTO t VALUES(randomblob(500))`)
			}
		}
		if round < 2 {
			leader := c.leader()
			c.stop(leader)
			c.start(leader)
			c.ready(leader)
		}
	}
	exec(t, c.open(0, "shop"), `INSERT INTO t VALUES(randomblob(3000000))`) // in parts
	c.archived(0, "shop", 0)
	eventually(t, "all nodes know", func() error {
		for i, n := range c.nodes {
			st, _ := n.svc.Lookup("shop")
			if st.Archived != st.Position.TXID {
				return fmt.Errorf("node %d at %s knows of %s", i, st.Position, st.Archived)
			}
			if b := n.svc.ArchiveStatus().Backlog.Bytes; b != 0 {
				return fmt.Errorf("node %d keeps %d bytes", i, b)
			}
		}
		return nil
	})
}

// stores lets the archive of each node fail.
func stores(t *testing.T) map[string]*storetest.Faulty {
	t.Helper()
	all := map[string]*storetest.Faulty{}
	var mu sync.Mutex
	former := wrapStore
	wrapStore = func(cfg Config, s store.Store) store.Store {
		mu.Lock()
		defer mu.Unlock()
		if all[cfg.ID] == nil {
			all[cfg.ID] = storetest.NewFaulty(s, 1)
		}
		return all[cfg.ID]
	}
	t.Cleanup(func() { wrapStore = former })
	return all
}

// smallLog makes the log so short that it is compacted all the time.
func smallLog(url string) func(int, *Config) {
	return func(i int, cfg *Config) {
		archiving(url)(i, cfg)
		small(i, cfg)
	}
}

func (c *cluster) insert(i int, name string, rows int) {
	c.t.Helper()
	db := c.open(i, name)
	defer db.Close()
	exec(c.t, db, `CREATE TABLE IF NOT EXISTS t(v)`)
	for range rows {
		exec(c.t, db, `INSERT INTO t VALUES(randomblob(500))`)
	}
}

// logsFrom waits until the logs of all nodes have lost entries.
func (c *cluster) logsFrom(index uint64) {
	c.t.Helper()
	eventually(c.t, "the logs are compacted", func() error {
		for i, n := range c.nodes {
			if n == nil {
				continue
			}
			if st := n.svc.LocalStatus().Log; st.First < index {
				return fmt.Errorf("node %d begins at %d, want %d", i, st.First, index)
			}
		}
		return nil
	})
}

// TestWhatIsNotArchivedOutlivesTheLog: the store is down while logs are compacted and nodes start anew (RULES B14).
func TestWhatIsNotArchivedOutlivesTheLog(t *testing.T) {
	g := storetest.StartGateway(t)
	c := newCluster(t, 3, smallLog(g.URL("p")))
	c.insert(0, "db", 5)
	c.archived(0, "db", 0)
	g.Stop()
	c.insert(1, "db", 60)
	exec(t, c.open(0, "db"), `INSERT INTO t VALUES(randomblob(2000000))`) // in parts
	c.insert(2, "db", 60)
	c.logsFrom(60)
	for i := range c.nodes {
		c.stop(i)
	}
	for i := range c.nodes {
		c.start(i)
	}
	for i := range c.nodes {
		c.ready(i)
	}
	c.insert(0, "db", 30)
	if st := c.nodes[0].svc.ArchiveStatus(); st.Lagging == 0 && st.Open {
		t.Fatalf("nothing lags: %+v", st)
	}
	g.Start()
	c.archived(0, "db", 0)
	c.backlogsEmpty()
}

// TestCommitsThatALeaderLacksComeFromAPeer: it took pages instead of entries (RULES B14).
func TestCommitsThatALeaderLacksComeFromAPeer(t *testing.T) {
	g := storetest.StartGateway(t)
	c := newCluster(t, 3, smallLog(g.URL("p")))
	c.insert(0, "db", 5)
	c.archived(0, "db", 0)
	eventually(t, "all nodes have the archive open", func() error { // without the store they could not, and would say so to the end
		for i, n := range c.nodes {
			if st := n.svc.ArchiveStatus(); !st.Open {
				return fmt.Errorf("node %d: %s", i, st.Error)
			}
		}
		return nil
	})
	g.Stop()
	late := c.follower()
	c.stop(late)
	other := (late + 1) % 3
	c.insert(other, "db", 80)
	c.logsFrom(60)
	c.start(late)
	c.ready(late)
	c.equal("db")
	c.insert(other, "db", 5)
	former := c.leader()
	eventually(t, "the leader cannot archive", func() error {
		if c.leader() == former && c.nodes[former].svc.ArchiveStatus().Error == "" {
			return errors.New("it does not say so")
		}
		return nil
	})
	eventually(t, "the node that was away leads", func() error {
		if c.leader() == late {
			return nil
		}
		return errors.Join(errors.New("it does not"), backend{c.nodes[c.leader()]}.TransferLeadership(t.Context(), api.TransferRequest{ID: c.cfgs[late].ID}))
	})
	eventually(t, "nobody else archives", func() error { // or what it has in memory could get there first
		for i, n := range c.nodes {
			if st := n.svc.ArchiveStatus(); i != late && st.Error != "" {
				return fmt.Errorf("node %d: %s", i, st.Error)
			}
		}
		return nil
	})
	g.Start()
	c.archived(late, "db", 0)
	if st := c.nodes[late].svc.ArchiveStatus(); st.Fetched == 0 || st.Gaps != 0 {
		t.Errorf("%+v", st)
	}
}

// TestBacklogPastItsCapIsAGapAndNoHole: what there was no room for is gone, and a snapshot leads over it.
func TestBacklogPastItsCapIsAGapAndNoHole(t *testing.T) {
	g := storetest.StartGateway(t)
	c := newCluster(t, 3, func(i int, cfg *Config) {
		smallLog(g.URL("p"))(i, cfg)
		cfg.ArchiveBacklog = 10 << 10
	})
	c.insert(0, "db", 5)
	c.archived(0, "db", 0)
	g.Stop()
	c.insert(0, "db", 80)
	c.logsFrom(60)
	g.Start()
	v := c.archived(0, "db", 1)
	if gap := v.State().Gaps[0]; gap.MinTXID < 8 || gap.MaxTXID >= v.Last().TXID {
		t.Errorf("gap %+v, want it between commit 7 and the last one, %d", gap, v.Last().TXID)
	}
	c.inexact(v)
	c.insert(1, "db", 5)
	c.archived(0, "db", 1)
}

// inexact checks what is done to a state of the database db by a time in its gap, and by the time of its commit.
func (c *cluster) inexact(v *archive.View) {
	c.t.Helper()
	gap := v.State().Gaps[0]
	before, err := v.PointOf(c.t.Context(), gap.MinTXID-1)
	if err != nil {
		c.t.Fatal(err)
	}
	behind, err := v.PointOf(c.t.Context(), gap.MaxTXID+1)
	if err != nil {
		c.t.Fatal(err)
	}
	b := backend{c.nodes[0]}
	progress := func(api.Progress) {}
	at := func(d time.Duration) api.Moment {
		return api.Moment{At: before.Time.Add(d).Format(time.RFC3339Nano)}
	}
	_, rolled := b.Rollback(c.t.Context(), api.RollbackRequest{Name: "db", Moment: at(time.Microsecond)}, progress)
	_, forked := b.Fork(c.t.Context(), api.ForkRequest{Source: "db", Name: "fork", Moment: at(time.Microsecond)}, progress)
	for _, err := range []error{rolled, forked} {
		for _, p := range []archive.Point{before, behind} {
			if want := moment.Bookmark(v, p) + " of " + moment.TimeText(p.Time); !errors.Is(err, api.ErrNotFound) || !strings.Contains(err.Error(), want) {
				c.t.Errorf("%v, want %q", err, want)
			}
		}
	}
	r, err := b.Rollback(c.t.Context(), api.RollbackRequest{Name: "db", Moment: at(0), DryRun: true}, progress)
	if err != nil || uint64(r.Target.TXID) != before.TXID {
		c.t.Errorf("the time of the commit itself: %+v, %v", r, err)
	}
	for d, dropped := range map[time.Duration]bool{0: false, time.Microsecond: true} {
		head, file, err := b.Export(c.t.Context(), "db", at(d))
		if err != nil || uint64(head.Commit.TXID) != before.TXID || head.Dropped != dropped {
			c.t.Fatalf("export %v behind the commit: %+v, %v", d, head, err)
		}
		file.Close()
	}
}

// An archive that was not there from the start begins with what it can have, not with an empty database that would be the
// state of all times before.
func TestALateArchiveBeginsWithASnapshot(t *testing.T) {
	c := newCluster(t, 1, small)
	c.insert(0, "db", 60)
	c.logsFrom(30)
	was, _ := c.nodes[0].svc.Lookup("db")
	c.stop(0)
	ownArchives(0, &c.cfgs[0])
	c.start(0)
	c.ready(0)
	c.insert(0, "db", 3)
	c.insert(0, "new", 3)
	v := c.archivedLate(0, "db", 0)
	if first, err := v.First(t.Context()); err != nil || first.TXID < uint64(was.Position.TXID) || !v.HasSnapshot(first) {
		t.Errorf("it begins with %+v, %v", first, err)
	}
	c.archived(0, "new", 0) // from its first commit on
	if st := c.nodes[0].svc.ArchiveStatus(); st.Gaps != 0 {
		t.Errorf("%d gaps are counted", st.Gaps)
	}
	at := api.Moment{At: time.UnixMicro(was.CommitTime - 1).UTC().Format(time.RFC3339Nano)}
	var before *archive.RangeError
	if _, err := (backend{c.nodes[0]}).Rollback(t.Context(), api.RollbackRequest{Name: "db", Moment: at}, func(api.Progress) {}); !errors.As(err, &before) || !errors.Is(err, api.ErrNotFound) {
		t.Errorf("a rollback to what is not archived: %v", err)
	}
	if _, _, err := (backend{c.nodes[0]}).Export(t.Context(), "db", at); !errors.Is(err, api.ErrNotFound) {
		t.Errorf("an export of what is not archived: %v", err)
	}
}

// TestADeletedDatabaseIsArchivedToItsEnd: its last commits, too, can be restored.
func TestADeletedDatabaseIsArchivedToItsEnd(t *testing.T) {
	g := storetest.StartGateway(t)
	c := newCluster(t, 3, archiving(g.URL("p")))
	g.Stop()
	c.insert(0, "db", 10)
	st, _ := c.nodes[c.leader()].svc.Lookup("db")
	if err := c.nodes[c.leader()].svc.Delete(t.Context(), "db", true); err != nil {
		t.Fatal(err)
	}
	g.Start()
	eventually(t, "the archive has the last commit", func() error {
		a := c.nodes[0].Archive()
		if a == nil {
			return errors.New("it is not open")
		}
		v, err := a.Load(t.Context(), archive.Identity{Cluster: a.Cluster(), Lineage: c.nodes[0].dir.Record().Lineage, Database: st.ID.String(), Name: "db"})
		if err != nil {
			return err
		}
		if v.Empty() || v.Last().Checksum != uint64(st.Position.Checksum) {
			return fmt.Errorf("it has %+v, want %s", v.State().Last, st.Position)
		}
		return nil
	})
	eventually(t, "nobody keeps anything of it", func() error {
		for i, n := range c.nodes {
			if st := n.svc.ArchiveStatus(); st.Lagging != 0 || st.Backlog.Bytes != 0 {
				return fmt.Errorf("node %d: %+v", i, st)
			}
		}
		return nil
	})
}

// TestIdleDatabasesSendNoRequest: once their last commits are merged and a state was restored from them, also after another
// node leads. Restore drills, which are made by the leader alone, are due all the time meanwhile.
func TestIdleDatabasesSendNoRequest(t *testing.T) {
	g := storetest.StartGateway(t)
	all := stores(t)
	c := newCluster(t, 3, func(i int, cfg *Config) {
		archiving(g.URL("p"))(i, cfg)
		cfg.ArchiveLevels = [3]time.Duration{50 * time.Millisecond, 50 * time.Millisecond, 50 * time.Millisecond}
		cfg.DrillInterval = 20 * time.Millisecond
	})
	runs := func() (n uint64) {
		for _, n2 := range c.nodes {
			n += n2.drills.status(time.Now()).Runs
		}
		return n
	}
	for i := range 10 {
		c.insert(0, fmt.Sprint("db", i), 2)
	}
	for i := range 10 {
		c.archived(0, fmt.Sprint("db", i), 0)
	}
	calls := func() (n int) {
		for _, f := range all {
			n += f.Calls("")
		}
		return n
	}
	quiet := func() {
		last, since := calls(), time.Now()
		eventually(t, "nothing is sent for a second", func() error {
			if n := calls(); n != last {
				last, since = n, time.Now()
			}
			if time.Since(since) < time.Second {
				return fmt.Errorf("%d requests so far", last)
			}
			return nil
		})
	}
	quiet()
	eventually(t, "all positions are known", func() error {
		for i, n := range c.nodes {
			if st := n.svc.ArchiveStatus(); st.Lagging != 0 {
				return fmt.Errorf("node %d: %+v", i, st)
			}
		}
		return nil
	})
	eventually(t, "all nodes know of the last drill", func() error {
		for i, n := range c.nodes {
			mark, _ := n.svc.ArchiveMark()
			n.drills.mu.Lock()
			st, found := n.drills.st, n.drills.found
			n.drills.mu.Unlock()
			if found != mark || st.LastOK.IsZero() || st.Failures > 0 || i != c.leader() && st.Runs > 0 {
				return fmt.Errorf("node %d: %+v of %x, archived is %x", i, st, found, mark)
			}
		}
		return nil
	})
	before, drills, leader := calls(), runs(), c.leader()
	if err := (backend{c.nodes[leader]}).TransferLeadership(t.Context(), api.TransferRequest{ID: c.cfgs[(leader+1)%3].ID}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "another leader", func() error {
		if c.leader() == leader {
			return errors.New("it is the former one")
		}
		return nil
	})
	quiet()
	if n := calls() - before; n != 0 {
		t.Errorf("%d requests for idle databases after a change of leaders", n)
	}
	if n := runs(); n != drills {
		t.Errorf("%d drills of what was restored before", n-drills)
	}
	c.insert(0, "db3", 1)
	eventually(t, "the new leader drills what is new", func() error {
		if n := c.nodes[c.leader()].drills.status(time.Now()).Runs; n == 0 {
			return errors.New("it does not")
		}
		return nil
	})
}

func TestEveryNodeHasAnArchiveOfItsOwn(t *testing.T) {
	c := newCluster(t, 3, ownArchives)
	db := c.open(1, "shop")
	exec(t, db, `CREATE TABLE t(v)`)
	for range 10 {
		exec(t, db, `INSERT INTO t VALUES(randomblob(500))`)
	}
	for i, n := range c.nodes {
		c.archived(i, "shop", 0)
		if got := n.Archive().Store().URL(); got != "file://"+filepath.Join(c.cfgs[i].Data, "archive") {
			t.Errorf("node %d keeps its archive in %s", i, got)
		}
	}
}

func TestAStartLooksForFewDatabasesAtATime(t *testing.T) {
	const databases, most = 90, 64
	c := newCluster(t, 1, ownArchives)
	for i := range databases {
		c.insert(0, fmt.Sprint("db", i), 1)
	}
	idle := func() error {
		if st := c.nodes[0].svc.ArchiveStatus(); st.Lagging > 0 {
			return fmt.Errorf("%+v", st)
		}
		return nil
	}
	eventually(t, "all is archived", idle)
	c.stop(0)
	c.start(0)
	seen, unknown := 0, 0
	eventually(t, "all was looked for", func() error {
		st := c.nodes[0].svc.ArchiveStatus()
		seen, unknown = max(seen, st.Looking), max(unknown, st.Unknown)
		for i := range databases {
			db, ok := c.nodes[0].svc.Lookup(fmt.Sprint("db", i))
			if !ok || c.nodes[0].svc.ArchivedPosition(db.ID) != db.Position.TXID {
				return fmt.Errorf("db%d is not: %+v", i, st)
			}
		}
		return nil
	})
	if seen == 0 || seen > most {
		t.Errorf("%d at a time, want at most %d", seen, most)
	}
	if now := c.nodes[0].svc.ArchiveStatus().Unknown; unknown <= most || now != 0 {
		t.Errorf("%d databases were unknown, %d are", unknown, now)
	}
}

// TestAnArchiveOfANodeThatWasAway: it is filled with the commits of the others' archives (RULES B14).
func TestAnArchiveOfANodeThatWasAway(t *testing.T) {
	c := newCluster(t, 3, func(i int, cfg *Config) {
		small(i, cfg)
		ownArchives(i, cfg)
	})
	c.insert(0, "db", 5)
	late := c.follower()
	c.archived(late, "db", 0)
	c.stop(late)
	other := (late + 1) % 3
	c.insert(other, "db", 80)
	c.logsFrom(60)
	c.archived(other, "db", 0)
	c.archived((late+2)%3, "db", 0)
	c.start(late)
	c.ready(late)
	c.archived(late, "db", 0)
	if st := c.nodes[late].svc.ArchiveStatus(); st.Fetched == 0 {
		t.Errorf("%+v", st)
	}
}
