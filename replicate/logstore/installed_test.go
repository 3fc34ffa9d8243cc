package logstore

import (
	"errors"
	"strings"
	"testing"

	"github.com/hashicorp/raft"
)

func TestALogBeforeASnapshotHasTheTermOfItsLastEntry(t *testing.T) {
	each(t, func(t *testing.T, dir string, open func() *Store) {
		s := open()
		sn := openSnapshots(t, dir, 2)
		must(t, Check(s, sn, ""))
		want := func(s *Store, index, term uint64) {
			t.Helper()
			var l raft.Log
			err := s.GetLog(index, &l)
			if l, err := s.Entry(index); index <= 50 && !errors.Is(err, raft.ErrLogNotFound) { // no entry, only a term
				t.Fatalf("entry %d was read: %+v, %v", index, l, err)
			}
			if term == 0 && !errors.Is(err, raft.ErrLogNotFound) || term > 0 && (err != nil || l.Index != index || l.Term != term) {
				t.Fatalf("entry %d: %+v, %v, want term %d", index, l, err, term)
			}
		}
		must(t, s.StoreLogs(entries(1, 9, 1)))
		must(t, sn.MarkComplete(snapshot(t, sn, 50, false)))
		want(s, 50, 0) // the log ends before it: raft is still to remove that
		must(t, s.StoreLogs(entries(51, 52, 3)))
		want(s, 50, 1)
		want(s, 49, 0)
		want(s, 51, 3)
		want(s, 53, 0)
		must(t, s.Close())

		s = open()
		must(t, Check(s, openSnapshots(t, dir, 2), ""))
		want(s, 50, 1)
		s.Installed(50)
		must(t, s.DeleteRange(51, 52))
		wantBounds(t, s, 51, 52, 3) // what follows the snapshot stays
		must(t, s.DeleteRange(51, 52))
		wantBounds(t, s, 0, 0, 0) // another leader has other entries there
		want(s, 50, 1)
	})
}

// The first entry of all is the one before which a leader has nothing: raft might send what the store makes up.
func TestTheFirstEntryIsNeverMadeUp(t *testing.T) {
	s, err := Open(t.TempDir(), WAL, Options{SegmentBytes: testSegment})
	must(t, err)
	defer s.Close()
	s.Covered(1, 1)
	if err := s.GetLog(1, new(raft.Log)); !errors.Is(err, raft.ErrLogNotFound) {
		t.Fatalf("got %v", err)
	}
}

func TestARemovalAfterARestoreKeepsWhatFollows(t *testing.T) {
	for name, test := range map[string]struct {
		first, last, snap         uint64
		stored                    bool // an entry comes between
		wantFirst, wantLast, term uint64
	}{
		"log ends before it":     {1, 12, 20, false, 0, 0, 0},
		"log ends with it":       {1, 12, 12, false, 0, 0, 0},
		"log goes on":            {1, 12, 8, false, 9, 12, 1},
		"log begins after it":    {9, 12, 8, false, 9, 12, 1},
		"the removal is another": {9, 12, 8, true, 0, 0, 0},
	} {
		t.Run(name, func(t *testing.T) {
			s, err := Open(t.TempDir(), WAL, Options{SegmentBytes: testSegment})
			must(t, err)
			defer s.Close()
			must(t, s.StoreLogs(entries(test.first, test.last, 1)))
			s.Covered(test.snap, 1)
			s.Installed(test.snap)
			if test.stored {
				must(t, s.StoreLogs(entries(test.last+1, test.last+1, 1)))
			}
			must(t, s.DeleteRange(test.first, test.last+1))
			wantBounds(t, s, test.wantFirst, test.wantLast, test.term)
		})
	}
}

// A follower restarts whose log begins right after its snapshot, and a leader that missed its answers sends the same
// entries, then the same snapshot, again: it takes the entries, and keeps them over the snapshot.
func TestAFollowerThatBeginsAfterItsSnapshotFollows(t *testing.T) {
	for _, kind := range kinds {
		t.Run(string(kind), func(t *testing.T) {
			dir := t.TempDir()
			servers := raft.Configuration{Servers: []raft.Server{{ID: "lead", Address: "lead"}, {ID: "f", Address: "f"}}}
			_, lead := raft.NewInmemTransport("lead")
			header := raft.RPCHeader{ProtocolVersion: 3, ID: []byte("lead"), Addr: []byte("lead")}
			start := func() *member {
				f := startMember(t, dir, kind, "f", false, false)
				lead.Connect("f", f.trans)
				return f
			}
			install := func() {
				t.Helper()
				var resp raft.InstallSnapshotResponse
				must(t, lead.InstallSnapshot("f", "f", &raft.InstallSnapshotRequest{RPCHeader: header, SnapshotVersion: 1, Term: 2, LastLogIndex: 10,
					LastLogTerm: 2, Configuration: raft.EncodeConfiguration(servers), ConfigurationIndex: 1, Size: 2}, &resp, strings.NewReader("7\n")))
				if !resp.Success {
					t.Fatal("the snapshot is refused")
				}
			}
			send := func(last, commit uint64) {
				t.Helper()
				var resp raft.AppendEntriesResponse
				logs := entries(11, last, 2)
				must(t, lead.AppendEntries("f", "f", &raft.AppendEntriesRequest{RPCHeader: header, Term: 2, PrevLogEntry: 10, PrevLogTerm: 2,
					Entries: logs, LeaderCommitIndex: commit}, &resp))
				if !resp.Success {
					t.Fatalf("the entries are refused: %+v", resp)
				}
			}
			f := start()
			install()
			send(12, 10)
			f.stop(t)

			f = start()
			send(12, 12)
			until(t, "they are applied", func() bool { return f.fsm.value() == 9 })
			install()
			if first, last := f.store.Bounds(); first > 11 || last != 12 {
				t.Errorf("the log is %d to %d, raft believes in %d", first, last, f.LastIndex())
			}
			send(13, 13) // raft looks at what is committed when there is more of it
			until(t, "they are applied again", func() bool { return f.fsm.value() == 10 })
			f.stop(t)
		})
	}
}
