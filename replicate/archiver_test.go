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

// A database that was deleted between the last entry of a node and the manifest that it was sent: what is not archived of
// it goes into the backlog as that of any other.
func TestWhatADeletedDatabaseLeavesIsKeptBehindAManifest(t *testing.T) {
	a := newTestArchiver(t, nil, ArchiveOptions{})
	leader, follower := newScript(t, nil), newScript(t, nil)
	id := leader.create("shop.db")
	follower.create("shop.db")
	leader.apply(&Delete{DB: id, CommitTime: 5000})
	a.s.fsm = follower.f
	a.add(id, 2, keptCommit{index: 3, time: 2000, size: 1})
	a.s.fsm = leader.f
	a.rebase(leader.f.List())
	if k := a.kept[id]; k == nil || !k.deleted || len(k.entries) != 1 {
		t.Errorf("kept: %+v", k)
	}
}

// A leader that leads no more before it has told what it has archived tells it when it leads again.
func TestWhatIsArchivedAndNotToldIsToldInALaterTerm(t *testing.T) {
	a := newTestArchiver(t, nil, ArchiveOptions{Local: true})
	s := newScript(t, nil)
	a.s.fsm, a.tag = s.f, 77
	told, untold := s.create("told.db"), s.create("untold.db")
	for _, id := range []DatabaseID{told, untold} {
		s.commit(id)
	}
	s.apply(&Archived{Archive: 77, Positions: []ArchivedPosition{{told, 2}}})
	a.proposals[told], a.proposals[untold], a.proposals[DatabaseID{9}] = 2, 2, 5
	a.survey()
	if len(a.proposals) != 1 || a.proposals[untold] != 2 {
		t.Errorf("to be told: %v", a.proposals)
	}
}

func TestAnArchiveIsTheSameByWhereItIs(t *testing.T) {
	const at = "s3://bucket/prefix?endpoint=https://store:9000"
	for _, tt := range []struct {
		url  string
		same bool
	}{
		{at, true},
		{at + "&ca=/etc/ca.pem&profile=backup", true},
		{at + "&region=eu-central-1&path-style=true", true},
		{"s3://bucket/prefix/?profile=x&endpoint=https%3A%2F%2Fstore%3A9000", true},
		{"s3://bucket/prefix?endpoint=https://other:9000", false},
		{"s3://bucket/prefix", false},
		{"s3://bucket/other?endpoint=https://store:9000", false},
		{"s3://other/prefix?endpoint=https://store:9000", false},
		{"file:///bucket/prefix", false},
	} {
		if got := archivePlace(tt.url) == archivePlace(at); got != tt.same {
			t.Errorf("%s is %s, %s is %s", at, archivePlace(at), tt.url, archivePlace(tt.url))
		}
	}
}
