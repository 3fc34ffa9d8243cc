package testcluster

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
)

// Environment variables that change what Main does.
const (
	envRole = "HASQLITE_TEST_ROLE" // set by StartApp: which application this process is
	envRace = "HASQLITE_TEST_RACE" // not empty: nodes are built with the race detector
	envKeep = "HASQLITE_TEST_KEEP" // not empty: directories of clusters are left, and named in the log
)

var build struct {
	sync.Mutex
	dir  string
	done map[string]string // what was built -> path
}

// Main runs the tests of a package. roles are the applications that StartApp can start: each runs instead of the tests, in
// a process of its own, and its error becomes the exit code 1.
func Main(m *testing.M, roles map[string]func(args []string) error) {
	if name := os.Getenv(envRole); name != "" {
		role, ok := roles[name]
		err := fmt.Errorf("no application named %q", name)
		if ok {
			err = role(os.Args[1:])
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	code := m.Run()
	if build.dir != "" {
		if err := os.RemoveAll(build.dir); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = max(code, 1)
		}
	}
	os.Exit(code)
}

// Root returns the directory of go.mod.
func Root() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", fmt.Errorf("find the module: %w", err)
	}
	for {
		// A nested module for tests has its own go.mod; the root is the one with the node.
		if _, err := os.Stat(filepath.Join(dir, "cmd", "hasqlite-node")); err == nil {
			return dir, nil
		}
		parent := filepath.Dir(dir)
		if parent == dir {
			return "", errors.New("find the module: no parent directory has cmd/hasqlite-node")
		}
		dir = parent
	}
}

// once runs make the first time something is asked for, and gives its path every time.
func once(what string, make func(root, dir string) (string, error)) (string, error) {
	build.Lock()
	defer build.Unlock()
	if path := build.done[what]; path != "" {
		return path, nil
	}
	if build.dir == "" {
		dir, err := os.MkdirTemp("", "hasqlite-build-")
		if err != nil {
			return "", fmt.Errorf("make directory for binaries: %w", err)
		}
		build.dir, build.done = dir, map[string]string{}
	}
	root, err := Root()
	if err != nil {
		return "", err
	}
	path, err := make(root, build.dir)
	if err != nil {
		return "", fmt.Errorf("build %s: %w", what, err)
	}
	build.done[what] = path
	return path, nil
}

// Binary builds a command of this module, "hasqlite-node" or "hasqlite", and returns its path.
func Binary(t testing.TB, name string) string {
	t.Helper()
	path, err := once(name, func(root, dir string) (string, error) {
		path := filepath.Join(dir, name)
		args := []string{"build", "-o", path}
		if os.Getenv(envRace) != "" {
			args = append(args, "-race")
		}
		return path, run(root, "go", append(args, "./cmd/"+name)...)
	})
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// Extension builds the loadable extension for other languages and returns its path, "…/hasqlite.so".
func Extension(t testing.TB) string {
	t.Helper()
	path, err := once("extension", func(root, dir string) (string, error) {
		path := filepath.Join(dir, "hasqlite.so")
		return path, run(root, "make", "-s", "extension", "EXTENSION="+path)
	})
	if err != nil {
		t.Fatal(err)
	}
	return path
}

func run(dir, name string, args ...string) error {
	cmd := exec.Command(name, args...)
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s %v: %w\n%s", name, args, err, out)
	}
	return nil
}
