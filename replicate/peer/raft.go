package peer

import (
	"context"
	"fmt"
	"net"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/raft"
)

// RaftLayer is raft's share of the port, for raft.NetworkTransportConfig.Stream.
// The Port has to be its ServerAddressProvider too, so that connections are
// made to a node and not to whoever has its address now. Closing the layer
// leaves the rest of the port open.
func (p *Port) RaftLayer() raft.StreamLayer { return p.raft }

// ServerAddr implements raft.ServerAddressProvider: "id@host:port", which only
// Dial of RaftLayer reads; for this node itself the plain address.
func (p *Port) ServerAddr(id raft.ServerID) (raft.ServerAddress, error) {
	if string(id) == p.ident().NodeID {
		return raft.ServerAddress(p.addr), nil
	}
	addr, ok := p.resolve(string(id))
	if !ok {
		return "", fmt.Errorf("find address of %q: %w", id, ErrUnknownPeer)
	}
	return raft.ServerAddress(string(id) + "@" + addr), nil
}

// PlainAddr is a raft address without the node id that ServerAddr puts before
// it, as raft.LeaderWithID may return it.
func PlainAddr(a raft.ServerAddress) string {
	s := string(a)
	return s[strings.IndexByte(s, '@')+1:]
}

type raftLayer struct {
	p      *Port
	conns  chan net.Conn
	closed chan struct{}

	mu   sync.Mutex
	live map[*raftConn]struct{} // nil: closed
}

var _ raft.StreamLayer = (*raftLayer)(nil)

// Accept implements net.Listener.
func (r *raftLayer) Accept() (net.Conn, error) {
	select {
	case c := <-r.conns:
		return c, nil
	case <-r.closed:
		return nil, fmt.Errorf("accept raft connection: %w", net.ErrClosed)
	}
}

// Close implements net.Listener.
func (r *raftLayer) Close() error {
	r.shut()
	return nil
}

// shut ends raft's connections: raft waits for its requests at its shutdown, and a follower may take hours to
// restore a snapshot before it answers.
func (r *raftLayer) shut() {
	r.mu.Lock()
	live := r.live
	if live != nil {
		r.live = nil
		close(r.closed)
	}
	r.mu.Unlock()
	for c := range live {
		c.Close() //nolint:errcheck // it is thrown away
	}
}

// conn wraps a connection, which gone hears the end of. The layer is closed: nil, and so is the connection.
func (r *raftLayer) conn(inner net.Conn, gone func()) *raftConn {
	c := &raftConn{Conn: inner}
	c.gone = func() {
		r.mu.Lock()
		delete(r.live, c)
		r.mu.Unlock()
		gone()
	}
	r.mu.Lock()
	closed := r.live == nil
	if !closed {
		r.live[c] = struct{}{}
	}
	r.mu.Unlock()
	if closed {
		c.Close() //nolint:errcheck // it is thrown away
		return nil
	}
	return c
}

// Addr implements net.Listener with the address that peers dial.
func (r *raftLayer) Addr() net.Addr { return tcpAddr(r.p.addr) }

type tcpAddr string

// Network implements net.Addr.
func (tcpAddr) Network() string { return "tcp" }

// String implements net.Addr.
func (a tcpAddr) String() string { return string(a) }

// Dial implements raft.StreamLayer for addresses made by ServerAddr. This node's own address is a connection within the
// process.
func (r *raftLayer) Dial(address raft.ServerAddress, timeout time.Duration) (net.Conn, error) {
	if string(address) == r.p.addr {
		near, far := net.Pipe() // its other end ends it
		go r.deliver(far, func() {})
		return near, nil
	}
	id, addr, ok := strings.Cut(string(address), "@")
	if !ok {
		return nil, fmt.Errorf("dial raft at %s: the address names no node: %w", address, ErrUnknownPeer)
	}
	select {
	case <-r.closed:
		return nil, fmt.Errorf("dial raft of %q: %w", id, ErrClosed)
	default:
	}
	if timeout <= 0 || timeout > r.p.opt.dialTimeout {
		timeout = r.p.opt.dialTimeout
	}
	conn, _, err := r.p.dial(context.Background(), addr, kindRaft, id, r.p.ident(), timeout)
	if err != nil {
		return nil, fmt.Errorf("dial raft of %q: %w", id, err)
	}
	if !r.p.trackConn(conn) {
		conn.Close() //nolint:errcheck // it is thrown away
		return nil, fmt.Errorf("dial raft of %q: %w", id, ErrClosed)
	}
	c := r.conn(conn, func() { r.p.untrackConn(conn) })
	if c == nil {
		return nil, fmt.Errorf("dial raft of %q: %w", id, ErrClosed)
	}
	return c, nil
}

