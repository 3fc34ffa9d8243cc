package replicate

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/uglyer/ha-sqlite/wal"
)

// noFiles are the files of a node that has none yet.
type noFiles struct{ Files }

func (noFiles) Stat(string) (FileStat, error) { return FileStat{}, os.ErrNotExist }

// heldFile is a database whose write lock an application holds, and does not give back.
type heldFile struct {
	LiveFile
	waits chan struct{}
}

func (f heldFile) Begin(ctx context.Context) (*wal.Txn, error) {
	f.waits <- struct{}{}
	<-ctx.Done()
	return nil, ctx.Err()
}

// copiedFile is a database whose checkpoint has much to sync.
type copiedFile struct {
	LiveFile
	mu    sync.RWMutex // a pin holds it for reading
	began chan struct{}
	end   chan struct{}
	asked chan struct{} // for a pin
}

func (f *copiedFile) Checkpoint(bool) (walFrames, backfilled int, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	close(f.began)
	<-f.end
	return 10, 10, nil
}

func (f *copiedFile) Pin() (*wal.Snapshot, error) {
	f.asked <- struct{}{}
	f.mu.RLock()
	defer f.mu.RUnlock()
	return new(wal.Snapshot), nil
}

func (f *copiedFile) TryPin() (*wal.Snapshot, error) {
	f.asked <- struct{}{}
	if !f.mu.TryRLock() {
		return nil, wal.ErrBusy
	}
	defer f.mu.RUnlock()
	return new(wal.Snapshot), nil
}

func (f *copiedFile) Marks() (wal.Marks, error) { return wal.Marks{MaxFrame: 10}, nil }
func (f *copiedFile) WALSize() (int64, error)   { return 0, nil }

// newFilesNode returns what a Service needs for its databases' files.
func newFilesNode(t *testing.T) *Service {
	s := &Service{log: slog.New(slog.DiscardHandler), files: noFiles{}, replicas: map[DatabaseID]*replica{}, replay: make(chan struct{})}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	s.copiers, s.appliers = newTurns(copierWidth), newPool(applierWidth(), s.goroutine)
	close(s.replay)
	t.Cleanup(func() {
		s.cancel()
		s.wg.Wait()
	})
	return s
}

// newCopy returns a database with open files at transaction 5.
func newCopy(s *Service, name string, live LiveFile) *replica {
	d := &replica{svc: s, log: s.log, id: DatabaseID([]byte(name)), name: name, path: name, pageSize: 4096, live: live, known: true}
	d.position = Position{TXID: 5}
	d.base, d.decided = d.position, d.position
	s.replicas[d.id] = d
	return d
}

func within(t *testing.T, what string, done <-chan struct{}) {
	t.Helper()
	select {
	case <-done:
	case <-time.After(10 * time.Second):
		t.Fatalf("waited in vain: %s", what)
	}
}

// An application that is stopped in a transaction keeps the write lock for as long as it likes. That its database was
// deleted meanwhile is no reason for others to wait (RULES A4).
func TestDeletedDatabasesThatAreHeldKeepNobodyFromApplying(t *testing.T) {
	s := newFilesNode(t)
	held := heldFile{waits: make(chan struct{}, 100)}
	for i := range applierWidth() {
		d := newCopy(s, string(rune('a'+i))+"-sixteen bytes.", held)
		d.handles = map[*Handle]struct{}{{}: {}}
		d.enqueue(item{index: 7, deleted: true})
		within(t, "the applier waits for the application", held.waits)
	}
	ran := make(chan struct{})
	s.appliers.run(func(*worker) { close(ran) })
	within(t, "another database has its turn", ran)
}

// A checkpoint holds pins off for as long as it copies and syncs. The state machine needs the lock of the database for each
// entry, and no other database may wait for that.
func TestThePinThatWaitsForACheckpointKeepsNobodyElseWaiting(t *testing.T) {
	s := newFilesNode(t)
	live := &copiedFile{began: make(chan struct{}), end: make(chan struct{}), asked: make(chan struct{}, 100)}
	end := sync.OnceFunc(func() { close(live.end) })
	t.Cleanup(end)
	d := newCopy(s, "shop.db 16 bytes", live)
	d.applying = true // no applier runs
	d.mu.Lock()
	d.checkpointLocked()
	d.mu.Unlock()
	within(t, "the checkpoint runs", live.began)
	scrubbed := make(chan error, 1)
	go func() {
		_, err := d.scrubRound(1)
		scrubbed <- err
	}()
	<-live.asked
	r := &pinRequest{at: 5, wait: true, done: make(chan struct{})}
	asked, told := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(asked)
		d.mu.Lock()
		defer d.mu.Unlock()
		d.pinLocked(r)
	}()
	within(t, "a pin is asked for", asked)
	go func() {
		defer close(told)
		sink{s}.Accepted(7, &Transaction{DB: d.id, Pre: d.decided, Post: Position{TXID: 6}})
	}()
	within(t, "the state machine goes on", told)
	if err := <-scrubbed; !errors.Is(err, wal.ErrBusy) {
		t.Errorf("scrub beside a checkpoint: %v", err)
	}
	end()
	within(t, "the pin comes with the end of the checkpoint", r.done)
	if r.err != nil || r.snap == nil || r.pos.TXID != 5 {
		t.Errorf("pinned %v at %v, %v", r.snap, r.pos, r.err)
	}
}
