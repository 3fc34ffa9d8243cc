package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/url"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/uglyer/ha-sqlite/internal/exit"
	"github.com/uglyer/ha-sqlite/internal/when"
	"github.com/uglyer/ha-sqlite/snapshot/archive"
)

// state says which state of a database the user means.
type wantedState struct {
	at   string
	to   string
	time time.Time // of at
	txid uint64    // of to
	sum  uint64    // of to; 0: none was given
	db   string    // of to; "": none was given
}

func (w *wantedState) flags(cmd *cobra.Command) {
	cmd.Flags().StringVar(&w.at, "at", "", "time: "+when.Forms)
	cmd.Flags().StringVar(&w.to, "to", "", "bookmark, or transaction number of 16 hex digits")
}

func (w *wantedState) parse(now time.Time) error {
	var err error
	switch {
	case w.at != "" && w.to != "":
		return exit.Usagef("--at and --to name two states: give one")
	case w.at != "":
		if w.time, err = when.Parse(w.at, now); err != nil {
			return exit.Usagef("--at %w", err)
		}
		if w.time.After(now) {
			return exit.Usagef("--at %s is %s, in the future: it is %s now", w.at, timeText(w.time), timeText(now))
		}
	case w.to != "":
		position, db, hasDB := strings.Cut(w.to, "@")
		txid, sum, hasSum := strings.Cut(position, "/")
		if w.txid, err = hex64(txid); err == nil && hasSum {
			w.sum, err = hex64(sum)
		}
		if err == nil && (w.txid == 0 || hasDB && (len(db) != 32 || !hasSum)) {
			err = errors.New("it names no state")
		}
		if err != nil {
			return exit.Usagef("--to %q: %w; want <txid>/<checksum>@<database id> or a txid of 16 hex digits", w.to, err)
		}
		w.db = db
	}
	return nil
}

func hex64(s string) (uint64, error) {
	if len(s) != 16 {
		return 0, fmt.Errorf("%q has not 16 hex digits", s)
	}
	return strconv.ParseUint(s, 16, 64)
}

// find chooses the database and the state.
func (w *wantedState) find(ctx context.Context, a *archive.Archive, name string) (v *archive.View, p archive.Point, dropped bool, err error) {
	v, err = a.Choose(ctx, name, func(v *archive.View) (bool, error) {
		if w.db != "" {
			return v.State().Database == w.db, nil
		}
		if w.at == "" {
			return true, nil
		}
		first, err := v.First(ctx)
		return err == nil && !first.Time.After(w.time), err
	})
	if err != nil {
		return nil, archive.Point{}, false, err
	}
	switch {
	case w.at != "":
		p, dropped, err = v.At(ctx, w.time)
	case w.to != "":
		if w.db != "" && v.State().Database != w.db {
			return nil, p, false, fmt.Errorf("the bookmark is of database %s, the archive has %s under the name %s: %w", w.db, v.State().Database, name, archive.ErrNotArchived)
		}
		p, err = v.PointOf(ctx, w.txid)
		if err == nil && w.sum != 0 && w.sum != p.Checksum {
			err = fmt.Errorf("the bookmark has checksum %016x, the archive %016x at that transaction: it is of another history: %w", w.sum, p.Checksum, archive.ErrNotArchived)
		}
	default:
		p = v.Last()
	}
	return v, p, dropped, err
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
	var verify, dry bool
	cmd := &cobra.Command{
		Use:   "restore --db NAME -o FILE",
		Short: "Restore a database from an archive into a file",
		Long: `Restores a database as it was at a time, or after a transaction, from an archive alone: it
works with every node dead. Without --at and --to it is the last state of the archive.
The commit that was chosen is printed. The file appears whole, with the checksum of the
commit, or not at all; one that exists is not replaced.`,
		Example: `  hasqlite restore --db shop.db --at "10 minutes ago" -o shop.db --archive s3://backup/cluster1
  hasqlite restore --db shop.db --at "yesterday 18:00" -o shop.db --archive /var/lib/hasqlite/archive --verify
  hasqlite restore --db shop.db --to 000000000000002a --archive /var/lib/hasqlite/archive --dry-run`,
		Args: exit.Args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			switch {
			case name == "":
				return exit.Usagef("no database: set --db")
			case file == "" && !dry:
				return exit.Usagef("no file to restore into: set --output")
			}
			if err := want.parse(time.Now()); err != nil {
				return err
			}
			return c.withArchive(cmd, o, func(ctx context.Context, a *archive.Archive) error {
				v, p, dropped, err := want.find(ctx, a, name)
				if err != nil {
					return err
				}
				plan, err := v.Plan(ctx, p)
				if err != nil {
					return err
				}
				out := restored{
					pointJSON: describePoint(v, p), File: file, SizeBytes: int64(p.PageCount) * int64(v.State().PageSize), Files: len(plan.Objects),
					ReadBytes: plan.Bytes, Dropped: dropped, Last: p.TXID == v.Last().TXID, DryRun: dry,
				}
				if !dry {
					opts := archive.RestoreOptions{}
					if verify {
						opts.Check = integrityCheck
					}
					bar := c.progress("restore")
					opts.Progress = bar.update
					err := v.RestoreFile(ctx, plan, file, opts)
					bar.done()
					if err != nil {
						return err
					}
					out.Verified = verify
				}
				if c.json {
					return c.printJSON(out)
				}
				return c.printRestored(out, want)
			})
		},
	}
	o.flags(cmd)
	want.flags(cmd)
	cmd.Flags().StringVar(&name, "db", "", "name of the database")
	cmd.Flags().StringVarP(&file, "output", "o", "", "file to restore into")
	cmd.Flags().BoolVar(&verify, "verify", false, "also run PRAGMA integrity_check before the file gets its name")
	cmd.Flags().BoolVar(&dry, "dry-run", false, "only say which commit it would be, and what has to be read")
	return cmd
}

func (c *cli) printRestored(r restored, want wantedState) error {
	verb := "restored into " + r.File
	if r.DryRun {
		verb = "would be restored"
	}
	text := fmt.Sprintf("commit %s of %s %s: %s from %d files (%s)\n", r.Bookmark, r.Time, clean(verb), bytesText(r.SizeBytes), r.Files, bytesText(r.ReadBytes))
	if want.at != "" && r.Last {
		text += "it is the last commit of the archive: what was committed later and not archived is not in it\n"
	}
	if r.Dropped {
		text += "commits behind it are no longer kept one by one; some of them may be before the time that was asked for\n"
	}
	if r.Verified {
		text += "integrity_check: ok\n"
	}
	if _, err := fmt.Fprint(c.out, text); err != nil {
		return fmt.Errorf("print answer: %w", err)
	}
	return nil
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