// deliver hands an accepted connection to Accept, and calls gone at its end.
func (r *raftLayer) deliver(conn net.Conn, gone func()) {
	c := r.conn(conn, gone)
	if c == nil {
		return
	}
	select {
	case r.conns <- c:
	case <-r.closed:
		c.Close() //nolint:errcheck // it is thrown away
	}
}

// raftConn tells the port when raft closes a connection.
type raftConn struct {
	net.Conn
	gone func()
	once sync.Once
}

// Close implements net.Conn.
func (c *raftConn) Close() error {
	err := c.Conn.Close()
	c.once.Do(c.gone)
	return err
}

// LimitBatches bounds the AppendEntries requests of a transport: as many
// entries as have maxBytes of data together, and always at least one.
//
// raft itself counts entries only. The transport is the one place where a batch
// can be cut: raft computes a follower's next index from the entries that are
// in the request when AppendEntries returns, so what is cut off here is sent by
// its next round. (A log store cannot do it: an error of GetLog drops the whole
// batch.)
//
// While mayCampaign gives an error, this node asks for no votes; nil allows it always. raft has no other way to
// keep a voter from standing for election. A candidate that the leader chose asks all the same.
func LimitBatches(t *raft.NetworkTransport, maxBytes int, mayCampaign func() error) *Transport {
	return &Transport{NetworkTransport: t, comebacks: newComebacks(), max: maxBytes, mayCampaign: mayCampaign}
}

// Transport is raft's, with a bound on batches and, after Gate, a gate for answers.
type Transport struct {
	*raft.NetworkTransport
	comebacks   *comebacks
	max         int
	mayCampaign func() error                                     // nil: always
	wait        func(index uint64, cancel <-chan struct{}) error // nil: no gate
}

// Gate withholds from raft what a follower answers to AppendEntries until wait returns for the last entry of the
// request: until this node, the leader, has it on its own disk (logstore.Parallel). Where wait fails, the
// answer never counts.
func Gate(t *Transport, wait func(index uint64, cancel <-chan struct{}) error) *Transport {
	return &Transport{NetworkTransport: t.NetworkTransport, comebacks: t.comebacks, max: t.max, mayCampaign: t.mayCampaign, wait: wait}
}

// RequestPreVote implements raft.WithPreVote.
func (t *Transport) RequestPreVote(id raft.ServerID, target raft.ServerAddress, args *raft.RequestPreVoteRequest, resp *raft.RequestPreVoteResponse) error {
	if t.mayCampaign != nil {
		if err := t.mayCampaign(); err != nil {
			return err
		}
	}
	return t.NetworkTransport.RequestPreVote(id, target, args, resp)
}

// RequestVote implements raft.Transport.
func (t *Transport) RequestVote(id raft.ServerID, target raft.ServerAddress, args *raft.RequestVoteRequest, resp *raft.RequestVoteResponse) error {
	if t.mayCampaign != nil && !args.LeadershipTransfer {
		if err := t.mayCampaign(); err != nil {
			return err
		}
	}
	return t.NetworkTransport.RequestVote(id, target, args, resp)
}

var (
	_ raft.Transport   = (*Transport)(nil)
	_ raft.WithPreVote = (*Transport)(nil)
	_ raft.WithClose   = (*Transport)(nil)
)

// LeadershipLost ends what this node did as a leader and has no part in any more.
func (t *Transport) LeadershipLost() { t.comebacks.release() }

