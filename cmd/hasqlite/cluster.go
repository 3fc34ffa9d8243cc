package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/uglyer/ha-sqlite/internal/api"
	"github.com/uglyer/ha-sqlite/internal/exit"
)

func newCluster(c *cli) *cobra.Command {
	return group("cluster", "Show and change the members of the cluster",
		newClusterStatus(c), newClusterAdd(c), newClusterRemove(c), newClusterReplace(c), newClusterTransfer(c), newClusterRecover(c))
}

// readyInterval is how often --wait asks.
const readyInterval = 100 * time.Millisecond

func newClusterStatus(c *cli) *cobra.Command {
	var wait bool
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show the members, the leader and how far the log is",
		Long: `Shows the cluster as the node sees it. With --json, and with all it knows of its databases,
the whole status of the node is printed.`,
		Example: `  hasqlite cluster status
  hasqlite cluster status --json
  hasqlite cluster status --wait --timeout 60s
  hasqlite cluster status --node http://db2.lan:7440`,
		Args: exit.Args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return c.ask(cmd, c.timeout, func(ctx context.Context, client *api.Client) error {
				if wait {
					if err := waitReady(ctx, client); err != nil {
						return err
					}
				}
				st, err := client.Status(ctx, api.DatabaseQuery{})
				if err != nil {
					return err
				}
				if c.json {
					return c.printJSON(st)
				}
				return c.printCluster(st)
			})
		},
	}
	cmd.Flags().BoolVar(&wait, "wait", false, "first wait, up to --timeout, until the node is ready")
	return cmd
}

// waitReady waits until the node serves applications.
func waitReady(ctx context.Context, client *api.Client) error {
	tick := time.NewTicker(readyInterval)
	defer tick.Stop()
	last := client.Ready(ctx)
	for last != nil {
		select {
		case <-tick.C:
			if err := client.Ready(ctx); ctx.Err() == nil {
				last = err
			}
		case <-ctx.Done():
			return exit.With(exit.Unreachable, fmt.Errorf("wait for the node at %s: %w", client.Base(), last))
		}
	}
	return nil
}

func (c *cli) printCluster(st api.Status) error {
	cl := st.Cluster
	leader := dash(cl.Leader)
	if st.Stale {
		leader += " (this node hears of no leader: reads may be old, writes wait)"
	}
	err := c.printFields([][2]string{
		{"cluster", fmt.Sprintf("%s, lineage %d", dash(cl.ID), cl.Lineage)}, {"leader", leader},
		{"this node", fmt.Sprintf("%s, %s, version %s", st.Node.ID, st.State, st.Node.Version)},
		{"socket", st.Node.Socket},
		{"log", fmt.Sprintf("term %d, committed %d, applied %d", cl.Term, cl.CommitIndex, cl.AppliedIndex)},
		{"log size", logSize(st.Log)},
		{"disk", diskText(st.Disk)},
		{"archive", archiveText(st.Archive)},
		{"databases", strconv.Itoa(st.Totals.Databases)},
	})
	if err != nil {
		return err
	}
	if err := c.printQuotas(st.Quotas); err != nil {
		return err
	}
	fmt.Fprintln(c.out)
	voters, reachable := 0, 0
	rows := [][]string{{"MEMBER", "ROLE", "RAFT", "HTTP", "REACHABLE"}}
	for _, m := range cl.Members {
		role := "non-voter"
		if m.Voter {
			role = "voter"
			voters++
			if m.Reachable {
				reachable++
			}
		}
		if m.ID == cl.Leader {
			role = "leader"
		}
		rows = append(rows, []string{m.ID, role, m.Raft, dash(m.HTTP), yesNo(m.Reachable)})
	}
	if err := c.printTable(rows); err != nil {
		return err
	}
	majority := voters/2 + 1
	switch {
	case voters == 0:
	case reachable < majority:
		fmt.Fprintf(c.out, "\n%d of %d voters can be reached, %d are needed: nothing can be written.\n", reachable, voters, majority)
	case reachable == majority && reachable < voters:
		fmt.Fprintf(c.out, "\nNo further voter may be lost: %d of %d can be reached, %d are needed.\n", reachable, voters, majority)
	}
	if voters > 0 && voters%2 == 0 {
		fmt.Fprintf(c.out, "\n%d voters survive the loss of %d, as %d do: add or remove one.\n", voters, (voters-1)/2, voters-1)
	}
	return nil
}

