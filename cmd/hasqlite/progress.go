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

const (
	progressEvery = 100 * time.Millisecond
	// progressBeat is how often it is said for how long a step of unknown length takes.
	progressBeat = time.Second
)

// progress is a bar on the terminal, where there is one and no JSON is asked
// for. Of a step whose length is not known it says how long it takes so far.
type progress struct {
	mu    sync.Mutex
	out   io.Writer // nil: no bar
	label string
	began time.Time // the step
	total int64     // 0: not known
	shown time.Time
	width int
	stop  chan struct{}
}

func (c *cli) progress(label string) *progress {
	f, ok := c.err.(*os.File)
	if c.json || !ok || !readline.IsTerminal(int(f.Fd())) {
		return &progress{}
	}
	return newProgress(f, label)
}

func newProgress(out io.Writer, label string) *progress {
	p := &progress{out: out, label: label, began: time.Now(), stop: make(chan struct{})}
	go p.beat()
	return p
}

func (p *progress) beat() {
	t := time.NewTicker(progressBeat)
	defer t.Stop()
	for {
		select {
		case <-p.stop:
			return
		case <-t.C:
			p.mu.Lock()
			p.show(0, p.total)
			p.mu.Unlock()
		}
	}
}

func (p *progress) update(done, total int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.total = total
	p.show(done, total)
}

// show writes the bar; with 0 of a total that is known, nothing.
func (p *progress) show(done, total int64) {
	now := time.Now()
	if p.out == nil || done <= 0 && total > 0 || now.Sub(p.shown) < progressEvery {
		return
	}
	p.shown = now
	line := fmt.Sprintf("%s, %s", p.label, now.Sub(p.began).Truncate(time.Second))
	if total > 0 {
		const cells = 30
		full := int(cells * min(done, total) / total)
		line = fmt.Sprintf("%s [%s%s] %s of %s", p.label, strings.Repeat("=", full), strings.Repeat(" ", cells-full), bytesText(done), bytesText(total))
	}
	p.width = max(p.width, len(line))
	fmt.Fprintf(p.out, "\r%-*s", p.width, line)
}

// done removes the bar.
func (p *progress) done() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.out == nil {
		return
	}
	if p.width > 0 {
		fmt.Fprintf(p.out, "\r%-*s\r", p.width, "")
	}
	p.out = nil
	close(p.stop)
}

// step shows another step of the same work.
func (p *progress) step(step string, done, total int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if step != p.label {
		p.label, p.began, p.shown = step, time.Now(), time.Time{}
	}
	p.total = total
	p.show(done, total)
}

// told shows what a node says of its progress.
func (p *progress) told(r api.Progress) { p.step(clean(r.Step), r.Done, r.Total) }
