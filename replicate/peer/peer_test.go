package peer

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

var (
	clusterA = ClusterID{1}
	clusterB = ClusterID{2}
)

// node is a Port whose identity a test can change.
type node struct {
	*Port
	id atomic.Pointer[Identity]
}

// network resolves node ids to the ports of a test.
type network struct {
	mu    sync.Mutex
	addrs map[string]string
}

func newNetwork() *network { return &network{addrs: make(map[string]string)} }

func (n *network) set(id, addr string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.addrs[id] = addr
}

func (n *network) resolve(id string) (string, bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	a, ok := n.addrs[id]
	return a, ok
}

func (n *network) start(t testing.TB, id Identity, opts ...Option) *node {
	t.Helper()
	nd := &node{}
	nd.id.Store(&id)
	p, err := Listen("127.0.0.1:0", func() Identity { return *nd.id.Load() }, n.resolve, slog.New(slog.NewTextHandler(io.Discard, nil)), opts...)
	if err != nil {
		t.Fatal(err)
	}
	nd.Port = p
	n.set(id.NodeID, p.Addr())
	t.Cleanup(func() { p.Close() })
	return nd
}

func member(id string) Identity { return Identity{NodeID: id, Cluster: clusterA, Lineage: 1} }

func deadline(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// eventually polls a condition.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	end := time.Now().Add(10 * time.Second)
	for !ok() {
		if time.Now().After(end) {
			t.Fatalf("never: %s", what)
		}
		<-tick.C
	}
}

const (
	mEcho uint8 = iota + 1
	mBlock
	mFail
	mOpen
	mStream
)

func TestCallReturnsTheHandlersAnswer(t *testing.T) {
	n := newNetwork()
	a, b := n.start(t, member("a")), n.start(t, member("b"))
	b.Handle(mEcho, func(_ context.Context, from string, req []byte) ([]byte, error) {
		return append([]byte(from+":"), req...), nil
	})
	b.Handle(mFail, func(_ context.Context, _ string, req []byte) ([]byte, error) {
		if len(req) == 0 {
			return nil, errors.New("plain")
		}
		return nil, fmt.Errorf("wrapped: %w", &RemoteError{7, "seven"})
	})
	for _, size := range []int{0, 1, 100, gatherLimit - headerSize, gatherLimit, 100_000, 5 << 20, MaxFrame - 2} {
		req := bytes.Repeat([]byte{byte(size)}, size)
		got, err := a.Call(deadline(t), "b", mEcho, req[:size/2], nil, req[size/2:])
		if err != nil {
			t.Fatalf("call with %d bytes: %v", size, err)
		}
		if want := append([]byte("a:"), req...); !bytes.Equal(got, want) {
			t.Fatalf("call with %d bytes: got %d other bytes", size, len(got))
		}
	}
	var re *RemoteError
	if _, err := a.Call(deadline(t), "b", mFail); !errors.As(err, &re) || re.Code != CodeGeneric || re.Text != "plain" || errors.Is(err, ErrNotSent) {
		t.Fatalf("plain error arrived as %#v", err)
	}
	if _, err := a.Call(deadline(t), "b", mFail, []byte{1}); !errors.As(err, &re) || re.Code != 7 {
		t.Fatalf("coded error arrived as %#v", err)
	}
}

