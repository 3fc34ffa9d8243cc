package localcluster

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"sync"
	"syscall"
)

var (
	// ErrNotRunning is returned by signals to a process that has ended or was never started.
	ErrNotRunning = errors.New("process is not running")
	// ErrClosed is returned by starts in a cluster that was closed, or whose context ended.
	ErrClosed = errors.New("cluster is closed")
)

// Process is one child process of this one: a node, or an application that a test attaches to a node.
type Process struct {
	cmd  *exec.Cmd
	done chan struct{}
	err  error // set before done is closed

	mu     sync.Mutex
	paused bool
}

// StartProcess starts cmd and watches it. The caller sets up cmd's input and output first.
func StartProcess(cmd *exec.Cmd) (*Process, error) {
	if err := spawn(cmd); err != nil {
		return nil, fmt.Errorf("start %s: %w", cmd.Path, err)
	}
	p := &Process{cmd: cmd, done: make(chan struct{})}
	go func() {
		p.err = cmd.Wait()
		close(p.done)
	}()
	return p, nil
}

// PID returns the process id.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Done is closed when the process has ended and its output has been read.
func (p *Process) Done() <-chan struct{} { return p.done }

// Err tells how the process ended; nil for exit code 0 or while it runs.
func (p *Process) Err() error {
	select {
	case <-p.done:
		return p.err
	default:
		return nil
	}
}

// Running reports whether the process has not ended; a paused one runs.
func (p *Process) Running() bool {
	select {
	case <-p.done:
		return false
	default:
		return true
	}
}

// Paused reports whether Pause was called last.
func (p *Process) Paused() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.paused
}

// Signal sends a signal.
func (p *Process) Signal(sig os.Signal) error {
	if !p.Running() {
		return ErrNotRunning
	}
	if err := p.cmd.Process.Signal(sig); err != nil {
		if errors.Is(err, os.ErrProcessDone) {
			return ErrNotRunning
		}
		return fmt.Errorf("signal process %d with %v: %w", p.PID(), sig, err)
	}
	return nil
}

// Pause stops the process with SIGSTOP: it keeps its locks, sockets and memory and does nothing.
// It has stopped when Pause returns.
func (p *Process) Pause() error {
	if err := p.setPaused(true, syscall.SIGSTOP); err != nil {
		return err
	}
	waitStopped(p.cmd.Process.Pid)
	return nil
}

// Resume lets a paused process go on.
func (p *Process) Resume() error { return p.setPaused(false, syscall.SIGCONT) }

func (p *Process) setPaused(paused bool, sig os.Signal) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.Signal(sig); err != nil {
		return err
	}
	p.paused = paused
	return nil
}

// Kill ends the process with SIGKILL and waits until it is gone. It works on a paused process and on one that has ended.
func (p *Process) Kill() error {
	if err := p.Signal(os.Kill); err != nil && !errors.Is(err, ErrNotRunning) {
		return err
	}
	<-p.done
	return nil
}

// Shutdown asks the process to end with SIGTERM and waits for it. When ctx ends first, it is killed and ctx's error returned.
func (p *Process) Shutdown(ctx context.Context) error {
	if p.Paused() {
		if err := p.Resume(); err != nil && !errors.Is(err, ErrNotRunning) {
			return err
		}
	}
	if err := p.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, ErrNotRunning) {
		return err
	}
	select {
	case <-p.done:
		return p.err
	case <-ctx.Done():
		return errors.Join(fmt.Errorf("shut down process %d: %w", p.PID(), ctx.Err()), p.Kill())
	}
}

// LineWriter splits what is written to it into lines and hands each to a function, without the line end.
// A last line without an end is handed over by Close.
type LineWriter struct {
	Line func(string)

	mu   sync.Mutex
	rest []byte
}

var _ io.WriteCloser = (*LineWriter)(nil)

// Write implements io.Writer.
func (w *LineWriter) Write(b []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, c := range b {
		if c == '\n' {
			w.Line(string(w.rest))
			w.rest = w.rest[:0]
			continue
		}
		w.rest = append(w.rest, c)
	}
	return len(b), nil
}

// Close hands over a last line that had no end.
func (w *LineWriter) Close() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.rest) > 0 {
		w.Line(string(w.rest))
		w.rest = nil
	}
	return nil
}
