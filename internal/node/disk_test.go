package node

import (
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/uglyer/ha-sqlite/internal/api"
	"github.com/uglyer/ha-sqlite/replicate"
)

// fakeDisk says what it is told about the room on it.
type fakeDisk struct {
	replicate.Space
	full atomic.Bool
}

// Free implements replicate.Space.
func (d *fakeDisk) Free() (int64, error) {
	if d.full.Load() {
		return 5 << 20, nil
	}
	return 1 << 40, nil
}

// disks gives the nodes of the clusters to come disks that the test fills, by node id.
func disks(t *testing.T) func(id string) *fakeDisk {
	var mu sync.Mutex
	all := map[string]*fakeDisk{}
	former := wrapSpace
	wrapSpace = func(cfg Config, s replicate.Space) replicate.Space {
		mu.Lock()
		defer mu.Unlock()
		d := &fakeDisk{Space: s}
		all[cfg.ID] = d
		return d
	}
	t.Cleanup(func() { wrapSpace = former })
	return func(id string) *fakeDisk {
		mu.Lock()
		defer mu.Unlock()
		return all[id]
	}
}

// A node without room takes no writes and says why, does not lead, and does not stand for election; the others go on.
// Where none has room, reads go on. With room everything goes on by itself.
func TestFullDisk(t *testing.T) {
	disk := disks(t)
	c := prepared(t, 3, nil)
	at := func(i int) *fakeDisk { return disk(c.cfgs[i].ID) }
	told := func(i int, want bool) {
		t.Helper()
		eventually(t, fmt.Sprintf("status of node %d says full: %v", i, want), func() error {
			if st := c.nodes[i].svc.Disk(); st.Full != want {
				return fmt.Errorf("%+v", st)
			}
			return nil
		})
	}
	refuses := func(i int) {
		t.Helper()
		db := c.open(i, "db", "lock_timeout=200", "_busy_timeout=1")
		defer db.Close()
		if query[int](t, db, `SELECT count(*) FROM t`) < 4 {
			t.Error("rows are missing")
		}
		if _, err := db.Exec(`INSERT INTO t VALUES('full')`); !busyOrRefused(err) {
			t.Errorf("a write on a full disk: %v", err)
		}
		id, _, _, err := c.nodes[i].svc.Resolve("db")
		if err != nil {
			t.Fatal(err)
		}
		h, _, err := c.nodes[i].svc.OpenHandle(t.Context(), id, replicate.HandleOptions{})
		if err != nil {
			t.Fatal(err)
		}
		defer h.Close()
		if _, _, err := h.Begin(t.Context()); !errors.Is(err, replicate.ErrDiskFull) || !strings.Contains(err.Error(), "disk full on node "+c.cfgs[i].ID) {
			t.Errorf("the node does not say why a write waits: %v", err)
		}
	}
	writes := func(i int) {
		t.Helper()
		eventually(t, "writes go on", func() error {
			_, err := c.open(i, "db").Exec(`INSERT INTO t VALUES('on')`)
			return err
		})
	}
	f := c.follower()
	at(f).full.Store(true)
	told(f, true)
	refuses(f)
	writes(c.leader())
	at(f).full.Store(false)
	told(f, false)
	writes(f)

	l := c.leader()
	at(l).full.Store(true)
	told(l, true)
	eventually(t, "another node leads", func() error {
		if c.leader() == l {
			return errors.New("it leads on a full disk")
		}
		return nil
	})
	refuses(l)
	next := c.leader()
	writes(next)
	// It is the only one that could follow, and does not want to.
	third := 3 - l - next
	at(third).full.Store(true)
	told(third, true)
	c.stop(next)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for range 100 {
		<-tick.C
		for _, i := range []int{l, third} {
			if c.nodes[i].svc.LocalStatus().State == "leader" {
				t.Fatal("a node took the lead with a full disk")
			}
		}
	}
	c.start(next)
	c.ready(next)
	at(next).full.Store(true)
	for i := range c.nodes {
		told(i, true)
		refuses(i)
	}
	for i := range c.nodes {
		at(i).full.Store(false)
	}
	for i := range c.nodes {
		told(i, false)
		writes(i)
	}
	if r := c.equal("db"); !r.Equal {
		t.Error("the copies differ")
	}
}

// After a power failure the files show an older state than the log. Who opens them once the node is ready sees what was
// acknowledged before.
func TestOpenAfterAPowerFailureSeesWhatWasAcknowledged(t *testing.T) {
	c := prepared(t, 3, nil)
	f := c.follower()
	dir := filepath.Dir(c.path(f, "db"))
	c.stop(f)
	old := filepath.Join(t.TempDir(), "old")
	copyDir := func(from, to string) {
		t.Helper()
		if err := os.CopyFS(to, os.DirFS(from)); err != nil {
			t.Fatal(err)
		}
	}
	copyDir(dir, old)
	if err := os.RemoveAll(filepath.Join(old, "record")); err != nil {
		t.Fatal(err)
	}
	c.start(f)
	c.ready(f)
	db := c.open(c.leader(), "db")
	for i := range 300 {
		exec(t, db, `INSERT INTO t VALUES(?)`, i)
	}
	c.equal("db")
	want := query[int](t, db, `SELECT count(*) FROM t`)
	for range 3 {
		c.stop(f)
		if err := os.RemoveAll(dir); err != nil {
			t.Fatal(err)
		}
		copyDir(old, dir)
		c.start(f)
		c.ready(f)
		reader := c.open(f, "db")
		if got := query[int](t, reader, `SELECT count(*) FROM t`); got != want {
			t.Fatalf("%d rows right after the start, %d were acknowledged", got, want)
		}
		reader.Close()
	}
}

// fixedRoom is a disk with so much room.
type fixedRoom struct {
	replicate.Space
	free int64
}

func (f fixedRoom) Free() (int64, error) { return f.free, nil }

func TestRoomIsRefusedForAnySizeThatDoesNotFit(t *testing.T) {
	n := &Node{space: fixedRoom{free: 1 << 40}}
	for bytes, ok := range map[int64]bool{0: true, 1 << 38: true, 1 << 39: false, 1 << 62: false, 1<<62 + 5: false, math.MaxInt64: false} {
		if err := n.room(bytes, 2); (err == nil) != ok || err != nil && !errors.Is(err, api.ErrUnavailable) {
			t.Errorf("%d bytes twice: %v", bytes, err)
		}
	}
}

// A database that cannot be created because the leader's disk is full is one to try again, as a write is.
func TestCreateOnAFullDiskIsBusy(t *testing.T) {
	disk := disks(t)
	c := prepared(t, 1, nil)
	d := disk(c.cfgs[0].ID)
	d.full.Store(true)
	eventually(t, "the disk is known to be full", func() error {
		if st := c.nodes[0].svc.Disk(); !st.Full {
			return fmt.Errorf("%+v", st)
		}
		return nil
	})
	_, err := c.open(0, "new", "lock_timeout=200", "_busy_timeout=1").Exec(`CREATE TABLE t(v)`)
	if !busyOrRefused(err) {
		t.Errorf("a new database on a full disk: %v, want SQLITE_BUSY", err)
	}
	d.full.Store(false)
	eventually(t, "it is created", func() error {
		_, err := c.open(0, "new").Exec(`CREATE TABLE IF NOT EXISTS t(v)`)
		return err
	})
}
