package node

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"

	"github.com/uglyer/ha-sqlite/internal/datadir"
	"github.com/uglyer/ha-sqlite/replicate"
	"github.com/uglyer/ha-sqlite/replicate/logstore"
)

// RecoverOptions say what a cluster that lost its majority is recovered from.
type RecoverOptions struct {
	// Data is the data directory of the node that goes on, With those of the
	// other nodes that survived, as far as they can be read here. Their nodes
	// are stopped.
	Data string
	With []string
	// AcceptDataLoss is the id of the cluster. Empty: nothing is changed.
	AcceptDataLoss string
}

// Recovery is what a recovery keeps and may lose.
type Recovery struct {
	Cluster string `json:"cluster_id"`
	Lineage uint64 `json:"lineage"` // before it
	// Done: the node is the only member now, of lineage NewLineage.
	Done       bool   `json:"done"`
	NewLineage uint64 `json:"new_lineage,omitempty"`
	// Furthest is the directory whose log has the most.
	Furthest string             `json:"furthest"`
	Nodes    []RecoveryNode     `json:"nodes"` // Data first
	Database []RecoveryDatabase `json:"databases"`
}

// RecoveryNode is one surviving node.
type RecoveryNode struct {
	Data     string   `json:"data"`
	Node     string   `json:"node"`
	LastTerm uint64   `json:"last_term"`
	Last     uint64   `json:"last_index"`
	Certain  uint64   `json:"certain_index"` // committed for certain
	Members  []string `json:"members"`
}

// RecoveryDatabase is one database, with what each node has of it, in the
// order of Recovery.Nodes.
type RecoveryDatabase struct {
	Name string             `json:"name"`
	ID   string             `json:"id"`
	Ends []RecoveryPosition `json:"ends"`
}

// RecoveryPosition is what the log of a node has of a database. Present is
// false where it has none of it.
type RecoveryPosition struct {
	Present  bool               `json:"present"`
	Position replicate.Position `json:"position"`
	// Certain is the last transaction of which this node can tell that it was
	// committed; later ones may have been acknowledged or not.
	Certain    replicate.TXID `json:"certain"`
	CommitTime time.Time      `json:"commit_time"`
	// Files is what its files show where that is more than the log has: it was committed, and can be read and not be
	// gone on from.
	Files replicate.Position `json:"files,omitzero"`
}

// ErrNotFurthest: another directory has more. Recover that one.
var ErrNotFurthest = errors.New("another node has more")

// ErrNotConfirmed: AcceptDataLoss names another cluster.
var ErrNotConfirmed = errors.New("not confirmed")

type stopped struct {
	dir       *datadir.Dir
	store     *logstore.Store
	snapshots *logstore.Snapshots
	survey    *replicate.Survey
}

// openStopped locks and reads the data directory of a node that does not run.
func openStopped(path string, log *slog.Logger) (_ *stopped, err error) {
	s := &stopped{}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.close())
		}
	}()
	if s.dir, err = datadir.Open(path, datadir.Want{Existing: true}); err != nil {
		return nil, err
	}
	r := s.dir.Record()
	if r.Cluster == (datadir.ClusterID{}) {
		return nil, fmt.Errorf("recover %s: %w", path, replicate.ErrNoState)
	}
	s.store, err = logstore.Open(s.dir.RaftDir(), logstore.Kind(r.LogKind), logstore.Options{MustExist: true, Logger: hclog.NewNullLogger()})
	if err != nil {
		return nil, err
	}
	s.snapshots, err = logstore.OpenSnapshots(s.dir.RaftDir(), snapshotsKept, hclog.NewNullLogger())
	if err != nil {
		return nil, err
	}
	if err := logstore.Check(s.store, s.snapshots, ""); err != nil {
		return nil, err
	}
	if s.survey, err = replicate.TakeSurvey(path, s.store, s.snapshots, log); err != nil {
		return nil, fmt.Errorf("recover %s: %w", path, err)
	}
	return s, nil
}

func (s *stopped) close() error {
	var errs []error
	if s.store != nil {
		errs = append(errs, s.store.Close())
	}
	if s.dir != nil {
		errs = append(errs, s.dir.Close())
	}
	return errors.Join(errs...)
}

