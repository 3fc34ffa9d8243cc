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

func newDB(c *cli) *cobra.Command {
	return group("db", "Make, list, describe and delete databases", newDBCreate(c), newDBList(c), newDBInfo(c), newDBDelete(c))
}

func newDBCreate(c *cli) *cobra.Command {
	var pageSize uint32
	var autoVacuum string
	cmd := &cobra.Command{
		Use:   "create NAME",
		Short: "Make an empty database",
		Long: `Makes an empty database on all nodes. It is there when the command returns. Opening a new
name through the VFS makes a database too, with the settings that the application asks for.`,
		Example: `  hasqlite db create shop.db
  hasqlite db create acme/plan-7 --page-size 8192 --auto-vacuum incremental`,
		Args:              exit.Args(cobra.ExactArgs(1)),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, args []string) error {
			req := api.CreateDatabaseRequest{Name: args[0], PageSize: pageSize}
			if err := req.AutoVacuum.UnmarshalText([]byte(autoVacuum)); err != nil {
				return exit.Usagef("--auto-vacuum: %w", err)
			}
			if err := req.Validate(); err != nil {
				return err
			}
			return c.ask(cmd, c.timeout, func(ctx context.Context, client *api.Client) error {
				db, err := client.CreateDatabase(ctx, req)
				if err != nil {
					return err
				}
				if c.json {
					return c.printJSON(db)
				}
				return c.printDone("database %s made, id %s", db.Name, db.ID)
			})
		},
	}
	cmd.Flags().Uint32Var(&pageSize, "page-size", 4096, "page size in bytes, a power of two from 512 to 65536")
	cmd.Flags().StringVar(&autoVacuum, "auto-vacuum", "none", "none, full or incremental")
	if err := cmd.RegisterFlagCompletionFunc("auto-vacuum", cobra.FixedCompletions([]string{"none", "full", "incremental"}, cobra.ShellCompDirectiveNoFileComp)); err != nil {
		panic(err) // the flag is not the one of the line above
	}
	return cmd
}

func newDBList(c *cli) *cobra.Command {
	var limit int
	var after string
	cmd := &cobra.Command{
		Use:   "list [PREFIX]",
		Short: "List the databases",
		Long: `Lists the databases with the position that the node's log has reached and the state of its copy,
in the order of their names: all of them, or those whose names begin with PREFIX.`,
		Example:           "  hasqlite db list\n  hasqlite db list acme/ --limit 20\n  hasqlite db list acme/ --after acme/plan-7 --json",
		Args:              exit.Args(cobra.MaximumNArgs(1)),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, args []string) error {
			if limit < 0 {
				return exit.Usagef("--limit: want 0 for all, or how many at most")
			}
			return c.ask(cmd, c.timeout, func(ctx context.Context, client *api.Client) error {
				list, err := client.AllDatabases(ctx, strings.Join(args, ""), after, limit)
				if err != nil {
					return err
				}
				if c.json {
					return c.printJSON(list)
				}
				rows := [][]string{{"NAME", "POSITION", "LAG", "SIZE", "HANDLES", "STATE"}}
				for _, d := range list {
					rows = append(rows, []string{d.Name, d.Decided.String(), strconv.FormatUint(d.Lag, 10),
						bytesText(int64(d.Pages) * int64(d.PageSize)), strconv.Itoa(d.Handles), d.State})
				}
				return c.printTable(rows)
			})
		},
	}
	cmd.Flags().IntVar(&limit, "limit", 0, "list at most so many; 0 lists all")
	cmd.Flags().StringVar(&after, "after", "", "list those behind this name")
	return cmd
}

func newDBInfo(c *cli) *cobra.Command {
	return &cobra.Command{
		Use:               "info NAME",
		Short:             "Describe a database",
		Example:           "  hasqlite db info shop.db",
		Args:              exit.Args(cobra.ExactArgs(1)),
		ValidArgsFunction: c.databaseNames,
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.ask(cmd, c.timeout, func(ctx context.Context, client *api.Client) error {
				d, err := client.Database(ctx, args[0])
				if err != nil {
					return err
				}
				if c.json {
					return c.printJSON(d)
				}
				holder := "-"
				if d.HolderPID != 0 {
					holder = fmt.Sprintf("process %d for %s", d.HolderPID, (time.Duration(d.HolderAgeMS) * time.Millisecond).String())
				}
				return c.printFields([][2]string{
					{"name", d.Name}, {"id", d.ID}, {"decided position", d.Decided.String()}, {"position of the file", d.File.String()},
					{"bookmark", d.Decided.String() + "@" + d.ID}, {"transactions behind", strconv.FormatUint(d.Lag, 10)},
					{"size", fmt.Sprintf("%s (%d pages of %d bytes)", bytesText(int64(d.Pages)*int64(d.PageSize)), d.Pages, d.PageSize)}, {"quota", quotaText(d.Quota)},
					{"wal", walText(d)}, {"oldest reader", readerText(d)}, {"open handles", strconv.Itoa(d.Handles)}, {"write lock held by", holder},
					{"state", d.State}, {"detail", dash(d.Detail)},
				})
			})
		},
	}
}

func walText(d api.DatabaseStatus) string {
	text := bytesText(d.WALBytes)
	if d.BacklogFrames > 0 {
		text += fmt.Sprintf(", %d frames not in the file for %s", d.BacklogFrames, age(d.BacklogMS))
	}
	return text
}

func readerText(d api.DatabaseStatus) string {
	switch {
	case d.ReaderAgeMS == 0:
		return "-"
	case d.ReaderPID == 0:
		return "for " + age(d.ReaderAgeMS)
	}
	return fmt.Sprintf("process %d for %s", d.ReaderPID, age(d.ReaderAgeMS))
}

func age(ms int64) string { return (time.Duration(ms) * time.Millisecond).String() }

// quotaText says what a quota allows one database.
func quotaText(q *api.DatabaseQuota) string {
	if q == nil {
		return "-"
	}
	most := func(n int64) string {
		if n == 0 {
			return "any"
		}
		return bytesText(n)
	}
	return fmt.Sprintf("%s: size %s, transaction %s", q.Pattern, most(q.MaxBytes), most(q.MaxTransactionBytes))
}

func newDBDelete(c *cli) *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use:   "delete NAME",
		Short: "Delete a database on all nodes",
		Long: `Deletes a database on all nodes. It is refused while an application on any node has the
database open, and while a node cannot be asked; --force deletes it all the same:
applications that have it open get errors from then on. A database that is made later
under the same name is another one, with another id.`,
		Example:           "  hasqlite db delete shop.db\n  hasqlite db delete shop.db --force",
		Args:              exit.Args(cobra.ExactArgs(1)),
		ValidArgsFunction: c.databaseNames,
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.ask(cmd, c.timeout, func(ctx context.Context, client *api.Client) error {
				if err := client.DeleteDatabase(ctx, args[0], force); err != nil {
					return err
				}
				return c.printDone("database %s deleted", args[0])
			})
		},
	}
	cmd.Flags().BoolVar(&force, "force", false, "also when it is open or a node cannot be asked")
	return cmd
}
