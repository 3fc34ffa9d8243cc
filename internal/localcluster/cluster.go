package localcluster

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"
)

// Defaults of Options.
const (
	DefaultNodes        = 3
	DefaultReadyTimeout = 30 * time.Second
)

// maxSocketDir leaves room for "/n9.sock" in the 104 bytes that the shortest sockaddr_un of our systems holds.
const maxSocketDir = 90

// Options say what cluster to start.
type Options struct {
	Command      []string      // program and first arguments of a node, for example {"./hasqlite", "__node"}; flags follow
	Nodes        int           // 0: three
	Dir          string        // everything goes below it; "": a temporary directory that Close removes
	Args         []string      // more flags for every node
	Env          []string      // more environment for every node, "NAME=value"
	ReadyTimeout time.Duration // 0: DefaultReadyTimeout
	KeepDir      bool          // Close leaves a temporary directory where it is
}

// Cluster is a set of nodes that know each other.
type Cluster struct {
	Dir string

	nodes     []*Node
	removeDir bool
	sockets   string // own directory for sockets when Dir is too long for them
	stop      func() bool
	closeOnce sync.Once
	closeErr  error
}

// Start starts the nodes and waits until each is ready and they have a leader. When ctx ends, at any time, every process
// of the cluster is killed. The caller calls Close in every case in which Start gave no error.
func Start(ctx context.Context, opts Options) (*Cluster, error) {
	c, err := New(opts)
	if err != nil {
		return nil, err
	}
	c.stop = context.AfterFunc(ctx, c.killAll)
	timeout := opts.ReadyTimeout
	if timeout == 0 {
		timeout = DefaultReadyTimeout
	}
	readyCtx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	err = c.startAll(readyCtx)
	if err == nil {
		_, err = c.WaitLeader(readyCtx)
	}
	if err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return c, nil
}

// New prepares directories and addresses and starts nothing.
func New(opts Options) (*Cluster, error) {
	if len(opts.Command) == 0 {
		return nil, errors.New("start cluster: no command given")
	}
	count := opts.Nodes
	if count == 0 {
		count = DefaultNodes
	}
	c := &Cluster{Dir: opts.Dir}
	if c.Dir == "" {
		dir, err := os.MkdirTemp("", "hasqlite-")
		if err != nil {
			return nil, fmt.Errorf("make cluster directory: %w", err)
		}
		c.Dir, c.removeDir = dir, !opts.KeepDir
	} else if err := os.MkdirAll(c.Dir, 0o755); err != nil {
		return nil, fmt.Errorf("make cluster directory: %w", err)
	}
	sockets := c.Dir
	if len(sockets) > maxSocketDir {
		dir, err := os.MkdirTemp("/tmp", "hs-")
		if err != nil {
			return nil, fmt.Errorf("make directory for sockets: %w", err)
		}
		c.sockets, sockets = dir, dir
	}
	var join []string
	for i := range count {
		id := fmt.Sprintf("n%d", i+1)
		n := &Node{
			ID:      id,
			Data:    filepath.Join(c.Dir, id),
			Socket:  filepath.Join(sockets, id+".sock"),
			LogPath: filepath.Join(c.Dir, id+".log"),
			env:     opts.Env,
		}
		var err error
		if n.HTTP, err = FreeAddr(); err != nil {
			return nil, errors.Join(err, c.Close())
		}
		if n.Raft, err = FreeAddr(); err != nil {
			return nil, errors.Join(err, c.Close())
		}
		join = append(join, n.Raft)
		c.nodes = append(c.nodes, n)
	}
	for _, n := range c.nodes {
		n.argv = append(n.argv, opts.Command...)
		n.argv = append(n.argv, "--data", n.Data, "--id", n.ID, "--http", n.HTTP, "--raft", n.Raft, "--socket", n.Socket)
		if count > 1 {
			n.argv = append(n.argv, "--bootstrap-expect", fmt.Sprint(count), "--join", strings.Join(join, ","))
		}
		n.argv = append(n.argv, opts.Args...)
	}
	return c, nil
}

func (c *Cluster) startAll(ctx context.Context) error {
	for _, n := range c.nodes {
		if err := n.Start(); err != nil {
			return err
		}
	}
	for _, n := range c.nodes {
		if err := n.WaitReady(ctx); err != nil {
			return err
		}
	}
	return nil
}

// Nodes returns all nodes in the order n1, n2, …
func (c *Cluster) Nodes() []*Node { return c.nodes }

// Node returns the node with an id, nil if there is none.
func (c *Cluster) Node(id string) *Node {
	for _, n := range c.nodes {
		if n.ID == id {
			return n
		}
	}
	return nil
}

