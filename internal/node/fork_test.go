package node

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"os"
	osexec "os/exec"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/uglyer/ha-sqlite/internal/api"
	"github.com/uglyer/ha-sqlite/replicate"
)

func (c *cluster) fork(i int, source, name string, m api.Moment) api.ForkReport {
	c.t.Helper()
	r, err := backend{c.nodes[i]}.Fork(c.t.Context(), api.ForkRequest{Source: source, Name: name, Moment: m}, func(api.Progress) {})
	if err != nil {
		c.t.Fatal(err)
	}
	return r
}

// A fork is the source byte for byte on every node, no page of it is in the log, and from then on the two differ.
func TestForkIsTheSourceAndGoesItsOwnWay(t *testing.T) {
	c := newCluster(t, 3, nil)
	i := c.follower()
	src := c.open(i, "src.db")
	exec(t, src, `CREATE TABLE t(a INTEGER PRIMARY KEY, b BLOB)`)
	exec(t, src, `WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i < 2000) INSERT INTO t SELECT i, randomblob(500) FROM n`)
	_, want := c.export(0, "src.db", api.Moment{})
	before := c.nodes[c.leader()].svc.Metrics().ReplicatedBytes
	r := c.fork(c.leader(), "src.db", "fork.db", api.Moment{})
	if n := c.nodes[c.leader()].svc.Metrics().ReplicatedBytes - before; n > 4096 {
		t.Errorf("%d bytes were replicated", n)
	}
	head, got := c.export(i, "fork.db", api.Moment{})
	if !bytes.Equal(got, want) || head.Commit.TXID != r.Target.TXID {
		t.Errorf("the fork differs from its source: %+v, %+v", head.Commit, r)
	}
	c.equal("fork.db")
	fork := c.open(c.leader(), "fork.db")
	exec(t, fork, `DELETE FROM t WHERE a > 10`)
	exec(t, src, `INSERT INTO t(b) VALUES('only here')`)
	if a, b := query[int](t, fork, `SELECT count(*) FROM t`), query[int](t, src, `SELECT count(*) FROM t`); a != 10 || b != 2001 {
		t.Errorf("the fork has %d rows, the source %d", a, b)
	}
	src.Close()
	if err := (backend{c.nodes[0]}).DeleteDatabase(t.Context(), "src.db", true); err != nil {
		t.Fatal(err)
	}
	exec(t, fork, `INSERT INTO t(b) VALUES('after the source')`)
	c.equal("fork.db")
	for k := range c.nodes { // what a restart makes of it
		c.stop(k)
		c.start(k)
		c.ready(k)
	}
	for k := range c.nodes {
		if n := query[int](t, c.open(k, "fork.db"), `SELECT count(*) FROM t`); n != 11 {
			t.Errorf("node %d has %d rows", k, n)
		}
	}
	fork.Close()
}

// What has no transaction is forked by its creation alone; a name that is taken, and a source that is not there, are
// refused.
func TestForkOfAnEmptyDatabaseAndRefusals(t *testing.T) {
	c := newCluster(t, 1, nil)
	if _, err := (backend{c.nodes[0]}).CreateDatabase(t.Context(), api.CreateDatabaseRequest{Name: "empty.db", PageSize: 1024}); err != nil {
		t.Fatal(err)
	}
	r := c.fork(0, "empty.db", "fork.db", api.Moment{})
	if r.Target.TXID != 1 || r.PageSize != 1024 {
		t.Errorf("%+v", r)
	}
	db := c.open(0, "fork.db")
	exec(t, db, `CREATE TABLE t(a)`)
	for name, test := range map[string]struct {
		req  api.ForkRequest
		want error
	}{
		"taken":     {api.ForkRequest{Source: "empty.db", Name: "fork.db"}, api.ErrExists},
		"no source": {api.ForkRequest{Source: "no.db", Name: "x.db"}, api.ErrNotFound},
		"name":      {api.ForkRequest{Source: "empty.db", Name: "../x"}, api.ErrInvalid},
		"both":      {api.ForkRequest{Source: "empty.db", Name: "x", Moment: api.Moment{At: "1 hour ago", To: "0000000000000001"}}, api.ErrInvalid},
	} {
		if _, err := (backend{c.nodes[0]}).Fork(t.Context(), test.req, func(api.Progress) {}); !errors.Is(err, test.want) {
			t.Errorf("%s: %v, want %v", name, err, test.want)
		}
	}
	db.Close()
}

