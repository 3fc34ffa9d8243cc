package peer

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"
)

// maxChunk is the largest chunk of a stream that is sent; a reader accepts up
// to MaxFrame, and never holds a chunk in memory.
const maxChunk = 256 << 10

// Stream sends a request and returns the bytes that the peer's handler writes.
// Read ends with io.EOF only when the handler has returned without an error;
// a *RemoteError is the handler's error, io.ErrUnexpectedEOF a connection that
// broke. The stream ends early when ctx does. The caller closes it.
func (p *Port) Stream(ctx context.Context, peerID string, method uint8, req []byte) (io.ReadCloser, error) {
	if len(req) > maxStreamRequest {
		return nil, notSent(fmt.Errorf("stream from %q: request of %d bytes: %w", peerID, len(req), ErrTooLarge))
	}
	addr, ok := p.resolve(peerID)
	if !ok {
		return nil, notSent(fmt.Errorf("stream from %q: %w", peerID, ErrUnknownPeer))
	}
	conn, _, err := p.dial(ctx, addr, kindStream, peerID, p.ident(), p.opt.dialTimeout)
	if err != nil {
		return nil, notSent(fmt.Errorf("stream from %q: %w", peerID, err))
	}
	if !p.trackConn(conn) {
		conn.Close() //nolint:errcheck // it is thrown away
		return nil, notSent(fmt.Errorf("stream from %q: %w", peerID, ErrClosed))
	}
	s := &streamReader{p: p, peer: peerID, conn: conn, in: bufio.NewReaderSize(conn, readBuffer), ctx: ctx}
	s.stop = context.AfterFunc(ctx, func() { conn.Close() }) //nolint:errcheck // it is thrown away
	f := newFrame(header{kind: frameRequest, method: method}, req)
	bufs := net.Buffers(append([][]byte(nil), f.bufs...))
	conn.SetWriteDeadline(time.Now().Add(p.opt.streamIdle)) //nolint:errcheck // a dead connection shows at the write
	if _, err := bufs.WriteTo(conn); err != nil {
		s.Close() //nolint:errcheck // it is thrown away
		return nil, notSent(fmt.Errorf("stream from %q: send request: %w", peerID, err))
	}
	return s, nil
}

type streamReader struct {
	p    *Port
	peer string
	conn net.Conn
	in   *bufio.Reader
	ctx  context.Context
	stop func() bool
	left uint32 // bytes of the current chunk
	err  error
	once sync.Once
}

// Read implements io.Reader.
func (s *streamReader) Read(b []byte) (int, error) {
	if s.err != nil {
		return 0, s.err
	}
	if len(b) == 0 {
		return 0, nil
	}
	n, err := s.read(b)
	if err != nil {
		var re *RemoteError
		switch {
		case err == errStreamEnd:
			err = io.EOF
		case s.ctx.Err() != nil:
			err = fmt.Errorf("read stream from %q: %w", s.peer, s.ctx.Err())
		case errors.As(err, &re):
		case errors.Is(err, io.EOF):
			err = fmt.Errorf("read stream from %q: %w", s.peer, io.ErrUnexpectedEOF)
		default:
			err = fmt.Errorf("read stream from %q: %w", s.peer, err)
		}
		s.err = err
	}
	return n, err
}

var errStreamEnd = errors.New("end of stream")

func (s *streamReader) read(b []byte) (int, error) {
	for s.left == 0 {
		if err := s.conn.SetReadDeadline(time.Now().Add(s.p.opt.streamIdle)); err != nil {
			return 0, err
		}
		var raw [headerSize]byte
		if _, err := io.ReadFull(s.in, raw[:]); err != nil {
			return 0, err
		}
		h, err := parseHeader(raw[:])
		if err != nil {
			return 0, err
		}
		switch h.kind {
		case frameChunk:
			s.left = h.length
		case frameKeepalive:
		case frameEnd:
			return 0, errStreamEnd
		case frameFailure:
			if h.length > 4*maxText {
				return 0, ErrMalformed
			}
			text := make([]byte, h.length)
			if _, err := io.ReadFull(s.in, text); err != nil {
				return 0, err
			}
			return 0, &RemoteError{h.code, string(text)}
		default:
			return 0, ErrMalformed
		}
	}
	if uint32(len(b)) > s.left && len(b) > int(s.left) {
		b = b[:s.left]
	}
	if err := s.conn.SetReadDeadline(time.Now().Add(s.p.opt.streamIdle)); err != nil {
		return 0, err
	}
	n, err := s.in.Read(b)
	s.left -= uint32(n)
	return n, err
}

