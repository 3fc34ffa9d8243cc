package peer

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// silentPeer accepts connections, shakes hands, and then neither reads nor
// writes: a stopped process, whose kernel goes on.
func silentPeer(t *testing.T, id Identity) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			if _, err := readHello(c); err != nil {
				c.Close()
				continue
			}
			c.Write(appendAnswer(nil, answer{id: id.NodeID, cluster: id.Cluster, lineage: id.Lineage}))
			t.Cleanup(func() { c.Close() })
		}
	}()
	return ln.Addr().String()
}

// overWhen passes its deadline when the channel is closed: at a known point,
// not at a time that a busy machine may have spent on the way there.
type overWhen struct {
	context.Context
	over chan struct{}
}

func (c overWhen) Done() <-chan struct{} { return c.over }

func (c overWhen) Err() error {
	select {
	case <-c.over:
		return context.DeadlineExceeded
	default:
		return nil
	}
}

func TestErrorsSayWhetherTheRequestMayHaveBeenHandled(t *testing.T) {
	n := newNetwork()
	a := n.start(t, member("a"), DialTimeout(200*time.Millisecond))
	b := n.start(t, member("b"))
	began, ended := make(chan struct{}), make(chan struct{}, 1)
	b.Handle(mBlock, func(ctx context.Context, _ string, _ []byte) ([]byte, error) {
		close(began)
		<-ctx.Done()
		ended <- struct{}{}
		return nil, ctx.Err()
	})
	dead, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	n.set("dead", dead.Addr().String())
	dead.Close()
	mute, err := net.Listen("tcp", "127.0.0.1:0") // never accepts: no handshake
	if err != nil {
		t.Fatal(err)
	}
	defer mute.Close()
	n.set("mute", mute.Addr().String())
	n.set("moved", b.Addr())
	n.set("stopped", silentPeer(t, member("stopped")))

	long := func() context.Context { return deadline(t) }
	within := func(d time.Duration) func() context.Context {
		return func() context.Context {
			ctx, cancel := context.WithTimeout(context.Background(), d)
			t.Cleanup(cancel)
			return ctx
		}
	}
	short, second := within(50*time.Millisecond), within(time.Second) // to dial and send within
	handled := func() context.Context { return overWhen{context.Background(), began} }
	over := func() context.Context {
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		return ctx
	}
	huge := make([]byte, MaxFrame/2+1)
	tests := map[string]struct {
		ctx      func() context.Context
		peer     string
		method   uint8
		req      [][]byte
		definite bool
		is       error
	}{
		"no address":          {long, "nobody", mBlock, nil, true, ErrUnknownPeer},
		"nobody listens":      {long, "dead", mBlock, nil, true, nil},
		"no handshake":        {long, "mute", mBlock, nil, true, nil},
		"another node there":  {long, "moved", mBlock, nil, true, ErrRefused},
		"no such method":      {long, "b", mEcho, nil, true, nil},
		"over before it was":  {over, "b", mBlock, nil, true, context.Canceled},
		"over while dialling": {short, "mute", mBlock, nil, true, context.DeadlineExceeded},
		"too large":           {long, "b", mBlock, [][]byte{huge, huge}, true, ErrTooLarge},
		"over while handled":  {handled, "b", mBlock, nil, false, context.DeadlineExceeded},
		"stopped peer":        {second, "stopped", mBlock, nil, false, context.DeadlineExceeded},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			_, err := a.Call(test.ctx(), test.peer, test.method, test.req...)
			if err == nil || errors.Is(err, ErrNotSent) != test.definite {
				t.Fatalf("got %v, definite %v", err, errors.Is(err, ErrNotSent))
			}
			if test.is != nil && !errors.Is(err, test.is) {
				t.Fatalf("got %v, want %v", err, test.is)
			}
		})
	}
	select {
	case <-ended: // the handler's context ended with its caller's
	case <-time.After(10 * time.Second):
		t.Fatal("the handler was not told")
	}
	a.Close()
	if _, err := a.Call(deadline(t), "b", mEcho); !errors.Is(err, ErrNotSent) || !errors.Is(err, ErrClosed) {
		t.Fatalf("closed port: %v", err)
	}
}

