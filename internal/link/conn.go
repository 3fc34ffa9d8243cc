package link

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// progressInterval is the least time between two PROGRESS frames.
	progressInterval = 200 * time.Millisecond
	// exitGrace is how long frames of a process that has ended are still read.
	exitGrace = 10 * time.Millisecond
	// inlinePayload covers every request of a running transaction but COMMIT.
	inlinePayload = 64
	// maxErrorText leaves room for the fields around it.
	maxErrorText = maxPayload - 16
)

// frame is one request as the reader hands it to the worker.
type frame struct {
	header
	small [inlinePayload]byte
	large []byte
}

func (f *frame) payload() []byte {
	if f.large != nil {
		return f.large
	}
	return f.small[:f.length]
}

// conn is one connection. One goroutine takes a frame off the socket and
// answers it before it reads the next: a transaction's frames cost no switch
// between goroutines. A request that waits for long is watched by the server,
// which peeks at the socket so that its end is seen meanwhile.
//
// Invariants:
//  1. requests reach the handle in the order they were sent, and a frame that
//     was received completely is handled even if the peer is gone by then;
//  2. Close of the handle is its last call and comes exactly once.
type conn struct {
	srv    *Server
	nc     net.Conn
	ctx    context.Context // ends with the connection
	cancel context.CancelFunc
	done   chan struct{}
	pid    int          // of the peer, 0 where the kernel does not tell
	busy   atomic.Int64 // since when a request is answered, nanoseconds of the server's clock; 0: none is

	// Of the goroutine that serves the connection.
	peer    Peer
	greeted bool
	handle  Handle
	past    func() // gives back what PAST was answered with; nil: it was not asked for
	maxTx   uint64
	tx      sending

	writeMu      sync.Mutex // held while a frame is written; guards these:
	out          []byte
	progressing  bool // PROGRESS may be sent: a verdict is awaited
	lastProgress time.Time

	stateMu    sync.Mutex // guards these:
	committing bool
	closing    bool
	deadline   time.Time     // of reads; zero: none
	peek       chan struct{} // closed when nobody peeks any more; nil: nobody does
}

func newConn(s *Server, nc net.Conn) *conn {
	ctx, cancel := context.WithCancel(s.ctx)
	return &conn{srv: s, nc: nc, ctx: ctx, cancel: cancel, done: make(chan struct{})}
}

// serve runs the connection to its end.
func (c *conn) serve() {
	defer close(c.done)
	c.pid = peerPID(c.nc)
	stop := watchExit(c.nc, c.pid, func() {
		c.setDeadline(time.Now().Add(exitGrace))
		time.AfterFunc(exitGrace, c.cancel)
	})
	defer stop()
	c.loop()
	c.cancel()
	if c.handle != nil {
		c.handle.Close()
	}
	if c.past != nil {
		c.past()
	}
	_ = c.nc.Close()
}

// shutdown ends the connection, after the verdict of a commit in flight.
func (c *conn) shutdown() {
	c.stateMu.Lock()
	defer c.stateMu.Unlock()
	c.closing = true
	if !c.committing {
		c.endReadsLocked()
		if c.busy.Load() != 0 {
			c.cancel() // the request that waits gets its answer now
		}
	}
}

// endReadsLocked has the application send nothing more. What it has sent is read and answered: left unread it would be of
// unknown outcome, which the end of a node is no reason for (RULES D2).
func (c *conn) endReadsLocked() {
	if half, ok := c.nc.(interface{ CloseRead() error }); !ok || half.CloseRead() != nil {
		c.setDeadlineLocked(time.Now())
	}
}

func (c *conn) setDeadline(t time.Time) {
	c.stateMu.Lock()
	defer c.stateMu.Unlock()
	c.setDeadlineLocked(t)
}

func (c *conn) setDeadlineLocked(t time.Time) {
	c.deadline = t
	_ = c.nc.SetReadDeadline(t)
}