// A writer on each node, forks all the time: each fork is a state of the source that was committed, whole.
func TestForksUnderWriters(t *testing.T) {
	c := newCluster(t, 3, nil)
	db := c.open(0, "src.db")
	exec(t, db, `CREATE TABLE t(a INTEGER PRIMARY KEY, b); CREATE TABLE n(v)`)
	exec(t, db, `INSERT INTO n VALUES(0)`)
	stop := make(chan struct{})
	failed := make(chan error, 3)
	for i := range 3 {
		db := c.open(i, "src.db", "_txlock=immediate")
		go func() {
			for {
				select {
				case <-stop:
					failed <- db.Close()
					return
				default:
				}
				tx, err := db.Begin()
				if err == nil {
					if _, err = tx.Exec(`INSERT INTO t(b) VALUES(randomblob(2000)); UPDATE n SET v = v + 1`); err == nil {
						err = tx.Commit()
					} else {
						tx.Rollback()
					}
				}
				if err != nil {
					failed <- fmt.Errorf("writer %d: %w", i, err)
					return
				}
			}
		}()
	}
	for k := range 5 {
		name := fmt.Sprint("fork", k)
		r := c.fork(k%3, "src.db", name, api.Moment{})
		v := c.equal(name)
		if v.Position.TXID != r.Target.TXID {
			t.Errorf("%s is at %v, it was made at %v", name, v.Position.TXID, r.Target.TXID)
		}
		fork := c.open((k+1)%3, name)
		if a, b := query[int](t, fork, `SELECT count(*) FROM t`), query[int](t, fork, `SELECT v FROM n`); a != b {
			t.Errorf("%s has %d rows of %d", name, a, b)
		}
		if got := query[string](t, fork, `PRAGMA integrity_check`); got != "ok" {
			t.Error(got)
		}
		fork.Close()
	}
	close(stop)
	for range 3 {
		if err := <-failed; err != nil {
			t.Error(err)
		}
	}
	db.Close()
}

// A node may be killed at any step of its copy: it goes on, by what it has or by its peers, and nothing half copied is
// ever seen. The files as they are at the step are what a kill leaves behind.
func TestKilledAtEachStepOfAFork(t *testing.T) {
	t.Run("copy", func(t *testing.T) { killedAtEachStepOfAFork(t, "fork copied") })
	t.Run("clone", func(t *testing.T) {
		clones := cloneFiles(t)
		killedAtEachStepOfAFork(t, "placed")
		if clones.Load() == 0 {
			t.Error("nothing was cloned")
		}
	})
}

