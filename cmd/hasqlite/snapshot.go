package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/uglyer/ha-sqlite/internal/api"
	"github.com/uglyer/ha-sqlite/internal/exit"
	"github.com/uglyer/ha-sqlite/snapshot/archive"
)

func newSnapshot(c *cli) *cobra.Command {
	return group("snapshot", "Keep labelled restore points of a database", newSnapshotCreate(c), newSnapshotList(c), newSnapshotDelete(c))
}

func newSnapshotCreate(c *cli) *cobra.Command {
	var req api.SnapshotRequest
	cmd := &cobra.Command{
		Use:   "create NAME",
		Short: "Keep a database as it is now",
		Long: `Keeps a database as it is now under a label: retention does not drop the state before the
label is deleted. Without --label it is the time, such as 2026-11-29T12:00:00Z; it is printed.
Where each node has an archive of its own, all of them keep it.`,
		Example: `  hasqlite snapshot create shop.db --label "before the migration"
  hasqlite snapshot create shop.db
  hasqlite restore --db shop.db --to 000000000000002a -o shop.db`,
		Args:              exit.Args(cobra.ExactArgs(1)),
		ValidArgsFunction: c.databaseNames,
		RunE: func(cmd *cobra.Command, args []string) error {
			if !cmd.Flags().Changed("label") {
				req.Label = c.start.UTC().Format(time.RFC3339)
			}
			return c.snapshot(cmd, args[0], req, (*api.Client).Label, func(r api.SnapshotReport) string {
				if r.DryRun {
					return fmt.Sprintf("%s would be kept as %s", r.Name, r.Label)
				}
				return fmt.Sprintf("state %s of %s is kept as %s", r.Commit.Bookmark, r.Name, r.Label)
			})
		},
	}
	snapshotFlags(cmd, &req)
	return cmd
}

func newSnapshotDelete(c *cli) *cobra.Command {
	var req api.SnapshotRequest
	cmd := &cobra.Command{
		Use:   "delete NAME",
		Short: "Give a labelled restore point back to retention",
		Long: `Gives a labelled restore point back to retention. It is named by --label or, with --to, by
its state.`,
		Example: `  hasqlite snapshot delete shop.db --label "before the migration"
  hasqlite snapshot delete shop.db --to 000000000000002a`,
		Args:              exit.Args(cobra.ExactArgs(1)),
		ValidArgsFunction: c.databaseNames,
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.snapshot(cmd, args[0], req, (*api.Client).Unlabel, func(r api.SnapshotReport) string {
				if r.DryRun {
					return fmt.Sprintf("%s of %s would be given back to retention", r.Label, r.Name)
				}
				return fmt.Sprintf("%s of %s is given back to retention", r.Label, r.Name)
			})
		},
	}
	snapshotFlags(cmd, &req)
	cmd.Flags().StringVar(&req.To, "to", "", "bookmark of the restore point, or transaction number of 16 hex digits")
	return cmd
}

func snapshotFlags(cmd *cobra.Command, req *api.SnapshotRequest) {
	cmd.Flags().StringVar(&req.Label, "label", "", "the label")
	cmd.Flags().BoolVar(&req.DryRun, "dry-run", false, "only say what would be done")
}

type snapshotCall func(*api.Client, context.Context, api.SnapshotRequest, func(api.Progress)) (api.SnapshotReport, error)

func (c *cli) snapshot(cmd *cobra.Command, name string, req api.SnapshotRequest, call snapshotCall, text func(api.SnapshotReport) string) error {
	req.Name = name
	if err := req.Validate(); err != nil {
		return exit.Usagef("--label: %w", err)
	}
	return c.askLong(cmd, func(ctx context.Context, client *api.Client) error {
		bar := c.progress("snapshot")
		r, err := call(client, ctx, req, bar.told)
		bar.done()
		if err != nil {
			return err
		}
		if c.json {
			err = c.printJSON(r)
		} else {
			err = c.printDone("%s", clean(text(r)))
		}
		return errors.Join(err, failures(r.Failed))
	})
}

// failures says which members did not do what others have done.
func failures(failed map[string]string) error {
	var lines []string
	for node, why := range failed {
		lines = append(lines, fmt.Sprintf("node %s did not do it: %s", node, clean(why)))
	}
	if len(lines) == 0 {
		return nil
	}
	slices.Sort(lines)
	return errors.New(strings.Join(lines, "; "))
}

func newSnapshotList(c *cli) *cobra.Command {
	var o archiveOptions
	cmd := &cobra.Command{
		Use:     "list NAME",
		Short:   "List the labelled restore points of a database",
		Example: "  hasqlite snapshot list shop.db",
		Args:    exit.Args(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.withArchive(cmd, o, func(ctx context.Context, a *archive.Archive) error {
				v, _, err := c.newest(ctx, a, o, args[0])
				if err != nil {
					return err
				}
				type labelled struct {
					Label string `json:"label"`
					pointJSON
				}
				list := []labelled{}
				rows := [][]string{{"LABEL", "TIME", "BOOKMARK", "PAGES"}}
				for _, l := range v.State().Labels {
					p, err := v.PointOf(ctx, l.TXID)
					if err != nil {
						return fmt.Errorf("label %q: %w", l.Name, err)
					}
					d := describePoint(v, p)
					list = append(list, labelled{l.Name, d})
					rows = append(rows, []string{l.Name, d.Time, d.Bookmark, fmt.Sprint(d.Pages)})
				}
				if c.json {
					return c.printJSON(list)
				}
				return c.printTable(rows)
			})
		},
	}
	o.flags(cmd)
	return cmd
}

func newArchivePrune(c *cli) *cobra.Command {
	var req api.PruneRequest
	cmd := &cobra.Command{
		Use:   "prune NAME",
		Short: "Remove now what retention removes",
		Long: `Removes from the archive what is older than the node keeps, as the node does by itself every
hour, or as often as its --archive-window where that is less. Every state that stays can be
restored as before.`,
		Example:           "  hasqlite archive prune shop.db --dry-run",
		Args:              exit.Args(cobra.ExactArgs(1)),
		ValidArgsFunction: c.databaseNames,
		RunE: func(cmd *cobra.Command, args []string) error {
			req.Name = args[0]
			return c.askLong(cmd, func(ctx context.Context, client *api.Client) error {
				bar := c.progress("prune")
				r, err := client.Prune(ctx, req, bar.told)
				bar.done()
				if err != nil {
					return err
				}
				if c.json {
					return errors.Join(c.printJSON(r), failures(r.Failed))
				}
				rows := [][]string{{"NODE", "LEVEL", "TIME", "BYTES", "FILE"}}
				for _, f := range r.Files {
					rows = append(rows, []string{f.Node, fmt.Sprint(f.Level), f.Time.Format("2006-01-02T15:04:05Z"), fmt.Sprint(f.Bytes), f.Key})
				}
				if len(r.Files) > 0 {
					if err := c.printTable(rows); err != nil {
						return err
					}
				}
				verb := "removed"
				if r.DryRun {
					verb = "would be removed"
				}
				return errors.Join(c.printDone("%s: %d files, %s", verb, len(r.Files), bytesText(r.Bytes)), failures(r.Failed))
			})
		},
	}
	cmd.Flags().BoolVar(&req.DryRun, "dry-run", false, "only say what would be removed")
	return cmd
}
