package shimtest

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
)

// readWhole reads a database file in another process: closing a descriptor of
// it here would drop the locks that SQLite holds on it.
func readWhole(path string) ([]byte, error) {
	return exec.Command("cat", path).Output()
}

// copyFile copies by another process, for the same reason.
func copyFile(from, to string) error {
	out, err := os.Create(to)
	if err != nil {
		return err
	}
	defer func() { _ = out.Close() }()
	cmd := exec.Command("cat", from)
	cmd.Stdout = io.Writer(out)
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("copy %s: %w", from, err)
	}
	return nil
}

// firstDifference names the first page in which two databases differ.
func firstDifference(got, want []byte, pageSize int) string {
	if len(got) != len(want) {
		return fmt.Sprintf("%d pages, want %d", len(got)/pageSize, len(want)/pageSize)
	}
	for i := 0; i < len(got); i += pageSize {
		if !bytes.Equal(got[i:i+pageSize], want[i:i+pageSize]) {
			return fmt.Sprintf("page %d", i/pageSize+1)
		}
	}
	return ""
}
