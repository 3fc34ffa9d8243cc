package reflink

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// The child answers for every end that cloning can have: it is this very test binary.
func TestClone(t *testing.T) {
	dir := t.TempDir()
	source, target := filepath.Join(dir, "source"), filepath.Join(dir, "target")
	want := bytes.Repeat([]byte("content "), 4096)
	if err := os.WriteFile(source, want, 0o600); err != nil {
		t.Fatal(err)
	}
	err := Clone(t.Context(), source, target)
	got, rerr := os.ReadFile(target)
	switch {
	case err == nil && (rerr != nil || !bytes.Equal(got, want)):
		t.Errorf("the clone differs: %v", rerr)
	case errors.Is(err, ErrUnsupported) && !errors.Is(rerr, os.ErrNotExist):
		t.Errorf("a target is left behind: %v", rerr)
	case err != nil && !errors.Is(err, ErrUnsupported):
		t.Error(err)
	}
	if err := Clone(t.Context(), filepath.Join(dir, "absent"), filepath.Join(dir, "x")); err == nil || errors.Is(err, ErrUnsupported) || !strings.Contains(err.Error(), "absent") {
		t.Errorf("a source that is not there: %v", err)
	}
	if err := os.WriteFile(target, []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := Clone(t.Context(), source, target); err == nil || errors.Is(err, ErrUnsupported) {
		t.Errorf("a target that exists: %v", err)
	}
	if got, err := os.ReadFile(target); err != nil || string(got) != "mine" {
		t.Errorf("it was replaced by %q, %v", got, err)
	}
}
