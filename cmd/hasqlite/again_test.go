package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/uglyer/ha-sqlite/internal/exit"
	"github.com/uglyer/ha-sqlite/internal/testarchive"
)

// What retention removes in the middle of a restore is no damage: the state is read from what there is then. What is
// gone without it is damage, and is named.
func TestRestoresGoOnWhereRetentionRemovesFiles(t *testing.T) {
	for _, command := range []string{"restore", "restore --all"} {
		for _, retention := range []bool{true, false} {
			db, root := testarchive.InDir(t, "app.db")
			db.Exec("CREATE TABLE t(a)", "INSERT INTO t VALUES(1)", "INSERT INTO t VALUES(2)", "INSERT INTO t VALUES(3)", "INSERT INTO t VALUES(4)")
			victim := ""
			var once sync.Once
			n := exampleNode()
			n.archive = root
			n.reading = func(key string) {
				if !strings.HasSuffix(key, ".ltx") {
					return
				}
				once.Do(func() { // files are being read: all that the plan has go
					victim = key
					if !retention {
						if err := os.Remove(filepath.Join(root, filepath.FromSlash(key))); err != nil {
							t.Error(err)
						}
						return
					}
					far := testarchive.Start.Add(10000 * time.Hour)
					if err := db.Writer.Compact(t.Context(), far); err != nil {
						t.Error(err)
					}
					if gone, err := db.Writer.Retain(t.Context(), far); err != nil || gone < 5 {
						t.Errorf("%d files went, %v", gone, err)
					}
				})
			}
			out := filepath.Join(t.TempDir(), "out.db")
			args := []string{"restore", "--db", "app.db", "-o", out}
			if command == "restore --all" {
				args = []string{"restore", "--all", "--into-cluster", "--archive", root}
			}
			code, stdout, stderr := cmdline(t, n, nil, args...)
			got, err := os.ReadFile(out)
			if command == "restore --all" {
				got, err = n.imported, nil
			}
			want := db.Images[len(db.Images)-1]
			switch {
			case retention && (code != 0 || err != nil || !bytes.Equal(got, want)):
				t.Errorf("%s: exit code %d, %v: %s%s", command, code, err, stdout, stderr)
			case !retention && (code == 0 || !strings.Contains(stdout+stderr, filepath.Base(victim)) || !strings.Contains(stdout+stderr, "damaged")):
				t.Errorf("%s of a damaged archive: exit code %d: %s%s", command, code, stdout, stderr)
			case !retention && command == "restore" && code != exit.Damaged:
				t.Errorf("%s of a damaged archive: exit code %d", command, code)
			}
		}
	}
}