func TestCancelReachesTheHandler(t *testing.T) {
	n := newNetwork()
	a, b := n.start(t, member("a")), n.start(t, member("b"))
	started, ended := make(chan struct{}), make(chan struct{})
	b.Handle(mBlock, func(ctx context.Context, _ string, _ []byte) ([]byte, error) {
		if _, ok := ctx.Deadline(); ok {
			t.Error("a deadline came from nowhere")
		}
		close(started)
		<-ctx.Done()
		close(ended)
		return nil, ctx.Err()
	})
	ctx, cancel := context.WithCancel(context.Background())
	go func() { <-started; cancel() }()
	if _, err := a.Call(ctx, "b", mBlock); !errors.Is(err, context.Canceled) || errors.Is(err, ErrNotSent) {
		t.Fatalf("got %v", err)
	}
	<-ended
}

func TestARequestThatTheKernelDidNotTakeWasNotSent(t *testing.T) {
	n := newNetwork()
	a := n.start(t, member("a"))
	a.opt.grace = 10 * time.Millisecond
	n.set("stopped", silentPeer(t, member("stopped")))
	// Until the buffers are full, requests are gone; then they are half gone;
	// then they wait here.
	big := make([]byte, MaxFrame)
	half := make(chan error, 1)
	ctx, cancel := context.WithCancel(deadline(t))
	go func() { _, err := a.Call(ctx, "stopped", mEcho, big); half <- err }()
	o := a.outbound("stopped")
	var l *link
	eventually(t, "a request is half written", func() bool {
		o.mu.Lock()
		defer o.mu.Unlock()
		if o.conn == nil {
			return false
		}
		l = o.conn.link
		l.mu.Lock()
		defer l.mu.Unlock()
		return l.busy
	})
	waiting, stop := context.WithCancel(deadline(t))
	queued := make(chan error, 1)
	go func() { _, err := a.Call(waiting, "stopped", mEcho, []byte("behind")); queued <- err }()
	eventually(t, "a request waits behind it", func() bool {
		l.mu.Lock()
		defer l.mu.Unlock()
		return len(l.queue) == 1
	})
	stop()
	if err := <-queued; !errors.Is(err, ErrNotSent) || !errors.Is(err, context.Canceled) {
		t.Fatalf("queued request: %v", err)
	}
	cancel()
	if err := <-half; !errors.Is(err, ErrNotSent) {
		t.Fatalf("half a request cannot be handled, but: %v", err)
	}
}

func TestAPeerThatFallsSilentIsNoticedOnBothSides(t *testing.T) {
	n := newNetwork()
	fast := Liveness(10*time.Millisecond, 5)
	a := n.start(t, member("a"), fast)
	lost, gone := make(chan string, 1), make(chan string, 1)
	a.OnLost(func(id string) { lost <- id })
	a.OnDisconnect(func(id string) { gone <- id })
	n.set("stopped", silentPeer(t, member("stopped")))
	_, err := a.Call(deadline(t), "stopped", mEcho)
	if !errors.Is(err, ErrSilent) || errors.Is(err, ErrNotSent) {
		t.Fatalf("call to a silent peer: %v", err)
	}
	if id := <-lost; id != "stopped" {
		t.Fatalf("lost %q", id)
	}
	if a.Connected("stopped") {
		t.Fatal("still connected")
	}
	// The other direction: a client that shakes hands and says nothing more.
	c, err := net.Dial("tcp", a.Addr())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.Write(appendHello(nil, hello{kind: kindRPC, cluster: clusterA, lineage: 1, sender: "mute", receiver: "a"}))
	if _, err := readAnswer(c); err != nil {
		t.Fatal(err)
	}
	if id := <-gone; id != "mute" {
		t.Fatalf("gone %q", id)
	}
}

