// Command hasqlite works with a cluster of HA-Sqlite from the command line:
// it makes and lists databases, shows and changes the cluster, compares the
// nodes, and has an SQL prompt.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/uglyer/ha-sqlite/internal/exit"
	"github.com/uglyer/ha-sqlite/internal/storeurl"
	"github.com/uglyer/ha-sqlite/snapshot/store"
)

// streams are what a command reads and writes, and the environment it sees.
type streams struct {
	in       io.Reader
	out, err io.Writer
	env      func(string) string
	now      func() time.Time // in the zone of times without one
	// open opens the store of an archive that is named by its URL.
	open func(ctx context.Context, url string) (store.Store, error)
}

// errPrinted is the error of a command that has said what happened itself.
var errPrinted = errors.New("failed, as said above")

func main() {
	os.Exit(run(os.Args[1:], streams{os.Stdin, os.Stdout, os.Stderr, os.Getenv, time.Now, storeurl.Open}))
}

// run runs the command line and returns the exit code.
func run(args []string, s streams) int {
	cmd := newRoot(s)
	cmd.SetArgs(args)
	err := cmd.ExecuteContext(context.Background())
	if errors.Is(err, errInterrupted) {
		fmt.Fprintln(s.err, "hasqlite: interrupted")
		return 130
	}
	if err != nil && !errors.Is(err, errPrinted) {
		fmt.Fprintf(s.err, "hasqlite: %v\n", err)
	}
	return exit.Code(err)
}
