package peer

import (
	"bufio"
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	readBuffer = 64 << 10
	// gatherLimit is up to where a frame is copied into one buffer instead of
	// being handed to the kernel in parts.
	gatherLimit = 16 << 10
	// maxBatch bounds what the background writer hands over at once.
	maxBatch = 1 << 20
	// maxQueued bounds the answers that wait for a peer which does not read.
	maxQueued = 128 << 20
)

type outState uint8

const (
	outQueued  outState = iota // nothing of it was given to the kernel
	outWriting                 // somebody is writing it
	outSent                    // all of it was given to the kernel
	outFailed                  // never all of it will be: the receiver cannot decode it
)

// link is one connection that carries frames: buffered reads by one goroutine
// at a time, and writes by anybody.
//
// Who writes: the goroutine that finds the link idle writes its own frame
// itself without ever blocking (a frame of a request then costs no hand-over
// to another goroutine). What the kernel does not take at once, and what
// arrives meanwhile, is written by a background goroutine, in order.
//
// Facts that keep it right:
//  1. Only the holder of busy writes to the socket.
//  2. A frame leaves outQueued under mu only, by the holder of busy.
//  3. After outSent or outFailed nobody reads the frame's buffers again.
type link struct {
	conn net.Conn
	in   *bufio.Reader
	// heard counts reads that returned something, for the port's monitor.
	heard atomic.Uint64
	// limit bounds queued, 0 = not; set before use.
	limit int

	mu     sync.Mutex
	moved  sync.Cond // a frame left outWriting
	busy   bool
	queue  []*outFrame
	queued int
	err    error

	// The direct write; the fields belong to the holder of busy.
	raw     syscall.RawConn
	bufs    [][]byte
	wrote   int
	werr    error
	scratch []byte
	try     func(fd uintptr) bool

	// monitor's own
	lastHeard uint64
	misses    int
}

func newLink(conn net.Conn) *link {
	l := &link{conn: conn}
	l.in = bufio.NewReaderSize(heardReader{l}, readBuffer)
	l.moved.L = &l.mu
	if sc, ok := conn.(syscall.Conn); ok {
		if raw, err := sc.SyscallConn(); err == nil {
			l.raw = raw
			l.try = l.tryWrite
		}
	}
	return l
}

type heardReader struct{ l *link }

func (r heardReader) Read(p []byte) (int, error) {
	n, err := r.l.conn.Read(p)
	if n > 0 {
		r.l.heard.Add(1)
	}
	return n, err
}

// next reads a frame's header.
func (l *link) next() (header, error) {
	b, err := l.in.Peek(headerSize)
	if err != nil {
		if errors.Is(err, io.EOF) && len(b) > 0 {
			err = io.ErrUnexpectedEOF
		}
		return header{}, err
	}
	h, err := parseHeader(b)
	if err != nil {
		return header{}, err
	}
	_, err = l.in.Discard(headerSize)
	return h, err
}

// payload reads the n bytes after a header; the caller checked n.
func (l *link) payload(n uint32) ([]byte, error) {
	if n == 0 {
		return nil, nil
	}
	b := make([]byte, n)
	_, err := io.ReadFull(l.in, b)
	return b, err
}

// send writes or queues f. It never waits for the network. An error means that
// f failed.
func (l *link) send(f *outFrame) error {
	l.mu.Lock()
	if l.err != nil {
		f.state = outFailed
		err := l.err
		l.mu.Unlock()
		return err
	}
	if l.busy || l.raw == nil {
		l.queue = append(l.queue, f)
		l.queued += f.size
		full := l.limit > 0 && l.queued > l.limit
		if !l.busy {
			l.busy = true
			go l.drain(nil, nil)
		}
		l.mu.Unlock()
		if full {
			l.fail(ErrStalled)
		}
		return nil
	}
	l.busy = true
	f.state = outWriting
	l.mu.Unlock()

	n, err := l.direct(f)

	l.mu.Lock()
	switch {
	case err != nil:
		f.state = outFailed
		l.busy = false
		l.failLocked(err)
	case n == f.size:
		f.state = outSent
		if len(l.queue) > 0 {
			go l.drain(nil, nil)
		} else {
			l.busy = false
		}
	default:
		go l.drain(f, remaining(f.bufs, n))
	}
	l.mu.Unlock()
	return err
}

// direct gives the kernel as much of f as it takes now.
func (l *link) direct(f *outFrame) (int, error) {
	if f.size <= gatherLimit {
		if l.scratch == nil {
			l.scratch = make([]byte, gatherLimit)
		}
		n := 0
		for _, b := range f.bufs {
			n += copy(l.scratch[n:], b)
		}
		l.bufs = nil
		l.wrote = n
	} else {
		l.bufs = f.bufs
	}
	l.werr = nil
	if err := l.raw.Write(l.try); err != nil {
		return 0, err
	}
	l.bufs = nil
	return l.wrote, l.werr
}

