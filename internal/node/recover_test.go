package node

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/mattn/go-sqlite3"

	"github.com/uglyer/ha-sqlite/internal/api"
	"github.com/uglyer/ha-sqlite/internal/datadir"
	"github.com/uglyer/ha-sqlite/replicate"
)

// A majority is lost for good. One survivor lacks what the other one has: the survey says so, changes nothing,
// and recovers only what was confirmed. What goes on is a new lineage, in which nothing of the former one has a
// part, until it comes back with nothing of its own.
func TestRecoverAfterTheLossOfAMajority(t *testing.T) {
	c := prepared(t, 3, ownArchives)
	behind := c.follower()
	leader := c.leader()
	other := 3 - leader - behind
	c.stop(behind)
	db := c.open(leader, "db")
	kept := query[string](t, db, `PRAGMA hasqlite_position`)
	for i := range 5 {
		exec(t, db, `INSERT INTO t VALUES(?)`, fmt.Sprint("acknowledged ", i))
	}
	lost := query[string](t, db, `PRAGMA hasqlite_position`)
	cluster := c.nodes[leader].dir.Record().Cluster.String()
	c.equalBut(behind, "db")
	db.Close()
	c.stop(leader)

	// Reads go on without a majority, and say what they are.
	reader := c.open(other, "db")
	if got := query[int](t, reader, `SELECT count(*) FROM t`); got != 9 {
		t.Errorf("%d rows without a majority, want 9", got)
	}
	eventually(t, "the node says that it is stale", func() error {
		if st := c.nodes[other].svc.LocalStatus(); !st.Stale {
			return errors.New("not stale")
		}
		return nil
	})
	if st := query[string](t, reader, `PRAGMA hasqlite_status`); !strings.Contains(st, `"stale":true`) {
		t.Errorf("a reader is told %s", st)
	}
	reader.Close()
	if _, err := Recover(RecoverOptions{Data: c.cfgs[other].Data}, slog.New(slog.DiscardHandler)); !errors.Is(err, datadir.ErrInUse) {
		t.Errorf("recover of a running node: %v", err)
	}
	c.stop(other)

	log := slog.New(slog.DiscardHandler)
	opts := RecoverOptions{Data: c.cfgs[behind].Data, With: []string{c.cfgs[other].Data}}
	r, err := Recover(opts, log)
	if err != nil {
		t.Fatal(err)
	}
	if r.Cluster != cluster || r.Done || r.Furthest != c.cfgs[other].Data || len(r.Nodes) != 2 || len(r.Nodes[0].Members) != 3 || len(r.Database) != 1 {
		t.Fatalf("survey: %+v", r)
	}
	ends := r.Database[0].Ends
	if n := ends[1].Position.TXID - ends[0].Position.TXID; n != 5 || ends[0].Certain > ends[0].Position.TXID {
		t.Errorf("survey: the other node has %d transactions more, want 5: %+v", n, ends)
	}
	opts.AcceptDataLoss = cluster
	if _, err := Recover(opts, log); !errors.Is(err, ErrNotFurthest) {
		t.Errorf("recover of the node that has less: %v", err)
	}
	opts.AcceptDataLoss = strings.Repeat("0", 32)
	if _, err := Recover(opts, log); !errors.Is(err, ErrNotConfirmed) {
		t.Errorf("recover with another cluster's id: %v", err)
	}

	// The other one is lost too, as far as anybody knows.
	r, err = Recover(RecoverOptions{Data: c.cfgs[behind].Data, AcceptDataLoss: cluster}, log)
	if err != nil || !r.Done || r.NewLineage != 1 {
		t.Fatalf("recover: %+v, %v", r, err)
	}
	c.start(behind)
	c.ready(behind)
	db = c.open(behind, "db")
	if got := query[int](t, db, `SELECT count(*) FROM t`); got != 4 {
		t.Errorf("%d rows after the recovery, want 4", got)
	}
	if st := query[string](t, db, `PRAGMA hasqlite_status`); !strings.Contains(st, `"stale":false`) {
		t.Errorf("with a leader a reader is told %s", st)
	}
	waits := func(bookmark string) error {
		_, err := db.Exec(`PRAGMA hasqlite_wait='` + bookmark + `'`)
		return err
	}
	// What was lost is not waited for, whether or not the bookmark has a lineage, and what is kept is there.
	if err := waits(lost); err == nil || !strings.Contains(err.Error(), "recovered without its transaction") {
		t.Errorf("a bookmark of what was lost, above all that is there: %v", err)
	}
	if err := waits(kept); err != nil {
		t.Errorf("a bookmark of what was kept: %v", err)
	}
	now := query[string](t, db, `PRAGMA hasqlite_position`)
	if now != kept+"-1" {
		t.Errorf("position %s after the recovery of %s", now, kept)
	}
	if err := waits(kept + "-2"); err == nil || !strings.Contains(err.Error(), "lineage 1") {
		t.Errorf("a bookmark of a lineage to come: %v", err)
	}
	for i := range 6 {
		exec(t, db, `INSERT INTO t VALUES(?)`, fmt.Sprint("second life ", i))
	}
	if _, err := db.Exec(`PRAGMA hasqlite_wait='` + lost + `'`); err == nil || !strings.Contains(err.Error(), "history") {
		t.Errorf("a bookmark of what was lost: %v", err)
	}
	for i := range 1025 { // as many as are remembered one by one
		exec(t, db, `UPDATE t SET v = ? WHERE rowid = (SELECT max(rowid) FROM t)`, i)
	}
	if err := waits(lost); err == nil || !strings.Contains(err.Error(), "too long ago to tell") {
		t.Errorf("a bookmark of what was lost, long ago: %v", err)
	}
	if err := waits(now); err != nil {
		t.Errorf("a bookmark of this lineage, long ago: %v", err)
	}
	st, err := backend{c.nodes[behind]}.Status(t.Context(), api.DatabaseQuery{})
	if err != nil || len(st.Cluster.Members) != 1 || st.Cluster.Lineage != 1 || st.State != api.StateLeader {
		t.Errorf("status after the recovery: %+v, %v", st.Cluster, err)
	}

	// The one that was believed lost comes back as it was, twice.
	c.start(other)
	c.start(leader)
	for _, i := range []int{other, leader} {
		eventually(t, "the former members are on their own", func() error {
			st := c.nodes[i].svc.LocalStatus()
			if st.Cluster.Leader == "" || st.Cluster.Leader == c.cfgs[behind].ID {
				return fmt.Errorf("leader %q", st.Cluster.Leader)
			}
			return nil
		})
	}
	_, err = c.nodes[other].port.Call(t.Context(), c.cfgs[behind].ID, 1, []byte("{}"))
	if err == nil || !strings.Contains(err.Error(), "lineage 1") || !strings.Contains(err.Error(), "hasqlite-node rejoin") {
		t.Errorf("a former member calls the recovered one: %v", err)
	}
	exec(t, db, `INSERT INTO t VALUES('still there')`)
	c.stop(leader)
	c.stop(other)

	// It joins again with nothing of its own.
	aside, err := Rejoin(c.cfgs[other].Data, log)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(aside, "raft")); err != nil {
		t.Errorf("what it had is not kept: %v", err)
	}
	if _, err := os.Stat(filepath.Join(c.cfgs[other].Data, archiveDir, "_archive.json")); err != nil {
		t.Errorf("its archive does not stay: %v", err)
	}
	c.cfgs[other].Join, c.cfgs[other].BootstrapExpect = []string{c.cfgs[behind].Raft}, 0
	c.start(other)
	c.ready(other)
	eventually(t, "it votes", func() error { return c.votes(behind, 2) })
	if got := query[int](t, c.open(other, "db"), `SELECT count(*) FROM t`); got != 11 {
		t.Errorf("%d rows on the node that joined again, want 11", got)
	}
	// The third one joins through it: it must hear of the lineage as it is now.
	if _, err := Rejoin(c.cfgs[leader].Data, log); err != nil {
		t.Fatal(err)
	}
	c.cfgs[leader].Join, c.cfgs[leader].BootstrapExpect = []string{c.cfgs[other].Raft}, 0
	c.start(leader)
	c.ready(leader)
	eventually(t, "it votes", func() error { return c.votes(behind, 3) })
	if r := c.equal("db"); len(r.Nodes) != 3 {
		t.Errorf("%d nodes", len(r.Nodes))
	}
}