func TestCallsShareAConnectionAndDoNotWaitForEachOther(t *testing.T) {
	n := newNetwork()
	a, b := n.start(t, member("a")), n.start(t, member("b"))
	release := make(chan struct{})
	b.Handle(mBlock, func(ctx context.Context, _ string, _ []byte) ([]byte, error) {
		select {
		case <-release:
			return []byte("late"), nil
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	})
	b.Handle(mEcho, func(_ context.Context, _ string, req []byte) ([]byte, error) { return req, nil })
	slow := make(chan error, 1)
	go func() { _, err := a.Call(deadline(t), "b", mBlock); slow <- err }()
	var wg sync.WaitGroup
	for i := range 50 {
		wg.Go(func() {
			for j := range 20 {
				req := bytes.Repeat([]byte{byte(i), byte(j)}, 1+i*j*7)
				got, err := a.Call(deadline(t), "b", mEcho, req)
				if err != nil || !bytes.Equal(got, req) {
					t.Errorf("call %d/%d: %v", i, j, err)
				}
			}
		})
	}
	wg.Wait()
	close(release)
	if err := <-slow; err != nil {
		t.Fatal(err)
	}
	if got := b.accepted.Load(); got != 1 {
		t.Fatalf("%d connections, want 1", got)
	}
}

func TestStreamCarriesEverythingOrSaysThatItDidNot(t *testing.T) {
	n := newNetwork()
	a, b := n.start(t, member("a")), n.start(t, member("b"))
	want := bytes.Repeat([]byte("0123456789abcdef"), 300_000)
	b.HandleStream(mStream, func(_ context.Context, from string, req []byte, w io.Writer) error {
		if from != "a" {
			return fmt.Errorf("from %q", from)
		}
		if _, err := w.Write(want); err != nil {
			return err
		}
		if string(req) == "fail" {
			return &RemoteError{9, "gone"}
		}
		return nil
	})
	s, err := a.Stream(deadline(t), "b", mStream, []byte("all"))
	if err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(s)
	s.Close()
	if err != nil || !bytes.Equal(got, want) {
		t.Fatalf("got %d bytes, %v", len(got), err)
	}
	s, err = a.Stream(deadline(t), "b", mStream, []byte("fail"))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	var re *RemoteError
	if got, err := io.ReadAll(s); !errors.As(err, &re) || re.Code != 9 || len(got) != len(want) {
		t.Fatalf("got %d bytes, %v", len(got), err)
	}
	s, err = a.Stream(deadline(t), "b", mEcho, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if _, err := io.ReadAll(s); !errors.As(err, &re) || re.Code != CodeNoMethod {
		t.Fatalf("stream without handler: %v", err)
	}
}

func TestCallToItselfRunsTheHandler(t *testing.T) {
	a := newNetwork().start(t, member("a"))
	a.Handle(mEcho, func(_ context.Context, from string, req []byte) ([]byte, error) { return append(req, from...), nil })
	got, err := a.Call(deadline(t), "a", mEcho, []byte("x"), []byte("y"))
	if err != nil || string(got) != "xya" {
		t.Fatalf("got %q, %v", got, err)
	}
	if _, err := a.Call(deadline(t), "a", mFail); !errors.Is(err, ErrNotSent) {
		t.Fatalf("no handler: %v", err)
	}
}

func BenchmarkCall(b *testing.B) {
	for _, size := range []int{64, 4096, 1 << 20} {
		b.Run(strings.TrimSpace(fmt.Sprintf("%d", size)), func(b *testing.B) {
			n := newNetwork()
			x, y := n.start(b, member("a")), n.start(b, member("b"))
			y.Handle(mEcho, func(_ context.Context, _ string, req []byte) ([]byte, error) { return req[:16], nil })
			req := make([]byte, size)
			ctx := deadline(b)
			if _, err := x.Call(ctx, "b", mEcho, req); err != nil {
				b.Fatal(err)
			}
			lat := make([]time.Duration, 0, 1<<20)
			b.ReportAllocs()
			for b.Loop() {
				start := time.Now()
				if _, err := x.Call(ctx, "b", mEcho, req); err != nil {
					b.Fatal(err)
				}
				lat = append(lat, time.Since(start))
			}
			report(b, lat)
		})
	}
}

func BenchmarkCallParallel(b *testing.B) {
	n := newNetwork()
	x, y := n.start(b, member("a")), n.start(b, member("b"))
	y.Handle(mEcho, func(_ context.Context, _ string, req []byte) ([]byte, error) { return req[:16], nil })
	req := make([]byte, 256)
	ctx := deadline(b)
	b.SetParallelism(16)
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if _, err := x.Call(ctx, "b", mEcho, req); err != nil {
				b.Error(err)
				return
			}
		}
	})
}
