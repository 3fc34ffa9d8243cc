package replicate

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/uglyer/ha-sqlite/wal"
)

// foreignFile is a database that a program wrote which knows nothing of the cluster.
type foreignFile struct{ heldFile }

func (foreignFile) Peek() (fp wal.Fingerprint, pageSize, backfilled uint32, err error) {
	return wal.Fingerprint{Change: 7}, 4096, 0, nil
}

func (foreignFile) TryPin() (*wal.Snapshot, error) { return nil, errMoved }

// A foreign writer is looked for while the scrub of the database waits for those of others.
func TestAScrubThatWaitsBlindsNoWatch(t *testing.T) {
	s := newFilesNode(t)
	live := foreignFile{heldFile{waits: make(chan struct{}, 1)}}
	d := newCopy(s, "shop.db 16 bytes", live)
	s.rereads.Lock()
	t.Cleanup(s.rereads.Unlock)
	d.scrubIfDue()
	d.watch()
	within(t, "the files are looked at", live.waits)
}

// A scrub that finds files which somebody else wrote ends after a while: no other database is scrubbed before.
func TestAScrubOfForeignFilesEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newFilesNode(t)
		d := newCopy(s, "shop.db 16 bytes", foreignFile{})
		s.scrubInterval = scrubInterval
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		d.scrubInTurn(func(context.Context) error {
			err := d.scrub(ctx)
			if !errors.Is(err, errMoved) {
				t.Errorf("the scrub ended with: %v", err)
			}
			return err
		})
		if d.scrubDueLocked() {
			t.Error("the scrub is due at once")
		}
		<-time.After(2 * time.Minute)
		if !d.scrubDueLocked() {
			t.Error("the scrub is not tried again")
		}
	})
}
