package shimtest

import (
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestHostThatLocksFirst runs a SQLite built with SQLITE_ENABLE_SETLK_TIMEOUT,
// which may take the write lock before its read lock.
func TestHostThatLocksFirst(t *testing.T) {
	out, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "github.com/mattn/go-sqlite3").Output()
	if err != nil {
		t.Fatalf("find the amalgamation: %v", err)
	}
	amalgamation := filepath.Join(strings.TrimSpace(string(out)), "sqlite3-binding.c")
	bin := filepath.Join(t.TempDir(), "setlk")
	compile(t, bin, []string{"testdata/setlk.c", amalgamation}, "-w", "-O0", "-DSQLITE_ENABLE_SETLK_TIMEOUT=1",
		"-DSQLITE_DEBUG", "-DSQLITE_OMIT_FTS5", "-ldl", "-lpthread", "-lm", "-Wl,-E")

	n, d, _ := shop(t)
	const rounds = 150
	got := run(t, nil, bin, extension(t), dsn(n, "shop.db"), fmt.Sprint(rounds))
	if want := fmt.Sprintf("rows=%d", 2+2*rounds); got != want {
		t.Errorf("%s, want %s", got, want)
	}
	s := d.Snapshot()
	if s.Commits != 3+2*rounds || s.Mismatches != 0 || s.Lost != 0 {
		t.Errorf("stats %+v", s)
	}
	t.Logf("%+v", s)
	checkMirror(t, d)
}
