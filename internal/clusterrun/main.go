// Command clusterrun starts a cluster on this machine, runs any command beside it, and then compares the nodes page by page:
//
//	go run ./internal/clusterrun -- go test ./...
//
// The command finds the socket of the first node in HASQLITE_SOCKET, so that "file:NAME?vfs=hasqlite" is enough, and those of
// all nodes in HASQLITE_SOCKETS, separated by commas. Its exit code becomes ours when it is not 0.
//
// Owns: the cluster it starts. Imports: localcluster.
// Invariant: exit code 0 says that the command ended with 0 and every database is equal on all nodes.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/uglyer/ha-sqlite/internal/localcluster"
)

func main() {
	nodes := flag.Int("nodes", 3, "`number` of nodes")
	node := flag.String("node", "", "hasqlite-node `binary`; empty builds it")
	nodeArgs := flag.String("node-args", "", "more `flags` for every node, separated by spaces")
	wait := flag.Duration("wait", time.Minute, "time for the nodes to become equal at the end")
	keep := flag.Bool("keep", false, "leave the nodes' files")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, *nodes, *node, strings.Fields(*nodeArgs), *wait, *keep, flag.Args())
	stop()
	var exit *exec.ExitError
	switch {
	case err == nil:
	case errors.As(err, &exit):
		fmt.Fprintln(os.Stderr, "clusterrun:", err)
		os.Exit(max(exit.ExitCode(), 1))
	default:
		fmt.Fprintln(os.Stderr, "clusterrun:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, nodes int, node string, nodeArgs []string, wait time.Duration, keep bool, command []string) (err error) {
	if len(command) == 0 {
		return errors.New("no command given: clusterrun [flags] -- command arguments…")
	}
	if node == "" {
		dir, err := os.MkdirTemp("", "hasqlite-build-")
		if err != nil {
			return fmt.Errorf("make directory for the node: %w", err)
		}
		defer func() { _ = os.RemoveAll(dir) }() // a binary too many in the temporary directory fails nobody
		node = filepath.Join(dir, "hasqlite-node")
		build := exec.CommandContext(ctx, "go", "build", "-o", node, "github.com/uglyer/ha-sqlite/cmd/hasqlite-node")
		if text, err := build.CombinedOutput(); err != nil {
			return fmt.Errorf("build the node: %w\n%s", err, text)
		}
	}
	cluster, err := localcluster.Start(ctx, localcluster.Options{Command: []string{node}, Nodes: nodes, Args: nodeArgs, KeepDir: keep})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, cluster.Close()) }()
	var sockets []string
	for _, n := range cluster.Nodes() {
		sockets = append(sockets, n.Socket)
	}
	cmd := exec.CommandContext(ctx, command[0], command[1:]...)
	cmd.Env = append(os.Environ(), "HASQLITE_SOCKET="+sockets[0], "HASQLITE_SOCKETS="+strings.Join(sockets, ","))
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	ran := cmd.Run()
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	return errors.Join(ran, compare(ctx, cluster))
}

// compare waits until all nodes are equal in every database, and compares the pages.
func compare(ctx context.Context, cluster *localcluster.Cluster) error {
	status, err := cluster.Nodes()[0].Status(ctx)
	if err != nil {
		return err
	}
	for _, d := range status.Databases {
		pos, err := cluster.WaitConverged(ctx, d.Name)
		if err != nil {
			return err
		}
		for _, n := range cluster.Nodes() {
			if _, err := n.Verify(ctx, d.Name, true); err != nil {
				return err
			}
		}
		fmt.Fprintf(os.Stderr, "clusterrun: %s is equal on all nodes at %v, %d pages compared\n", d.Name, pos, d.Pages)
	}
	return nil
}
