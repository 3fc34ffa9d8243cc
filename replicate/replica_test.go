package replicate

import (
	"context"
	"log/slog"
	"os"
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
