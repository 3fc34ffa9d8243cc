package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/uglyer/ha-sqlite/internal/api"
	"github.com/uglyer/ha-sqlite/internal/exit"
	"github.com/uglyer/ha-sqlite/internal/sqlitefile"
	"github.com/uglyer/ha-sqlite/snapshot"
	"github.com/uglyer/ha-sqlite/snapshot/archive"
)

// importPlan is what import prints with --dry-run and --json.
type importPlan struct {
	Name       string `json:"name"`
	File       string `json:"file"`
	Kind       string `json:"kind"`
	PageSize   uint32 `json:"page_size"`
	Pages      uint32 `json:"pages"`
	SizeBytes  int64  `json:"size_bytes"`
	FromWAL    bool   `json:"from_wal"`
	Statements int    `json:"statements,omitempty"`
	Exists     bool   `json:"exists"`
	DryRun     bool   `json:"dry_run"`
}

func newImport(c *cli) *cobra.Command {
	var replace, dry bool
	var temp string
	var pageSize uint32
	var hold time.Duration
	cmd := &cobra.Command{
		Use:   "import NAME FILE",
		Short: "Make a database of a SQLite file or a script",
		Long: `Makes a replicated database of a SQLite file, in any journal mode, page size and auto_vacuum
mode, or of a script of SQL statements such as .dump writes. FILE may be - for standard input.

The file is not changed. A write-ahead log that lies beside it is put into a private copy
first. It is refused when it is damaged, when a transaction was cut off in it (a hot
journal), when a log beside it is of another file, or while it is being written.
The node has SQLite check all of it before anything else happens. The content appears at
once or not at all.

A database of that name that exists is refused, unless it is empty, as one is that an import
was cut off in, or --replace gives it the content: then that is one transaction, under open
readers, and what was before stays in its history.`,
		Example: `  hasqlite import shop.db /var/lib/app/shop.db
  hasqlite import shop.db dump.sql --page-size 8192
  sqlite3 old.db .dump | hasqlite import shop.db -
  hasqlite import shop.db shop.db --replace --dry-run`,
		Args:              exit.Args(cobra.ExactArgs(2)),
		ValidArgsFunction: c.databaseNames,
		RunE: func(cmd *cobra.Command, args []string) error {
			name, file := args[0], args[1]
			req := api.ImportRequest{Name: name, Replace: replace, HoldMS: hold.Milliseconds()}
			if err := req.Validate(); err != nil {
				return err
			}
			if pageSize != 0 && !snapshot.ValidPageSize(pageSize) {
				return exit.Usagef("--page-size %d: want a power of two from 512 to 65536", pageSize)
			}
			return c.askLong(cmd, func(ctx context.Context, client *api.Client) error {
				bar := c.progress("import")
				defer bar.done()
				src, err := sqlitefile.Open(ctx, file, sqlitefile.Options{Stdin: c.in, TempDir: temp, PageSize: pageSize, Progress: bar.step})
				if err != nil {
					return importError(err)
				}
				defer src.Close()
				if dry {
					return c.importDryRun(ctx, client, name, file, src, replace, bar)
				}
				req.Size = src.Size()
				body := &unchangedReader{r: src.Reader(), src: src}
				report, err := client.Import(ctx, req, body, bar.told)
				bar.done()
				if err != nil {
					return importError(errors.Join(err, body.err))
				}
				if c.json {
					return c.printJSON(report)
				}
				lines := []string{fmt.Sprintf("database %s has the content of %s: %s, commit %s", report.Name, file, bytesText(report.SizeBytes), report.Commit.Bookmark)}
				switch {
				case report.Previous == nil:
				case report.Previous.Bookmark == report.Commit.Bookmark:
					lines = append(lines, "it had it before: nothing was changed")
				default:
					lines = append(lines, fmt.Sprintf("before that it was at %s; hasqlite rollback %s --to %s undoes it", report.Previous.Bookmark, report.Name, report.Previous.Bookmark))
				}
				return c.printDone("%s", cleanLines(lines))
			})
		},
	}
	cmd.Flags().BoolVar(&replace, "replace", false, "give a database that exists the content")
	holdFlag(cmd, &hold)
	cmd.Flags().BoolVar(&dry, "dry-run", false, "only look at the file, and say what would be done")
	cmd.Flags().StringVar(&temp, "temp-dir", "", "where private copies are made (default: the system's)")
	cmd.Flags().Uint32Var(&pageSize, "page-size", 0, "page size of a database that is made of a script (default 4096)")
	return cmd
}

// cleanLines is clean for a text of several lines.
func cleanLines(lines []string) string {
	cleaned := make([]string, len(lines))
	for i, l := range lines {
		cleaned[i] = clean(l)
	}
	return strings.Join(cleaned, "\n")
}

// importError gives what is wrong with a file its exit code.
func importError(err error) error {
	if errors.Is(err, sqlitefile.ErrDamaged) {
		return exit.With(exit.Damaged, err)
	}
	return err
}

// unchangedReader fails when the file was written meanwhile, before its last bytes go.
type unchangedReader struct {
	r   io.Reader
	src *sqlitefile.Source
	err error
}

func (u *unchangedReader) Read(b []byte) (int, error) {
	n, err := u.r.Read(b)
	if u.err = errors.Join(u.err, u.src.Unchanged()); u.err != nil {
		return 0, u.err
	}
	return n, err
}

