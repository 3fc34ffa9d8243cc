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
	files, goroutines    int
}

func (c cost) String() string {
	return fmt.Sprintf("RssAnon %.0f MiB, VmRSS %.0f MiB, %d descriptors, %d goroutines", c.anonMiB, c.residentMiB, c.files, c.goroutines)
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
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+n.HTTP+"/debug/pprof/goroutine?debug=1", nil)
	if err != nil {
		return c, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return c, err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err != nil {
		return c, err
	}
	// goroutine profile: total 42
	if _, err := fmt.Sscanf(string(text), "goroutine profile: total %d", &c.goroutines); err != nil {
		return c, fmt.Errorf("read the goroutine profile of node %s: %w", n.ID, err)
	}
	return c, nil
}
