// Package node builds one HA-Sqlite node out of its parts, starts it and stops it.
//
// Owns: the order in which the parts start and stop, and what each is given.
// Imports: all packages of the project that a node consists of.
// Invariant: nothing is served before the data directory is locked and checked, and everything that was
// started is stopped in the opposite order.
package node

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/uglyer/ha-sqlite/internal/api"
	"github.com/uglyer/ha-sqlite/internal/datadir"
	"github.com/uglyer/ha-sqlite/internal/link"
	"github.com/uglyer/ha-sqlite/replicate"
	"github.com/uglyer/ha-sqlite/replicate/logstore"
	"github.com/uglyer/ha-sqlite/replicate/peer"
)

// Node is a running node. Its methods may be called from any goroutine.
type Node struct {
	cfg     Config
	log     *slog.Logger
	id      string
	started time.Time

	dir   *datadir.Dir
	space replicate.Space
	store *logstore.Store
	port  *peer.Port
	svc   *replicate.Service
	// members is svc for the node port, which is asked for addresses while svc starts.
	members atomic.Pointer[replicate.Service]
	drills  *driller
	link    *link.Server
	http    *api.Server

	raftAddr, httpAddr, socket string

	cancel  context.CancelFunc
	wg      sync.WaitGroup
	done    chan struct{}
	stop    sync.Once
	ended   sync.Once
	mu      sync.Mutex
	err     error
	onClose []func() error
}

// snapshotsKept is how many raft snapshots stay on disk.
const snapshotsKept = 2

// wrapSpace stands between the node and its disk. Tests only: they fill it.
var wrapSpace = func(_ Config, s replicate.Space) replicate.Space { return s }

// beforePart is given to the service. Tests only: they stop large transactions between their parts.
var beforePart atomic.Pointer[func(number uint32)]

func callBeforePart(number uint32) {
	if f := beforePart.Load(); f != nil {
		(*f)(number)
	}
}

// wrapFiles stands between the node and its database files. Tests only: they let the files fail.
var wrapFiles = func(_ Config, f replicate.Files) replicate.Files { return f }

// forkPatience is for how long a majority may take to make its copies of a fork; 0: a default. Tests only.
var forkPatience atomic.Int64

// scrubInterval is how often every page of a database is read and compared; 0: a default. Tests only.
var scrubInterval atomic.Int64

// catchupStep hears of each step of a catch-up, nil: nobody does. Tests only.
var catchupStep atomic.Pointer[func(cfg Config, database, step string)]

// Start starts a node and returns once it serves. It enters its cluster in the background.
func Start(cfg Config, log *slog.Logger) (*Node, error) {
	cfg = cfg.WithDefaults()
	ctx, cancel := context.WithCancel(context.Background())
	n := &Node{cfg: cfg, log: log, started: time.Now().UTC(), cancel: cancel, done: make(chan struct{})}
	started := make(chan error, 1)
	go func() { started <- n.start(ctx) }()
	select {
	case err := <-started:
		if err != nil {
			return nil, deviceError(err)
		}
		return n, nil
	case <-n.done: // abandoned, and start may wait for ever
		return nil, n.failure()
	}
}

// deviceError says of a failed sync that the device is to be seen to.
func deviceError(err error) error {
	if errors.Is(err, datadir.ErrSync) {
		return fmt.Errorf("%w: %w", replicate.ErrDevice, err)
	}
	return replicate.DeviceError(err)
}

