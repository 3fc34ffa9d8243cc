package main

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/chzyer/readline"
	"github.com/spf13/cobra"

	"github.com/uglyer/ha-sqlite/internal/exit"
	"github.com/uglyer/ha-sqlite/internal/moment"
	"github.com/uglyer/ha-sqlite/internal/shell"
	"github.com/uglyer/ha-sqlite/snapshot/archive"
	"github.com/uglyer/ha-sqlite/vfs/history"
)

func newQuery(c *cli) *cobra.Command {
	var o archiveOptions
	var want wantedState
	var mode string
	var bail bool
	var cache int
	cmd := &cobra.Command{
		Use:   "query NAME [SQL...]",
		Short: "Run SQL on a database as it was",
		Long: `Opens a database read-only as it was at a time, or after a transaction, and runs SQL: that
of the arguments, or what is typed or piped in. Only the pages that a statement touches
are read from the archive. Without --at and --to it is the last state of the archive. The
commit that was chosen is printed on standard error.`,
		Example: `  hasqlite query shop.db --at "10 minutes ago" "SELECT * FROM item WHERE id = 7" --archive s3://backup/cluster1
  hasqlite query shop.db --to 000000000000002a --mode csv "SELECT * FROM item" --archive /var/lib/hasqlite/archive`,
		Args: exit.Args(cobra.MinimumNArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			if c.json {
				if cmd.Flags().Changed("mode") && mode != "json" {
					return exit.Usagef("query: --json and --mode=%s are both given", mode)
				}
				mode = "json"
			}
			if cache < 1 {
				return exit.Usagef("--cache %d: want at least 1", cache)
			}
			m, err := want.parse(c.start)
			if err != nil {
				return err
			}
			return c.withArchive(cmd, o, func(ctx context.Context, a *archive.Archive) error {
				views, err := o.views(ctx, a, args[0])
				if err != nil {
					return err
				}
				f, err := m.FindIn(ctx, views)
				if err != nil {
					return err
				}
				db, err := history.Open(ctx, f, cache<<20)
				if err != nil {
					return err
				}
				defer db.Close()
				fmt.Fprintf(c.err, "commit %s of %s\n", f.Bookmark(), moment.TimeText(f.Point.Time))
				for _, line := range m.Remarks(f) {
					fmt.Fprintln(c.err, line)
				}
				stdin, isFile := c.in.(*os.File)
				err = shell.Run(ctx, shell.Options{
					DSN:        db.DSN(),
					Name:       args[0],
					Statements: args[1:],
					Mode:       mode,
					Bail:       bail,
					History:    c.history(),
					Terminal:   isFile && len(args) == 1 && readline.IsTerminal(int(stdin.Fd())),
					Stdin:      c.in,
					Stdout:     c.out,
					Stderr:     c.err,
				})
				if err == nil {
					return nil
				}
				// What SQLite calls an I/O error has its cause here.
				if read := db.Err(); read != nil && errors.Is(err, shell.ErrFailed) {
					return errors.Join(errPrinted, read)
				} else if read != nil {
					return read
				}
				if errors.Is(err, shell.ErrFailed) {
					return errPrinted
				}
				return err
			})
		},
	}
	o.flags(cmd)
	want.flags(cmd)
	f := cmd.Flags()
	f.StringVar(&mode, "mode", "", "form of results: table, list, csv, json or line (default: table on a terminal, else list)")
	f.BoolVar(&bail, "bail", false, "stop at the first error")
	f.IntVar(&cache, "cache", 16, "most MiB of pages to keep in memory")
	if err := cmd.RegisterFlagCompletionFunc("mode", cobra.FixedCompletions([]string{"table", "list", "csv", "json", "line"}, cobra.ShellCompDirectiveNoFileComp)); err != nil {
		panic(err) // the flag is not the one of the line above
	}
	return cmd
}