// loop takes frames off the socket and answers them until it ends or makes no
// sense.
func (c *conn) loop() {
	r := bufio.NewReaderSize(c.nc, 8192) // a commit of one page and its neighbours by one call
	var f frame
	var head [headerSize]byte
	for {
		if _, err := io.ReadFull(r, head[:]); err != nil {
			c.logEnd(err)
			return
		}
		h, err := parseHeader(head[:])
		if err != nil {
			c.malformed(binary.LittleEndian.Uint32(head[8:]), err)
			return
		}
		f.header, f.large = h, nil
		switch {
		case h.kind == kindPiece:
			f.large = c.tx.room(int(h.length))
		case h.length > inlinePayload:
			f.large = make([]byte, h.length)
		}
		if _, err := io.ReadFull(r, f.payload()); err != nil {
			c.logEnd(err)
			return
		}
		c.busy.Store(c.srv.now())
		err = c.answer(&f)
		c.busy.Store(0)
		c.stopPeeking()
		if errors.Is(err, ErrMalformed) {
			c.malformed(f.sequence, err)
		}
		if err != nil {
			return
		}
	}
}

// watch starts to peek at the socket of a request that has been waiting since
// before the time given.
func (c *conn) watch(before int64) {
	since := c.busy.Load()
	if since == 0 || since > before {
		return
	}
	c.stateMu.Lock()
	defer c.stateMu.Unlock()
	if c.peek != nil || c.busy.Load() != since {
		return
	}
	done := make(chan struct{})
	c.peek = done
	go func() {
		defer close(done)
		if endOfFile(c.nc) {
			c.cancel()
		}
	}()
}

// stopPeeking returns when nobody reads the socket but its own goroutine.
func (c *conn) stopPeeking() {
	c.stateMu.Lock()
	done := c.peek
	if done == nil {
		c.stateMu.Unlock()
		return
	}
	_ = c.nc.SetReadDeadline(time.Unix(1, 0))
	c.stateMu.Unlock()
	<-done
	c.stateMu.Lock()
	defer c.stateMu.Unlock()
	c.peek = nil
	_ = c.nc.SetReadDeadline(c.deadline)
}

// answer handles one request. An error means that the connection is of no
// further use; ErrMalformed, that the peer is to blame.
func (c *conn) answer(f *frame) error {
	if !c.greeted {
		return c.answerHello(f)
	}
	if c.past != nil {
		return fmt.Errorf("type %d behind PAST: %w", f.kind, ErrMalformed)
	}
	switch f.kind {
	case kindPast:
		return c.answerPast(f)
	case kindResolve:
		return c.answerResolve(f)
	case kindOpen:
		return c.answerOpen(f)
	}
	if c.handle == nil {
		return fmt.Errorf("type %d before OPEN: %w", f.kind, ErrMalformed)
	}
	switch f.kind {
	case kindPiece:
		return c.answerPiece(f)
	case kindCommit:
		return c.answerCommit(f)
	}
	if c.tx.pieces > 0 && f.kind != kindEnd {
		return fmt.Errorf("type %d between the pieces of a transaction: %w", f.kind, ErrMalformed)
	}
	c.tx = sending{}
	switch f.kind {
	case kindBegin:
		return c.answerBegin(f)
	case kindEnd:
		e, err := decodeEnd(f.payload())
		if err == nil {
			c.handle.End(e)
		}
		return err
	case kindMismatch:
		seen, err := decodeMismatch(f.payload())
		if err == nil {
			c.handle.Mismatch(seen)
		}
		return err
	case kindRead:
		return c.answerRead(f)
	case kindPragma:
		return c.answerPragma(f)
	case kindCreate:
		return c.answerCreate(f)
	}
	return fmt.Errorf("unknown type %d: %w", f.kind, ErrMalformed)
}

