package replicate

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"testing"
	"time"

	"github.com/uglyer/ha-sqlite/replicate/pagesums"
)

// syncedFile is a LiveFile of which only syncs matter.
type syncedFile struct {
	LiveFile
	sync func() error
}

func (f syncedFile) SyncWAL() error { return f.sync() }

// A member of many databases that are all written all the time gets its vote, also where a sync takes long: what was
// decided at the index that it is asked for is what it needs, and the databases are synced beside each other.
func TestCaughtUpUnderWriters(t *testing.T) {
	const databases = 3 * persistWorkers
	fsm := newScript(t, &recorder{})
	sums, err := pagesums.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer sums.Close()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	s := &Service{
		log: slog.New(slog.DiscardHandler), fsm: fsm.f, sums: sums, ctx: ctx, cancel: cancel,
		quotas: newQuotas(nil), replicas: map[DatabaseID]*replica{}, replay: make(chan struct{}),
	}
	var mu sync.Mutex
	arrived, beside := 0, make(chan struct{})
	for i := range databases {
		id := fsm.create(fmt.Sprint("db", i))
		st, _ := fsm.f.Get(id)
		d := newReplica(s, st)
		d.known, d.sums = true, sumTable{uint64(i) + 1}
		d.position, d.durable = fsm.commit(id).Post, 0
		d.live = syncedFile{sync: func() error {
			mu.Lock()
			if arrived++; arrived == persistWorkers {
				close(beside)
			}
			fsm.commit(id) // its files do not have it yet
			mu.Unlock()
			select {
			case <-beside:
				return nil
			case <-time.After(2 * caughtUpPatience):
				return fmt.Errorf("%d databases are synced at a time", arrived)
			}
		}}
		s.replicas[id] = d
	}
	index := fsm.f.Applied()
	if r, err := s.serveCaughtUp(ctx, index+1); err != nil || r.Done {
		t.Errorf("an index that is not decided: %+v, %v", r, err)
	}
	mu.Lock()
	for id := range s.replicas {
		fsm.commit(id)
	}
	mu.Unlock()
	for range 2 {
		if r, err := s.serveCaughtUp(ctx, index); err != nil || !r.Done {
			t.Fatalf("%+v, %v", r, err)
		}
	}
	if arrived != databases {
		t.Errorf("%d syncs of %d databases", arrived, databases)
	}
	cctx, over := context.WithCancel(ctx)
	over()
	if r, err := s.serveCaughtUp(cctx, fsm.f.Applied()); err != nil || r.Done || r.Detail == "" {
		t.Errorf("files that are behind: %+v, %v", r, err)
	}
}