// tryWrite is called once with the descriptor and always says that it is done,
// so that the runtime never waits for the socket to become writable.
func (l *link) tryWrite(fd uintptr) bool {
	for {
		var n int
		var err error
		if l.bufs == nil {
			n, err = unix.Write(int(fd), l.scratch[:l.wrote])
		} else {
			n, err = unix.SendmsgBuffers(int(fd), l.bufs, nil, nil, 0)
		}
		switch {
		case err == nil:
			l.wrote = n
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.EAGAIN):
			l.wrote = 0
		default:
			l.wrote, l.werr = 0, err
		}
		return true
	}
}

// remaining is what follows the first n bytes of bufs, in fresh slices.
func remaining(bufs [][]byte, n int) [][]byte {
	var rest [][]byte
	for _, b := range bufs {
		if n >= len(b) {
			n -= len(b)
			continue
		}
		rest = append(rest, b[n:])
		n = 0
	}
	return rest
}

// drain writes rest, which is the end of first, and then the queue until it is
// empty. It holds busy.
func (l *link) drain(first *outFrame, rest [][]byte) {
	var batch []*outFrame
	var bufs net.Buffers
	if first != nil {
		batch, bufs = append(batch, first), rest
	}
	for {
		if len(batch) > 0 {
			// What a partial write left over counts as written by the frames
			// before; only the first frame can be shorter than its size.
			want := 0
			for _, b := range bufs {
				want += len(b)
			}
			n, err := bufs.WriteTo(l.conn)
			l.settleBatch(batch, want, int(n), err)
			if err != nil {
				return
			}
		}
		l.mu.Lock()
		if l.err != nil || len(l.queue) == 0 {
			l.busy = false
			l.mu.Unlock()
			return
		}
		batch, bufs = batch[:0], nil
		size := 0
		for len(l.queue) > 0 && (size == 0 || size+l.queue[0].size <= maxBatch) {
			f := l.queue[0]
			l.queue[0] = nil
			l.queue = l.queue[1:]
			f.state = outWriting
			size += f.size
			l.queued -= f.size
			batch = append(batch, f)
			bufs = append(bufs, f.bufs...)
		}
		if len(l.queue) == 0 {
			l.queue = nil
		}
		l.mu.Unlock()
	}
}

// settleBatch records what became of a batch of which n of want bytes were
// written.
func (l *link) settleBatch(batch []*outFrame, want, n int, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	left := want - n // bytes at the end that were not written
	for i := len(batch) - 1; i >= 0; i-- {
		if left > 0 {
			batch[i].state = outFailed
			left -= batch[i].size
		} else {
			batch[i].state = outSent
		}
	}
	if err != nil {
		l.busy = false
		l.failLocked(err)
	}
	l.moved.Broadcast()
}

// fail ends the link; the first cause stays.
func (l *link) fail(err error) {
	l.mu.Lock()
	l.failLocked(err)
	l.mu.Unlock()
}

func (l *link) failLocked(err error) {
	if l.err != nil {
		return
	}
	l.err = err
	for _, f := range l.queue {
		f.state = outFailed
	}
	l.queue, l.queued = nil, 0
	l.conn.Close() //nolint:errcheck // it is thrown away
	l.moved.Broadcast()
}

// cause is why the link ended, nil while it lives.
func (l *link) cause() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.err
}

// settle waits until nobody writes f any more and returns what became of it.
// It is for frames whose answer arrived or whose link failed, so it never
// waits for the network.
func (l *link) settle(f *outFrame) outState {
	l.mu.Lock()
	defer l.mu.Unlock()
	for f.state == outWriting {
		l.moved.Wait()
	}
	return f.state
}

// abandon takes f back if nothing of it was written. If it is half written, it
// gets grace to be written in full, then the link ends: the other side has not
// been reading for longer than the caller wanted to wait.
func (l *link) abandon(f *outFrame, grace time.Duration) outState {
	l.mu.Lock()
	defer l.mu.Unlock()
	if f.state == outQueued {
		for i, q := range l.queue {
			if q == f {
				l.queue = append(l.queue[:i], l.queue[i+1:]...)
				l.queued -= f.size
				break
			}
		}
		f.state = outFailed
		return outFailed
	}
	if f.state == outWriting {
		t := time.AfterFunc(grace, func() { l.fail(ErrStalled) })
		defer t.Stop()
		for f.state == outWriting {
			l.moved.Wait()
		}
	}
	return f.state
}
