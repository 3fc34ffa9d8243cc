package peer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

const (
	keyPeer = "peer"
	keyAddr = "addr"
	keyErr  = "err"
	keyNode = "node"

	maxHandshakes  = 128       // connections that have not said hello yet
	maxConnections = 1024      // all that were accepted
	maxInFlight    = 8192      // requests in handlers, all peers together
	maxInFlightMem = 256 << 20 // their bytes
	closeWait      = 5 * time.Second
)

// Handler answers a request. It runs in its own goroutine, ends soon after ctx
// does, and owns req. The answer must not be changed afterwards. ctx ends when
// the caller stops waiting, its connection ends, or the port is closed.
type Handler func(ctx context.Context, from string, req []byte) ([]byte, error)

// StreamHandler answers a request with as many bytes as it likes. Writes block
// while the reader is slow, and end with an error when it is gone.
type StreamHandler func(ctx context.Context, from string, req []byte, w io.Writer) error

// HandleOption changes who may use a method.
type HandleOption func(*method)

// OpenToStrangers lets nodes call a method while one side is no member of the
// cluster yet. The sender id is what the stranger says it is.
func OpenToStrangers() HandleOption { return func(m *method) { m.open = true } }

type method struct {
	call   Handler
	stream StreamHandler
	open   bool
}

// Option changes a Port before it starts.
type Option func(*options)

type options struct {
	advertise   string
	dialTimeout time.Duration
	handshake   time.Duration
	ping        time.Duration
	misses      int
	grace       time.Duration
	keepalive   time.Duration
	streamIdle  time.Duration
}

// Advertise sets the address that Addr and raft announce, for a port that
// listens on a wildcard address.
func Advertise(addr string) Option { return func(o *options) { o.advertise = addr } }

// Liveness sets how often connections are pinged and after how many silent
// intervals they end: 1 s and 4 unless told.
func Liveness(interval time.Duration, misses int) Option {
	return func(o *options) { o.ping, o.misses = interval, misses }
}

// DialTimeout bounds connecting to a peer, handshake included: 1 s unless told.
func DialTimeout(d time.Duration) Option { return func(o *options) { o.dialTimeout = d } }

// Port is a node's TCP port. All methods may be called concurrently.
type Port struct {
	ident   func() Identity
	resolve func(id string) (addr string, ok bool)
	log     *slog.Logger
	opt     options
	ln      net.Listener
	addr    string
	raft    *raftLayer

	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup

	methods [256]atomic.Pointer[method]
	running atomic.Int64 // requests in handlers
	memory  atomic.Int64 // their bytes

	handshakes chan struct{}
	accepted   atomic.Int64

	mu      sync.Mutex
	closed  bool
	links   map[*link]bool // value: this side pings
	conns   map[net.Conn]struct{}
	out     map[string]*outbound
	inbound map[string]*serverConn
	onGone  []func(string)
	onLost  []func(string)

	onRaftEnded []func(string)
	lastSaid    map[string]string // last dial error logged, by peer
}

// Listen opens the port. ident is asked at every handshake, since a node
// becomes a member while it runs; resolve gives the address of a node id.
// Both must be quick and must not call the Port.
func Listen(addr string, ident func() Identity, resolve func(id string) (addr string, ok bool), log *slog.Logger, opts ...Option) (*Port, error) {
	if err := ValidNodeID(ident().NodeID); err != nil {
		return nil, fmt.Errorf("listen on %s: %w", addr, err)
	}
	o := options{
		dialTimeout: time.Second,
		handshake:   5 * time.Second,
		ping:        time.Second,
		misses:      4,
		grace:       time.Second,
		keepalive:   3 * time.Second,
		streamIdle:  15 * time.Second,
	}
	for _, f := range opts {
		f(&o)
	}
	lc := net.ListenConfig{KeepAliveConfig: keepAlive}
	ln, err := lc.Listen(context.Background(), "tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("listen for peers on %s: %w", addr, err)
	}
	p := &Port{
		ident: ident, resolve: resolve, log: log, opt: o, ln: ln, addr: ln.Addr().String(),
		handshakes: make(chan struct{}, maxHandshakes),
		links:      make(map[*link]bool),
		conns:      make(map[net.Conn]struct{}),
		out:        make(map[string]*outbound),
		inbound:    make(map[string]*serverConn),
		lastSaid:   make(map[string]string),
	}
	if o.advertise != "" {
		p.addr = o.advertise
	}
	p.raft = &raftLayer{p: p, conns: make(chan net.Conn), closed: make(chan struct{}), live: map[*raftConn]struct{}{}}
	p.ctx, p.cancel = context.WithCancel(context.Background())
	p.wg.Add(2)
	go p.acceptLoop()
	go p.monitor()
	return p, nil
}

