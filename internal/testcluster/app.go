package testcluster

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"

	"github.com/uglyer/ha-sqlite/internal/localcluster"
)

// App is an application in a process of its own. It reads commands and writes events, one a line.
type App struct {
	*localcluster.Process
	stdin io.WriteCloser

	mu      sync.Mutex
	lines   []string
	next    int           // first line that Expect has not looked at
	changed chan struct{} // closed and replaced when a line comes
}

// StartApp starts this test binary again as one of the roles given to Main.
func StartApp(role string, args []string, env ...string) (*App, error) {
	cmd := exec.Command(os.Args[0], args...)
	cmd.Env = append(append(os.Environ(), envRole+"="+role), env...)
	return StartCommand(cmd)
}

// StartCommand starts any program as an application.
func StartCommand(cmd *exec.Cmd) (*App, error) {
	a := &App{changed: make(chan struct{})}
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", cmd.Path, err)
	}
	a.stdin = stdin
	out := &localcluster.LineWriter{Line: a.add}
	cmd.Stdout, cmd.Stderr = out, out
	a.Process, err = localcluster.StartProcess(cmd)
	if err != nil {
		return nil, err
	}
	return a, nil
}

func (a *App) add(line string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.lines = append(a.lines, line)
	close(a.changed)
	a.changed = make(chan struct{})
}

// Send gives the application a command.
func (a *App) Send(line string) error {
	if _, err := io.WriteString(a.stdin, line+"\n"); err != nil {
		return fmt.Errorf("send %q to process %d: %w", line, a.PID(), err)
	}
	return nil
}

// Expect waits for a line that begins with prefix, after those that earlier calls returned, and returns it. Lines before it are skipped.
func (a *App) Expect(ctx context.Context, prefix string) (string, error) {
	for {
		a.mu.Lock()
		for a.next < len(a.lines) {
			line := a.lines[a.next]
			a.next++
			if strings.HasPrefix(line, prefix) {
				a.mu.Unlock()
				return line, nil
			}
		}
		changed := a.changed
		a.mu.Unlock()
		select {
		case <-changed:
		case <-a.Done():
			select {
			case <-changed: // the last lines came with the end
			default:
				return "", fmt.Errorf("wait for %q of process %d: it ended: %v; it said:\n%s", prefix, a.PID(), a.Err(), a.Output())
			}
		case <-ctx.Done():
			return "", fmt.Errorf("wait for %q of process %d: %w; it said:\n%s", prefix, a.PID(), ctx.Err(), a.Output())
		}
	}
}

// Skip drops the lines that have come so far: the next Expect sees later ones only.
func (a *App) Skip() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.next = len(a.lines)
}

// Matching returns all lines so far that begin with prefix.
func (a *App) Matching(prefix string) []string {
	a.mu.Lock()
	defer a.mu.Unlock()
	var out []string
	for _, l := range a.lines {
		if strings.HasPrefix(l, prefix) {
			out = append(out, l)
		}
	}
	return out
}

// Output returns the last lines that the application wrote.
func (a *App) Output() string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return strings.Join(a.lines[max(0, len(a.lines)-20):], "\n")
}

// Forget drops the lines so far that begin with prefix from what Matching returns.
func (a *App) Forget(prefix string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for i, l := range a.lines {
		if strings.HasPrefix(l, prefix) {
			a.lines[i] = "(seen) " + l
		}
	}
}
