package link

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// recorder is a Backend and a Handle that writes down its calls.
type recorder struct {
	mu    sync.Mutex
	calls []string
	open  OpenRequest
	peer  Peer
	tx    *Tx
	parts int // pages of the pieces
	ends  []End

	begin  func(ctx context.Context) error
	part   func() error
	commit func(ctx context.Context, progress func()) Outcome
	closed chan struct{}
}

func newRecorder() *recorder { return &recorder{closed: make(chan struct{}, 8)} }

func (r *recorder) note(s string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.calls = append(r.calls, s)
}

func (r *recorder) list() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return strings.Join(r.calls, " ")
}

func (r *recorder) Welcome() (string, [16]byte, uint64) { return "n1", [16]byte{7}, 8 << 20 }

func (r *recorder) Resolve(_ context.Context, name string) (bool, [16]byte, string, error) {
	if name == "bad" {
		return false, [16]byte{}, "", errors.New("resolve bad: no such thing")
	}
	return true, [16]byte{9}, "/data/" + name, nil
}

func (r *recorder) Past(_ context.Context, req PastRequest, progress func()) (Past, error) {
	r.note("past " + req.Name + " " + req.At + req.To)
	progress()
	if req.Name == "bad" {
		return Past{}, &Error{Code: CodeCantOpen, Text: "no"}
	}
	return Past{Path: "/past/" + req.Name, Bookmark: "b", Note: "hi", Close: func() { r.note("past closed"); r.closed <- struct{}{} }}, nil
}

