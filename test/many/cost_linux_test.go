package many

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"strconv"
	"strings"

	"github.com/uglyer/ha-sqlite/internal/localcluster"
)

// cost is what a node's process uses.
type cost struct {
	anonMiB, residentMiB float64
	heapMiB, sysMiB      float64 // Go's objects, and what Go took from the system and has not given back
	files, goroutines    int
}

func (c cost) String() string {
	return fmt.Sprintf("VmRSS %.0f MiB, RssAnon %.0f MiB (Go %.0f MiB, %.0f MiB in use), %d descriptors, %d goroutines",
		c.residentMiB, c.anonMiB, c.sysMiB, c.heapMiB, c.files, c.goroutines)
}

// measure reads the cost of a running node.
func measure(ctx context.Context, n *localcluster.Node) (c cost, err error) {
	p := n.Process()
	if p == nil || !p.Running() {
		return c, fmt.Errorf("measure node %s: %w", n.ID, localcluster.ErrNotRunning)
	}
	proc := fmt.Sprintf("/proc/%d", p.PID())
	status, err := os.ReadFile(proc + "/status")
	if err != nil {
		return c, err
	}
	for line := range strings.Lines(string(status)) {
		key, rest, _ := strings.Cut(line, ":")
		kib, _ := strconv.ParseFloat(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(rest), "kB")), 64)
		switch key {
		case "RssAnon":
			c.anonMiB = kib / 1024
		case "VmRSS":
			c.residentMiB = kib / 1024
		}
	}
	open, err := os.ReadDir(proc + "/fd")
	if err != nil {
		return c, err
	}
	c.files = len(open)
	// goroutine profile: total 42
	text, err := profile(ctx, n, "goroutine")
	if err != nil {
		return c, err
	}
	if _, err := fmt.Sscanf(text, "goroutine profile: total %d", &c.goroutines); err != nil {
		return c, fmt.Errorf("read the goroutine profile of node %s: %w", n.ID, err)
	}
	// # HeapInuse = 4096
	if text, err = profile(ctx, n, "heap"); err != nil {
		return c, err
	}
	for line := range strings.Lines(text) {
		key, value, _ := strings.Cut(strings.TrimPrefix(strings.TrimSpace(line), "# "), " = ")
		v, _ := strconv.ParseFloat(value, 64)
		switch key {
		case "HeapInuse":
			c.heapMiB = v / (1 << 20)
		case "Sys":
			c.sysMiB += v / (1 << 20)
		case "HeapReleased":
			c.sysMiB -= v / (1 << 20)
		}
	}
	return c, nil
}

// profile returns one of Go's profiles of a node, as text.
func profile(ctx context.Context, n *localcluster.Node, name string) (string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+n.HTTP+"/debug/pprof/"+name+"?debug=1", nil)
	if err != nil {
		return "", err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return "", fmt.Errorf("read the %s profile of node %s: %w", name, n.ID, err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, 16<<20))
	if err != nil {
		return "", fmt.Errorf("read the %s profile of node %s: %w", name, n.ID, err)
	}
	return string(text), nil
}