var keepAlive = net.KeepAliveConfig{Enable: true, Idle: 5 * time.Second, Interval: 2 * time.Second, Count: 3}

// Addr is the address that peers dial.
func (p *Port) Addr() string { return p.addr }

// Handle sets the handler of a method. It may be set once.
func (p *Port) Handle(id uint8, h func(ctx context.Context, from string, req []byte) ([]byte, error), opts ...HandleOption) {
	p.setMethod(id, &method{call: h}, opts)
}

// HandleStream sets the handler of a method of streams. Methods of calls and
// streams share their numbers.
func (p *Port) HandleStream(id uint8, h func(ctx context.Context, from string, req []byte, w io.Writer) error) {
	p.setMethod(id, &method{stream: h}, nil)
}

func (p *Port) setMethod(id uint8, m *method, opts []HandleOption) {
	for _, f := range opts {
		f(m)
	}
	if !p.methods[id].CompareAndSwap(nil, m) {
		panic(fmt.Sprintf("peer: method %d has two handlers", id))
	}
}

// OnDisconnect registers f, which is called with a peer's id after the
// connection on which that peer sends its requests has ended. At that time none
// of the handlers of the connection runs any more, and no request of the peer's
// next connection is served before f has returned.
func (p *Port) OnDisconnect(f func(peerID string)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.onGone = append(p.onGone, f)
}

// OnLost registers f, which is called with a peer's id after the connection on
// which this node sends its requests to that peer has ended: what the peer kept
// for it, such as locks, is gone.
func (p *Port) OnLost(f func(peerID string)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.onLost = append(p.onLost, f)
}

// OnRaftEnded registers f, which is called with a peer's id after a connection on which raft there sent its requests to
// raft here has ended. A process that dies ends all of its connections at once.
func (p *Port) OnRaftEnded(f func(peerID string)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.onRaftEnded = append(p.onRaftEnded, f)
}

func (p *Port) raftEnded(peerID string) {
	p.mu.Lock()
	tell := p.onRaftEnded
	if p.closed {
		tell = nil
	}
	p.mu.Unlock()
	for _, f := range tell {
		f(peerID)
	}
}

// Refuses reports whether the machine of a peer answers and nobody listens at the peer's address there: the process
// is gone. Silence, and a peer that answers, are no proof.
func (p *Port) Refuses(ctx context.Context, peerID string) bool {
	addr, ok := p.resolve(peerID)
	if !ok {
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, p.opt.dialTimeout)
	defer cancel()
	var d net.Dialer
	conn, err := d.DialContext(ctx, "tcp", addr)
	if err == nil {
		conn.Close() //nolint:errcheck // it was only asked for
		return false
	}
	return errors.Is(err, syscall.ECONNREFUSED)
}

// Connected tells whether a live connection to or from the peer exists.
func (p *Port) Connected(peerID string) bool {
	p.mu.Lock()
	in, o := p.inbound[peerID], p.out[peerID]
	p.mu.Unlock()
	return in != nil && in.cause() == nil || o != nil && o.live()
}

// Forget ends the connections with a peer, for instance one that was removed.
func (p *Port) Forget(peerID string) {
	p.mu.Lock()
	in, out := p.inbound[peerID], p.out[peerID]
	p.mu.Unlock()
	if in != nil {
		in.fail(errForgotten)
	}
	if out != nil {
		out.end(errForgotten)
	}
}