// What was archived before a recovery is the past of the database as what is archived since then is.
func TestBookmarksFromBeforeARecovery(t *testing.T) {
	c := newCluster(t, 1, func(i int, cfg *Config) {
		ownArchives(i, cfg)
		small(i, cfg)
	})
	c.insert(0, "db", 5)
	bookmark, want := c.export(0, "db", api.Moment{})
	c.insert(0, "db", 60)
	c.logsFrom(30) // the new lineage has the last commits only
	if lineage := c.archived(0, "db", 0).State().Lineage; lineage != 0 {
		t.Errorf("a new cluster is of lineage %d", lineage)
	}
	c.backlogsEmpty() // what it still had would be archived again
	last, _ := c.nodes[0].svc.Lookup("db")
	cluster := c.nodes[0].dir.Record().Cluster.String()
	c.stop(0)
	if r, err := Recover(RecoverOptions{Data: c.cfgs[0].Data, AcceptDataLoss: cluster}, slog.New(slog.DiscardHandler)); err != nil || !r.Done {
		t.Fatalf("recover: %+v, %v", r, err)
	}
	c.start(0)
	c.ready(0)
	c.insert(0, "db", 5)
	v := c.archivedLate(0, "db", 0)
	if first, err := v.First(t.Context()); err != nil || first.TXID < uint64(last.Position.TXID) || v.State().Lineage != 1 {
		t.Errorf("the new lineage begins with %+v, %v", first, err)
	}
	if st := c.nodes[0].svc.ArchiveStatus(); st.Gaps != 0 {
		t.Errorf("%d gaps are counted", st.Gaps)
	}
	for _, m := range []api.Moment{
		{To: bookmark.Commit.Bookmark}, {To: fmt.Sprintf("%016x", uint64(bookmark.Commit.TXID))}, {At: bookmark.Commit.Time.Format(time.RFC3339Nano)},
	} {
		if head, got := c.export(0, "db", m); head.Commit.Bookmark != bookmark.Commit.Bookmark || !bytes.Equal(got, want) || head.Dropped {
			t.Errorf("%+v: %+v", m, head)
		}
	}
	c.fork(0, "db", "fork", api.Moment{To: bookmark.Commit.Bookmark})
	if _, got := c.export(0, "fork", api.Moment{}); !bytes.Equal(got, want) {
		t.Error("the fork is not what the database was")
	}
	c.rollback(0, "db", api.Moment{To: bookmark.Commit.Bookmark})
	if _, got := c.export(0, "db", api.Moment{}); !bytes.Equal(counters(got), counters(want)) {
		t.Error("the database is not what it was")
	}
}