// killedAtEachStepOfAFork goes through one step, or all if asked.
func killedAtEachStepOfAFork(t *testing.T, only string) {
	c := newCluster(t, 3, small)
	src := c.open(c.leader(), "src")
	exec(t, src, `CREATE TABLE t(v)`)
	exec(t, src, `WITH RECURSIVE k(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM k WHERE i < 300) INSERT INTO t SELECT hex(randomblob(1000)) FROM k`)
	for n, step := range []string{"fork begin", "fork copied", "verified", "placed", "recorded", "fork done"} {
		if !*allSteps && step != only {
			continue
		}
		f := c.follower()
		killed := fmt.Sprintf("%s-%d", c.cfgs[f].Data, n)
		happened := atStep(t, c.cfgs[f].ID, step, func() { command(t, "cp", "-a", c.cfgs[f].Data, killed) })
		exec(t, src, `INSERT INTO t VALUES(?)`, step)
		r := c.fork(c.leader(), "src", "db", api.Moment{})
		eventually(t, step, func() error {
			if !happened.Load() {
				return errors.New("did not happen")
			}
			return nil
		})
		for i := range 30 { // the log that the killed node comes back to may be gone
			exec(t, src, `INSERT INTO t VALUES(?)`, i)
		}
		c.stop(f)
		c.cfgs[f].Data = killed
		c.start(f)
		c.ready(f)
		if v := c.equal("db"); v.Position.TXID != r.Target.TXID {
			t.Errorf("%s: it is at %v, it was made at %v", step, v.Position.TXID, r.Target.TXID)
		}
		db := c.open(f, "db")
		if got := query[int](t, db, `SELECT count(*) FROM t WHERE v = ?`, step); got != 1 {
			t.Errorf("%s: %d rows", step, got)
		}
		exec(t, db, `INSERT INTO t VALUES('of the fork')`)
		c.equal("db")
		if n := c.fences(f); n != 0 {
			t.Errorf("%s: fenced %d times", step, n)
		}
		db.Close()
		if err := (backend{c.nodes[c.leader()]}).DeleteDatabase(t.Context(), "db", true); err != nil {
			t.Fatal(err)
		}
	}
	src.Close()
}

// holdForks stops the copies of forks on some nodes until they are let go.
func holdForks(t *testing.T, nodes ...string) (letGo func(node string)) {
	t.Helper()
	gates := map[string]chan struct{}{}
	for _, id := range nodes {
		gates[id] = make(chan struct{})
	}
	var mu sync.Mutex
	open := map[string]bool{}
	end := onSteps(func(cfg Config, database, step string) {
		if gate := gates[cfg.ID]; gate != nil && step == "fork begin" {
			<-gate
		}
	})
	letGo = func(id string) {
		mu.Lock()
		defer mu.Unlock()
		if gates[id] != nil && !open[id] {
			open[id] = true
			close(gates[id])
		}
	}
	t.Cleanup(func() {
		for _, id := range nodes {
			letGo(id)
		}
		end()
	})
	return letGo
}

// A node that is late with its copy has who asks for it wait, not fail.
func TestForkIsExportedAndVerifiedWhereItIsLate(t *testing.T) {
	c := newCluster(t, 3, nil)
	c.insert(0, "src.db", 3)
	late := c.follower()
	letGo := holdForks(t, c.cfgs[late].ID)
	for _, name := range []string{"exported.db", "verified.db"} {
		c.fork(c.leader(), "src.db", name, api.Moment{})
	}
	time.AfterFunc(200*time.Millisecond, func() { letGo(c.cfgs[late].ID) })
	verified := make(chan error, 1)
	go func() {
		all, err := c.nodes[late].svc.Verify(t.Context(), "verified.db", false)
		for _, v := range all {
			if v.Err != "" {
				err = errors.Join(err, fmt.Errorf("%s: %s", v.Node, v.Err))
			}
		}
		verified <- err
	}()
	c.export(late, "exported.db", api.Moment{})
	if err := <-verified; err != nil {
		t.Error(err)
	}
}