func TestPingsKeepIdleConnectionsAlive(t *testing.T) {
	n := newNetwork()
	fast := Liveness(5*time.Millisecond, 40)
	a, b := n.start(t, member("a"), fast), n.start(t, member("b"), fast)
	b.Handle(mEcho, func(_ context.Context, _ string, req []byte) ([]byte, error) { return req, nil })
	if _, err := a.Call(deadline(t), "b", mEcho); err != nil {
		t.Fatal(err)
	}
	l := a.outbound("b").conn.link
	eventually(t, "the connection outlives its idle limit", func() bool { return l.heard.Load() > 60 })
	if err := l.cause(); err != nil {
		t.Fatal(err)
	}
}

func TestOnDisconnectRunsAfterTheHandlersAndBeforeTheNextConnection(t *testing.T) {
	n := newNetwork()
	a, b := n.start(t, member("a")), n.start(t, member("b"))
	var handlers, calls atomic.Int32
	told := make(chan struct{})
	b.Handle(mBlock, func(ctx context.Context, _ string, _ []byte) ([]byte, error) {
		handlers.Add(1)
		<-ctx.Done()
		handlers.Add(-1)
		return nil, ctx.Err()
	})
	b.Handle(mEcho, func(context.Context, string, []byte) ([]byte, error) {
		select {
		case <-told:
		default:
			t.Error("a request of the next connection came first")
		}
		return nil, nil
	})
	release := make(chan struct{})
	b.OnDisconnect(func(id string) {
		if id != "a" || handlers.Load() != 0 {
			t.Errorf("%q gone with %d handlers", id, handlers.Load())
		}
		if calls.Add(1) == 1 {
			<-release
			close(told)
		}
	})
	result := make(chan error, 1)
	go func() { _, err := a.Call(deadline(t), "b", mBlock); result <- err }()
	eventually(t, "the handler runs", func() bool { return handlers.Load() == 1 })
	a.outbound("b").end(errForgotten)
	if err := <-result; err == nil || errors.Is(err, ErrNotSent) {
		t.Fatalf("broken connection: %v", err)
	}
	eventually(t, "the disconnect is told", func() bool { return calls.Load() == 1 })
	go func() { _, err := a.Call(deadline(t), "b", mEcho); result <- err }()
	eventually(t, "the next connection waits", func() bool { return b.accepted.Load() == 2 })
	close(release)
	if err := <-result; err != nil {
		t.Fatal(err)
	}
}

func TestCallsReconnectAfterAPeerCameBackElsewhere(t *testing.T) {
	n := newNetwork()
	a, b := n.start(t, member("a")), n.start(t, member("b"))
	echo := func(_ context.Context, _ string, req []byte) ([]byte, error) { return req, nil }
	b.Handle(mEcho, echo)
	if _, err := a.Call(deadline(t), "b", mEcho); err != nil {
		t.Fatal(err)
	}
	b.Close()
	l := a.outbound("b")
	eventually(t, "the end is noticed", func() bool { return !l.live() })
	if _, err := a.Call(deadline(t), "b", mEcho); !errors.Is(err, ErrNotSent) {
		t.Fatalf("nobody there: %v", err)
	}
	b = n.start(t, member("b"))
	b.Handle(mEcho, echo)
	if _, err := a.Call(deadline(t), "b", mEcho); err != nil {
		t.Fatal(err)
	}
}

