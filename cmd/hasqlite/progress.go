package main

import (
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/chzyer/readline"

	"github.com/uglyer/ha-sqlite/internal/api"
)

const progressEvery = 100 * time.Millisecond

// progress is a bar on the terminal, where there is one and no JSON is asked
// for.
type progress struct {
	out   io.Writer // nil: no bar
	mu    sync.Mutex
	label string
	shown time.Time
	width int
}

func (c *cli) progress(label string) *progress {
	f, ok := c.err.(*os.File)
	if c.json || !ok || !readline.IsTerminal(int(f.Fd())) {
		return &progress{}
	}
	return &progress{out: f, label: label}
}

func (p *progress) update(done, total int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.show(done, total)
}

func (p *progress) show(done, total int64) {
	now := time.Now()
	if p.out == nil || total <= 0 || now.Sub(p.shown) < progressEvery {
		return
	}
	p.shown = now
	const cells = 30
	full := int(cells * min(done, total) / total)
	line := fmt.Sprintf("%s [%s%s] %s of %s", p.label, strings.Repeat("=", full), strings.Repeat(" ", cells-full), bytesText(done), bytesText(total))
	p.width = max(p.width, len(line))
	fmt.Fprintf(p.out, "\r%-*s", p.width, line)
}

// done removes the bar.
func (p *progress) done() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.out != nil && p.width > 0 {
		fmt.Fprintf(p.out, "\r%-*s\r", p.width, "")
	}
}

// step shows another step of the same work.
func (p *progress) step(step string, done, total int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.label = step
	p.show(done, total)
}

// told shows what a node says of its progress.
func (p *progress) told(r api.Progress) { p.step(r.Step, r.Done, r.Total) }
