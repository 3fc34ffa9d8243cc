package main

import (
	"context"
	"errors"
	"fmt"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/uglyer/ha-sqlite/internal/api"
	"github.com/uglyer/ha-sqlite/internal/buildinfo"
	"github.com/uglyer/ha-sqlite/internal/exit"
	"github.com/uglyer/ha-sqlite/internal/nodecmd"
)

// defaultNode is where a node with default options answers.
const defaultNode = "http://127.0.0.1:7440"

// completionTime bounds the wait of a shell that completes a name.
const completionTime = 2 * time.Second

var errInterrupted = errors.New("interrupted")

// cli is what all subcommands share.
type cli struct {
	streams
	start   time.Time // what times such as "10 minutes ago" count from
	node    string
	json    bool
	timeout time.Duration
}

const rootLong = `Works with a cluster of HA-Sqlite through the HTTP interface of one of its nodes.

The node is named by --node or HASQLITE_NODE; without either it is ` + defaultNode + `.

Exit codes: 0 done, 1 error, 2 wrong usage, 3 no such database or member, 4 the node did
not answer or the cluster has no leader, 5 the nodes differ, 6 the name is taken or the
database is in use, 7 timed out and not known whether it took effect, 9 an archive is
damaged, 130 interrupted.

The commands restore, history, query, diff and archive read the archive that --archive or
HASQLITE_ARCHIVE names, and need no node then; else they read that of the node through it.`

func newRoot(s streams) *cobra.Command {
	c := &cli{streams: s, start: s.now()}
	root := &cobra.Command{
		Use:   "hasqlite",
		Short: "Work with a cluster of HA-Sqlite",
		Long:  rootLong,
		Example: `  hasqlite db create shop.db
  hasqlite shell shop.db "CREATE TABLE item(id INTEGER PRIMARY KEY, name TEXT)"
  hasqlite cluster status
  hasqlite verify shop.db --deep`,
		Version:       buildinfo.Version(),
		Args:          exit.Args(cobra.NoArgs),
		SilenceUsage:  true,
		SilenceErrors: true,
		RunE:          func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.SetIn(s.in)
	root.SetOut(s.out)
	root.SetErr(s.err)
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return exit.Usagef("%w; %s --help lists the options", err, cmd.CommandPath())
	})
	f := root.PersistentFlags()
	f.StringVar(&c.node, "node", "", "address of a node's HTTP interface (default: HASQLITE_NODE, else "+defaultNode+")")
	f.BoolVar(&c.json, "json", false, "print JSON")
	f.DurationVar(&c.timeout, "timeout", 30*time.Second, "how long to wait for an answer")
	root.AddCommand(newDB(c), newCluster(c), newVerify(c), newShell(c), newImport(c), newExport(c), newFork(c), newRollback(c), newRestore(c), newHistory(c), newQuery(c), newDiff(c), newSnapshot(c), newArchive(c), newNode(c), interruptible(newDemoCommand()))
	return root
}

// interruptible ends the context of a command at Ctrl-C, so that it can clean
// up behind itself.
func interruptible(cmd *cobra.Command) *cobra.Command {
	cmd.Args = exit.Args(cmd.Args)
	inner := cmd.RunE
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		ctx, stop := signal.NotifyContext(cmd.Context(), syscall.SIGINT, syscall.SIGTERM)
		defer stop()
		cmd.SetContext(ctx)
		err := inner(cmd, args)
		if err != nil && ctx.Err() != nil {
			return errInterrupted
		}
		return err
	}
	return cmd
}

// newNode is how the demo starts nodes when no hasqlite-node is at hand.
func newNode(c *cli) *cobra.Command {
	return &cobra.Command{
		Use:                "__node",
		Hidden:             true,
		DisableFlagParsing: true,
		RunE: func(_ *cobra.Command, args []string) error {
			node := nodecmd.New("__node", nodecmd.Real())
			node.SetArgs(args)
			node.SetOut(c.out)
			node.SetErr(c.err)
			if code := nodecmd.Main(node); code != exit.OK {
				return exit.With(code, errPrinted)
			}
			return nil
		},
	}
}

// group makes a command that only holds others.
func group(use, short string, subs ...*cobra.Command) *cobra.Command {
	cmd := &cobra.Command{
		Use:   use,
		Short: short,
		Args:  exit.Args(cobra.NoArgs),
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(subs...)
	return cmd
}

// client returns a client of the node that the user named.
func (c *cli) client() (*api.Client, error) {
	base, from := c.node, "--node"
	if base == "" {
		base, from = c.env("HASQLITE_NODE"), "HASQLITE_NODE"
	}
	if base == "" {
		base = defaultNode
	}
	if !strings.Contains(base, "://") {
		base = "http://" + base
	}
	client, err := api.NewClient(base, nil)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", from, err)
	}
	return client, nil
}

// ask calls f with a client, until the timeout or Ctrl-C.
func (c *cli) ask(cmd *cobra.Command, timeout time.Duration, f func(ctx context.Context, client *api.Client) error) error {
	client, err := c.client()
	if err != nil {
		return err
	}
	if timeout <= 0 {
		return exit.Usagef("--timeout %s: want more than zero", timeout)
	}
	interrupt, stop := signal.NotifyContext(cmd.Context(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	ctx, cancel := context.WithTimeout(interrupt, timeout)
	defer cancel()
	err = f(ctx, client)
	switch {
	case err == nil:
		return nil
	case interrupt.Err() != nil:
		return errInterrupted
	case ctx.Err() != nil && exit.Code(err) == exit.Unreachable && !errors.Is(err, context.DeadlineExceeded):
		return err // it was waiting between two questions
	case ctx.Err() != nil:
		// The request was sent, or was on its way: it may have taken effect.
		return exit.With(exit.Unknown, fmt.Errorf("no answer of the node at %s within %s; whether the request took effect is not known", client.Base(), timeout))
	}
	return err
}

// askLong calls f with a client, until Ctrl-C: what it asks for takes as long as it takes, and says that it goes on.
func (c *cli) askLong(cmd *cobra.Command, f func(ctx context.Context, client *api.Client) error) error {
	client, err := c.client()
	if err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(cmd.Context(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err = f(ctx, client); err != nil && ctx.Err() != nil {
		return errInterrupted
	}
	return err
}

// databaseNames completes the first argument with the names of databases.
func (c *cli) databaseNames(cmd *cobra.Command, args []string, begun string) ([]cobra.Completion, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	var names []cobra.Completion
	err := c.ask(cmd, completionTime, func(ctx context.Context, client *api.Client) error {
		page, err := client.Databases(ctx, api.DatabaseQuery{Prefix: begun})
		for _, d := range page.Databases {
			names = append(names, d.Name)
		}
		return err
	})
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}

// memberIDs completes the first argument with the ids of the members.
func (c *cli) memberIDs(cmd *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	var ids []cobra.Completion
	err := c.ask(cmd, completionTime, func(ctx context.Context, client *api.Client) error {
		cluster, err := client.Cluster(ctx)
		for _, m := range cluster.Members {
			ids = append(ids, m.ID)
		}
		return err
	})
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	return ids, cobra.ShellCompDirectiveNoFileComp
}
