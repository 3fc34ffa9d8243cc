package replicate

import (
	"bytes"
	"context"
	"log/slog"
	"testing"
	"time"

	"github.com/uglyer/ha-sqlite/snapshot"
	"github.com/uglyer/ha-sqlite/snapshot/archive"
	"github.com/uglyer/ha-sqlite/wal"
)

// newTestArchiver is that of a service without a raft log.
func newTestArchiver(t testing.TB, sink Sink, o ArchiveOptions) *archiver {
	t.Helper()
	s := &Service{
		fsm: NewFSM(sink, nil), log: slog.New(slog.DiscardHandler), replay: make(chan struct{}), now: time.Now,
		opts: Options{Dir: t.TempDir()},
	}
	close(s.replay)
	s.ctx, s.cancel = context.WithCancel(t.Context())
	o.BacklogLimit = 1 << 30
	a, err := newArchiver(s, o)
	if err != nil {
		t.Fatal(err)
	}
	s.archiver = a
	return a
}

// slowBody is the file of a commit that is not read before it may be.
type slowBody struct {
	archive.Body
	reads, may chan struct{}
}

func (b *slowBody) ReadAt(p []byte, off int64) (int, error) {
	b.reads <- struct{}{}
	<-b.may
	return b.Body.ReadAt(p, off)
}

// A commit is applied while another one is written into the backlog and somebody asks how far the archive is: none of
// them waits for the disk.
func TestWhoeverAsksForTheArchiveDoesNotHoldUpCommitsWhileTheDiskWrites(t *testing.T) {
	a := newTestArchiver(t, nil, ArchiveOptions{Local: true})
	id := DatabaseID{1}
	ltx, err := snapshot.EncodeTransaction(nil, snapshot.Header{PageSize: 512, PageCount: 1, TXID: 2}, []wal.Page{{Pgno: 1, Data: make([]byte, 512)}})
	if err != nil {
		t.Fatal(err)
	}
	a.add(id, 2, keptCommit{index: 2, time: 5, size: 1})
	body := &slowBody{bytes.NewReader(ltx), make(chan struct{}, 8), make(chan struct{})}
	added := make(chan error, 1)
	go func() { added <- a.backlog.Add(id.String(), archive.Commit{TXID: 2, Time: 5, LTX: body}) }()
	<-body.reads
	done := make(chan ArchiveStatus)
	go func() { done <- a.s.ArchiveStatus() }()
	if st := <-done; st.Unknown != 1 || st.Backlog.Bytes != 0 {
		t.Errorf("status %+v", st)
	}
	a.add(id, 3, keptCommit{index: 3, time: 6, size: 1})
	close(body.may)
	if err := <-added; err != nil {
		t.Error(err)
	}
	if st := a.s.ArchiveStatus(); st.Backlog.Bytes == 0 {
		t.Errorf("status %+v", st)
	}
}
