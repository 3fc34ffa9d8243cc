// Package reflink makes a file of the blocks of another without copying them, where the file system can.
//
// Owns: the child process that does it, and the argument by which every program that holds this package becomes that
// child.
// Imports: nothing of the project.
// Invariant: the process that calls Clone opens neither of the two files. A process that has a database open through
// SQLite loses all its locks on it when it closes another descriptor of the file.
package reflink

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
)

// ErrUnsupported is returned where the file system cannot clone these files.
var ErrUnsupported = errors.New("files cannot be cloned here")

// argument makes a program the child that clones: argument, source, target.
const argument = "--hasqlite-clone-file"

// exitUnsupported is how the child says ErrUnsupported.
const exitUnsupported = 3

func init() {
	if len(os.Args) != 4 || os.Args[1] != argument {
		return
	}
	err := clone(os.Args[2], os.Args[3])
	switch {
	case err == nil:
		os.Exit(0)
	case errors.Is(err, ErrUnsupported):
		os.Exit(exitUnsupported)
	}
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}

// Clone makes the file target, which does not exist, a clone of source. On an error there is no target.
func Clone(ctx context.Context, source, target string) error {
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("clone %s: %w", source, err)
	}
	var text bytes.Buffer
	cmd := exec.CommandContext(ctx, self, argument, source, target)
	cmd.Stderr = &text
	err = cmd.Run()
	var ended *exec.ExitError
	if errors.As(err, &ended) && ended.ExitCode() == exitUnsupported {
		return fmt.Errorf("clone %s: %w", source, ErrUnsupported)
	}
	if err != nil {
		return fmt.Errorf("clone %s: %w: %s", source, err, strings.TrimSpace(text.String()))
	}
	return nil
}