func TestStrangersMayUseOpenMethodsOnlyUntilTheyAreMembers(t *testing.T) {
	n := newNetwork()
	a := n.start(t, Identity{NodeID: "a"})
	b := n.start(t, member("b"))
	for _, p := range []*node{a, b} {
		p.Handle(mOpen, func(_ context.Context, from string, _ []byte) ([]byte, error) { return []byte(from), nil }, OpenToStrangers())
		p.Handle(mEcho, func(_ context.Context, _ string, req []byte) ([]byte, error) { return req, nil })
	}
	var re *RemoteError
	for _, dir := range []struct {
		from *node
		id   string
	}{{a, "b"}, {b, "a"}} {
		if got, err := dir.from.CallAddr(deadline(t), map[string]*node{"a": a, "b": b}[dir.id].Addr(), mOpen, nil); err != nil || string(got) != dir.from.ident().NodeID {
			t.Fatalf("discovery: %q, %v", got, err)
		}
		if _, err := dir.from.Call(deadline(t), dir.id, mOpen); err != nil {
			t.Fatalf("open method: %v", err)
		}
		if _, err := dir.from.Call(deadline(t), dir.id, mEcho); !errors.As(err, &re) || re.Code != CodeNotMember || !errors.Is(err, ErrNotSent) {
			t.Fatalf("closed method: %v", err)
		}
		if _, err := dir.from.Call(deadline(t), dir.id, mOpen, make([]byte, maxStrangerFrame+1)); !errors.Is(err, ErrNotSent) {
			t.Fatalf("large request of a stranger: %v", err)
		}
		if _, err := dir.from.Stream(deadline(t), dir.id, mStream, nil); !errors.Is(err, ErrRefused) {
			t.Fatalf("stream: %v", err)
		}
	}
	if got, err := a.CallAddr(deadline(t), a.Addr(), mOpen, nil); err != nil || string(got) != "a" {
		t.Fatalf("a node that finds itself: %q, %v", got, err)
	}
	now := member("a")
	a.id.Store(&now)
	if _, err := a.Call(deadline(t), "b", mEcho); err != nil {
		t.Fatalf("after joining: %v", err)
	}
	if _, err := b.Call(deadline(t), "a", mEcho); err != nil {
		t.Fatalf("to the node that joined: %v", err)
	}
}

func TestHandshakesOfOthersAreRefused(t *testing.T) {
	n := newNetwork()
	b := n.start(t, member("b"))
	base := hello{kind: kindRPC, cluster: clusterA, lineage: 1, sender: "a", receiver: "b"}
	tests := map[string]struct {
		change func(*hello)
		says   string
	}{
		"other cluster":     {func(h *hello) { h.cluster = clusterB }, "cluster"},
		"other lineage":     {func(h *hello) { h.lineage = 2 }, "lineage"},
		"other receiver":    {func(h *hello) { h.receiver = "c" }, `not "c"`},
		"no receiver":       {func(h *hello) { h.receiver = "" }, "receiver"},
		"our own id":        {func(h *hello) { h.sender = "b" }, "two nodes"},
		"unknown kind":      {func(h *hello) { h.kind = 77 }, "77"},
		"raft of stranger":  {func(h *hello) { h.kind = kindRaft; h.cluster = ClusterID{} }, "not a member"},
		"raft of others":    {func(h *hello) { h.kind = kindRaft; h.cluster = clusterB }, "cluster"},
		"stream of others":  {func(h *hello) { h.kind = kindStream; h.lineage = 9 }, "lineage"},
		"one call of other": {func(h *hello) { h.kind = kindCall; h.receiver = ""; h.cluster = clusterB }, "cluster"},
	}
	send := func(t *testing.T, raw []byte) (answer, net.Conn, error) {
		t.Helper()
		c, err := net.Dial("tcp", b.Addr())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		c.SetDeadline(time.Now().Add(10 * time.Second))
		c.Write(raw)
		a, err := readAnswer(c)
		return a, c, err
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			h := base
			test.change(&h)
			a, c, err := send(t, appendHello(nil, h))
			if err != nil || !a.refused || !strings.Contains(a.text, test.says) || a.id != "b" {
				t.Fatalf("got %+v, %v", a, err)
			}
			if _, err := io.ReadAll(c); err != nil {
				t.Fatalf("not closed: %v", err)
			}
		})
	}
	later := appendHello(nil, base)
	later[8] = 2
	if a, _, err := send(t, later); err != nil || !a.refused || !strings.Contains(a.text, "version 2") {
		t.Fatalf("other version: %+v, %v", a, err)
	}
	if _, _, err := send(t, bytes.Repeat([]byte("GET / HTTP/1.1\r\n"), 4)); err == nil {
		t.Fatal("answered to something else")
	}
	if a, _, err := send(t, appendHello(nil, base)); err != nil || a.refused {
		t.Fatalf("the right one: %+v, %v", a, err)
	}
}

