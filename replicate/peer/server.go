package peer

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// serverConn serves the requests of one connection.
type serverConn struct {
	*link
	p        *Port
	from     string
	hello    hello
	stranger atomic.Bool
	after    func()

	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup
	done   chan struct{} // closed when the last handler and OnDisconnect are through

	reqMu   sync.Mutex
	cancels map[uint64]context.CancelFunc
}

func newServerConn(p *Port, conn net.Conn, h hello, stranger bool) *serverConn {
	c := &serverConn{link: newLink(conn), p: p, from: h.sender, hello: h, done: make(chan struct{}), cancels: make(map[uint64]context.CancelFunc)}
	c.limit = maxQueued
	c.stranger.Store(stranger)
	c.ctx, c.cancel = context.WithCancel(p.ctx)
	return c
}

// serve reads frames until a request comes, starts another reader, and becomes
// the handler of the request: between the arrival of a request and its handler
// lies no change of goroutine.
func (c *serverConn) serve() {
	for {
		h, err := c.next()
		if err != nil {
			c.end(err)
			return
		}
		switch h.kind {
		case framePing:
			err = c.send(newFrame(header{kind: framePong}))
		case frameCancel:
			c.reqMu.Lock()
			cancel := c.cancels[h.seq]
			c.reqMu.Unlock()
			if cancel != nil {
				cancel()
			}
		case frameRequest:
			m, refusal, text := c.admit(h)
			if refusal != 0 {
				if _, err = io.CopyN(io.Discard, c.in, int64(h.length)); err == nil {
					err = c.send(newFrame(header{kind: frameFailure, code: refusal, seq: h.seq}, []byte(text)))
				}
				break
			}
			var req []byte
			if req, err = c.payload(h.length); err != nil {
				break
			}
			ctx, cancel := c.begin(h)
			if ctx == nil {
				err = ErrMalformed
				break
			}
			c.p.running.Add(1)
			c.p.memory.Add(int64(len(req)))
			c.wg.Add(1)
			c.p.wg.Add(1) // this goroutine is counted, so Close still waits
			go c.serveNext()
			c.run(ctx, cancel, m, h, req)
			return
		default:
			err = ErrMalformed
		}
		if err != nil {
			c.end(err)
			return
		}
	}
}

func (c *serverConn) serveNext() {
	defer c.p.wg.Done()
	c.serve()
}

// admit decides whether a handler may run, before the request is read.
func (c *serverConn) admit(h header) (*method, uint16, string) {
	m := c.p.methods[h.method].Load()
	if m == nil || m.call == nil {
		return nil, CodeNoMethod, "node has no such method; it may be of another version"
	}
	if c.stranger.Load() {
		// One side may have become a member since the handshake.
		again, refusal := judge(c.hello, c.p.ident())
		if refusal != "" {
			return nil, CodeNotMember, refusal
		}
		c.stranger.Store(again)
		if again && (!m.open || h.length > maxStrangerFrame) {
			return nil, CodeNotMember, "only members of one cluster may ask this of each other"
		}
	}
	if c.p.running.Load() >= maxInFlight || c.p.memory.Load()+int64(h.length) > maxInFlightMem {
		return nil, CodeOverloaded, "node holds too many requests"
	}
	return m, 0, ""
}

func (c *serverConn) begin(h header) (ctx context.Context, cancel context.CancelFunc) {
	if h.timeout > 0 {
		ctx, cancel = context.WithTimeout(c.ctx, time.Duration(h.timeout)*time.Millisecond)
	} else {
		ctx, cancel = context.WithCancel(c.ctx)
	}
	c.reqMu.Lock()
	_, twice := c.cancels[h.seq]
	if !twice {
		c.cancels[h.seq] = cancel
	}
	c.reqMu.Unlock()
	if twice {
		cancel()
		return nil, nil
	}
	return ctx, cancel
}

func (c *serverConn) run(ctx context.Context, cancel context.CancelFunc, m *method, h header, req []byte) {
	resp, err := m.call(ctx, c.from, req)
	f := respond(h, resp, err)
	c.handled(h, len(req), cancel)
	c.send(f) //nolint:errcheck // the reader sees why
	c.wg.Done()
}

// handled takes back what admit and begin counted.
func (c *serverConn) handled(h header, size int, cancel context.CancelFunc) {
	cancel()
	c.reqMu.Lock()
	delete(c.cancels, h.seq)
	c.reqMu.Unlock()
	c.p.running.Add(-1)
	c.p.memory.Add(int64(-size))
}

func respond(h header, resp []byte, err error) *outFrame {
	if err == nil && len(resp) > MaxFrame {
		err = &RemoteError{CodeResponseTooLarge, "the answer is larger than a frame may be"}
	}
	if err == nil {
		return newFrame(header{kind: frameResponse, seq: h.seq}, resp)
	}
	re := remoteError(err)
	return newFrame(header{kind: frameFailure, code: re.Code, seq: h.seq}, []byte(re.Text))
}

// remoteError is what the caller gets for a handler's error.
func remoteError(err error) *RemoteError {
	re := &RemoteError{Code: CodeGeneric, Text: err.Error()}
	var own *RemoteError
	if errors.As(err, &own) {
		re.Code = own.Code
		if own.Code >= codeReserved && own.Code != CodeResponseTooLarge {
			re.Code = CodeGeneric // a handler that ran must not look like one that did not
		}
	}
	if len(re.Text) > 4*maxText {
		re.Text = re.Text[:4*maxText]
	}
	return re
}

// end is the reader's last act: no further request arrives.
func (c *serverConn) end(err error) {
	if errors.Is(err, io.EOF) {
		err = errPeerClosed
	}
	c.fail(err)
	c.finish()
}

// finish waits for the handlers and tells that the peer is gone.
func (c *serverConn) finish() {
	c.cancel()
	cause := c.cause()
	c.p.wg.Add(1) // the caller is counted, so Close still waits
	go func() {
		defer c.p.wg.Done()
		c.wg.Wait()
		c.p.untrack(c.link)
		if c.hello.kind == kindRPC {
			c.p.mu.Lock()
			gone := c.p.onGone
			c.p.mu.Unlock()
			if c.p.ctx.Err() == nil {
				c.p.log.Info("peer disconnected", keyPeer, c.from, keyErr, cause)
			}
			for _, f := range gone {
				f(c.from)
			}
		}
		close(c.done)
		c.p.mu.Lock()
		if c.p.inbound[c.from] == c {
			delete(c.p.inbound, c.from)
		}
		c.p.mu.Unlock()
		if c.after != nil {
			c.after()
		}
	}()
}
