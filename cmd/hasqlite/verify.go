package main

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/uglyer/ha-sqlite/internal/api"
	"github.com/uglyer/ha-sqlite/internal/exit"
)

// verifyTime is how long verify waits when --timeout is not given: reading
// all pages of a large database takes its time.
const verifyTime = 30 * time.Minute

func newVerify(c *cli) *cobra.Command {
	var deep bool
	cmd := &cobra.Command{
		Use:   "verify NAME",
		Short: "Compare a database on all nodes",
		Long: `Compares the copies of a database on all nodes at one position, also while it is written.
Without --deep the checksums that the nodes keep are compared; with it every page is
read from the files.

Exit codes: 0 all equal, 5 a copy differs or is fenced, 4 nothing differs, but a node did
not answer or did not reach the position.`,
		Example:           "  hasqlite verify shop.db\n  hasqlite verify shop.db --deep --json",
		Args:              exit.Args(cobra.ExactArgs(1)),
		ValidArgsFunction: c.databaseNames,
		RunE: func(cmd *cobra.Command, args []string) error {
			timeout := c.timeout
			if !cmd.Flags().Changed("timeout") {
				timeout = verifyTime
			}
			return c.ask(cmd, timeout, func(ctx context.Context, client *api.Client) error {
				report, err := client.Verify(ctx, args[0], deep)
				if err != nil {
					return err
				}
				if c.json {
					err = c.printJSON(report)
				} else {
					err = c.printReport(report)
				}
				if err != nil {
					return err
				}
				return verdict(report)
			})
		},
	}
	cmd.Flags().BoolVar(&deep, "deep", false, "read and compare every page")
	return cmd
}

func (c *cli) printReport(r api.VerifyReport) error {
	rows := [][]string{{"NODE", "STATE", "POSITION", "PAGES", "DETAIL"}}
	for _, n := range r.Nodes {
		detail := n.Detail
		if n.DifferingPages > 0 {
			list := make([]string, len(n.Differing))
			for i, p := range n.Differing {
				list[i] = strconv.FormatUint(uint64(p), 10)
			}
			more := ""
			if n.DifferingPages > len(list) {
				more = ", …"
			}
			detail = strings.TrimSpace(fmt.Sprintf("%d pages differ: %s%s %s", n.DifferingPages, strings.Join(list, ", "), more, detail))
		}
		rows = append(rows, []string{n.Node, n.State, n.Position.String(), strconv.FormatUint(uint64(n.Pages), 10), dash(detail)})
	}
	if err := c.printTable(rows); err != nil {
		return err
	}
	word := "equal"
	if !r.Equal {
		word = "NOT equal"
	}
	how := "by checksum"
	if r.Deep {
		how = "page by page"
	}
	if _, err := fmt.Fprintf(c.out, "%s %s at %s on %d nodes, %s, in %s\n", clean(r.Name), word, r.Position, len(r.Nodes), how,
		time.Duration(r.DurationMS)*time.Millisecond); err != nil {
		return fmt.Errorf("print answer: %w", err)
	}
	return nil
}

// verdict makes the exit code of a report.
func verdict(r api.VerifyReport) error {
	if r.Equal {
		return nil
	}
	silent := true
	for _, n := range r.Nodes {
		switch n.State {
		case api.VerifyDiffers, api.VerifyFenced:
			return exit.With(exit.Differs, fmt.Errorf("verify %s: the copy on node %s %s", r.Name, n.Node,
				map[string]string{api.VerifyDiffers: "differs", api.VerifyFenced: "is fenced"}[n.State]))
		case api.VerifyUnreachable, api.VerifyBehind:
			silent = false
		}
	}
	if silent {
		return exit.With(exit.Differs, fmt.Errorf("verify %s: the nodes differ", r.Name))
	}
	return exit.With(exit.Unreachable, fmt.Errorf("verify %s: not all nodes could be compared", r.Name))
}