func logSize(l api.LogStatus) string {
	text := fmt.Sprintf("%.1f of %.1f MiB, entries %d to %d", float64(l.Bytes)/(1<<20), float64(l.LimitBytes)/(1<<20), l.FirstIndex, l.LastIndex)
	if l.Blocked != "" {
		text += fmt.Sprintf("; not compacted for %s: %s", (time.Duration(l.BlockedMS) * time.Millisecond).Round(time.Second), l.Blocked)
	}
	return text
}

func diskText(d api.DiskStatus) string {
	text := bytesText(d.FreeBytes) + " free"
	if d.Full {
		text = fmt.Sprintf("full since %s, %s: this node takes no writes until there is room", d.Since.Format(time.RFC3339), text)
	}
	return text
}

func (c *cli) printQuotas(quotas []api.QuotaStatus) error {
	if len(quotas) == 0 {
		return nil
	}
	limit := func(n int64, text func(int64) string) string {
		if n == 0 {
			return "-"
		}
		return text(n)
	}
	rows := [][]string{{"QUOTA", "DATABASES", "OF", "SIZE", "TRANSACTION"}}
	for _, q := range quotas {
		rows = append(rows, []string{q.Pattern, strconv.Itoa(q.Databases),
			limit(int64(q.MaxDatabases), func(n int64) string { return strconv.FormatInt(n, 10) }), limit(q.MaxBytes, bytesText), limit(q.MaxTransactionBytes, bytesText)})
	}
	fmt.Fprintln(c.out)
	return c.printTable(rows)
}

func newClusterAdd(c *cli) *cobra.Command {
	var nonVoter bool
	cmd := &cobra.Command{
		Use:   "add ID RAFT-ADDRESS",
		Short: "Take a node into the cluster",
		Long: `Takes a running node into the cluster, or gives a member another address or another vote.
A node that was started with --join asks for this itself.`,
		Example:           "  hasqlite cluster add n4 db4.lan:7441\n  hasqlite cluster add n5 db5.lan:7441 --non-voter",
		Args:              exit.Args(cobra.ExactArgs(2)),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, args []string) error {
			req := api.AddMemberRequest{ID: args[0], Raft: args[1], Voter: !nonVoter}
			return c.ask(cmd, c.timeout, func(ctx context.Context, client *api.Client) error {
				if err := client.AddMember(ctx, req); err != nil {
					return err
				}
				return errors.Join(c.printDone("member %s added at %s", req.ID, req.Raft), c.warnMembers(ctx, client))
			})
		},
	}
	cmd.Flags().BoolVar(&nonVoter, "non-voter", false, "without a vote")
	return cmd
}

func newClusterRemove(c *cli) *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use:   "remove ID",
		Short: "Remove a member from the cluster",
		Long: `Removes a member from the cluster, also one that is dead. It is refused when too few of the
voters that are left can be reached: nothing could be written any more. To come back, the node
needs an empty data directory, or hasqlite-node rejoin.`,
		Example:           "  hasqlite cluster remove n3",
		Args:              exit.Args(cobra.ExactArgs(1)),
		ValidArgsFunction: c.memberIDs,
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.ask(cmd, c.timeout, func(ctx context.Context, client *api.Client) error {
				if err := client.RemoveMember(ctx, args[0], force); err != nil {
					return err
				}
				return errors.Join(c.printDone("member %s removed", args[0]), c.warnMembers(ctx, client))
			})
		},
	}
	cmd.Flags().BoolVar(&force, "force", false, "also when nothing can be written afterwards")
	return cmd
}

// warnMembers says what is wrong with the members now.
func (c *cli) warnMembers(ctx context.Context, client *api.Client) error {
	cluster, err := client.Cluster(ctx)
	if err != nil {
		return nil // what was asked for is done
	}
	for _, w := range cluster.Warnings {
		if _, err := fmt.Fprintf(c.err, "hasqlite: warning: %s\n", w); err != nil {
			return err
		}
	}
	return nil
}