func (c *conn) answerHello(f *frame) error {
	if f.kind != kindHello {
		return fmt.Errorf("type %d before HELLO: %w", f.kind, ErrMalformed)
	}
	h, err := decodeHello(f.payload())
	if err != nil {
		return err
	}
	if h.version != Version {
		return fmt.Errorf("protocol version %d, this node speaks %d: %w", h.version, Version, ErrMalformed)
	}
	c.peer = Peer{PID: c.pid, Client: h.client, SQLite: h.sqlite}
	if c.pid == 0 {
		c.peer.PID = int(h.pid)
	}
	c.greeted = true
	node, cluster, maxTx := c.srv.backend.Welcome()
	c.maxTx = maxTx
	return c.reply(f, kindWelcome, func(b []byte) []byte {
		b = binary.LittleEndian.AppendUint32(b, Version)
		b = appendText(b, node)
		b = append(b, cluster[:]...)
		return binary.LittleEndian.AppendUint64(b, maxTx)
	})
}

func (c *conn) answerResolve(f *frame) error {
	name, err := decodeResolve(f.payload())
	if err != nil {
		return err
	}
	exists, id, path, err := c.srv.backend.Resolve(c.ctx, name)
	if err != nil {
		return c.fail(f, err)
	}
	return c.reply(f, kindResolved, func(b []byte) []byte {
		b = appendBool(b, exists)
		b = append(b, id[:]...)
		return appendText(b, path)
	})
}

func (c *conn) answerPast(f *frame) error {
	req, err := decodePast(f.payload())
	if err != nil {
		return err
	}
	if c.handle != nil {
		return fmt.Errorf("PAST behind OPEN: %w", ErrMalformed)
	}
	c.startProgress()
	p, err := c.srv.backend.Past(c.ctx, req, func() { c.progress(f.sequence) })
	if err != nil {
		return c.fail(f, err)
	}
	c.past = p.Close
	return c.reply(f, kindPastFile, func(b []byte) []byte {
		b = appendText(b, p.Path)
		b = appendText(b, p.Bookmark)
		return appendText(b, p.Note)
	})
}

func (c *conn) answerOpen(f *frame) error {
	req, err := decodeOpen(f.payload())
	if err != nil {
		return err
	}
	if c.handle != nil {
		return fmt.Errorf("second OPEN on one connection: %w", ErrMalformed)
	}
	h, opened, err := c.srv.backend.Open(c.ctx, c.peer, req)
	if err != nil {
		return c.fail(f, err)
	}
	c.handle = h
	if opened.MaxTx > 0 {
		c.maxTx = min(c.maxTx, opened.MaxTx)
	}
	return c.reply(f, kindOpened, func(b []byte) []byte {
		b = appendBool(b, opened.Exists)
		b = binary.LittleEndian.AppendUint32(b, opened.Epoch)
		b = binary.LittleEndian.AppendUint32(b, opened.Mode)
		b = binary.LittleEndian.AppendUint64(b, c.maxTx)
		return appendText(b, opened.Note)
	})
}

func (c *conn) answerCreate(f *frame) error {
	pageSize, autoVacuum, err := decodeCreate(f.payload())
	if err != nil {
		return err
	}
	created, err := c.handle.Create(c.ctx, pageSize, autoVacuum)
	if err != nil {
		return c.fail(f, err)
	}
	return c.reply(f, kindCreated, func(b []byte) []byte {
		b = binary.LittleEndian.AppendUint32(b, created.PageSize)
		return binary.LittleEndian.AppendUint32(b, created.Epoch)
	})
}

func (c *conn) answerBegin(f *frame) error {
	kept, err := decodeBegin(f.payload())
	if err != nil {
		return err
	}
	if kept {
		c.handle.Resume(c.ctx)
		return nil
	}
	g, err := c.handle.Begin(c.ctx)
	if err != nil {
		return c.fail(f, err)
	}
	return c.reply(f, kindGrant, func(b []byte) []byte {
		b = binary.LittleEndian.AppendUint64(b, g.TXID)
		b = binary.LittleEndian.AppendUint64(b, g.Checksum)
		return appendFingerprint(b, g.Base)
	})
}