// EndWaits lets no request wait for a peer any more, and closes the transport: what is in flight fails. It comes
// after raft was told to shut down, and before that is waited for.
func (t *Transport) EndWaits() error {
	t.comebacks.end()
	return t.NetworkTransport.Close()
}

// AppendEntries implements raft.Transport. A request that fails waits for its peer, see comebacks.
func (t *Transport) AppendEntries(id raft.ServerID, target raft.ServerAddress, args *raft.AppendEntriesRequest, resp *raft.AppendEntriesResponse) error {
	cutBatch(args, t.max)
	err := t.comebacks.append(id, args, func() error { return t.NetworkTransport.AppendEntries(id, target, args, resp) })
	if err != nil {
		return err
	}
	if n := len(args.Entries); n > 0 && t.wait != nil && resp.Success {
		return t.wait(args.Entries[n-1].Index, nil)
	}
	return nil
}

// AppendEntriesPipeline implements raft.Transport.
func (t *Transport) AppendEntriesPipeline(id raft.ServerID, target raft.ServerAddress) (raft.AppendPipeline, error) {
	p, err := t.NetworkTransport.AppendEntriesPipeline(id, target)
	if err != nil {
		return nil, err
	}
	l := &pipeline{AppendPipeline: p, max: t.max, wait: t.wait}
	if t.wait != nil {
		l.passed, l.closed = make(chan raft.AppendFuture, 128), make(chan struct{})
		go l.pass()
	}
	return l, nil
}

// pipeline is raft's, behind the bound and the gate.
type pipeline struct {
	raft.AppendPipeline
	max    int
	wait   func(uint64, <-chan struct{}) error
	passed chan raft.AppendFuture // nil: no gate
	closed chan struct{}
	once   sync.Once
}

// AppendEntries implements raft.AppendPipeline.
func (p *pipeline) AppendEntries(args *raft.AppendEntriesRequest, resp *raft.AppendEntriesResponse) (raft.AppendFuture, error) {
	cutBatch(args, p.max)
	return p.AppendPipeline.AppendEntries(args, resp)
}

// Consumer implements raft.AppendPipeline.
func (p *pipeline) Consumer() <-chan raft.AppendFuture {
	if p.passed == nil {
		return p.AppendPipeline.Consumer()
	}
	return p.passed
}

// pass lets answers through the gate, in order. One that cannot pass is the last, and the pipeline ends with it: raft's
// next request fails, or the one that waits for room, and it goes on with single requests from the last answer that it has.
func (p *pipeline) pass() {
	for {
		var f raft.AppendFuture
		select {
		case f = <-p.AppendPipeline.Consumer():
		case <-p.closed:
			return
		}
		if n := len(f.Request().Entries); n > 0 && f.Response().Success {
			if p.wait(f.Request().Entries[n-1].Index, p.closed) != nil {
				p.Close() //nolint:errcheck // nothing more is read from it
				return
			}
		}
		select {
		case p.passed <- f:
		case <-p.closed:
			return
		}
	}
}

// Close implements raft.AppendPipeline.
func (p *pipeline) Close() error {
	if p.closed != nil {
		p.once.Do(func() { close(p.closed) })
	}
	return p.AppendPipeline.Close()
}

// StandForElection makes raft on this node a candidate at once, as a leader that hands over does: its peers vote
// although they still believe in the former leader. self is this node.
func (t *Transport) StandForElection(self raft.ServerID) error {
	req := raft.TimeoutNowRequest{RPCHeader: raft.RPCHeader{ProtocolVersion: raft.ProtocolVersionMax, ID: []byte(self)}}
	if err := t.NetworkTransport.TimeoutNow(self, t.LocalAddr(), &req, new(raft.TimeoutNowResponse)); err != nil {
		return fmt.Errorf("stand for election: %w", err)
	}
	return nil
}

func cutBatch(args *raft.AppendEntriesRequest, maxBytes int) {
	size := 0
	for i, e := range args.Entries {
		size += len(e.Data) + len(e.Extensions)
		if i > 0 && size > maxBytes {
			args.Entries = args.Entries[:i]
			return
		}
	}
}