// Close ends the stream; the handler's writes fail.
func (s *streamReader) Close() error {
	s.once.Do(func() {
		s.stop()
		s.conn.Close() //nolint:errcheck // it is thrown away
		s.p.untrackConn(s.conn)
	})
	return nil
}

// serveStream answers the one request of a stream connection.
func (p *Port) serveStream(conn net.Conn, from string) {
	conn.SetReadDeadline(time.Now().Add(p.opt.handshake)) //nolint:errcheck // a dead connection shows at the read
	var raw [headerSize]byte
	if _, err := io.ReadFull(conn, raw[:]); err != nil {
		return
	}
	h, err := parseHeader(raw[:])
	if err != nil || h.kind != frameRequest || h.length > maxStreamRequest {
		p.log.Warn("malformed stream request", keyPeer, from)
		return
	}
	req := make([]byte, h.length)
	if _, err := io.ReadFull(conn, req); err != nil {
		return
	}
	conn.SetReadDeadline(time.Time{}) //nolint:errcheck // a dead connection shows at the read
	w := &streamWriter{conn: conn, idle: p.opt.streamIdle}
	m := p.methods[h.method].Load()
	if m == nil || m.stream == nil {
		w.finish(&RemoteError{CodeNoMethod, "node has no such stream; it may be of another version"})
		return
	}
	ctx, cancel := context.WithCancel(p.ctx)
	var side sync.WaitGroup
	side.Add(2)
	go func() { // the reader sends nothing: a read ends when it is gone
		defer side.Done()
		defer cancel()
		var one [1]byte
		conn.Read(one[:]) //nolint:errcheck // any end is the end
	}()
	go func() {
		defer side.Done()
		t := time.NewTicker(p.opt.keepalive)
		defer t.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-t.C:
				w.keepalive()
			}
		}
	}()
	w.finish(m.stream(ctx, from, req, w))
	cancel()
	// Half-close, so that the last bytes arrive although the reader may have
	// sent something that nobody read.
	if tc, ok := conn.(*net.TCPConn); ok {
		tc.CloseWrite() //nolint:errcheck // the close follows
	}
	conn.SetReadDeadline(time.Now().Add(p.opt.streamIdle)) //nolint:errcheck // a dead connection shows at the read
	side.Wait()
}

// streamWriter cuts what a handler writes into chunks.
type streamWriter struct {
	conn net.Conn
	idle time.Duration

	mu    sync.Mutex
	wrote bool // since the last keepalive
	err   error
}

// Write implements io.Writer.
func (w *streamWriter) Write(b []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	done := 0
	for len(b) > 0 {
		part := b[:min(len(b), maxChunk)]
		if err := w.frameLocked(header{kind: frameChunk}, part); err != nil {
			return done, err
		}
		w.wrote = true
		done += len(part)
		b = b[len(part):]
	}
	return done, nil
}

func (w *streamWriter) frameLocked(h header, payload []byte) error {
	if w.err != nil {
		return w.err
	}
	f := newFrame(h, payload)
	if w.err = w.conn.SetWriteDeadline(time.Now().Add(w.idle)); w.err == nil {
		bufs := net.Buffers(append([][]byte(nil), f.bufs...))
		_, w.err = bufs.WriteTo(w.conn)
	}
	return w.err
}

func (w *streamWriter) keepalive() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.wrote {
		w.frameLocked(header{kind: frameKeepalive}, nil) //nolint:errcheck // the handler's next write returns it
	}
	w.wrote = false
}

func (w *streamWriter) finish(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err == nil {
		w.frameLocked(header{kind: frameEnd}, nil) //nolint:errcheck // the reader sees it
	} else {
		re := &RemoteError{}
		if !errors.As(err, &re) || re.Code != CodeNoMethod {
			re = remoteError(err)
		}
		w.frameLocked(header{kind: frameFailure, code: re.Code}, []byte(re.Text)) //nolint:errcheck // the reader sees it
	}
	w.err = ErrClosed
}