// replaceInterval is how often the next step of a replacement is asked for.
const replaceInterval = 500 * time.Millisecond

func newClusterReplace(c *cli) *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use:   "replace OLD RAFT-ADDRESS",
		Short: "Replace a member, dead or alive, by a new node",
		Long: `Replaces a member by the node at an address, which was started with an empty directory and
--join. The new node is added without a vote, gets everything, gets its vote, and only then
is the old member removed. It is refused when too few voters would be left that can be
reached.

It takes as long as the new node needs for the data. What is not done within --timeout is
done when the command is given again.`,
		Example:           "  hasqlite cluster replace n3 db4.lan:7441\n  hasqlite cluster replace n3 db4.lan:7441 --timeout 1h",
		Args:              exit.Args(cobra.ExactArgs(2)),
		ValidArgsFunction: c.memberIDs,
		RunE: func(cmd *cobra.Command, args []string) error {
			req := api.ReplaceRequest{Old: args[0], Raft: args[1], Force: force}
			return c.ask(cmd, c.timeout, func(ctx context.Context, client *api.Client) error {
				return c.replace(ctx, client, req)
			})
		},
	}
	cmd.Flags().BoolVar(&force, "force", false, "also when nothing can be written afterwards")
	return cmd
}

func (c *cli) replace(ctx context.Context, client *api.Client, req api.ReplaceRequest) error {
	tick := time.NewTicker(replaceInterval)
	defer tick.Stop()
	said := ""
	for {
		r, err := client.ReplaceMember(ctx, req)
		if err != nil {
			return err
		}
		if r.State == api.ReplaceDone {
			return errors.Join(c.printDone("member %s replaced by %s", req.Old, r.New), c.warnMembers(ctx, client))
		}
		text := strings.ReplaceAll(r.State, "_", " ")
		if r.Detail != "" {
			text += ": " + r.Detail
		}
		if text != said && !c.json {
			if _, err := fmt.Fprintf(c.out, "%s: %s\n", r.New, text); err != nil {
				return err
			}
		}
		said = text
		select {
		case <-tick.C:
		case <-ctx.Done():
			return exit.With(exit.Unreachable, fmt.Errorf("replace %s by %s: %s; nothing is lost by giving the command again", req.Old, r.New, text))
		}
	}
}

func newClusterTransfer(c *cli) *cobra.Command {
	return &cobra.Command{
		Use:               "transfer [ID]",
		Short:             "Make another member the leader",
		Long:              "Makes another member the leader: the one named, or the one that is furthest ahead.",
		Example:           "  hasqlite cluster transfer\n  hasqlite cluster transfer n2",
		Args:              exit.Args(cobra.MaximumNArgs(1)),
		ValidArgsFunction: c.memberIDs,
		RunE: func(cmd *cobra.Command, args []string) error {
			var req api.TransferRequest
			if len(args) == 1 {
				req.ID = args[0]
			}
			return c.ask(cmd, c.timeout, func(ctx context.Context, client *api.Client) error {
				if err := client.TransferLeadership(ctx, req); err != nil {
					return err
				}
				if req.ID == "" {
					return c.printDone("leadership handed over")
				}
				return c.printDone("leadership handed over to %s", req.ID)
			})
		},
	}
}

// archiveText says how far the archive is.
func archiveText(a api.ArchiveStatus) string {
	if a.URL == "" {
		return "none: commits are kept nowhere but on the nodes"
	}
	text := a.URL
	if a.Local {
		text += ", one on each node"
	}
	if a.Encrypted {
		text += ", encrypted"
	}
	switch {
	case a.Lagging > 0:
		text += fmt.Sprintf("; %d databases wait, the oldest commit for %s", a.Lagging, (time.Duration(a.LagMS) * time.Millisecond).Round(100*time.Millisecond))
	case a.Unknown > 0:
		text += fmt.Sprintf("; complete but for %d databases, quiet since the node started, that are still to be looked up", a.Unknown)
	case a.Open:
		text += "; complete"
	}
	if a.BacklogDropped > 0 {
		text += fmt.Sprintf("; %d commits were dropped for want of room", a.BacklogDropped)
	}
	if a.Error != "" {
		text += "; " + a.Error
	}
	return text
}
