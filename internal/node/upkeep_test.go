package node

import (
	"context"
	"fmt"
	"io"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/uglyer/ha-sqlite/replicate"
	"github.com/uglyer/ha-sqlite/snapshot/store"
	"github.com/uglyer/ha-sqlite/snapshot/store/storetest"
)

// heldStore stores no file that holds every page before it is let go.
type heldStore struct {
	store.Store
	letGo chan struct{}
	held  *atomic.Int64 // at this moment
	most  *atomic.Int64
}

func (s heldStore) Put(ctx context.Context, key string, body io.ReaderAt, size int64, t time.Time) error {
	if strings.Contains(key, "/"+s.LevelDir(9)+"/") {
		n := s.held.Add(1)
		for most := s.most.Load(); n > most && !s.most.CompareAndSwap(most, n); most = s.most.Load() {
		}
		defer s.held.Add(-1)
		select {
		case <-s.letGo:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return s.Store.Put(ctx, key, body, size, t)
}

// TestSnapshotsHoldUpNoUpload: snapshots of more databases than there are uploads at a time are due, and none ends;
// what is committed is archived all the same, in one store for all and on the node's own disk.
func TestSnapshotsHoldUpNoUpload(t *testing.T) {
	const databases = 12
	g := storetest.StartGateway(t)
	for what, set := range map[string]func(int, *Config){"store": archiving(g.URL("p")), "own": ownArchives} {
		t.Run(what, func(t *testing.T) {
			letGo := make(chan struct{})
			var held, most atomic.Int64
			former := wrapStore
			wrapStore = func(_ Config, s store.Store) store.Store { return heldStore{s, letGo, &held, &most} }
			t.Cleanup(func() { wrapStore = former })
			once := sync.OnceFunc(func() { close(letGo) })
			t.Cleanup(once)
			c := newCluster(t, 1, func(i int, cfg *Config) {
				set(i, cfg)
				cfg.ArchiveSnapshot = time.Millisecond
			})
			for round := range 2 {
				for i := range databases {
					c.insert(0, fmt.Sprint("db", i), 3+round)
				}
				for i := range databases {
					c.archived(0, fmt.Sprint("db", i), 0)
				}
				eventually(t, "snapshots are held", func() error {
					if held.Load() == 0 {
						return fmt.Errorf("none is")
					}
					return nil
				})
			}
			if most.Load() > 2 {
				t.Errorf("%d snapshots at a time", most.Load())
			}
			once()
			for i := range databases {
				eventually(t, "the snapshots are made", func() error {
					if v := c.archived(0, fmt.Sprint("db", i), 0); len(v.State().Snapshots) == 0 {
						return fmt.Errorf("db%d has none", i)
					}
					return nil
				})
			}
		})
	}
}

// measuredDisk has the room that the test says.
type measuredDisk struct {
	replicate.Space
	free *atomic.Int64
}

// Free implements replicate.Space.
func (d measuredDisk) Free() (int64, error) { return d.free.Load(), nil }

// TestASnapshotWaitsForRoom: where the disk has no room for its files for a while, it is put off and status says why,
// whatever the archive is in; commits are archived, and the snapshot is made when there is room.
func TestASnapshotWaitsForRoom(t *testing.T) {
	const leftToTheLog = 320 << 20
	g := storetest.StartGateway(t)
	var free atomic.Int64
	former := wrapSpace
	wrapSpace = func(_ Config, s replicate.Space) replicate.Space { return measuredDisk{s, &free} }
	t.Cleanup(func() { wrapSpace = former })
	for what, set := range map[string]func(int, *Config){"store": archiving(g.URL("p")), "own": ownArchives} {
		t.Run(what, func(t *testing.T) {
			free.Store(leftToTheLog + 1<<20)
			c := newCluster(t, 1, func(i int, cfg *Config) {
				set(i, cfg)
				cfg.ArchiveSnapshot = time.Millisecond
			})
			db := c.open(0, "db")
			exec(t, db, `CREATE TABLE t(v)`)
			for range 3 {
				exec(t, db, `INSERT INTO t VALUES(randomblob(1000000))`)
			}
			eventually(t, "status says why there is no snapshot", func() error {
				if st := c.nodes[0].svc.ArchiveStatus(); !strings.Contains(st.Error, replicate.ErrNoRoom.Error()) {
					return fmt.Errorf("%+v", st)
				}
				return nil
			})
			exec(t, db, `INSERT INTO t VALUES(1)`)
			c.archived(0, "db", 0)
			free.Store(1 << 40)
			eventually(t, "the snapshot is made", func() error {
				v, st := c.archived(0, "db", 0), c.nodes[0].svc.ArchiveStatus()
				if n := len(v.State().Snapshots); n == 0 || v.State().Snapshots[n-1].Size < 3_000_000 || st.Error != "" {
					return fmt.Errorf("%d snapshots, %+v", n, st)
				}
				return nil
			})
			db.Close()
		})
	}
}