func (r *recorder) Open(_ context.Context, peer Peer, req OpenRequest) (Handle, Opened, error) {
	if req.Name == "bad" {
		return nil, Opened{}, &Error{Code: CodeCantOpen, Text: "no"}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.peer, r.open = peer, req
	return r, Opened{Exists: true, Epoch: 5, Mode: 0o660, Note: "hi"}, nil
}

func (r *recorder) Create(context.Context, uint32, uint8) (Created, error) {
	r.note("create")
	return Created{PageSize: 4096, Epoch: 5}, nil
}

func (r *recorder) Begin(ctx context.Context) (Grant, error) {
	r.note("begin")
	if r.begin != nil {
		if err := r.begin(ctx); err != nil {
			return Grant{}, err
		}
	}
	return Grant{TXID: 3, Checksum: 4, Base: Fingerprint{1, 2, 3, 4, 5, 6, 7}}, nil
}

func (r *recorder) Resume(context.Context) { r.note("resume") }
func (r *recorder) Keep() time.Duration    { return 7 * time.Millisecond }

func (r *recorder) Part(_ context.Context, tx *Tx) error {
	r.note("part")
	r.mu.Lock()
	r.parts += len(tx.Pages)
	r.mu.Unlock()
	if r.part != nil {
		return r.part()
	}
	return nil
}

func (r *recorder) Commit(ctx context.Context, tx *Tx, progress func()) (Outcome, string) {
	r.note("commit")
	r.mu.Lock()
	r.tx = tx
	r.mu.Unlock()
	if r.commit != nil {
		return r.commit(ctx, progress), "text"
	}
	return Accepted, ""
}

func (r *recorder) End(e End) {
	r.note("end")
	r.mu.Lock()
	defer r.mu.Unlock()
	r.ends = append(r.ends, e)
}

func (r *recorder) Mismatch(Fingerprint)       { r.note("mismatch") }
func (r *recorder) Read(context.Context) error { r.note("read"); return nil }

func (r *recorder) Pragma(_ context.Context, name, arg string) (string, error) {
	return name + "=" + arg, nil
}

func (r *recorder) Close() {
	r.note("close")
	r.closed <- struct{}{}
}

func startServer(t *testing.T, b Backend) (*Server, string) {
	t.Helper()
	dir, err := os.MkdirTemp("", "link")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	path := filepath.Join(dir, "node.sock")
	l, err := Listen(path, 0o660, -1)
	if err != nil {
		t.Fatal(err)
	}
	s := NewServer(b, slog.New(slog.NewTextHandler(io.Discard, nil)))
	done := make(chan error, 1)
	go func() { done <- s.Serve(l) }()
	t.Cleanup(func() {
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		_ = s.Shutdown(ctx)
		if err := <-done; !errors.Is(err, ErrServerClosed) {
			t.Errorf("Serve returned %v", err)
		}
	})
	return s, path
}

var testHello = encodeHello(hello{version: Version, pid: 4, client: "test", sqlite: "3.54.1"})

// opened is a client with an open handle.
func opened(t *testing.T, path string) *client {
	t.Helper()
	c := dial(t, path)
	c.call(kindHello, testHello, kindWelcome)
	c.call(kindOpen, encodeOpen(OpenRequest{Name: "shop.db", ID: [16]byte{9}, Create: true, LockTimeout: time.Second}), kindOpened)
	return c
}

func testTx(n int) *Tx {
	tx := &Tx{PageSize: 512, PageCount: uint32(n)}
	for i := range n {
		tx.Pages = append(tx.Pages, Page{Pgno: uint32(i + 1), Data: []byte(strings.Repeat(string(rune('a'+i)), 512))})
	}
	return tx
}

func wait(t *testing.T, ch <-chan struct{}, what string) {
	t.Helper()
	select {
	case <-ch:
	case <-time.After(10 * time.Second):
		t.Fatalf("%s did not happen", what)
	}
}

func TestTransactionReachesHandleInOrder(t *testing.T) {
	r := newRecorder()
	_, path := startServer(t, r)
	c := opened(t, path)
	if r.peer.PID != os.Getpid() || r.peer.Client != "test" || r.peer.SQLite != "3.54.1" {
		t.Errorf("peer = %+v", r.peer)
	}
	if !r.open.Create || r.open.LockTimeout != time.Second {
		t.Errorf("open request = %+v", r.open)
	}
	grant := c.call(kindBegin, []byte{0}, kindGrant)
	if got, want := grant, appendFingerprint([]byte{3, 0, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0}, Fingerprint{1, 2, 3, 4, 5, 6, 7}); !slices.Equal(got, want) {
		t.Errorf("grant = %x, want %x", got, want)
	}
	tx := testTx(3)
	if got := c.call(kindCommit, encodeCommit(tx), kindVerdict); !slices.Equal(got, []byte{byte(Accepted), 7, 0, 0, 0}) {
		t.Errorf("verdict = %x", got)
	}
	if r.tx.PageCount != 3 || len(r.tx.Pages) != 3 || !slices.Equal(r.tx.Pages[2].Data, tx.Pages[2].Data) {
		t.Errorf("transaction = %+v", r.tx)
	}
	end := End{Accepted: true, Published: true, Seen: Fingerprint{9}}
	c.send(kindEnd, encodeEnd(end))
	c.send(kindBegin, []byte{beginKept}) // has no answer
	c.send(kindMismatch, appendFingerprint(nil, Fingerprint{}))
	if got := c.call(kindPragma, appendText(appendText(nil, "hasqlite_lag"), "x"), kindText); string(got[2:]) != "hasqlite_lag=x" {
		t.Errorf("pragma answered %q", got)
	}
	c.call(kindRead, nil, kindReady)
	c.call(kindCreate, []byte{0, 16, 0, 0, 1}, kindCreated)
	_ = c.nc.Close()
	wait(t, r.closed, "Close")
	if got, want := r.list(), "begin commit end resume mismatch read create close"; got != want {
		t.Errorf("calls = %s, want %s", got, want)
	}
	if len(r.ends) != 1 || r.ends[0] != end {
		t.Errorf("ends = %+v", r.ends)
	}
}

func TestErrorsKeepTheirCode(t *testing.T) {
	r := newRecorder()
	r.begin = func(context.Context) error { return &Error{Code: CodeBusy, Text: "no leader"} }
	_, path := startServer(t, r)
	c := dial(t, path)
	c.call(kindHello, testHello, kindWelcome)
	for _, row := range []struct {
		name    string
		kind    kind
		payload []byte
		want    string
	}{
		{"a plain error is IOERR", kindResolve, appendText(nil, "bad"), "\x0a\x00\x00\x00\x1a\x00resolve bad: no such thing"},
		{"an Error keeps its code", kindOpen, encodeOpen(OpenRequest{Name: "bad"}), "\x0e\x00\x00\x00\x02\x00no"},
	} {
		if got := c.call(row.kind, row.payload, kindError); string(got) != row.want {
			t.Errorf("%s: %q, want %q", row.name, got, row.want)
		}
	}
	c = opened(t, path)
	if got := c.call(kindBegin, []byte{0}, kindError); got[0] != byte(CodeBusy) {
		t.Errorf("begin: %q", got)
	}
}

func TestMalformedFrameEndsItsConnectionOnly(t *testing.T) {
	r := newRecorder()
	_, path := startServer(t, r)
	healthy := opened(t, path)
	frame := func(k kind, payload []byte) []byte {
		return append(appendHeader(nil, header{length: uint32(len(payload)), kind: k, sequence: 9}), payload...)
	}
	commit := func(change func(*Tx)) []byte {
		tx := testTx(3)
		change(tx)
		return frame(kindCommit, encodeCommit(tx))
	}
	for _, row := range []struct {
		name  string
		bytes []byte
	}{
		{"unknown type", frame(99, nil)},
		{"a reply sent by a client", frame(kindGrant, nil)},
		{"flags set", []byte{0, 0, 0, 0, byte(kindRead), 1, 0, 0, 0, 0, 0, 0}},
		{"payload over its limit", appendHeader(nil, header{length: maxPayload + 1, kind: kindPragma})},
		{"commit over its limit", appendHeader(nil, header{length: maxCommitPayload + 1, kind: kindCommit})},
		{"string longer than the payload", frame(kindPragma, []byte{255, 255, 'a'})},
		{"bytes left over", frame(kindBegin, []byte{0, 0})},
		{"begin with flags", frame(kindBegin, []byte{2})},
		{"end with unknown flags", frame(kindEnd, append([]byte{8}, make([]byte, 28)...))},
		{"second open", frame(kindOpen, encodeOpen(OpenRequest{Name: "a"}))},
		{"create with odd page size", frame(kindCreate, []byte{1, 2, 0, 0, 0})},
		{"commit of no pages", commit(func(tx *Tx) { tx.Pages = nil })},
		{"commit with odd page size", commit(func(tx *Tx) { tx.PageSize = 513 })},
		{"commit in descending order", commit(func(tx *Tx) { slices.Reverse(tx.Pages) })},
		{"commit of page 0", commit(func(tx *Tx) { tx.Pages[0].Pgno = 0 })},
		{"commit beyond the database", commit(func(tx *Tx) { tx.PageCount = 2 })},
		{"second hello", frame(kindHello, testHello)},
	} {
		t.Run(row.name, func(t *testing.T) {
			c := opened(t, path)
			if _, err := c.nc.Write(row.bytes); err != nil {
				t.Fatal(err)
			}
			if k, payload := c.receive(); k != kindError || payload[0] != byte(CodeProtocol) {
				t.Errorf("answer is of type %d: %q", k, payload)
			}
			if !c.closed() {
				t.Error("connection goes on")
			}
			wait(t, r.closed, "Close")
			healthy.call(kindRead, nil, kindReady)
		})
	}
	for _, row := range []struct {
		name  string
		bytes []byte
	}{
		{"not HELLO first", frame(kindResolve, appendText(nil, "a"))},
		{"another version", frame(kindHello, encodeHello(hello{version: 2}))},
	} {
		c := dial(t, path)
		if _, err := c.nc.Write(row.bytes); err != nil {
			t.Fatal(err)
		}
		if k, _ := c.receive(); k != kindError || !c.closed() {
			t.Errorf("%s: answer of type %d", row.name, k)
		}
	}
}

func TestEndOfFileCancelsWaitingBegin(t *testing.T) {
	r := newRecorder()
	waiting := make(chan struct{})
	r.begin = func(ctx context.Context) error {
		close(waiting)
		<-ctx.Done()
		return ctx.Err()
	}
	_, path := startServer(t, r)
	c := opened(t, path)
	c.send(kindBegin, []byte{0})
	wait(t, waiting, "Begin")
	_ = c.nc.Close()
	wait(t, r.closed, "Close")
}

func TestProgressComesBeforeTheVerdictOnly(t *testing.T) {
	r := newRecorder()
	var late func()
	r.commit = func(_ context.Context, progress func()) Outcome {
		progress()
		progress() // merged with the one before
		late = progress
		return Unknown
	}
	_, path := startServer(t, r)
	c := opened(t, path)
	c.send(kindCommit, encodeCommit(testTx(1)))
	if k, _ := c.receive(); k != kindProgress {
		t.Fatalf("first frame is of type %d", k)
	}
	if k, b := c.receive(); k != kindVerdict || b[0] != byte(Unknown) {
		t.Fatalf("second frame is of type %d: %q", k, b)
	}
	late()
	c.call(kindRead, nil, kindReady)
}

// ending is a server that ends while a connection waits for the verdict of a commit.
func ending(t *testing.T, behind func(c *client)) (c *client, path string, verdict, done chan struct{}) {
	t.Helper()
	r := newRecorder()
	started := make(chan struct{})
	verdict, done = make(chan struct{}), make(chan struct{})
	r.commit = func(context.Context, func()) Outcome {
		close(started)
		<-verdict
		return Accepted
	}
	s, path := startServer(t, r)
	idle := opened(t, path)
	c = opened(t, path)
	c.send(kindCommit, encodeCommit(testTx(1)))
	wait(t, started, "Commit")
	behind(c)
	go func() {
		_ = s.Shutdown(context.Background())
		close(done)
	}()
	if !idle.closed() {
		t.Error("an idle connection goes on")
	}
	select {
	case <-done:
		t.Error("Shutdown did not wait")
	default:
	}
	return c, path, verdict, done
}

func TestShutdownWaitsForTheVerdict(t *testing.T) {
	c, path, verdict, done := ending(t, func(*client) {})
	close(verdict)
	if k, _ := c.receive(); k != kindVerdict {
		t.Errorf("answer is of type %d", k)
	}
	wait(t, done, "Shutdown")
	if _, err := net.Dial("unix", path); err == nil {
		t.Error("the socket still answers")
	}
}

// What an application has sent when the server ends is answered. It is told nothing of what it sends later, which nobody
// reads.
func TestShutdownAnswersWhatWasSent(t *testing.T) {
	c, _, verdict, done := ending(t, func(c *client) { c.send(kindRead, nil) })
	close(verdict)
	if k, _ := c.receive(); k != kindVerdict {
		t.Errorf("answer is of type %d", k)
	}
	if k, _ := c.receive(); k != kindReady {
		t.Errorf("the next answer is of type %d", k)
	}
	if !c.closed() {
		t.Error("the connection goes on")
	}
	wait(t, done, "Shutdown")
}

// TestExitOfProcess has a child process connect, hand its socket on to a
// grandchild, and exit: the handle closes though the socket stays open.
func TestExitOfProcess(t *testing.T) {
	if path := os.Getenv("LINK_TEST_CONNECT"); path != "" {
		exitHoldingSocket(t, path)
		return
	}
	r := newRecorder()
	_, path := startServer(t, r)
	cmd := exec.Command(os.Args[0], "-test.run=^TestExitOfProcess$")
	cmd.Env = append(os.Environ(), "LINK_TEST_CONNECT="+path)
	holder, err := cmd.StdinPipe() // the grandchild lives until this closes
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	wait(t, r.closed, "Close")
	if r.peer.PID != cmd.Process.Pid {
		t.Errorf("peer pid = %d, want %d", r.peer.PID, cmd.Process.Pid)
	}
	_ = holder.Close()
	_ = cmd.Wait()
}

func exitHoldingSocket(t *testing.T, path string) {
	c := opened(t, path)
	f, err := c.nc.(*net.UnixConn).File()
	if err != nil {
		t.Fatal(err)
	}
	holder := exec.Command("cat")
	holder.Stdin = os.Stdin
	holder.ExtraFiles = []*os.File{f}
	if err := holder.Start(); err != nil {
		t.Fatal(err)
	}
	os.Exit(0)
}

func TestListen(t *testing.T) {
	dir, err := os.MkdirTemp("", "link")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	path := filepath.Join(dir, "s")

	dead, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	dead.SetUnlinkOnClose(false)
	_ = dead.Close()
	l, err := Listen(path, 0o640, os.Getgid())
	if err != nil {
		t.Fatalf("dead socket in the way: %v", err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o640 {
		t.Errorf("mode = %v, %v", info.Mode(), err)
	}
	if _, err := Listen(path, 0o660, -1); !errors.Is(err, ErrInUse) {
		t.Errorf("live socket in the way: %v", err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("after close: %v", err)
	}
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Listen(path, 0o660, -1); !errors.Is(err, ErrNotSocket) {
		t.Errorf("file in the way: %v", err)
	}
	if _, err := Listen(filepath.Join(dir, strings.Repeat("x", 100)), 0o660, -1); !errors.Is(err, ErrPathTooLong) {
		t.Errorf("long path: %v", err)
	}
}

func TestPast(t *testing.T) {
	r := newRecorder()
	_, path := startServer(t, r)
	c := dial(t, path)
	c.call(kindHello, testHello, kindWelcome)
	c.send(kindPast, encodePast(PastRequest{Name: "shop.db", At: "10+minutes+ago"}))
	if k, _ := c.receive(); k != kindProgress {
		t.Fatalf("got type %d, want PROGRESS", k)
	}
	k, b := c.receive()
	d := decoder{b: b}
	if file, mark, note := d.text(), d.text(), d.text(); k != kindPastFile || file != "/past/shop.db" || mark != "b" || note != "hi" || d.end("PAST_FILE") != nil {
		t.Fatalf("got type %d: %q", k, b)
	}
	_ = c.nc.Close()
	wait(t, r.closed, "the close")

	c = dial(t, path)
	c.call(kindHello, testHello, kindWelcome)
	c.send(kindPast, encodePast(PastRequest{Name: "bad", To: "b"}))
	c.receive() // PROGRESS
	if k, b := c.receive(); k != kindError || binary.LittleEndian.Uint32(b) != uint32(CodeCantOpen) {
		t.Errorf("got type %d: %q", k, b)
	}
	for what, frames := range map[string][][]byte{
		"at and to":          {encodePast(PastRequest{Name: "a", At: "x", To: "y"})},
		"neither":            {encodePast(PastRequest{Name: "a"})},
		"bytes too many":     {append(encodePast(PastRequest{Name: "a", At: "x"}), 0)},
		"a second one":       {encodePast(PastRequest{Name: "a", At: "x"}), encodePast(PastRequest{Name: "a", At: "x"})},
		"too few, truncated": {encodePast(PastRequest{Name: "a", At: "x"})[:3]},
	} {
		c := dial(t, path)
		c.call(kindHello, testHello, kindWelcome)
		for i, f := range frames {
			c.send(kindPast, f)
			if i < len(frames)-1 {
				c.receive()
				c.receive()
			}
		}
		if k, b := c.receive(); k != kindError || binary.LittleEndian.Uint32(b) != uint32(CodeProtocol) {
			t.Errorf("%s: got type %d: %q", what, k, b)
		}
	}
	c = opened(t, path)
	c.send(kindPast, encodePast(PastRequest{Name: "a", At: "x"}))
	if k, _ := c.receive(); k != kindError {
		t.Errorf("behind OPEN: got type %d", k)
	}
}
