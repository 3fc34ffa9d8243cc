package localcluster

import (
	"context"
	"errors"
	"os"
	"strings"
	"testing"
	"time"
)

func startFake(t *testing.T, opts Options) *Cluster {
	t.Helper()
	opts.Command = []string{os.Args[0]}
	opts.Env = append(opts.Env, fakeNode+"=1")
	c, err := Start(t.Context(), opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return c
}

func TestClusterStartsFindsItsLeaderAndConverges(t *testing.T) {
	c := startFake(t, Options{})
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	leader, err := c.Leader(ctx)
	if err != nil || leader.ID != "n1" {
		t.Fatalf("leader: got %v, %v, want n1", leader, err)
	}
	follower, err := c.Follower(ctx)
	if err != nil || follower.ID == "n1" {
		t.Fatalf("follower: got %v, %v", follower, err)
	}
	pos, err := c.WaitConverged(ctx, "shop.db")
	if err != nil || pos.String() != "01/aa" {
		t.Fatalf("converged: got %v, %v, want 01/aa", pos, err)
	}
	if _, err := c.Nodes()[1].Verify(ctx, "shop.db", true); err != nil {
		t.Error(err)
	}
	if _, err := c.Nodes()[1].Verify(ctx, "differs", true); err == nil {
		t.Error("verify of databases that differ gave no error")
	}
	var apiErr *APIError
	if _, err := c.Nodes()[1].Verify(ctx, "a/b c", false); !errors.As(err, &apiErr) || apiErr.Code != 404 || apiErr.Text != "no such database" {
		t.Errorf("verify of an unknown name: got %v", err)
	}
}

func TestNodeIsKilledPausedAndRestarted(t *testing.T) {
	c := startFake(t, Options{})
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	n := c.Node("n1")
	first := n.Process().PID()
	if err := n.Pause(); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Leader(ctx); err == nil {
		t.Error("a paused node was found as leader")
	}
	if err := n.Resume(); err != nil {
		t.Fatal(err)
	}
	if _, err := c.WaitLeader(ctx); err != nil {
		t.Fatal(err)
	}
	if err := n.Pause(); err != nil {
		t.Fatal(err)
	}
	if err := n.Kill(); err != nil || n.Running() {
		t.Fatalf("kill a paused node: %v, running %v", err, n.Running())
	}
	if err := n.Pause(); !errors.Is(err, ErrNotRunning) {
		t.Errorf("pause a dead node: got %v, want ErrNotRunning", err)
	}
	if err := n.Restart(ctx); err != nil {
		t.Fatal(err)
	}
	if n.Process().PID() == first {
		t.Error("restart kept the process")
	}
	if err := n.Start(); err == nil {
		t.Error("a second start of a running node gave no error")
	}
	if !n.LogContains("fake node started n1") {
		t.Error("the log lacks the node's output")
	}
}

func TestEndOfContextEndsEveryProcess(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	c, err := Start(ctx, Options{Command: []string{os.Args[0]}, Env: []string{fakeNode + "=1"}})
	if err != nil {
		t.Fatal(err)
	}
	cancel()
	for _, n := range c.Nodes() {
		select {
		case <-n.Process().Done():
		case <-time.After(10 * time.Second):
			t.Errorf("node %s still runs", n.ID)
		}
	}
	if err := c.Nodes()[0].Start(); !errors.Is(err, ErrClosed) {
		t.Errorf("start after the end: got %v, want ErrClosed", err)
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(c.Dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the directory is still there: %v", err)
	}
}

func TestNodeThatEndsEarlyShowsItsLog(t *testing.T) {
	_, err := Start(t.Context(), Options{
		Command: []string{os.Args[0]}, Env: []string{fakeNode + "=1"}, Args: []string{"--fail", "disk on fire"},
	})
	if err == nil || !strings.Contains(err.Error(), "disk on fire") {
		t.Fatalf("got %v, want the node's last words", err)
	}
}

func TestSocketPathsStayShort(t *testing.T) {
	c, err := New(Options{Command: []string{"x"}, Dir: t.TempDir() + "/" + strings.Repeat("d", 100)})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for _, n := range c.Nodes() {
		if len(n.Socket) > 100 {
			t.Errorf("socket path of %d bytes: %s", len(n.Socket), n.Socket)
		}
	}
}

func TestDifferencesBetweenNodesAreNotConverged(t *testing.T) {
	nodes := []*Node{{ID: "n1"}, {ID: "n2"}}
	db := func(state, id, decided, file string) *Status {
		return &Status{Databases: []Database{{
			Name: "d", State: state, ID: id, Decided: Position{decided, "c"}, File: Position{file, "c"},
		}}}
	}
	for name, row := range map[string]struct {
		a, b *Status
		want string
	}{
		"equal":              {db("ok", "i", "2", "2"), db("ok", "i", "2", "2"), ""},
		"one does not speak": {db("ok", "i", "2", "2"), nil, "no answer"},
		"one lacks it":       {db("ok", "i", "2", "2"), &Status{}, "no such database"},
		"one is behind":      {db("ok", "i", "2", "2"), db("ok", "i", "1", "1"), "n2: 1/c"},
		"files are behind":   {db("ok", "i", "2", "2"), db("ok", "i", "2", "1"), "file 1/c"},
		"one is idle":        {db("ok", "i", "2", "2"), db("idle", "i", "2", "2"), ""},
		"one is fenced":      {db("fenced", "i", "2", "2"), db("ok", "i", "2", "2"), "fenced"},
		"another database":   {db("ok", "i", "2", "2"), db("ok", "j", "2", "2"), "of j"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := converged(nodes, []*Status{row.a, row.b}, "d")
			if row.want == "" && err != nil || row.want != "" && (err == nil || !strings.Contains(err.Error(), row.want)) {
				t.Errorf("got %v, want %q", err, row.want)
			}
		})
	}
}

func TestDSNNamesVFSAndSocket(t *testing.T) {
	n := &Node{Socket: "/tmp/x y/n1.sock"}
	got := n.DSN("acme/plan 7", "_busy_timeout=1")
	want := "file:acme/plan%207?vfs=hasqlite&node=%2Ftmp%2Fx%20y%2Fn1.sock&_busy_timeout=1"
	if got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

func TestLineWriterJoinsPieces(t *testing.T) {
	var got []string
	w := &LineWriter{Line: func(s string) { got = append(got, s) }}
	for _, s := range []string{"a", "b\nc", "\n\nd"} {
		if _, err := w.Write([]byte(s)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if want := "ab|c||d"; strings.Join(got, "|") != want {
		t.Errorf("got %q, want %q", strings.Join(got, "|"), want)
	}
}
