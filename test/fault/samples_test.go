package fault

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/uglyer/ha-sqlite/internal/localcluster"
)

// sample is what the system says of one process at one time.
type sample struct {
	at      time.Duration
	anonKiB int
	handles int
}

// samples is the history of one node's process.
type samples struct {
	mu   sync.Mutex
	list []sample
}

// samplesPerRun is about how many samples a run has, whatever its length.
const samplesPerRun = 720

// start takes samples of a node until the function that it returns is called.
func (s *samples) start(n *localcluster.Node) (stop func()) {
	end, done := make(chan struct{}), make(chan struct{})
	began := time.Now()
	go func() {
		defer close(done)
		tick := time.NewTicker(max(*soakFor/samplesPerRun, 20*time.Millisecond))
		defer tick.Stop()
		for {
			if one, err := takeSample(n.Process().PID()); err == nil {
				one.at = time.Since(began)
				s.mu.Lock()
				s.list = append(s.list, one)
				s.mu.Unlock()
			}
			select {
			case <-end:
				return
			case <-tick.C:
			}
		}
	}()
	return sync.OnceFunc(func() {
		close(end)
		<-done
	})
}

func takeSample(pid int) (sample, error) {
	dir := filepath.Join("/proc", strconv.Itoa(pid))
	status, err := os.ReadFile(filepath.Join(dir, "status"))
	if err != nil {
		return sample{}, err
	}
	fds, err := os.ReadDir(filepath.Join(dir, "fd"))
	if err != nil {
		return sample{}, err
	}
	one := sample{handles: len(fds)}
	for line := range strings.Lines(string(status)) {
		if rest, ok := strings.CutPrefix(line, "RssAnon:"); ok {
			if _, err := fmt.Sscan(rest, &one.anonKiB); err != nil {
				return sample{}, fmt.Errorf("read RssAnon of process %d: %w", pid, err)
			}
		}
	}
	return one, nil
}

func (s *samples) last() sample {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.list) == 0 {
		return sample{}
	}
	return s.list[len(s.list)-1]
}

// flat compares the second quarter of the run with the last. The first is for warming up.
func (s *samples) flat(t *testing.T) {
	n := len(s.list)
	if n < 8 {
		t.Fatalf("%d samples of memory and file handles", n)
	}
	for _, m := range []struct {
		name  string
		value func(sample) int
		slack int // what a quiet run may differ by
	}{
		{"RssAnon in KiB", func(x sample) int { return x.anonKiB }, 32 << 10},
		{"file handles", func(x sample) int { return x.handles }, 40},
	} {
		early, late := median(s.list[n/4:n/2], m.value), median(s.list[3*n/4:], m.value)
		t.Logf("%s: median %d in the second quarter, %d in the last", m.name, early, late)
		if late > early+early/4+m.slack {
			t.Errorf("%s grew from %d to %d", m.name, early, late)
		}
	}
}

func median(list []sample, value func(sample) int) int {
	var all []int
	for _, x := range list {
		all = append(all, value(x))
	}
	slices.Sort(all)
	return all[len(all)/2]
}

// plot draws the history as SVG: memory above, file handles below.
func (s *samples) plot(path string) error {
	const width, height, left, gap = 860, 150, 70, 40
	var b bytes.Buffer
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" font-family="sans-serif" font-size="12">`+"\n", left+width+20, 2*(height+gap)+20)
	fmt.Fprintln(&b, `<rect width="100%" height="100%" fill="white"/>`)
	end := s.list[len(s.list)-1].at
	for i, m := range []struct {
		name  string
		value func(sample) int
	}{
		{"RssAnon, MiB", func(x sample) int { return x.anonKiB >> 10 }},
		{"file handles", func(x sample) int { return x.handles }},
	} {
		top, most := gap+i*(height+gap), 1
		for _, x := range s.list {
			most = max(most, m.value(x))
		}
		fmt.Fprintf(&b, `<text x="%d" y="%d">%s</text><text x="%d" y="%d" text-anchor="end">%d</text><text x="%d" y="%d" text-anchor="end">0</text>`+"\n",
			left, top-8, m.name, left-6, top+10, most, left-6, top+height)
		fmt.Fprintf(&b, `<path d="M%d %dV%dH%d" fill="none" stroke="#888"/>`+"\n", left, top, top+height, left+width)
		fmt.Fprint(&b, `<polyline fill="none" stroke="#06c" points="`)
		for _, x := range s.list {
			fmt.Fprintf(&b, "%.1f,%.1f ", left+float64(width)*float64(x.at)/float64(end), float64(top+height)-float64(height)*float64(m.value(x))/float64(most))
		}
		fmt.Fprintln(&b, `"/>`)
	}
	fmt.Fprintf(&b, `<text x="%d" y="%d" text-anchor="end">%v</text></svg>`+"\n", left+width, 2*(height+gap)+12, end.Round(time.Second))
	return os.WriteFile(path, b.Bytes(), 0o644)
}
