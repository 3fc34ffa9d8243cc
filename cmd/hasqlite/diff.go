package main

import (
	"context"
	"database/sql"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/uglyer/ha-sqlite/internal/exit"
	"github.com/uglyer/ha-sqlite/internal/moment"
	"github.com/uglyer/ha-sqlite/internal/rowdiff"
	"github.com/uglyer/ha-sqlite/snapshot/archive"
	"github.com/uglyer/ha-sqlite/vfs/history"
)

// difference is what diff prints with --json.
type difference struct {
	Name string   `json:"name"`
	From compared `json:"from"`
	To   compared `json:"to"`
	*rowdiff.Result
}

// compared is one of the two states of a difference.
type compared struct {
	pointJSON
	Dropped bool `json:"dropped"`
}

func describeFound(f moment.Found) compared {
	return compared{describePoint(f.View, f.Point), f.Dropped}
}

func newDiff(c *cli) *cobra.Command {
	var o archiveOptions
	var rows bool
	var limit int
	cmd := &cobra.Command{
		Use:   "diff NAME A B",
		Short: "Show what changed in a database between two states",
		Long: `Compares a database at two times, or after two transactions: tables, indexes, views and
triggers that came, went or changed, and per table how many rows were inserted, deleted
and updated, by rowid or primary key. --rows shows them. Rows of virtual tables are not
compared. The commits that were chosen are printed.`,
		Example: `  hasqlite diff shop.db "1 hour ago" now
  hasqlite diff shop.db 000000000000002a 000000000000002b --rows --archive s3://backup/cluster1`,
		Args: exit.Args(cobra.ExactArgs(3)),
		RunE: func(cmd *cobra.Command, args []string) error {
			if limit < 1 {
				return exit.Usagef("--limit %d: want at least 1", limit)
			}
			var moments [2]moment.Moment
			for i := range moments {
				var err error
				if moments[i], err = moment.ParseEither(args[i+1], c.start); err != nil {
					return exit.With(exit.Usage, err)
				}
			}
			return c.withArchive(cmd, o, func(ctx context.Context, a *archive.Archive) error {
				views, err := o.views(ctx, a, args[0])
				if err != nil {
					return err
				}
				var found [2]moment.Found
				for i, m := range moments {
					if found[i], err = m.FindIn(ctx, views); err != nil {
						return err
					}
				}
				max := 0
				if rows {
					max = limit
				}
				bar := c.progress("diff")
				r, err := compareStates(ctx, found, max, func(table string) { bar.step("compare "+clean(table), 0, 0) })
				bar.done()
				if err != nil {
					return err
				}
				d := difference{args[0], describeFound(found[0]), describeFound(found[1]), r}
				if c.json {
					return c.printJSON(d)
				}
				for i, m := range moments {
					for _, line := range m.Remarks(found[i]) {
						fmt.Fprintf(c.err, "%s: %s\n", args[i+1], line)
					}
				}
				return c.printDifference(d)
			})
		},
	}
	o.flags(cmd)
	cmd.Flags().BoolVar(&rows, "rows", false, "show the rows")
	cmd.Flags().IntVar(&limit, "limit", 100, "most rows of a table to show")
	return cmd
}

// compareStates reads of both states only the pages that it needs.
func compareStates(ctx context.Context, found [2]moment.Found, rows int, progress func(table string)) (*rowdiff.Result, error) {
	var states [2]*history.Database
	for i, f := range found {
		var err error
		if states[i], err = history.Open(ctx, f, 0); err != nil {
			return nil, err
		}
		defer states[i].Close()
	}
	r, err := func() (*rowdiff.Result, error) {
		db, err := sql.Open("sqlite3", states[0].DSN())
		if err != nil {
			return nil, err
		}
		defer db.Close()
		conn, err := db.Conn(ctx)
		if err != nil {
			return nil, err
		}
		defer conn.Close()
		if _, err := conn.ExecContext(ctx, "ATTACH ? AS later", states[1].DSN()); err != nil {
			return nil, err
		}
		return rowdiff.Compare(ctx, conn, rowdiff.Options{Before: "main", After: "later", Rows: rows, Progress: progress})
	}()
	for _, s := range states {
		if read := s.Err(); err != nil && read != nil {
			return nil, read // what SQLite calls an I/O error has its cause here
		}
	}
	return r, err
}

func (c *cli) printDifference(d difference) error {
	var b strings.Builder
	fmt.Fprintf(&b, "from commit %s of %s\nto   commit %s of %s\n", d.From.Bookmark, d.From.Time, d.To.Bookmark, d.To.Time)
	for _, s := range d.Schema {
		fmt.Fprintf(&b, "%s %s %s\n", s.Type, clean(s.Name), s.Change)
	}
	for _, t := range d.Tables {
		fmt.Fprintf(&b, "table %s: %d inserted, %d deleted, %d updated\n", clean(t.Name), t.Inserted, t.Deleted, t.Updated)
		for _, r := range t.Rows {
			fmt.Fprintf(&b, "  %s %s", r.Change, clean(fieldsText(r.Key)))
			if r.Change != rowdiff.Inserted {
				fmt.Fprintf(&b, "  - %s", clean(fieldsText(r.Before)))
			}
			if r.Change != rowdiff.Deleted {
				fmt.Fprintf(&b, "  + %s", clean(fieldsText(r.After)))
			}
			b.WriteByte('\n')
		}
		if t.More {
			b.WriteString("  and more; --limit shows them\n")
		}
	}
	for _, s := range d.Skipped {
		fmt.Fprintf(&b, "rows not compared: %s\n", clean(s))
	}
	if len(d.Schema)+len(d.Tables) == 0 {
		b.WriteString("nothing differs\n")
	}
	if _, err := fmt.Fprint(c.out, b.String()); err != nil {
		return fmt.Errorf("print answer: %w", err)
	}
	return nil
}

func fieldsText(fields []rowdiff.Field) string {
	parts := make([]string, len(fields))
	for i, f := range fields {
		parts[i] = f.Column + "=" + f.Text()
	}
	return strings.Join(parts, " ")
}