func (n *Node) start(ctx context.Context) (err error) {
	cfg := n.cfg
	defer func() {
		if err != nil {
			n.cancel()
			n.closeAll()
		}
	}()
	if err := n.openStores(); err != nil {
		return err
	}
	if err := n.listenPeers(); err != nil {
		return err
	}
	httpListener, err := api.Listen(cfg.HTTP, n.log)
	if err != nil {
		return err
	}
	n.onClose = append(n.onClose, ignoreClosed(httpListener.Close))
	n.httpAddr = httpListener.Addr().String()
	snapshots, err := logstore.OpenSnapshots(n.dir.RaftDir(), snapshotsKept, hclog.NewNullLogger())
	if err != nil {
		return err
	}
	snapshots.OnBroken(func(err error) { n.abandon(fmt.Errorf("raft snapshots: %w: %w", replicate.ErrDevice, err)) })
	if err := logstore.Check(n.store, snapshots, n.raftAddr); err != nil {
		return err
	}
	if err := n.store.FinishBootstrap(n.cluster()); err != nil {
		return err
	}
	archiving, err := n.archiveOptions()
	if err != nil {
		return err
	}
	fileAccess := files{fileMode: n.dir.FileMode(), gid: n.dir.Group(), making: new(sync.Mutex)}
	n.drills = n.newDriller(archiving != nil)
	n.svc, err = replicate.Start(replicate.Options{
		NodeID: n.id, Cluster: n.cluster, Dir: n.dir.Path(), HTTPAddr: n.httpAddr, Files: wrapFiles(cfg, fileAccess),
		Port: n.port, Store: n.store, Snapshots: snapshots,
		WriteLease: cfg.WriteLease, IdleClose: cfg.IdleClose,
		SnapshotEntries: cfg.SnapshotEntries, TrailingEntries: cfg.TrailingEntries,
		LogLimit: cfg.LogLimit, MaxTransaction: cfg.maxTransaction(), CatchupRate: cfg.CatchupRate, VerifyFull: cfg.VerifyFull,
		BeforePart:    callBeforePart,
		Drilled:       n.drills.told,
		ForkPatience:  time.Duration(forkPatience.Load()),
		ScrubInterval: time.Duration(scrubInterval.Load()),
		CatchupStep: func(database, step string) {
			if f := catchupStep.Load(); f != nil {
				(*f)(cfg, database, step)
			}
		},
		Quotas: cfg.Quotas, MaxUnattended: maxUnattended(),
		Archive: archiving,
		Space:   n.space, SegmentBytes: segmentBytes(cfg.LogLimit), ReserveBytes: reserveBytes(cfg.LogLimit),
	}, n.log)
	if err != nil {
		return err
	}
	n.members.Store(n.svc)
	if n.drills.interval > 0 {
		n.goroutine(func() { n.drills.run(ctx) })
	}
	past, err := n.startPasts(fileAccess)
	if err != nil {
		return errors.Join(err, n.svc.Shutdown(context.Background()))
	}
	n.link = link.NewServer(&sessions{svc: n.svc, nodeID: n.id, cluster: n.cluster, files: fileAccess, pasts: past, pending: map[string]int{}}, n.log)
	if err := n.serveSocket(); err != nil {
		return errors.Join(err, n.svc.Shutdown(context.Background()))
	}
	n.http = api.NewServer(backend{n}, backend{n}, n.log)
	n.goroutine(func() {
		if err := n.http.Serve(httpListener); err != nil {
			n.fail(err)
		}
	})
	n.goroutine(func() { n.enter(ctx) })
	n.goroutine(func() {
		select {
		case err := <-n.svc.Fatal():
			if errors.Is(err, replicate.ErrDevice) {
				n.abandon(err)
				return
			}
			n.fail(err)
		case <-ctx.Done():
		}
	})
	n.log.Info("node ready", "http", n.httpAddr, "raft", n.raftAddr, "socket", n.socket)
	return nil
}

func (n *Node) goroutine(f func()) {
	n.wg.Add(1)
	go func() {
		defer n.wg.Done()
		f()
	}()
}

