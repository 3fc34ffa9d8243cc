package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/uglyer/ha-sqlite/internal/api"
	"github.com/uglyer/ha-sqlite/internal/exit"
	"github.com/uglyer/ha-sqlite/internal/moment"
	"github.com/uglyer/ha-sqlite/snapshot/archive"
)

// restoreAll is what restore --all is told.
type restoreAll struct {
	replace, verify, dry bool
	hold                 time.Duration
	temp                 string
}

// What became of a database.
const (
	resultRestored = "restored"
	resultPresent  = "present" // it has that content already
	resultAbsent   = "absent"  // there was none at that time
	resultPlanned  = "planned"
	resultFailed   = "failed"
)

// restoredDatabase is a line of restore --all.
type restoredDatabase struct {
	Name   string     `json:"name"`
	Result string     `json:"result"`
	From   *pointJSON `json:"from,omitempty"` // in the archive
	Error  string     `json:"error,omitempty"`
	Bytes  int64      `json:"size_bytes"`
	// Dropped says that commits behind the state cannot be restored one by one.
	Dropped bool `json:"dropped"`
}

// run restores every database of an archive into a cluster. One that fails does not keep the others from it; called
// again, it goes on with what is missing.
func (r restoreAll) run(c *cli, cmd *cobra.Command, o archiveOptions, want wantedState) error {
	if want.to != "" {
		return exit.Usagef("--to names a state of one database: with --all use --at")
	}
	if err := (api.ImportRequest{HoldMS: r.hold.Milliseconds()}).Validate(); err != nil {
		return err
	}
	// --node names the cluster that is restored into, whose own archive cannot be meant.
	if o.url == "" {
		o.url = c.env("HASQLITE_ARCHIVE")
	}
	if o.url == "" {
		return exit.Usagef("no archive to restore from: --all --into-cluster does not read that of the cluster which it restores into, name one with --archive or HASQLITE_ARCHIVE")
	}
	m, err := want.parse(c.start)
	if err != nil {
		return err
	}
	return c.askLong(cmd, func(_ context.Context, client *api.Client) error {
		return c.withArchive(cmd, o, func(ctx context.Context, a *archive.Archive) error {
			list, missed := a.Databases(ctx) // what is damaged does not keep the others from it
			if len(list) == 0 {
				return missed
			}
			var names []string
			for _, id := range list {
				names = append(names, id.Name)
			}
			slices.Sort(names)
			var done []restoredDatabase
			failed := 0
			for _, name := range slices.Compact(names) {
				d := restoredDatabase{Name: name}
				if err := r.one(ctx, c, client, a, m, &d); err != nil {
					if ctx.Err() != nil {
						return ctx.Err()
					}
					if errors.Is(err, moment.ErrInvalid) {
						return err // for all of them
					}
					d.Result, d.Error = resultFailed, err.Error()
					failed++
				}
				done = append(done, d)
			}
			if err := c.printRestoredAll(done); err != nil {
				return err
			}
			if failed > 0 {
				missed = errors.Join(missed, fmt.Errorf("%d of %d databases were not restored; the same command again goes on with them", failed, len(done)))
			}
			return missed
		})
	})
}

// one restores a database into a temporary file and imports it.
func (r restoreAll) one(ctx context.Context, c *cli, client *api.Client, a *archive.Archive, m moment.Moment, d *restoredDatabase) error {
	f, err := m.Find(ctx, a, d.Name)
	var before *archive.RangeError
	if errors.As(err, &before) {
		d.Result = resultAbsent
		return nil
	}
	if err != nil {
		return err
	}
	from := describePoint(f.View, f.Point)
	d.Dropped = f.Dropped
	d.From, d.Bytes = &from, int64(f.Point.PageCount)*int64(f.View.State().PageSize)
	there, err := client.Database(ctx, d.Name)
	switch {
	case errors.Is(err, api.ErrNotFound):
	case err != nil:
		return err
	case uint64(there.Decided.Checksum) == f.Point.Checksum:
		d.Result = resultPresent
		return nil
	case !r.replace:
		return fmt.Errorf("the cluster has another database of this name, at %s: --replace gives it the content: %w", there.Decided, api.ErrExists)
	}
	if r.dry {
		d.Result = resultPlanned
		return nil
	}
	dir, err := os.MkdirTemp(r.temp, "hasqlite-restore-*")
	if err != nil {
		return fmt.Errorf("make directory: %w", err)
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "db")
	err = f.View.Planned(ctx, f.Point, func(v *archive.View, plan *archive.Plan) error {
		bar := c.progress("restore " + clean(d.Name))
		defer bar.done()
		opts := archive.RestoreOptions{Progress: bar.update}
		if r.verify {
			opts.Check = bar.check
		}
		return v.RestoreFile(ctx, plan, path, opts)
	})
	if err != nil {
		return err
	}
	file, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("read the restored file: %w", err)
	}
	defer file.Close()
	bar := c.progress("import " + clean(d.Name))
	report, err := client.Import(ctx, api.ImportRequest{Name: d.Name, Size: d.Bytes, Replace: r.replace, HoldMS: r.hold.Milliseconds()}, io.NewSectionReader(file, 0, d.Bytes), bar.told)
	bar.done()
	if err != nil {
		return err
	}
	d.Result = resultRestored
	if report.Previous != nil && report.Previous.Bookmark == report.Commit.Bookmark {
		d.Result = resultPresent // but for counters in its header, as a replacement leaves it
	}
	return nil
}

func (c *cli) printRestoredAll(done []restoredDatabase) error {
	if c.json {
		return c.printJSON(map[string]any{"databases": done})
	}
	rows := [][]string{{"NAME", "RESULT", "TIME", "SIZE", "COMMIT"}}
	for _, d := range done {
		row := []string{clean(d.Name), d.Result, "-", "-", clean(d.Error)}
		if d.From != nil {
			row[2], row[3] = d.From.Time, bytesText(d.Bytes)
			if d.Error == "" {
				row[4] = d.From.Bookmark
			}
		}
		rows = append(rows, row)
		if d.Dropped {
			fmt.Fprintf(c.err, "hasqlite: %s: %s\n", clean(d.Name), moment.DroppedNote)
		}
	}
	return c.printTable(rows)
}