// A crash after the lineage was written and before the log was leaves a node that nobody speaks to, and that
// can be recovered again.
func TestRecoverIsRepeatedAfterACrash(t *testing.T) {
	c := prepared(t, 3, nil)
	cluster := c.nodes[0].dir.Record().Cluster.String()
	for i := range 3 {
		c.stop(i)
	}
	dir, err := datadir.Open(c.cfgs[0].Data, datadir.Want{Existing: true})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := dir.NextLineage(); err != nil {
		t.Fatal(err)
	}
	dir.Close()
	r, err := Recover(RecoverOptions{Data: c.cfgs[0].Data, AcceptDataLoss: cluster}, slog.New(slog.DiscardHandler))
	if err != nil || r.NewLineage != 2 {
		t.Fatalf("recover: %+v, %v", r, err)
	}
	c.start(0)
	c.ready(0)
	exec(t, c.open(0, "db"), `INSERT INTO t VALUES('on')`)
}

func TestRecoverRefusesWhatIsNoMember(t *testing.T) {
	dir := t.TempDir()
	d, err := datadir.Open(dir, datadir.Want{NodeID: "n0"})
	if err != nil {
		t.Fatal(err)
	}
	d.Close()
	if _, err := Recover(RecoverOptions{Data: dir}, slog.New(slog.DiscardHandler)); !errors.Is(err, replicate.ErrNoState) {
		t.Errorf("recover of a node that was never a member: %v", err)
	}
	if _, err := Recover(RecoverOptions{Data: filepath.Join(dir, "none")}, slog.New(slog.DiscardHandler)); err == nil {
		t.Error("recover of no directory")
	}
	if aside, err := Rejoin(dir, slog.New(slog.DiscardHandler)); err != nil || aside != "" {
		t.Errorf("rejoin of a node that was never a member: %q, %v", aside, err)
	}
}

