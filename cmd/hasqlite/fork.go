package main

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/uglyer/ha-sqlite/internal/api"
	"github.com/uglyer/ha-sqlite/internal/exit"
)

func newFork(c *cli) *cobra.Command {
	req := api.ForkRequest{}
	var want wantedState
	cmd := &cobra.Command{
		Use:   "fork SOURCE NAME",
		Short: "Make a database of a state of another one",
		Long: `Makes a database that begins as what another one is now, or was at a time or after a
transaction; from then on the two have nothing to do with each other. Each node makes its
own copy: where the file system can clone files (XFS, Btrfs) that takes no time and no
room, elsewhere the file is copied. No page travels through the log. The command returns
when a majority of the nodes has its copy on disk; before that the fork cannot be opened,
and if no majority manages it is undone. A time of which the archive does not have every
commit is refused; the error names the states before and behind it, for --to.`,
		Example: `  hasqlite fork shop.db staging/shop.db
  hasqlite fork shop.db inquest.db --at "yesterday 18:00"
  hasqlite fork shop.db inquest.db --to 000000000000002a --dry-run`,
		Args:              exit.Args(cobra.ExactArgs(2)),
		ValidArgsFunction: c.databaseNames,
		RunE: func(cmd *cobra.Command, args []string) error {
			req.Source, req.Name = args[0], args[1]
			var err error
			if req.Moment, err = want.sent(c.start); err != nil {
				return err
			}
			if err := req.Validate(); err != nil {
				return err
			}
			return c.askLong(cmd, func(ctx context.Context, client *api.Client) error {
				bar := c.progress("fork")
				r, err := client.Fork(ctx, req, bar.told)
				bar.done()
				if err != nil {
					return err
				}
				if c.json {
					return c.printJSON(r)
				}
				verb := "is"
				if r.DryRun {
					verb = "would be"
				}
				at := ""
				if !r.Target.Time.IsZero() {
					at = " of " + r.Target.Time.UTC().Format(time.RFC3339Nano)
				}
				text := fmt.Sprintf("%s %s a fork of %s at commit %s%s, %s", r.Name, verb, r.Source, r.Target.Bookmark, at, bytesText(r.SizeBytes))
				return c.printDone("%s", cleanLines(append([]string{text}, r.Remarks...)))
			})
		},
	}
	want.flags(cmd)
	cmd.Flags().BoolVar(&req.DryRun, "dry-run", false, "only say which commit it would be")
	return cmd
}
