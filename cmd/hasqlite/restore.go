package main

import (
	"context"
	"database/sql"
	"fmt"
	"net/url"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/uglyer/ha-sqlite/internal/api"

	"github.com/uglyer/ha-sqlite/internal/exit"
	"github.com/uglyer/ha-sqlite/internal/moment"
	"github.com/uglyer/ha-sqlite/internal/when"
	"github.com/uglyer/ha-sqlite/snapshot/archive"
)

// wantedState is the state of a database that the flags name.
type wantedState struct{ at, to string }

func (w *wantedState) flags(cmd *cobra.Command) {
	cmd.Flags().StringVar(&w.at, "at", "", "time, in the zone of this machine where none is given: "+when.Forms)
	cmd.Flags().StringVar(&w.to, "to", "", "bookmark, or transaction number of 16 hex digits")
}

func (w *wantedState) parse(now time.Time) (moment.Moment, error) {
	m, err := moment.Parse(w.at, w.to, now)
	if err != nil {
		return m, exit.With(exit.Usage, fmt.Errorf("--%w", err))
	}
	return m, nil
}

// sent is the state as a node is told it: a time, which was said in the zone and by the clock of this machine, in full,
// so that it means the same there.
func (w *wantedState) sent(now time.Time) (api.Moment, error) {
	if w.at == "" {
		return api.Moment{To: w.to}, nil
	}
	m, err := w.parse(now)
	if err != nil {
		return api.Moment{}, err
	}
	return api.Moment{At: m.Time.UTC().Format(time.RFC3339Nano)}, nil
}

// restored is what restore prints with --json.
type restored struct {
	pointJSON
	File      string `json:"file,omitempty"`
	SizeBytes int64  `json:"size_bytes"`
	Files     int    `json:"files"`
	ReadBytes int64  `json:"read_bytes"`
	Dropped   bool   `json:"dropped"`
	Last      bool   `json:"last"`
	Verified  bool   `json:"verified"`
	DryRun    bool   `json:"dry_run"`
}