// setCommitting marks the time in which shutdown waits for a verdict.
func (c *conn) setCommitting(on bool) {
	c.stateMu.Lock()
	c.committing = on
	if c.closing && !on {
		c.endReadsLocked()
	}
	c.stateMu.Unlock()
	if on {
		c.startProgress()
	}
}

// startProgress lets PROGRESS be sent until the next reply.
func (c *conn) startProgress() {
	c.writeMu.Lock()
	defer c.writeMu.Unlock()
	if !c.progressing {
		c.progressing, c.lastProgress = true, time.Time{}
	}
}

func (c *conn) answerRead(f *frame) error {
	if err := decodeRead(f.payload()); err != nil {
		return err
	}
	if err := c.handle.Read(c.ctx); err != nil {
		return c.fail(f, err)
	}
	return c.reply(f, kindReady, func(b []byte) []byte { return b })
}

func (c *conn) answerPragma(f *frame) error {
	name, arg, err := decodePragma(f.payload())
	if err != nil {
		return err
	}
	text, err := c.handle.Pragma(c.ctx, name, arg)
	if err != nil {
		return c.fail(f, err)
	}
	return c.reply(f, kindText, func(b []byte) []byte {
		return appendText(b, text[:min(len(text), maxErrorText)])
	})
}

// fail sends a handler's error.
func (c *conn) fail(f *frame, err error) error {
	e := &Error{Code: CodeIOErr, Text: err.Error()}
	var own *Error
	if errors.As(err, &own) {
		e.Code = own.Code
	}
	return c.reply(f, kindError, func(b []byte) []byte { return appendError(b, e) })
}

func appendError(b []byte, e *Error) []byte {
	b = binary.LittleEndian.AppendUint32(b, uint32(e.Code))
	return appendText(b, e.Text[:min(len(e.Text), maxErrorText)])
}

// malformed tells the peer what was wrong, as far as it still listens.
func (c *conn) malformed(sequence uint32, err error) {
	c.srv.log.Warn("application sent a malformed frame", keyPID, c.pid, keyErr, err)
	_ = c.nc.SetWriteDeadline(time.Now().Add(time.Second))
	_ = c.send(kindError, sequence, func(b []byte) []byte {
		return appendError(b, &Error{Code: CodeProtocol, Text: err.Error()})
	})
}

// progress sends a PROGRESS frame unless one was sent a moment ago or the
// verdict is out.
func (c *conn) progress(sequence uint32) {
	c.writeMu.Lock()
	defer c.writeMu.Unlock()
	now := time.Now()
	if !c.progressing || now.Sub(c.lastProgress) < progressInterval {
		return
	}
	c.lastProgress = now
	_ = c.sendLocked(kindProgress, sequence, func(b []byte) []byte { return b })
}

func (c *conn) reply(f *frame, k kind, payload func([]byte) []byte) error {
	return c.send(k, f.sequence, payload)
}

// send writes one frame; nothing may follow it for the same request.
func (c *conn) send(k kind, sequence uint32, payload func([]byte) []byte) error {
	c.writeMu.Lock()
	defer c.writeMu.Unlock()
	c.progressing = false
	return c.sendLocked(k, sequence, payload)
}

// sendLocked writes one frame with one call.
func (c *conn) sendLocked(k kind, sequence uint32, payload func([]byte) []byte) error {
	b := appendHeader(c.out[:0], header{kind: k, sequence: sequence})
	b = payload(b)
	binary.LittleEndian.PutUint32(b, uint32(len(b)-headerSize))
	c.out = b
	if _, err := c.nc.Write(b); err != nil {
		return fmt.Errorf("write reply of type %d: %w", k, err)
	}
	return nil
}

// logEnd records why a connection ended, unless it just closed.
func (c *conn) logEnd(err error) {
	if errors.Is(err, io.EOF) || errors.Is(err, net.ErrClosed) || errors.Is(err, os.ErrDeadlineExceeded) {
		return
	}
	c.srv.log.Log(context.Background(), slog.LevelInfo, "application connection broke", keyPID, c.pid, keyErr, err)
}