func TestMalformedFramesEndTheConnectionOnly(t *testing.T) {
	n := newNetwork()
	a, b := n.start(t, member("a")), n.start(t, member("b"))
	b.Handle(mEcho, func(_ context.Context, _ string, req []byte) ([]byte, error) { return req, nil })
	for name, raw := range map[string][]byte{
		"length beyond all": {0xff, 0xff, 0xff, 0xff, byte(frameRequest)},
		"unknown type":      {0, 0, 0, 0, 99},
		"answer":            {0, 0, 0, 0, byte(frameResponse)},
		"ping with bytes":   {1, 0, 0, 0, byte(framePing)},
		"reserved":          {0, 0, 0, 0, byte(framePing), 0, 0, 0, 0, 0, 0, 0, 1},
	} {
		t.Run(name, func(t *testing.T) {
			c, err := net.Dial("tcp", b.Addr())
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			c.SetDeadline(time.Now().Add(10 * time.Second))
			c.Write(appendHello(nil, hello{kind: kindRPC, cluster: clusterA, lineage: 1, sender: "evil", receiver: "b"}))
			if _, err := readAnswer(c); err != nil {
				t.Fatal(err)
			}
			c.Write(append(raw, make([]byte, headerSize-len(raw))...))
			if _, err := io.ReadAll(c); err != nil && !strings.Contains(err.Error(), "reset") {
				t.Fatalf("not closed: %v", err)
			}
			if _, err := a.Call(deadline(t), "b", mEcho); err != nil {
				t.Fatal(err)
			}
		})
	}
}

func TestAStreamEndsWithItsReader(t *testing.T) {
	n := newNetwork()
	a, b := n.start(t, member("a")), n.start(t, member("b"))
	ended := make(chan error, 2)
	b.HandleStream(mStream, func(ctx context.Context, _ string, req []byte, w io.Writer) error {
		for {
			if _, err := w.Write(make([]byte, 1<<20)); err != nil {
				ended <- err
				return err
			}
		}
	})
	s, err := a.Stream(deadline(t), "b", mStream, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(s, make([]byte, 3<<20)); err != nil {
		t.Fatal(err)
	}
	s.Close()
	<-ended
	ctx, cancel := context.WithCancel(context.Background())
	s, err = a.Stream(ctx, "b", mStream, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	cancel()
	if _, err := io.Copy(io.Discard, s); !errors.Is(err, context.Canceled) {
		t.Fatalf("got %v", err)
	}
	<-ended
}

func TestAStreamThatBreaksIsNotComplete(t *testing.T) {
	n := newNetwork()
	a, b := n.start(t, member("a")), n.start(t, member("b"))
	b.HandleStream(mStream, func(ctx context.Context, _ string, _ []byte, w io.Writer) error {
		w.Write([]byte("some"))
		<-ctx.Done()
		return ctx.Err()
	})
	s, err := a.Stream(deadline(t), "b", mStream, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if _, err := io.ReadFull(s, make([]byte, 4)); err != nil {
		t.Fatal(err)
	}
	b.Close()
	if _, err := s.Read(make([]byte, 1)); err == nil || err == io.EOF { //nolint:errorlint // exactly io.EOF means complete
		t.Fatalf("got %v", err)
	}
}