// Close ends the listener and all connections and waits for the handlers.
func (p *Port) Close() error {
	p.mu.Lock()
	if p.closed {
		p.mu.Unlock()
		return nil
	}
	p.closed = true
	p.cancel()
	err := p.ln.Close()
	links := make([]*link, 0, len(p.links))
	for l := range p.links {
		links = append(links, l)
	}
	conns := make([]net.Conn, 0, len(p.conns))
	for c := range p.conns {
		conns = append(conns, c)
	}
	p.mu.Unlock()
	p.raft.shut()
	for _, l := range links {
		l.fail(ErrClosed)
	}
	for _, c := range conns {
		c.Close() //nolint:errcheck // it is thrown away
	}
	done := make(chan struct{})
	go func() { p.wg.Wait(); close(done) }()
	select {
	case <-done:
	case <-time.After(closeWait):
		p.log.Warn("peer port closed while handlers still run")
	}
	return err
}

// goRun counts f's goroutine so that Close waits for it. False: closed.
func (p *Port) goRun(f func()) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return false
	}
	p.wg.Add(1)
	go func() { defer p.wg.Done(); f() }()
	return true
}

// track makes Close end conn, and the monitor watch its link. False: closed.
func (p *Port) track(l *link, pings bool) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return false
	}
	p.links[l] = pings
	return true
}

func (p *Port) untrack(l *link) {
	p.mu.Lock()
	delete(p.links, l)
	p.mu.Unlock()
}

func (p *Port) trackConn(c net.Conn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return false
	}
	p.conns[c] = struct{}{}
	return true
}

func (p *Port) untrackConn(c net.Conn) {
	p.mu.Lock()
	delete(p.conns, c)
	p.mu.Unlock()
}

func (p *Port) acceptLoop() {
	defer p.wg.Done()
	for {
		conn, err := p.ln.Accept()
		if err != nil {
			if p.ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
				return
			}
			p.log.Warn("accept of a peer connection", keyErr, err)
			select {
			case <-time.After(100 * time.Millisecond): // out of descriptors, say
				continue
			case <-p.ctx.Done():
				return
			}
		}
		if p.accepted.Add(1) > maxConnections {
			p.accepted.Add(-1)
			conn.Close() //nolint:errcheck // it is thrown away
			continue
		}
		select {
		case p.handshakes <- struct{}{}:
		default:
			p.accepted.Add(-1)
			conn.Close() //nolint:errcheck // it is thrown away
			continue
		}
		if !p.goRun(func() { p.greet(conn) }) {
			conn.Close() //nolint:errcheck // it is thrown away
		}
	}
}

// greet reads the hello of an accepted connection, answers, and serves it.
func (p *Port) greet(conn net.Conn) {
	release := func() { p.accepted.Add(-1) }
	if !p.trackConn(conn) {
		release()
		<-p.handshakes
		conn.Close() //nolint:errcheck // it is thrown away
		return
	}
	drop := func() {
		p.untrackConn(conn)
		conn.Close() //nolint:errcheck // it is thrown away
		release()
	}
	conn.SetDeadline(time.Now().Add(p.opt.handshake)) //nolint:errcheck // a dead connection shows at the read
	h, err := readHello(conn)
	<-p.handshakes
	me := p.ident()
	if err != nil {
		var ve *versionError
		if errors.As(err, &ve) {
			p.answer(conn, answer{refused: true, id: me.NodeID, text: ve.Error()}) //nolint:errcheck // it ends anyway
		}
		if !errors.Is(err, io.EOF) && p.ctx.Err() == nil {
			p.log.Warn("peer handshake", keyAddr, conn.RemoteAddr().String(), keyErr, err)
		}
		drop()
		return
	}
	stranger, refusal := judge(h, me)
	if refusal != "" {
		p.log.Warn("peer handshake refused", keyPeer, h.sender, keyAddr, conn.RemoteAddr().String(), keyErr, refusal)
		p.answer(conn, answer{refused: true, id: me.NodeID, cluster: me.Cluster, lineage: me.Lineage, text: refusal}) //nolint:errcheck // it ends anyway
		drop()
		return
	}
	var sc *serverConn
	if h.kind == kindRPC || h.kind == kindCall {
		sc = newServerConn(p, conn, h, stranger)
		if h.kind == kindRPC {
			p.supersede(sc)
		}
	}
	if err := p.answer(conn, answer{id: me.NodeID, cluster: me.Cluster, lineage: me.Lineage}); err != nil {
		if sc != nil {
			sc.fail(err)
			sc.finish()
		}
		drop()
		return
	}
	conn.SetDeadline(time.Time{}) //nolint:errcheck // a dead connection shows at the read
	switch h.kind {
	case kindRaft:
		p.raft.deliver(conn, func() {
			drop()
			p.raftEnded(h.sender)
		})
	case kindStream:
		p.serveStream(conn, h.sender)
		drop()
	default:
		if p.track(sc.link, false) {
			p.untrackConn(conn)
			sc.after = release
			sc.serve()
		} else {
			sc.fail(ErrClosed)
			sc.finish()
			drop()
		}
	}
}