// Recover makes a node whose cluster lost its majority a cluster of its own,
// of a new lineage. Without opts.AcceptDataLoss it only tells what that keeps
// and what may be lost.
func Recover(opts RecoverOptions, log *slog.Logger) (_ *Recovery, err error) {
	var nodes []*stopped
	defer func() {
		for _, n := range nodes {
			err = errors.Join(err, n.close())
		}
	}()
	for _, path := range append([]string{opts.Data}, opts.With...) {
		n, err := openStopped(path, log)
		if err != nil {
			return nil, err
		}
		nodes = append(nodes, n)
	}
	main := nodes[0].dir.Record()
	r := &Recovery{Cluster: main.Cluster.String(), Lineage: main.Lineage}
	best := nodes[0]
	for _, n := range nodes {
		if o := n.dir.Record(); o.Cluster != main.Cluster || o.Lineage != main.Lineage {
			return nil, fmt.Errorf("recover: %s is of cluster %s, lineage %d, and %s of %s, lineage %d: they have no log in common",
				n.dir.Path(), o.Cluster, o.Lineage, nodes[0].dir.Path(), main.Cluster, main.Lineage)
		}
		if n.survey.Further(best.survey) > 0 {
			best = n
		}
	}
	r.Furthest = best.dir.Path()
	r.describe(nodes)
	if opts.AcceptDataLoss == "" {
		return r, nil
	}
	if opts.AcceptDataLoss != r.Cluster {
		return r, fmt.Errorf("recover: %w: --accept-data-loss %s, but the cluster is %s", ErrNotConfirmed, opts.AcceptDataLoss, r.Cluster)
	}
	if best != nodes[0] {
		return r, fmt.Errorf("recover: %w: %s ends with entry %d of term %d, %s with %d of term %d; recover that one", ErrNotFurthest,
			best.dir.Path(), best.survey.Last, best.survey.LastTerm, nodes[0].dir.Path(), nodes[0].survey.Last, nodes[0].survey.LastTerm)
	}
	self, err := selfOf(nodes[0])
	if err != nil {
		return r, err
	}
	// The lineage first: a crash after it leaves a node that no other one speaks to, and that can be recovered
	// again. The other way round the former members could go on with a node that has forgotten them.
	if r.NewLineage, err = nodes[0].dir.NextLineage(); err != nil {
		return r, err
	}
	if err := replicate.RecoverAlone(nodes[0].store, nodes[0].survey, self); err != nil {
		return r, err
	}
	r.Done = true
	return r, nil
}

// selfOf finds how the cluster knew the node.
func selfOf(n *stopped) (raft.Server, error) {
	id := n.dir.Record().NodeID
	for _, s := range n.survey.Members {
		if string(s.ID) == id {
			return s, nil
		}
	}
	return raft.Server{}, fmt.Errorf("recover %s: node %s is no member of the cluster: it was removed, or its log ends before it was added", n.dir.Path(), id)
}

func (r *Recovery) describe(nodes []*stopped) {
	at := map[replicate.DatabaseID]int{}
	for i, n := range nodes {
		v := n.survey
		line := RecoveryNode{Data: n.dir.Path(), Node: n.dir.Record().NodeID, LastTerm: v.LastTerm, Last: v.Last, Certain: v.Certain, Members: []string{}}
		for _, m := range v.Members {
			line.Members = append(line.Members, string(m.ID))
		}
		r.Nodes = append(r.Nodes, line)
		for _, d := range v.Databases {
			k, ok := at[d.ID]
			if !ok {
				k = len(r.Database)
				at[d.ID] = k
				r.Database = append(r.Database, RecoveryDatabase{Name: d.Name, ID: d.ID.String(), Ends: make([]RecoveryPosition, len(nodes))})
			}
			r.Database[k].Ends[i] = RecoveryPosition{Present: true, Position: d.End, Certain: d.Certain.TXID, CommitTime: d.EndTime, Files: d.Files}
		}
	}
}

// Rejoin makes a stopped node one that belongs to no cluster, so that it can
// join one with --join. What it had is moved into a directory of the data
// directory, whose path is returned, but for its own archive: that has the
// history of each lineage apart, and goes on where the node joins the same
// cluster again. Another one is refused by it. Applications that still have its
// databases open get I/O errors until they open them anew.
func Rejoin(data string, log *slog.Logger) (string, error) {
	dir, err := datadir.Open(data, datadir.Want{Existing: true})
	if err != nil {
		return "", err
	}
	fileAccess := files{fileMode: dir.FileMode(), gid: dir.Group(), making: new(sync.Mutex)}
	err = endHandles(dir.DatabasesDir(), fileAccess)
	aside := ""
	if err == nil {
		aside, err = dir.SetAside(time.Now(), archiveDir)
	}
	if err := errors.Join(err, dir.Close()); err != nil {
		return aside, fmt.Errorf("rejoin %s: %w", data, err)
	}
	log.Info("the node belongs to no cluster any more", "data", data, "aside", aside)
	return aside, nil
}

// endHandles tells applications that are attached to databases that these are no more. Only a wal-index
// shows that there may be some.
func endHandles(databases string, f files) error {
	entries, err := os.ReadDir(databases)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, e := range entries {
		path := filepath.Join(databases, e.Name(), "db")
		if _, err := os.Stat(path + "-shm"); err != nil {
			continue
		}
		live, err := f.Open(path)
		if errors.Is(err, replicate.ErrUnusable) {
			continue
		}
		if err != nil {
			return err
		}
		epoch, err := live.Epoch()
		if err == nil {
			err = live.SetEpoch(epoch + 1)
		}
		if err := errors.Join(err, live.Close()); err != nil {
			return fmt.Errorf("end the handles of %s: %w", path, err)
		}
	}
	return nil
}
