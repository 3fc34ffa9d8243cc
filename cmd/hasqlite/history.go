package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/uglyer/ha-sqlite/internal/exit"
	"github.com/uglyer/ha-sqlite/internal/when"
	"github.com/uglyer/ha-sqlite/snapshot/archive"
)

// historyLine is one state of a database in its history.
type historyLine struct {
	pointJSON
	Level     int    `json:"level"`   // of the file that ends there: 0 is a single commit
	Changed   uint32 `json:"changed"` // pages in that file
	SizeBytes int64  `json:"size_bytes"`
	Dropped   uint64 `json:"dropped"` // commits before it that are not restorable one by one
	// Snapshot says that there is a file of every page of it, Labels that people keep it.
	Snapshot bool     `json:"snapshot"`
	Labels   []string `json:"labels"`
}

// mark is what a table says of the snapshot of a state.
func (l historyLine) mark() string {
	switch {
	case len(l.Labels) > 0:
		return clean(strings.Join(l.Labels, ", "))
	case l.Snapshot:
		return "yes"
	}
	return "-"
}

func newHistory(c *cli) *cobra.Command {
	var o archiveOptions
	var since, until string
	var limit int
	cmd := &cobra.Command{
		Use:   "history NAME",
		Short: "List the states of a database that can be restored",
		Long: `Lists the states of a database that an archive has, with their bookmarks. Level 0 is a
single commit; a file of a higher level stands for all commits since the line before,
whose number DROPPED gives: they cannot be restored one by one any more. SNAPSHOT marks
states of which the archive has a file of every page, with their labels where they have
any; where that file is all that ends there the level is 9.`,
		Example: `  hasqlite history shop.db --archive /var/lib/hasqlite/archive
  hasqlite history shop.db --since "1 hour ago" --archive s3://backup/cluster1 --json`,
		Args: exit.Args(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			from, to := time.Time{}, c.start
			for _, f := range []struct {
				name, text string
				t          *time.Time
			}{{"since", since, &from}, {"until", until, &to}} {
				if f.text == "" {
					continue
				}
				var err error
				if *f.t, err = when.Parse(f.text, c.start); err != nil {
					return exit.Usagef("--%s %w", f.name, err)
				}
			}
			if limit < 1 {
				return exit.Usagef("--limit %d: want at least 1", limit)
			}
			return c.withArchive(cmd, o, func(ctx context.Context, a *archive.Archive) error {
				v, others, err := c.newest(ctx, a, o, args[0])
				if err != nil {
					return err
				}
				lines, more, err := states(ctx, v, from, to, limit)
				if err != nil {
					return err
				}
				if c.json {
					return c.printJSON(struct {
						Name    string        `json:"name"`
						ID      string        `json:"id"`
						Lineage uint64        `json:"lineage"`
						States  []historyLine `json:"states"`
						More    bool          `json:"more"`
						Older   []older       `json:"older"`
					}{args[0], v.State().Database, v.State().Lineage, lines, more, others})
				}
				rows := [][]string{{"TIME", "BOOKMARK", "LEVEL", "PAGES", "CHANGED", "SIZE", "DROPPED", "SNAPSHOT"}}
				for _, l := range lines {
					rows = append(rows, []string{l.Time, l.Bookmark, fmt.Sprint(l.Level), fmt.Sprint(l.Pages), fmt.Sprint(l.Changed), bytesText(l.SizeBytes), fmt.Sprint(l.Dropped), l.mark()})
				}
				if err := c.printTable(rows); err != nil {
					return err
				}
				if more {
					fmt.Fprintf(c.err, "hasqlite: only the last %d states are shown; --limit shows more\n", limit)
				}
				return nil
			})
		},
	}
	o.flags(cmd)
	cmd.Flags().StringVar(&since, "since", "", "leave out what is before this time: "+when.Forms)
	cmd.Flags().StringVar(&until, "until", "", "leave out what is behind this time")
	cmd.Flags().IntVar(&limit, "limit", 1000, "most states to show, the last ones")
	return cmd
}

// states returns the last states between two times, and whether there are more.
func states(ctx context.Context, v *archive.View, from, to time.Time, limit int) ([]historyLine, bool, error) {
	lines, more, last := []historyLine{}, false, uint64(0)
	err := v.Commits(ctx, 0, func(p archive.Point) error {
		dropped := p.TXID - last - 1
		last = p.TXID
		if p.Time.Before(from) || p.Time.After(to) {
			return nil
		}
		if len(lines) == limit {
			lines, more = append(lines[:0], lines[1:]...), true
		}
		f := p.File()
		line := historyLine{describePoint(v, p), f.Level, f.Pages, f.Size, dropped, v.HasSnapshot(p), []string{}}
		for _, l := range v.State().Labels {
			if l.TXID == p.TXID {
				line.Labels = append(line.Labels, l.Name)
			}
		}
		lines = append(lines, line)
		return nil
	})
	return lines, more, err
}