func (p *Port) answer(conn net.Conn, a answer) error {
	_, err := conn.Write(appendAnswer(nil, a))
	return err
}

// supersede makes sc the connection of its peer and waits until the former one
// is gone with all its handlers and after OnDisconnect.
func (p *Port) supersede(sc *serverConn) {
	p.mu.Lock()
	old := p.inbound[sc.from]
	p.inbound[sc.from] = sc
	p.mu.Unlock()
	if old != nil {
		old.fail(errSuperseded)
		select {
		case <-old.done:
		case <-p.ctx.Done():
		}
	}
}

// dial connects to addr and shakes hands within timeout.
func (p *Port) dial(ctx context.Context, addr string, kind connKind, receiver string, me Identity, timeout time.Duration) (net.Conn, answer, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	d := net.Dialer{KeepAliveConfig: keepAlive}
	conn, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, answer{}, err
	}
	if deadline, ok := ctx.Deadline(); ok {
		conn.SetDeadline(deadline) //nolint:errcheck // a dead connection shows at the write
	}
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) }) //nolint:errcheck // it ends anyway
	h := hello{kind: kind, cluster: me.Cluster, lineage: me.Lineage, sender: me.NodeID, receiver: receiver}
	var a answer
	if _, err = conn.Write(appendHello(nil, h)); err == nil {
		if a, err = readAnswer(conn); err == nil {
			err = judgeAnswer(a, h)
		}
	}
	if !stop() && err == nil {
		err = ctx.Err()
	}
	if err != nil {
		conn.Close() //nolint:errcheck // it is thrown away
		return nil, a, fmt.Errorf("shake hands with %s: %w", addr, err)
	}
	conn.SetDeadline(time.Time{}) //nolint:errcheck // a dead connection shows at the read
	return conn, a, nil
}

// monitor pings, and ends links from which nothing came for too long. It counts
// intervals, not time, so a process that was stopped itself does not blame its
// peers when it goes on.
func (p *Port) monitor() {
	defer p.wg.Done()
	t := time.NewTicker(p.opt.ping)
	defer t.Stop()
	for {
		select {
		case <-p.ctx.Done():
			return
		case <-t.C:
		}
		p.mu.Lock()
		type watched struct {
			l     *link
			pings bool
		}
		all := make([]watched, 0, len(p.links))
		for l, pings := range p.links {
			all = append(all, watched{l, pings})
		}
		p.mu.Unlock()
		for _, w := range all {
			if n := w.l.heard.Load(); n != w.l.lastHeard {
				w.l.lastHeard, w.l.misses = n, 0
			} else if w.l.misses++; w.l.misses >= p.opt.misses {
				w.l.fail(ErrSilent)
				continue
			}
			if w.pings {
				w.l.send(newFrame(header{kind: framePing})) //nolint:errcheck // the reader sees why
			}
		}
	}
}
