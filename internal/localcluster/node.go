package localcluster

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"time"
)

// Node is one node of the cluster, running or not. Its addresses and its directory stay the same over restarts.
type Node struct {
	ID      string
	Data    string // data directory
	HTTP    string // host:port
	Raft    string // host:port
	Socket  string // path, short enough for a socket address
	LogPath string // standard output and error of all runs, appended

	argv []string
	env  []string

	mu     sync.Mutex
	proc   *Process // the last run; nil before the first
	closed bool     // the cluster is closed: nothing may start any more
}

// Start starts the node's process with the flags it was made with, plus extra ones for this run. It does not wait until it is ready.
func (n *Node) Start(extra ...string) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.closed {
		return fmt.Errorf("start node %s: %w", n.ID, ErrClosed)
	}
	if n.proc != nil && n.proc.Running() {
		return fmt.Errorf("start node %s: process %d runs already", n.ID, n.proc.PID())
	}
	log, err := os.OpenFile(n.LogPath, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return fmt.Errorf("open log of node %s: %w", n.ID, err)
	}
	defer log.Close() // the child has its own descriptor
	cmd := exec.Command(n.argv[0], slices.Concat(n.argv[1:], extra)...)
	cmd.Env = append(os.Environ(), n.env...)
	cmd.Stdout, cmd.Stderr = log, log
	proc, err := StartProcess(cmd)
	if err != nil {
		return fmt.Errorf("start node %s: %w", n.ID, err)
	}
	n.proc = proc
	return nil
}

// Process returns the last run of the node, nil if there was none.
func (n *Node) Process() *Process {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.proc
}

// Running reports whether the node's process runs, paused or not.
func (n *Node) Running() bool {
	p := n.Process()
	return p != nil && p.Running()
}

// WaitReady waits until the node says it is ready. A process that ends before is an error that shows the end of its log.
func (n *Node) WaitReady(ctx context.Context) error {
	p := n.Process()
	if p == nil {
		return fmt.Errorf("wait for node %s: %w", n.ID, ErrNotRunning)
	}
	err := Poll(ctx, 20*time.Millisecond, func() (bool, error) {
		if !p.Running() {
			return true, nil
		}
		return n.Ready(ctx), nil
	})
	if err == nil && p.Running() {
		return nil
	}
	if err == nil {
		err = fmt.Errorf("it ended: %w", errors.Join(ErrNotRunning, p.Err()))
	}
	return fmt.Errorf("wait for node %s to be ready: %w; end of %s:\n%s", n.ID, err, n.LogPath, n.LogTail(15))
}

// LogTail returns the last lines of the node's log.
func (n *Node) LogTail(lines int) string {
	b, err := os.ReadFile(n.LogPath)
	if err != nil {
		return err.Error()
	}
	all := strings.Split(strings.TrimRight(string(b), "\n"), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}

// LogContains reports whether the node has logged text.
func (n *Node) LogContains(text string) bool {
	b, err := os.ReadFile(n.LogPath)
	return err == nil && bytes.Contains(b, []byte(text))
}

// Kill ends the node with SIGKILL and waits until it is gone.
func (n *Node) Kill() error {
	if p := n.Process(); p != nil {
		return p.Kill()
	}
	return nil
}

// close kills the node for good.
func (n *Node) close() error {
	n.mu.Lock()
	n.closed = true
	n.mu.Unlock()
	return n.Kill()
}

// Pause stops the node's process with SIGSTOP.
func (n *Node) Pause() error { return n.signal((*Process).Pause) }

// Resume continues a paused node.
func (n *Node) Resume() error { return n.signal((*Process).Resume) }

func (n *Node) signal(f func(*Process) error) error {
	p := n.Process()
	if p == nil {
		return fmt.Errorf("signal node %s: %w", n.ID, ErrNotRunning)
	}
	if err := f(p); err != nil {
		return fmt.Errorf("signal node %s: %w", n.ID, err)
	}
	return nil
}

// Shutdown asks the node to end cleanly and waits; it is killed when ctx ends first.
func (n *Node) Shutdown(ctx context.Context) error {
	p := n.Process()
	if p == nil || !p.Running() {
		return nil
	}
	if err := p.Shutdown(ctx); err != nil {
		return fmt.Errorf("shut down node %s: %w", n.ID, err)
	}
	return nil
}

// Restart shuts the node down cleanly if it runs, starts it and waits until it is ready.
func (n *Node) Restart(ctx context.Context) error {
	if err := n.Shutdown(ctx); err != nil {
		return err
	}
	if err := n.Start(); err != nil {
		return err
	}
	return n.WaitReady(ctx)
}

// DSN returns the data source name by which an application on this machine opens a database through this node. Each
// parameter is "name=value", added as it is.
func (n *Node) DSN(database string, params ...string) string {
	name := (&url.URL{Path: database}).EscapedPath()
	// SQLite's URI decoder knows %20, and takes + as it is.
	dsn := "file:" + name + "?vfs=hasqlite&node=" + strings.ReplaceAll(url.QueryEscape(n.Socket), "+", "%20")
	for _, p := range params {
		dsn += "&" + p
	}
	return dsn
}