func (n *Node) openStores() (err error) {
	cfg := n.cfg
	n.dir, err = datadir.Open(cfg.Data, datadir.Want{NodeID: cfg.ID, LogKind: cfg.RaftLog, Group: cfg.Group, FileMode: cfg.FileMode})
	if err != nil {
		return err
	}
	n.onClose = append(n.onClose, n.dir.Close)
	n.space = wrapSpace(cfg, n.dir.Space(reserveBytes(cfg.LogLimit)))
	n.id = n.dir.Record().NodeID
	n.log = n.log.With("node", n.id)
	n.store, err = logstore.Open(n.dir.RaftDir(), logstore.Kind(n.dir.Record().LogKind), logstore.Options{
		MustExist: n.cluster() != [16]byte{}, Logger: hclog.NewNullLogger(), SegmentBytes: int(segmentBytes(cfg.LogLimit)),
		Free: n.space.Free, Release: n.space.Release,
		OnBroken: func(err error) { n.abandon(fmt.Errorf("raft log: %w: %w", replicate.ErrDevice, err)) },
	})
	if err != nil {
		return err
	}
	n.onClose = append(n.onClose, n.store.Close)
	return nil
}

func (n *Node) cluster() [16]byte { return n.dir.Record().Cluster }

func (n *Node) listenPeers() (err error) {
	identity := func() peer.Identity {
		r := n.dir.Record()
		return peer.Identity{NodeID: n.id, Cluster: r.Cluster, Lineage: r.Lineage}
	}
	resolve := func(id string) (string, bool) {
		svc := n.members.Load()
		if svc == nil {
			return "", false
		}
		return svc.Address(id)
	}
	announce, err := announced(n.cfg.Raft)
	if err != nil {
		return err
	}
	n.port, err = peer.Listen(n.cfg.Raft, identity, resolve, n.log, peer.Advertise(announce))
	if err != nil {
		return err
	}
	n.onClose = append(n.onClose, n.port.Close)
	n.raftAddr = n.port.Addr()
	return nil
}

// announced returns the address that the other nodes are told: the name that was given, which may move to
// another machine, not what it resolves to today. Empty: the address of the listener, for a port that is chosen.
func announced(addr string) (string, error) {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return "", fmt.Errorf("raft address %q: %w", addr, err)
	}
	if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
		return "", fmt.Errorf("raft address %q is no address at which other nodes reach this one: give the name or address of this machine", addr)
	}
	if port == "0" {
		return "", nil
	}
	return addr, nil
}

// serveSocket opens the socket for applications: the one that was asked for, else the default one, else
// one in the data directory.
func (n *Node) serveSocket() error {
	l, err := n.listenSocket()
	if err != nil {
		return err
	}
	n.onClose = append(n.onClose, ignoreClosed(l.Close))
	n.goroutine(func() {
		if err := n.link.Serve(l); err != nil && !errors.Is(err, link.ErrServerClosed) {
			n.fail(err)
		}
	})
	return nil
}

func (n *Node) listenSocket() (net.Listener, error) {
	open := func(path string) (net.Listener, error) {
		l, err := link.Listen(path, n.dir.FileMode(), n.dir.Group())
		if err == nil {
			n.socket = path
		}
		return l, err
	}
	if n.cfg.Socket != "" {
		path, err := filepath.Abs(n.cfg.Socket)
		if err != nil {
			return nil, err
		}
		return open(path)
	}
	err := os.MkdirAll(filepath.Dir(DefaultSocket), 0o755)
	if err == nil {
		var l net.Listener
		if l, err = open(DefaultSocket); err == nil {
			return l, nil
		}
	}
	path := filepath.Join(n.dir.Path(), "node.sock")
	l, second := open(path)
	if second != nil {
		return nil, errors.Join(err, second)
	}
	n.log.Warn("the default socket cannot be used; applications need HASQLITE_SOCKET or node= to find this node",
		"default", DefaultSocket, "err", err, "HASQLITE_SOCKET", path)
	return l, nil
}

// enter makes the node a member of its cluster.
func (n *Node) enter(ctx context.Context) {
	adopt := func(cluster [16]byte, lineage uint64) error {
		err := n.dir.SetCluster(datadir.ClusterID(cluster), lineage)
		if errors.Is(err, datadir.ErrSync) {
			n.abandon(deviceError(err))
		}
		return err
	}
	err := n.svc.Enter(ctx, replicate.Membership{
		Join: n.cfg.Join, BootstrapExpect: n.cfg.BootstrapExpect, NonVoter: n.cfg.NonVoter, RaftAddr: n.raftAddr,
		Adopt: adopt, Lineage: func() uint64 { return n.dir.Record().Lineage },
	})
	if err != nil && ctx.Err() == nil && !errors.Is(err, replicate.ErrShutdown) {
		n.fail(fmt.Errorf("enter the cluster: %w", err))
	}
}