// The leader ends between the two entries of a fork: its successor sees to the rest.
func TestForkOutlivesItsLeader(t *testing.T) {
	c := newCluster(t, 3, nil)
	leader := c.leader()
	asked := c.follower()
	src := c.open(asked, "src.db")
	exec(t, src, `CREATE TABLE t(v); INSERT INTO t VALUES(1)`)
	letGo := holdForks(t, "n0", "n1", "n2")
	done := make(chan error, 1)
	go func() {
		_, err := backend{c.nodes[asked]}.Fork(t.Context(), api.ForkRequest{Source: "src.db", Name: "fork.db"}, func(api.Progress) {})
		done <- err
	}()
	eventually(t, "the fork is pending", func() error {
		if st, ok := c.nodes[asked].svc.Lookup("fork.db"); !ok || !st.Pending {
			return fmt.Errorf("%+v", st)
		}
		return nil
	})
	if list, _ := c.nodes[asked].svc.Databases(replicate.DatabaseQuery{Prefix: "fork.db", Limit: 1}); len(list) != 1 || list[0].State != "catching_up" || list[0].File != nil {
		t.Errorf("status of a fork whose copy is not here: %+v", list)
	}
	db := c.open(asked, "fork.db", "lock_timeout=50", "_busy_timeout=1")
	if _, err := db.Exec(`SELECT * FROM t`); err == nil {
		t.Error("a fork that no majority has is opened")
	}
	db.Close()
	if err := (backend{c.nodes[asked]}).DeleteDatabase(t.Context(), "src.db", true); err == nil {
		t.Error("the source is deleted under the fork")
	}
	letGo(c.cfgs[leader].ID)
	c.stop(leader)
	select {
	case err := <-done:
		t.Fatalf("it ended with one copy of three: %v", err)
	default:
	}
	for i := range c.nodes {
		letGo(c.cfgs[i].ID)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	c.start(leader)
	c.ready(leader)
	c.equal("fork.db")
	src.Close()
}

// Where no majority makes its copy in time the fork is undone, and nothing of it is left.
func TestForkWithoutAMajorityIsUndone(t *testing.T) {
	forkPatience.Store(int64(300 * time.Millisecond))
	t.Cleanup(func() { forkPatience.Store(0) })
	c := newCluster(t, 3, nil)
	src := c.open(0, "src.db")
	exec(t, src, `CREATE TABLE t(v); INSERT INTO t VALUES(1)`)
	letGo := holdForks(t, "n0", "n1")
	_, err := backend{c.nodes[2]}.Fork(t.Context(), api.ForkRequest{Source: "src.db", Name: "fork.db"}, func(api.Progress) {})
	if !errors.Is(err, api.ErrInUse) {
		t.Fatalf("%v, want it undone", err)
	}
	letGo("n0")
	letGo("n1")
	for i, n := range c.nodes {
		eventually(t, fmt.Sprintf("nothing is left on node %d", i), func() error {
			if st, ok := n.svc.Lookup("fork.db"); ok {
				return fmt.Errorf("%+v", st)
			}
			dirs, err := os.ReadDir(filepath.Join(c.cfgs[i].Data, "databases"))
			if err == nil && len(dirs) != 1 {
				err = fmt.Errorf("%d databases", len(dirs))
			}
			left, gerr := filepath.Glob(filepath.Join(c.cfgs[i].Data, "spool", "*.*"))
			if len(left) > 0 {
				err = fmt.Errorf("in the spool: %v", left)
			}
			return errors.Join(err, gerr)
		})
	}
	forkPatience.Store(0) // the next one may take its time
	c.fork(1, "src.db", "fork.db", api.Moment{})
	c.equal("fork.db")
	src.Close()
}

// A past state is forked from the archive; one of the fork's own states is restored from it later.
func TestForkOfAPastStateAndItsHistory(t *testing.T) {
	c := newCluster(t, 3, ownArchives)
	src := c.open(0, "src.db")
	exec(t, src, `CREATE TABLE t(v)`)
	exec(t, src, `WITH RECURSIVE k(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM k WHERE i < 100) INSERT INTO t SELECT hex(randomblob(1000)) FROM k`)
	exec(t, src, `INSERT INTO t VALUES(zeroblob(20000))`) // the last of its pages is nothing but zeros
	at, want := c.export(0, "src.db", api.Moment{})
	exec(t, src, `DELETE FROM t`)
	exec(t, src, `VACUUM`)
	r := c.fork(1, "src.db", "past.db", api.Moment{At: at.Commit.Time.Format(time.RFC3339Nano)})
	if r.Target.Bookmark != at.Commit.Bookmark {
		t.Errorf("%+v, want %+v", r.Target, at.Commit)
	}
	if _, got := c.export(2, "past.db", api.Moment{}); !bytes.Equal(got, want) {
		t.Error("the fork is not what the source was")
	}
	c.equal("past.db")
	db := c.open(2, "past.db")
	exec(t, db, `INSERT INTO t VALUES('later')`)
	exec(t, db, `INSERT INTO t VALUES('later')`)
	have := 0
	for i := range c.nodes { // each node has an archive of its own; one that was late begins it later
		_, r, err := backend{c.nodes[i]}.Export(t.Context(), "past.db", api.Moment{To: fmt.Sprintf("%016x", uint64(at.Commit.TXID))})
		if err != nil {
			continue
		}
		if got, err := io.ReadAll(r); err != nil || !bytes.Equal(got, want) {
			t.Errorf("node %d: the fork's first state is another one in its archive: %v", i, err)
		}
		r.Close()
		have++
	}
	if have < 2 {
		t.Errorf("%d archives have the fork's first state", have)
	}
	db.Close()
	src.Close()
}

// cloning stands for a file system that clones files, on one that does not: another process copies them. It keeps what
// the database files had at that moment.
type cloning struct {
	replicate.Files
	clones *atomic.Int32
}

func (f cloning) Clone(ctx context.Context, path, file string) error {
	f.clones.Add(1)
	return osexec.CommandContext(ctx, "cp", path, file).Run()
}

// cloneFiles has the nodes that start from now on clone files, and counts.
func cloneFiles(t *testing.T) *atomic.Int32 {
	clones := new(atomic.Int32)
	former := wrapFiles
	wrapFiles = func(_ Config, f replicate.Files) replicate.Files { return cloning{f, clones} }
	t.Cleanup(func() { wrapFiles = former })
	return clones
}

// A clone of the database file lacks what is in its log only, and may be longer than the state: the copy has exactly the
// pages of the position, and each is read later.
func TestForkByClones(t *testing.T) {
	clones := cloneFiles(t)
	c := newCluster(t, 3, func(_ int, cfg *Config) { cfg.VerifyFull = false })
	src := c.open(1, "src.db")
	exec(t, src, `CREATE TABLE t(a INTEGER PRIMARY KEY, b)`)
	exec(t, src, `WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i < 6000) INSERT INTO t SELECT i, randomblob(1000) FROM n`)
	names := 0
	forked := func(change string) {
		before := clones.Load()
		name := fmt.Sprint("fork", names)
		names++
		c.fork(names%3, "src.db", name, api.Moment{})
		c.equal(name)
		if n := clones.Load() - before; n < 2 {
			t.Errorf("%s: %d clones were made", change, n)
		}
		_, want := c.export(0, "src.db", api.Moment{})
		for i := range c.nodes {
			if _, got := c.export(i, name, api.Moment{}); !bytes.Equal(got, want) {
				t.Errorf("%s: the fork on node %d differs", change, i)
			}
		}
	}
	for _, change := range []string{`UPDATE t SET b = randomblob(1000) WHERE a % 50 = 0`, `DELETE FROM t WHERE a > 200`, `VACUUM`, `INSERT INTO t(b) VALUES(randomblob(100000))`} {
		var readers []*sql.Tx // what is written after they began stays in the log
		for i := range c.nodes {
			tx, err := c.open(i, "src.db").BeginTx(t.Context(), &sql.TxOptions{ReadOnly: true})
			if err != nil {
				t.Fatal(err)
			}
			if err := tx.QueryRow(`SELECT count(*) FROM t`).Scan(new(int)); err != nil {
				t.Fatal(err)
			}
			readers = append(readers, tx)
		}
		exec(t, src, change)
		c.equal("src.db")
		forked(change + ", beside readers")
		for _, tx := range readers {
			if err := tx.Rollback(); err != nil {
				t.Error(err)
			}
		}
		forked(change)
	}
	src.Close()
}