func newRestore(c *cli) *cobra.Command {
	var o archiveOptions
	var want wantedState
	var name, file string
	var verify, dry, all, into, replace bool
	var temp string
	var hold time.Duration
	cmd := &cobra.Command{
		Use:   "restore --db NAME -o FILE",
		Short: "Restore a database from an archive into a file",
		Long: `Restores a database as it was at a time, or after a transaction, from an archive alone: it
works with every node dead. Without --at and --to it is the last state of the archive.
The commit that was chosen is printed. The file appears whole, with the checksum of the
commit, or not at all; one that exists is not replaced.

With --all --into-cluster every database of the archive is restored and imported into the
cluster of --node, which may be new; the archive is that of --archive or HASQLITE_ARCHIVE,
never that of the node. One that has the content already is left alone, so
that the command can be called again; one that was deleted comes back, too.`,
		Example: `  hasqlite restore --db shop.db --at "10 minutes ago" -o shop.db --archive s3://backup/cluster1
  hasqlite restore --db shop.db --at "yesterday 18:00" -o shop.db --archive /var/lib/hasqlite/archive --verify
  hasqlite restore --db shop.db --to 000000000000002a --archive /var/lib/hasqlite/archive --dry-run
  hasqlite restore --all --into-cluster --archive s3://backup/cluster1 --node http://new1.lan:7440`,
		Args: exit.Args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			switch {
			case all != into:
				return exit.Usagef("--all and --into-cluster go together")
			case all && (name != "" || file != "" || o.database != ""):
				return exit.Usagef("--all restores every database into the cluster: --db, --database and --output name one")
			case all:
				return restoreAll{replace: replace, verify: verify, dry: dry, hold: hold, temp: temp}.run(c, cmd, o, want)
			case name == "":
				return exit.Usagef("no database: set --db")
			case file == "" && !dry:
				return exit.Usagef("no file to restore into: set --output")
			}
			m, err := want.parse(c.start)
			if err != nil {
				return err
			}
			return c.withArchive(cmd, o, func(ctx context.Context, a *archive.Archive) error {
				views, err := o.views(ctx, a, name)
				if err != nil {
					return err
				}
				f, err := m.FindIn(ctx, views)
				if err != nil {
					return err
				}
				var out restored
				err = f.View.Planned(ctx, f.Point, func(v *archive.View, plan *archive.Plan) error {
					p := plan.Target
					out = restored{
						pointJSON: describePoint(v, p), File: file, SizeBytes: int64(p.PageCount) * int64(v.State().PageSize), Files: len(plan.Objects),
						ReadBytes: plan.Bytes, Dropped: f.Dropped, Last: f.Last(), DryRun: dry, Verified: verify && !dry,
					}
					if dry {
						return nil
					}
					opts := archive.RestoreOptions{}
					bar := c.progress("restore")
					defer bar.done()
					if verify {
						opts.Check = bar.check
					}
					opts.Progress = bar.update
					return v.RestoreFile(ctx, plan, file, opts)
				})
				if err != nil {
					return err
				}
				if c.json {
					return c.printJSON(out)
				}
				return c.printRestored(out, m.Remarks(f))
			})
		},
	}
	o.flags(cmd)
	want.flags(cmd)
	cmd.Flags().StringVar(&name, "db", "", "name of the database")
	cmd.Flags().StringVarP(&file, "output", "o", "", "file to restore into")
	cmd.Flags().BoolVar(&verify, "verify", false, "also run PRAGMA integrity_check before the file gets its name")
	cmd.Flags().BoolVar(&all, "all", false, "restore every database of the archive")
	cmd.Flags().BoolVar(&into, "into-cluster", false, "import what is restored into the cluster of --node")
	cmd.Flags().BoolVar(&replace, "replace", false, "with --all: give databases that exist in the cluster the content")
	holdFlag(cmd, &hold)
	cmd.Flags().StringVar(&temp, "temp-dir", "", "with --all: where databases are restored on their way (default: the system's)")
	cmd.Flags().BoolVar(&dry, "dry-run", false, "only say which commit it would be, and what has to be read")
	return cmd
}

func (c *cli) printRestored(r restored, remarks []string) error {
	verb := "restored into " + r.File
	if r.DryRun {
		verb = "would be restored"
	}
	text := fmt.Sprintf("commit %s of %s %s: %s from %d files (%s)\n", r.Bookmark, r.Time, clean(verb), bytesText(r.SizeBytes), r.Files, bytesText(r.ReadBytes))
	for _, line := range remarks {
		text += line + "\n"
	}
	if r.Verified {
		text += "integrity_check: ok\n"
	}
	if _, err := fmt.Fprint(c.out, text); err != nil {
		return fmt.Errorf("print answer: %w", err)
	}
	return nil
}

// check is integrityCheck as a step of the work.
func (p *progress) check(path string) error {
	p.step("check", 0, 0)
	return integrityCheck(path)
}

// integrityCheck has SQLite look through a file that nobody else has open.
func integrityCheck(path string) error {
	abs, err := filepath.Abs(path)
	if err != nil {
		return err
	}
	u := url.URL{Scheme: "file", Path: abs, RawQuery: "mode=ro&immutable=1"}
	db, err := sql.Open("sqlite3", u.String())
	if err != nil {
		return err
	}
	defer db.Close()
	rows, err := db.Query("PRAGMA integrity_check(10)")
	if err != nil {
		return fmt.Errorf("integrity_check: %w", err)
	}
	defer rows.Close()
	var found []string
	for rows.Next() {
		var line string
		if err := rows.Scan(&line); err != nil {
			return fmt.Errorf("integrity_check: %w", err)
		}
		found = append(found, line)
	}
	if err := rows.Err(); err != nil {
		return fmt.Errorf("integrity_check: %w", err)
	}
	if len(found) != 1 || found[0] != "ok" {
		return exit.With(exit.Damaged, fmt.Errorf("integrity_check: %s", strings.Join(found, "; ")))
	}
	return nil
}