// fail ends the node: Wait returns err.
func (n *Node) fail(err error) {
	n.mu.Lock()
	first := n.err == nil
	if first {
		n.err = err
	}
	n.mu.Unlock()
	if first {
		n.log.Error("the node stops", "err", err)
		go func() {
			ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
			defer cancel()
			n.Shutdown(ctx) //nolint:errcheck // Wait reports the first error
		}()
	}
}

// abandon ends the node after a failed sync: nothing is written any more, not even for a clean shutdown. The process
// has to end.
func (n *Node) abandon(err error) {
	n.mu.Lock()
	first := n.err == nil
	if first {
		n.err = err
	}
	n.mu.Unlock()
	if !first {
		return
	}
	n.log.Error("the node ends at once", "err", err)
	n.ended.Do(func() { close(n.done) })
}

func (n *Node) failure() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.err
}

// Addrs returns where the node listens.
func (n *Node) Addrs() (http, raft, socket string) { return n.httpAddr, n.raftAddr, n.socket }

// Wait returns when the node has stopped: nil after Shutdown, else the error that it cannot go on after.
func (n *Node) Wait() error {
	<-n.done
	return n.failure()
}

// Shutdown stops the node: long HTTP requests cut off, no new writes, verdicts of commits in flight, leadership handed
// over, databases checkpointed and recorded. It is as clean as it can be until ctx ends.
func (n *Node) Shutdown(ctx context.Context) error {
	var err error
	if errors.Is(n.failure(), ErrDevice) {
		return nil // nothing may be written any more
	}
	n.stop.Do(func() {
		defer n.ended.Do(func() { close(n.done) })
		n.log.Info("stopping")
		err = errors.Join(n.endRequests(ctx), n.svc.Prepare(ctx), n.link.Shutdown(ctx), n.svc.Shutdown(ctx))
		n.cancel()
		err = errors.Join(err, n.closeAll())
		n.wg.Wait()
		n.log.Info("stopped")
	})
	<-n.done
	return err
}

// requestPatience is for how long a node that stops waits for its HTTP requests.
const requestPatience = 3 * time.Second

// endRequests lets HTTP requests end while the node still does what they ask for. Those that take longer are cut off: the
// commits in flight need the time.
func (n *Node) endRequests(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, requestPatience)
	defer cancel()
	err := n.http.Shutdown(ctx)
	if errors.Is(err, context.DeadlineExceeded) {
		n.log.Warn("http requests that had not ended were cut off", "err", err)
		return nil
	}
	return err
}

func (n *Node) closeAll() error {
	var errs []error
	for i := len(n.onClose) - 1; i >= 0; i-- {
		errs = append(errs, n.onClose[i]())
	}
	n.onClose = nil
	return errors.Join(errs...)
}

func ignoreClosed(f func() error) func() error {
	return func() error {
		if err := f(); err != nil && !errors.Is(err, net.ErrClosed) && !errors.Is(err, io.ErrClosedPipe) {
			return err
		}
		return nil
	}
}

// Migrate rewrites the raft log of a stopped node in another kind of store.
func Migrate(data, to string, log *slog.Logger) error {
	dir, err := datadir.Open(data, datadir.Want{Existing: true})
	if err != nil {
		return err
	}
	defer dir.Close() //nolint:errcheck // nothing was written through it since SetLogKind
	from := dir.Record().LogKind
	if from == to {
		return fmt.Errorf("migrate %s: its raft log is %q already", data, to)
	}
	err = logstore.Migrate(dir.RaftDir(), logstore.Kind(from), logstore.Kind(to), logstore.Options{}, func() error { return dir.SetLogKind(to) })
	if err != nil {
		return fmt.Errorf("migrate %s: %w", data, err)
	}
	log.Info("raft log migrated", "from", from, "to", to)
	return nil
}