// Statuses asks all nodes at once; the slice has a nil for each that did not answer.
func (c *Cluster) Statuses(ctx context.Context) []*Status {
	out := make([]*Status, len(c.nodes))
	var wg sync.WaitGroup
	for i, n := range c.nodes {
		if !n.Running() {
			continue
		}
		wg.Go(func() {
			if s, err := n.Status(ctx); err == nil {
				out[i] = s
			}
		})
	}
	wg.Wait()
	return out
}

// errNoLeader says what Leader saw.
var errNoLeader = errors.New("no leader that a majority of the nodes follows")

// Leader returns the node that is leader and that a majority of all nodes, itself included, names as leader.
func (c *Cluster) Leader(ctx context.Context) (*Node, error) {
	var leader *Node
	var term uint64
	votes := make(map[string]int)
	for i, s := range c.Statuses(ctx) {
		if s == nil {
			continue
		}
		votes[s.Cluster.Leader]++
		if s.State == "leader" && (leader == nil || s.Cluster.Term > term) {
			leader, term = c.nodes[i], s.Cluster.Term
		}
	}
	if leader == nil || votes[leader.ID] <= len(c.nodes)/2 {
		return nil, errNoLeader
	}
	return leader, nil
}

// WaitLeader waits for a leader.
func (c *Cluster) WaitLeader(ctx context.Context) (*Node, error) {
	var leader *Node
	err := Poll(ctx, 20*time.Millisecond, func() (bool, error) {
		n, err := c.Leader(ctx)
		leader = n
		return err == nil, err
	})
	if err != nil {
		return nil, fmt.Errorf("wait for a leader: %w", err)
	}
	return leader, nil
}

// Follower returns a node that is not the leader.
func (c *Cluster) Follower(ctx context.Context) (*Node, error) {
	leader, err := c.WaitLeader(ctx)
	if err != nil {
		return nil, err
	}
	for _, n := range c.nodes {
		if n != leader && n.Running() {
			return n, nil
		}
	}
	return nil, errors.New("no running follower")
}

// WaitConverged waits until every node shows the database in state ok or idle, with file and decided position equal, and the same
// position on all nodes. It returns that position. All nodes have to run.
func (c *Cluster) WaitConverged(ctx context.Context, database string) (Position, error) {
	var pos Position
	err := Poll(ctx, 50*time.Millisecond, func() (bool, error) {
		var err error
		pos, err = converged(c.nodes, c.Statuses(ctx), database)
		return err == nil, err
	})
	if err != nil {
		return Position{}, fmt.Errorf("wait for equal positions of %s: %w", database, err)
	}
	return pos, nil
}

// converged gives the one position of a database on all nodes, or says in which way they are not at one.
func converged(nodes []*Node, statuses []*Status, database string) (Position, error) {
	var errs []error
	var first Database
	var firstNode string
	for i, s := range statuses {
		id := nodes[i].ID
		if s == nil {
			errs = append(errs, fmt.Errorf("%s: no answer", id))
			continue
		}
		d, ok := s.Database(database)
		if !ok {
			errs = append(errs, fmt.Errorf("%s: no such database", id))
			continue
		}
		if d.State != "ok" && d.State != "idle" || d.File != d.Decided {
			errs = append(errs, fmt.Errorf("%s: state %s %s, decided %v, file %v", id, d.State, d.Detail, d.Decided, d.File))
			continue
		}
		if firstNode == "" {
			first, firstNode = d, id
		} else if d.File != first.File || d.ID != first.ID {
			errs = append(errs, fmt.Errorf("%s: %v of %s, but %s: %v of %s", id, d.File, d.ID, firstNode, first.File, first.ID))
		}
	}
	if len(errs) > 0 {
		return Position{}, errors.Join(errs...)
	}
	return first.File, nil
}

// killAll kills every process of the cluster that still runs.
func (c *Cluster) killAll() {
	for _, n := range c.nodes {
		// The error of a kill can only be that of a process that is not ours any more.
		_ = n.close()
	}
}

// Close kills all nodes and removes the temporary directory. It can be called more than once.
func (c *Cluster) Close() error {
	c.closeOnce.Do(func() {
		if c.stop != nil {
			c.stop()
		}
		c.killAll()
		var errs []error
		if c.sockets != "" {
			errs = append(errs, os.RemoveAll(c.sockets))
		}
		if c.removeDir {
			errs = append(errs, os.RemoveAll(c.Dir))
		}
		if err := errors.Join(errs...); err != nil {
			c.closeErr = fmt.Errorf("remove cluster directory: %w", err)
		}
	})
	return c.closeErr
}
