package peer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"
)

// outbound is this node's side of the requests to one peer.
type outbound struct {
	p  *Port
	id string

	mu      sync.Mutex
	conn    *clientConn
	dialing *dialing
}

// dialing is a connection attempt that several callers wait for.
type dialing struct {
	done chan struct{}
	conn *clientConn
	err  error
}

// clientConn carries the requests to one peer.
type clientConn struct {
	*link
	p    *Port
	id   string
	me   Identity // as it was at the handshake
	lost func()   // once, when the connection ended

	callMu  sync.Mutex
	seq     uint64
	pending map[uint64]*call
	dead    error
	retired bool // ends with its last request
}

type call struct {
	outFrame
	done chan result
}

type result struct {
	payload []byte
	err     error // of the connection or a *RemoteError
	remote  bool
}

// Call sends a request to a peer and waits for its answer until ctx ends. The
// parts of req are sent one after the other without being copied, and are not
// looked at any more once Call has returned. See ErrNotSent and RemoteError for
// what the errors mean.
func (p *Port) Call(ctx context.Context, peerID string, method uint8, req ...[]byte) ([]byte, error) {
	size := 0
	for _, b := range req {
		size += len(b)
	}
	if size > MaxFrame {
		return nil, notSent(fmt.Errorf("call %q: request of %d bytes: %w", peerID, size, ErrTooLarge))
	}
	if err := ctx.Err(); err != nil {
		return nil, notSent(fmt.Errorf("call %q: %w", peerID, err))
	}
	me := p.ident()
	if peerID == me.NodeID {
		return p.callSelf(ctx, method, req)
	}
	o := p.outbound(peerID)
	for attempt := 0; ; attempt++ {
		c, err := o.connect(ctx, me)
		if err != nil {
			return nil, notSent(fmt.Errorf("call %q: %w", peerID, err))
		}
		resp, err := c.do(ctx, method, req)
		if attempt == 0 && errors.Is(err, errDeadBefore) {
			continue // it had ended before anything was sent: connect anew
		}
		var re *RemoteError
		if err != nil && !errors.As(err, &re) {
			err = fmt.Errorf("call %q: %w", peerID, err)
		}
		return resp, err
	}
}

// errDeadBefore marks a call on a connection that turned out to have ended before
// the request was sent in full.
var errDeadBefore = errors.New("connection had ended")

func (p *Port) callSelf(ctx context.Context, id uint8, req [][]byte) ([]byte, error) {
	m := p.methods[id].Load()
	if m == nil || m.call == nil {
		return nil, notSent(&RemoteError{CodeNoMethod, "node has no such method"})
	}
	var one []byte
	for _, b := range req {
		one = append(one, b...)
	}
	resp, err := m.call(ctx, p.ident().NodeID, one)
	if err != nil {
		return nil, remoteError(err)
	}
	return resp, nil
}

// CallAddr sends one request on a connection of its own to whatever node
// listens at addr. It is meant for methods that are open to strangers.
func (p *Port) CallAddr(ctx context.Context, addr string, method uint8, req []byte) ([]byte, error) {
	if len(req) > MaxFrame {
		return nil, notSent(fmt.Errorf("call %s: request of %d bytes: %w", addr, len(req), ErrTooLarge))
	}
	me := p.ident()
	conn, a, err := p.dial(ctx, addr, kindCall, "", me, p.opt.dialTimeout)
	if err != nil {
		return nil, notSent(fmt.Errorf("call %s: %w", addr, err))
	}
	c, err := p.newClientConn(conn, a.id, me, func() {})
	if err != nil {
		return nil, notSent(fmt.Errorf("call %s: %w", addr, err))
	}
	defer c.fail(errForgotten)
	resp, err := c.do(ctx, method, [][]byte{req})
	var re *RemoteError
	if err != nil && !errors.As(err, &re) {
		err = fmt.Errorf("call %s: %w", addr, err)
	}
	return resp, err
}

func (p *Port) outbound(id string) *outbound {
	p.mu.Lock()
	defer p.mu.Unlock()
	o := p.out[id]
	if o == nil {
		o = &outbound{p: p, id: id}
		p.out[id] = o
	}
	return o
}

func (o *outbound) live() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.conn != nil && o.conn.cause() == nil
}

func (o *outbound) end(err error) {
	o.mu.Lock()
	c := o.conn
	o.mu.Unlock()
	if c != nil {
		c.fail(err)
	}
}

// connect returns the live connection, or makes one, together with all others
// who want it.
func (o *outbound) connect(ctx context.Context, me Identity) (*clientConn, error) {
	o.mu.Lock()
	if c := o.conn; c != nil {
		if c.me == me && c.alive() {
			o.mu.Unlock()
			return c, nil
		}
		o.conn = nil
		c.retire()
	}
	d := o.dialing
	if d == nil {
		d = &dialing{done: make(chan struct{})}
		if !o.p.goRun(func() { o.dial(d, me) }) {
			o.mu.Unlock()
			return nil, ErrClosed
		}
		o.dialing = d
	}
	o.mu.Unlock()
	select {
	case <-d.done:
		return d.conn, d.err
	case <-ctx.Done():
		return nil, fmt.Errorf("connect: %w", ctx.Err())
	}
}

func (o *outbound) dial(d *dialing, me Identity) {
	c, err := o.dialOnce(me)
	o.p.sayDial(o.id, err)
	o.mu.Lock()
	o.dialing = nil
	if err == nil {
		o.conn = c
	}
	o.mu.Unlock()
	d.conn, d.err = c, err
	close(d.done)
}

