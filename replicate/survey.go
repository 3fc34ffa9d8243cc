package replicate

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"time"

	"github.com/hashicorp/raft"

	"github.com/uglyer/ha-sqlite/replicate/logstore"
	"github.com/uglyer/ha-sqlite/replicate/pagesums"
)

// Survey is what the log of a stopped node says. Entries up to Certain are committed; of those after it only a
// majority could tell.
type Survey struct {
	Cluster   [16]byte
	Term      uint64 // the highest that the node has heard of
	Certain   uint64 // last entry that a snapshot of this node holds
	Last      uint64 // last entry of the log
	LastTerm  uint64
	Members   []raft.Server // of the latest configuration in the log
	Databases []SurveyDatabase
}

// SurveyDatabase is one database as the log has it.
type SurveyDatabase struct {
	ID      DatabaseID
	Name    string
	Certain Position // zero if it was created after the snapshot
	End     Position // with every entry of the log
	Files   Position // of its files where they are past that (see ErrAhead), else zero
	EndTime time.Time
}

// Further orders surveys of one cluster: the later one has every entry that the other one has and that was
// ever committed, as raft's vote compares them.
func (v *Survey) Further(other *Survey) int {
	return cmp.Or(cmp.Compare(v.LastTerm, other.LastTerm), cmp.Compare(v.Last, other.Last))
}

// ErrNoState is returned by TakeSurvey and RecoverAlone for a node that was never a member.
var ErrNoState = errors.New("the node has neither a log nor a snapshot: there is nothing to recover")

// TakeSurvey reads the log and the newest snapshot of a node that does not run, and the records of its files in the data
// directory. It changes nothing.
func TakeSurvey(dir string, store *logstore.Store, snapshots *logstore.Snapshots, log *slog.Logger) (*Survey, error) {
	v := &Survey{}
	fsm := NewFSM(nil, log)
	list, err := snapshots.List()
	if err != nil {
		return nil, err
	}
	if len(list) > 0 {
		meta, rc, err := snapshots.Open(list[0].ID)
		if err != nil {
			return nil, err
		}
		if err := fsm.Restore(rc); err != nil { // it closes rc
			return nil, fmt.Errorf("read snapshot %s: %w", list[0].ID, err)
		}
		v.Certain, v.Last, v.LastTerm = meta.Index, meta.Index, meta.Term
		v.Members = meta.Configuration.Servers
	}
	certain := map[DatabaseID]Position{}
	for _, st := range fsm.List() {
		certain[st.ID] = st.Position
	}
	first, last := store.Bounds()
	for i := max(first, v.Certain+1); last > 0 && i <= last; i++ {
		l, err := store.Entry(i)
		if err != nil {
			return nil, err
		}
		switch l.Type {
		case raft.LogConfiguration:
			if v.Members, err = configuration(l); err != nil {
				return nil, err
			}
			fsm.StoreConfiguration(l.Index, raft.Configuration{})
		default:
			fsm.Apply(l)
			if err := fsm.Err(); err != nil {
				return nil, err
			}
		}
		v.Last, v.LastTerm = l.Index, l.Term
	}
	if v.Last == 0 {
		return nil, ErrNoState
	}
	term, err := store.GetUint64(keyCurrentTerm)
	if err != nil {
		return nil, fmt.Errorf("read the term: %w", err)
	}
	v.Term = max(term, v.LastTerm)
	v.Cluster = fsm.Cluster()
	sums, err := pagesums.Open(filepath.Join(dir, sumsDir))
	if err != nil {
		return nil, err
	}
	for _, st := range fsm.List() {
		db := SurveyDatabase{
			ID: st.ID, Name: st.Name, Certain: certain[st.ID], End: st.Position, EndTime: time.UnixMicro(st.CommitTime).UTC(),
		}
		if rec, ok := sums.Find(st.ID); ok && TXID(rec.TXID) > db.End.TXID {
			db.Files = Position{TXID(rec.TXID), Checksum(rec.Checksum)}
		}
		v.Databases = append(v.Databases, db)
	}
	return v, sums.Close()
}

// configuration decodes an entry, for which raft's own function panics.
func configuration(l *raft.Log) (servers []raft.Server, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("decode log entry %d: %v", l.Index, p)
		}
	}()
	return raft.DecodeConfiguration(l.Data).Servers, nil
}

// keyCurrentTerm is raft's.
var keyCurrentTerm = []byte("CurrentTerm")

// RecoverAlone makes the stopped node the only member of its cluster, which it leads when it starts: the log
// gets one more entry, a configuration. Nothing is taken out of the log, so the files follow from it as after
// any start, and entries that nobody acknowledged may become part of the databases. The caller has made sure
// that no other node of the former cluster can be reached (a new lineage).
//
// Nothing of the former members may reach the entry's term: it is one that no node has heard of from this one.
func RecoverAlone(store *logstore.Store, v *Survey, self raft.Server) error {
	if v.Last == 0 {
		return ErrNoState
	}
	self.Suffrage = raft.Voter
	term := v.Term + 1
	if err := store.SetUint64(keyCurrentTerm, term); err != nil {
		return fmt.Errorf("write the term: %w", err)
	}
	entry := &raft.Log{
		Index: v.Last + 1, Term: term, Type: raft.LogConfiguration, AppendedAt: time.Now(),
		Data: raft.EncodeConfiguration(raft.Configuration{Servers: []raft.Server{self}}),
	}
	if err := store.StoreLogs([]*raft.Log{entry}); err != nil {
		return fmt.Errorf("write the configuration of one member: %w", err)
	}
	return nil
}