func (c *cli) importDryRun(ctx context.Context, client *api.Client, name, file string, src *sqlitefile.Source, replace bool, bar *progress) error {
	bar.step("check", 0, 0)
	if err := sqlitefile.Check(ctx, src.Path()); err != nil {
		return importError(fmt.Errorf("%s: %w", file, err))
	}
	bar.done()
	p := importPlan{Name: name, File: file, Kind: src.Kind, PageSize: src.PageSize, Pages: src.PageCount, SizeBytes: src.Size(),
		FromWAL: src.FromWAL, Statements: src.Statements, DryRun: true}
	switch _, err := client.Database(ctx, name); {
	case err == nil && !replace:
		return fmt.Errorf("import into %q: there is a database of this name: %w", name, api.ErrExists)
	case err == nil:
		p.Exists = true
	case !errors.Is(err, api.ErrNotFound):
		return err
	}
	if c.json {
		return c.printJSON(p)
	}
	what := "would be made"
	if p.Exists {
		what = "would be replaced"
	}
	return c.printFields([][2]string{
		{"database", name + ", which " + what}, {"content", fmt.Sprintf("%s: %s", file, p.Kind)},
		{"size", fmt.Sprintf("%s (%d pages of %d bytes)", bytesText(p.SizeBytes), p.Pages, p.PageSize)}, {"log beside it", yesNo(p.FromWAL)}, {"integrity_check", "ok"},
	})
}

// exported is what export prints with --json.
type exported struct {
	api.ExportHead
	File     string `json:"file"`
	Verified bool   `json:"verified"`
}

func newExport(c *cli) *cobra.Command {
	var want wantedState
	cmd := &cobra.Command{
		Use:   "export NAME FILE",
		Short: "Write a database into a SQLite file",
		Long: `Writes a consistent state of a database into a file: the newest one, which has everything that
was acknowledged before, or the one that --at or --to names. The commit is printed.
FILE appears whole, with the checksum of the commit, or not at all; one that exists is not
replaced. FILE may be - for standard output, which is checked too: look at the exit code.`,
		Example: `  hasqlite export shop.db copy.db
  hasqlite export shop.db copy.db --at "10 minutes ago"
  hasqlite export shop.db - | ssh backup 'cat > shop.db'`,
		Args:              exit.Args(cobra.ExactArgs(2)),
		ValidArgsFunction: c.databaseNames,
		RunE: func(cmd *cobra.Command, args []string) error {
			name, file := args[0], args[1]
			m, err := want.sent(c.start)
			if err != nil {
				return err
			}
			return c.askLong(cmd, func(ctx context.Context, client *api.Client) error {
				head, body, err := client.Export(ctx, name, m)
				if err != nil {
					return err
				}
				defer body.Close()
				bar := c.progress("export")
				defer bar.done()
				out := exported{ExportHead: head, File: file, Verified: true}
				if file == "-" {
					if err := copyChecked(ctx, c.out, body, head, bar.update); err != nil {
						return err
					}
					return c.printExported(c.err, out)
				}
				err = archive.CreateFile(file, func(f *os.File) error { return copyChecked(ctx, f, body, head, bar.update) }, nil)
				bar.done()
				if err != nil {
					return fmt.Errorf("export into %s: %w", file, err)
				}
				return c.printExported(c.out, out)
			})
		},
	}
	want.flags(cmd)
	return cmd
}

func (c *cli) printExported(w io.Writer, r exported) error {
	if c.json {
		return writeJSON(w, r)
	}
	at := ""
	if !r.Commit.Time.IsZero() {
		at = " " + r.Commit.Time.Format(time.RFC3339Nano)
	}
	lines := append([]string{fmt.Sprintf("commit %s%s of %s: %s into %s", r.Commit.Bookmark, at, r.Name, bytesText(r.SizeBytes), r.File)}, r.Remarks...)
	if _, err := fmt.Fprintln(w, cleanLines(lines)); err != nil {
		return fmt.Errorf("print answer: %w", err)
	}
	return nil
}

// copyChecked copies a database, and compares its pages with the checksum in its bookmark.
func copyChecked(ctx context.Context, w io.Writer, r io.Reader, head api.ExportHead, progress func(done, total int64)) error {
	txid, rest, _ := strings.Cut(head.Commit.Bookmark, "/")
	text, _, _ := strings.Cut(rest, "@")
	want, err := strconv.ParseUint(text, 16, 64)
	if err != nil || len(txid) != 16 || !snapshot.ValidPageSize(head.PageSize) {
		return fmt.Errorf("the node names the state %q with pages of %d bytes", clean(head.Commit.Bookmark), head.PageSize)
	}
	page := make([]byte, head.PageSize)
	sum := snapshot.ChecksumFlag
	for done := int64(0); done < head.SizeBytes; {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if _, err := io.ReadFull(r, page); err != nil {
			return fmt.Errorf("%d of %d bytes came: %w: %w", done, head.SizeBytes, err, api.ErrUnreachable)
		}
		if _, err := w.Write(page); err != nil {
			return err
		}
		done += int64(len(page))
		if pgno := uint32(done / int64(len(page))); pgno != snapshot.LockPgno(head.PageSize) {
			sum = snapshot.Roll(sum, snapshot.PageSum(pgno, page))
		}
		progress(done, head.SizeBytes)
	}
	if sum != want {
		return exit.With(exit.Damaged, fmt.Errorf("what came has checksum %016x, the commit has %016x", sum, want))
	}
	return nil
}