// equalBut waits until all nodes but one show the same position.
func (c *cluster) equalBut(but int, name string) {
	c.t.Helper()
	eventually(c.t, "the others have the same position", func() error {
		seen := map[replicate.Position]bool{}
		for i, n := range c.nodes {
			if i == but {
				continue
			}
			d, ok := n.svc.Database(name)
			if !ok || d.File == nil || *d.File != d.Decided {
				return fmt.Errorf("node %d: %+v", i, d)
			}
			seen[*d.File] = true
		}
		if len(seen) != 1 {
			return fmt.Errorf("%v", seen)
		}
		return nil
	})
}

// votes reports whether node i knows so many voters.
func (c *cluster) votes(i, want int) error {
	st, err := backend{c.nodes[i]}.Cluster(c.t.Context())
	n := 0
	for _, m := range st.Members {
		if m.Voter {
			n++
		}
	}
	if err == nil && n != want {
		err = fmt.Errorf("%+v", st.Members)
	}
	return err
}

// A restore takes the pages of a later state than the log that comes with it has. Where the other members are lost before it has
// the rest, nothing can be decided on top of what the files show.
func TestRecoverOfFilesAheadOfTheLog(t *testing.T) {
	c := prepared(t, 3, small)
	f := c.follower()
	w := c.left(f)
	w.Close()
	c.equalBut(f, "db")
	for i := range c.nodes { // the snapshot that is sent stays the one that there is
		if i != f {
			c.stop(i)
			c.cfgs[i].SnapshotEntries = 10000
			c.start(i)
		}
	}
	w = c.open(c.leader(), "db")
	for i := range 5 {
		exec(t, w, `INSERT INTO t VALUES(?)`, fmt.Sprint("later ", i))
	}
	rows, last := query[int](t, w, `SELECT count(*) FROM t`), query[string](t, w, `PRAGMA hasqlite_position`)
	w.Close()
	c.equalBut(f, "db")

	recorded, lost := make(chan struct{}), make(chan struct{})
	atStep(t, c.cfgs[f].ID, "recorded", func() {
		close(recorded)
		<-lost
	})
	c.start(f)
	<-recorded
	for i := range c.nodes {
		if i != f {
			c.stop(i)
		}
	}
	close(lost)
	eventually(t, "the snapshot takes the place of the log", func() error {
		if first, last := c.nodes[f].store.Bounds(); last > 0 {
			return fmt.Errorf("it has entries %d to %d", first, last)
		}
		return nil
	})
	c.stop(f)

	log := slog.New(slog.DiscardHandler)
	opts := RecoverOptions{Data: c.cfgs[f].Data}
	r, err := Recover(opts, log)
	if err != nil {
		t.Fatal(err)
	}
	if end := r.Database[0].Ends[0]; end.Files.String() != last[:33] || end.Files.TXID != end.Position.TXID+5 {
		t.Errorf("survey: %+v, the files are at %s", end, last)
	}
	opts.AcceptDataLoss = r.Cluster
	if _, err := Recover(opts, log); err != nil {
		t.Fatal(err)
	}
	c.start(f)
	c.ready(f)
	db := c.open(f, "db")
	if got := query[int](t, db, `SELECT count(*) FROM t`); got != rows {
		t.Errorf("%d rows are read, want %d", got, rows)
	}
	var refused sqlite3.Error
	if _, err := db.Exec(`INSERT INTO t VALUES('after')`); !errors.As(err, &refused) || refused.Code != sqlite3.ErrReadonly {
		t.Errorf("a write: %v", err)
	}
	if text := query[string](t, db, `PRAGMA hasqlite_error`); !strings.Contains(text, replicate.ErrAhead.Error()) {
		t.Errorf("its error is %q", text)
	}
	if st := query[string](t, db, `PRAGMA hasqlite_status`); !strings.Contains(st, `"state":"ahead"`) {
		t.Errorf("its status is %s", st)
	}
	db.Close()

	// As the error says.
	_, content := c.export(f, "db", api.Moment{})
	if err := (backend{c.nodes[f]}).DeleteDatabase(t.Context(), "db", true); err != nil {
		t.Fatal(err)
	}
	if _, err := c.importBytes(f, "db", content, false); err != nil {
		t.Fatal(err)
	}
	db = c.open(f, "db")
	exec(t, db, `INSERT INTO t VALUES('after')`)
	if got := query[int](t, db, `SELECT count(*) FROM t`); got != rows+1 {
		t.Errorf("%d rows after the import and one more, want %d", got, rows+1)
	}
}
