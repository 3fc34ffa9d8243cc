package storetest

import (
	"bytes"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
)

// tool builds a program that a module of the folder tools pins; it stays in the build cache.
func tool(module, name string) (string, error) {
	mod, err := exec.Command("go", "env", "GOMOD").Output()
	if err != nil {
		return "", fmt.Errorf("build %s: find the module: %w", name, err)
	}
	cmd := exec.Command("go", "tool", "-n", name)
	cmd.Dir = filepath.Join(filepath.Dir(strings.TrimSpace(string(mod))), module)
	var errs bytes.Buffer
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("build %s: %w: %s", name, err, &errs)
	}
	return strings.TrimSpace(string(out)), nil
}

var (
	gatewayBinary    = sync.OnceValues(func() (string, error) { return tool("tools", "versitygw") })
	litestreamBinary = sync.OnceValues(func() (string, error) { return tool("tools/litestream", "litestream") })
)

// Litestream builds stock litestream, as go.mod pins it, and returns its path.
func Litestream() (string, error) { return litestreamBinary() }