func (o *outbound) dialOnce(me Identity) (*clientConn, error) {
	addr, ok := o.p.resolve(o.id)
	if !ok {
		return nil, ErrUnknownPeer
	}
	conn, _, err := o.p.dial(o.p.ctx, addr, kindRPC, o.id, me, o.p.opt.dialTimeout)
	if err != nil {
		return nil, err
	}
	return o.p.newClientConn(conn, o.id, me, func() {
		o.p.mu.Lock()
		fs := o.p.onLost
		o.p.mu.Unlock()
		for _, f := range fs {
			f(o.id)
		}
	})
}

// sayDial logs a change in how dialling a peer goes, not each attempt.
func (p *Port) sayDial(id string, err error) {
	text := ""
	if err != nil {
		text = err.Error()
	}
	p.mu.Lock()
	old := p.lastSaid[id]
	p.lastSaid[id] = text
	closed := p.closed
	p.mu.Unlock()
	switch {
	case closed:
	case err == nil:
		p.log.Info("peer connected", keyPeer, id)
	case text != old:
		p.log.Warn("peer not reachable", keyPeer, id, keyErr, err)
	}
}

func (p *Port) newClientConn(conn net.Conn, id string, me Identity, lost func()) (*clientConn, error) {
	c := &clientConn{link: newLink(conn), p: p, id: id, me: me, lost: lost, pending: make(map[uint64]*call)}
	if !p.track(c.link, true) {
		conn.Close() //nolint:errcheck // it is thrown away
		return nil, ErrClosed
	}
	if !p.goRun(c.read) {
		p.untrack(c.link)
		conn.Close() //nolint:errcheck // it is thrown away
		return nil, ErrClosed
	}
	return c, nil
}

func (c *clientConn) alive() bool {
	c.callMu.Lock()
	defer c.callMu.Unlock()
	return c.dead == nil && !c.retired && c.cause() == nil
}

// retire lets the connection end when nobody waits on it any more.
func (c *clientConn) retire() {
	c.callMu.Lock()
	c.retired = true
	idle := len(c.pending) == 0
	c.callMu.Unlock()
	if idle {
		c.fail(errForgotten)
	}
}

func (c *clientConn) do(ctx context.Context, method uint8, req [][]byte) ([]byte, error) {
	h := header{kind: frameRequest, method: method}
	if deadline, ok := ctx.Deadline(); ok {
		h.timeout = wireTimeout(time.Until(deadline))
	}
	cl := &call{done: make(chan result, 1)}
	c.callMu.Lock()
	if c.dead != nil || c.retired {
		err := c.dead
		c.callMu.Unlock()
		if err == nil {
			err = errForgotten
		}
		return nil, notSent(fmt.Errorf("%w: %w", errDeadBefore, err))
	}
	c.seq++
	h.seq = c.seq
	c.pending[h.seq] = cl
	c.callMu.Unlock()
	cl.init(h, req)

	if err := c.send(&cl.outFrame); err != nil {
		c.take(h.seq)
		return nil, notSent(fmt.Errorf("%w: %w", errDeadBefore, err))
	}
	var r result
	select {
	case r = <-cl.done:
	case <-ctx.Done():
		return c.giveUp(ctx, cl, h.seq)
	}
	state := c.settle(&cl.outFrame)
	return r.outcome(state)
}

func (r result) outcome(state outState) ([]byte, error) {
	if r.err != nil && !r.remote {
		if state != outSent {
			return nil, notSent(r.err)
		}
		return nil, r.err
	}
	var re *RemoteError
	if errors.As(r.err, &re) && re.notRun() {
		return nil, notSent(re)
	}
	return r.payload, r.err
}

// giveUp ends a request whose caller no longer waits.
func (c *clientConn) giveUp(ctx context.Context, cl *call, seq uint64) ([]byte, error) {
	mine := c.take(seq)
	state := c.abandon(&cl.outFrame, c.p.opt.grace)
	if mine == nil {
		// The answer came at the same moment: it counts.
		return (<-cl.done).outcome(state)
	}
	if state != outSent {
		return nil, notSent(ctx.Err())
	}
	c.send(newFrame(header{kind: frameCancel, seq: seq})) //nolint:errcheck // the reader sees why
	return nil, fmt.Errorf("wait for the answer: %w", ctx.Err())
}

// take removes a request from those that wait for an answer.
func (c *clientConn) take(seq uint64) *call {
	c.callMu.Lock()
	cl := c.pending[seq]
	delete(c.pending, seq)
	last := c.retired && len(c.pending) == 0
	c.callMu.Unlock()
	if last {
		// A cancel may still follow; a failed link swallows it, and the end of
		// the connection cancels as well.
		c.fail(errForgotten)
	}
	return cl
}

// read delivers the answers.
func (c *clientConn) read() {
	err := c.readAll()
	if errors.Is(err, io.EOF) {
		err = errPeerClosed
	}
	c.fail(err)
	err = c.cause()
	c.p.untrack(c.link)
	c.callMu.Lock()
	c.dead = err
	pending := c.pending
	c.pending = make(map[uint64]*call)
	c.callMu.Unlock()
	for _, cl := range pending {
		cl.done <- result{err: fmt.Errorf("connection ended: %w", err)}
	}
	c.lost()
}

func (c *clientConn) readAll() error {
	for {
		h, err := c.next()
		if err != nil {
			return err
		}
		switch h.kind {
		case framePong:
		case frameResponse, frameFailure:
			b, err := c.payload(h.length)
			if err != nil {
				return err
			}
			cl := c.take(h.seq)
			if cl == nil {
				continue // its caller no longer waits
			}
			if h.kind == frameResponse {
				cl.done <- result{payload: b}
			} else {
				cl.done <- result{err: &RemoteError{h.code, string(b)}, remote: true}
			}
		default:
			return ErrMalformed
		}
	}
}
