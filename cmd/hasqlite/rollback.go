package main

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/uglyer/ha-sqlite/internal/api"
	"github.com/uglyer/ha-sqlite/internal/exit"
)

func newRollback(c *cli) *cobra.Command {
	req := api.RollbackRequest{}
	var want wantedState
	var hold time.Duration
	cmd := &cobra.Command{
		Use:   "rollback NAME",
		Short: "Make a database what it was",
		Long: `Makes the content of a database what it was at a time or after a transaction, by one more
transaction: applications stay connected, readers see the state before or the one after,
and what is undone stays in the history. The bookmark of the state before is printed: a
rollback to it undoes this one. Only pages that differ travel. The schema cookie and the
change counter of the file go on counting, so that nothing that is cached is taken for
what it was. A time of which the archive does not have every commit is refused; the error
names the states before and behind it, for --to.`,
		Example: `  hasqlite rollback shop.db --at "10 minutes ago" --dry-run
  hasqlite rollback shop.db --at "10 minutes ago"
  hasqlite rollback shop.db --to 000000000000002a`,
		Args:              exit.Args(cobra.ExactArgs(1)),
		ValidArgsFunction: c.databaseNames,
		RunE: func(cmd *cobra.Command, args []string) error {
			req.Name, req.HoldMS = args[0], hold.Milliseconds()
			var err error
			if req.Moment, err = want.sent(c.start); err != nil {
				return err
			}
			if err := req.Validate(); err != nil {
				return err
			}
			return c.askLong(cmd, func(ctx context.Context, client *api.Client) error {
				bar := c.progress("rollback")
				r, err := client.Rollback(ctx, req, bar.told)
				bar.done()
				if err != nil {
					return err
				}
				if c.json {
					return c.printJSON(r)
				}
				return c.printRollback(r)
			})
		},
	}
	want.flags(cmd)
	holdFlag(cmd, &hold)
	cmd.Flags().BoolVar(&req.DryRun, "dry-run", false, "only say which commit it would be, and how many pages differ")
	return cmd
}

// holdFlag says how long a transaction that replaces much may keep others waiting.
func holdFlag(cmd *cobra.Command, hold *time.Duration) {
	cmd.Flags().DurationVar(hold, "hold", 2*time.Second, "how long writers may be kept waiting at a time before a transaction that replaces content is proposed")
}

func (c *cli) printRollback(r api.RollbackReport) error {
	target := "commit " + r.Target.Bookmark
	if !r.Target.Time.IsZero() {
		target += " of " + r.Target.Time.UTC().Format(time.RFC3339Nano)
	}
	var lines []string
	switch {
	case r.DryRun:
		lines = append(lines, fmt.Sprintf("%s would become what it was at %s: %d pages differ", r.Name, target, r.Shipped))
	case r.Commit.Bookmark == r.Previous.Bookmark:
		lines = append(lines, fmt.Sprintf("%s is what it was at %s: nothing to do", r.Name, target))
	default:
		lines = append(lines, fmt.Sprintf("%s is what it was at %s: %d pages, commit %s", r.Name, target, r.Shipped, r.Commit.Bookmark),
			fmt.Sprintf("hasqlite rollback %s --to %s undoes it", r.Name, r.Previous.Bookmark))
	}
	return c.printDone("%s", cleanLines(append(lines, r.Remarks...)))
}
