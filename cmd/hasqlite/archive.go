package main

import (
	"context"
	"errors"
	"fmt"
	"os/signal"
	"strconv"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/uglyer/ha-sqlite/internal/exit"
	"github.com/uglyer/ha-sqlite/internal/moment"
	"github.com/uglyer/ha-sqlite/internal/storeurl"
	"github.com/uglyer/ha-sqlite/snapshot/archive"
	"github.com/uglyer/ha-sqlite/snapshot/store"
)

// archiveOptions name an archive, the key to it, and which of the databases that had a name.
type archiveOptions struct {
	url, identity, database string
}

func (o *archiveOptions) flags(cmd *cobra.Command) {
	cmd.Flags().StringVar(&o.url, "archive", "", "where the archive is: a directory, file:///path or s3://bucket/prefix (default: that of --node, else HASQLITE_ARCHIVE, else that of the node)")
	cmd.Flags().StringVar(&o.identity, "identity", "", "file with the age identities of an encrypted archive (default: HASQLITE_IDENTITY)")
	cmd.Flags().StringVar(&o.database, "database", "", "which database, where the archive has several of the name: ID or ID-LINEAGE (default: the one that the state is of, else the newest)")
}

// views loads the databases that had a name, the newest first, or those of them that the user named.
func (o archiveOptions) views(ctx context.Context, a *archive.Archive, name string) (archive.Views, error) {
	if o.database == "" {
		return a.Views(ctx, name, nil)
	}
	db, text, one := strings.Cut(o.database, "-")
	lineage, err := strconv.ParseUint(text, 10, 64)
	if len(db) != 32 || one && err != nil {
		return archive.Views{}, exit.Usagef("--database %q: want the id of a database, 32 hex digits, or <id>-<lineage>", o.database)
	}
	views, err := a.Views(ctx, name, func(id archive.Identity) bool { return id.Database == db && (!one || id.Lineage == lineage) })
	if errors.Is(err, archive.ErrNoDatabase) {
		err = fmt.Errorf("database %s: %w", o.database, err)
	}
	return views, err
}

// older is a database of the same name that the archive has besides the one that is shown.
type older struct {
	ID      string    `json:"id"`
	Lineage uint64    `json:"lineage"`
	Last    pointJSON `json:"last"`
}

// newest loads the newest of the databases that had a name, or of those that the user named, and says which others
// there are.
func (c *cli) newest(ctx context.Context, a *archive.Archive, o archiveOptions, name string) (*archive.View, []older, error) {
	found, err := o.views(ctx, a, name)
	if err != nil {
		return nil, nil, err
	}
	views, err := found.All()
	if err != nil {
		return nil, nil, err
	}
	others := []older{}
	for _, v := range views[1:] {
		s := v.State()
		others = append(others, older{s.Database, s.Lineage, describePoint(v, v.Last())})
		fmt.Fprintf(c.err, "hasqlite: the archive has an older database of this name, up to %s: --database %s-%d\n", moment.TimeText(v.Last().Time), s.Database, s.Lineage)
	}
	return views[0], others, nil
}

// withArchive calls f with the archive that the user named, or with that of the
// node, read through it. It works with every node dead where an archive is named,
// so the timeout for an answer of a node does not apply.
func (c *cli) withArchive(cmd *cobra.Command, o archiveOptions, f func(context.Context, *archive.Archive) error) error {
	if o.url == "" && c.node == "" {
		o.url = c.env("HASQLITE_ARCHIVE")
	}
	if o.identity == "" {
		o.identity = c.env("HASQLITE_IDENTITY")
	}
	ctx, stop := signal.NotifyContext(cmd.Context(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	err := func() error {
		s, err := c.archiveStore(ctx, o.url)
		if errors.Is(err, storeurl.ErrInvalid) {
			return exit.With(exit.Usage, err)
		}
		if err != nil {
			return err
		}
		var keys *archive.Keys
		if o.identity != "" {
			if keys, err = archive.ReadIdentities(o.identity); err != nil {
				return err
			}
		}
		a, err := archive.Open(ctx, s, archive.Options{Keys: keys})
		if err != nil {
			return err
		}
		return f(ctx, a)
	}()
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return errInterrupted
	case errors.Is(err, moment.ErrInvalid):
		return exit.With(exit.Usage, err)
	case errors.Is(err, archive.ErrNoDatabase), errors.Is(err, archive.ErrNotArchived):
		return exit.With(exit.NotFound, err)
	case errors.Is(err, archive.ErrDamaged):
		return exit.With(exit.Damaged, err)
	case errors.Is(err, archive.ErrTargetExists):
		return exit.With(exit.Conflict, err)
	}
	return err
}

// archiveStore opens the store that a URL names, without one that of the node.
func (c *cli) archiveStore(ctx context.Context, url string) (store.Store, error) {
	if url != "" {
		return c.open(ctx, url)
	}
	client, err := c.client()
	if err != nil {
		return nil, err
	}
	ask, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	s, err := client.ArchiveStore(ask)
	if err != nil {
		return nil, fmt.Errorf("no archive is named by --archive or HASQLITE_ARCHIVE, and the one of the node at %s cannot be read: %w", client.Base(), err)
	}
	return s, nil
}

// pointJSON is a state that can be restored.
type pointJSON struct {
	Bookmark string `json:"bookmark"`
	TXID     string `json:"txid"`
	Time     string `json:"time"`
	Pages    uint32 `json:"pages"`
}

func describePoint(v *archive.View, p archive.Point) pointJSON {
	return pointJSON{Bookmark: moment.Bookmark(v, p), TXID: fmt.Sprintf("%016x", p.TXID), Time: moment.TimeText(p.Time), Pages: p.PageCount}
}

func newArchive(c *cli) *cobra.Command {
	return group("archive", "Look into the archive of a cluster", newArchiveStatus(c), newArchiveVerify(c), newArchivePrune(c))
}

// archiveStatus is what archive status prints with --json.
type archiveStatus struct {
	Name      string          `json:"name"`
	ID        string          `json:"id"`
	Cluster   string          `json:"cluster"`
	Lineage   uint64          `json:"lineage"`
	Archive   string          `json:"archive"`
	First     pointJSON       `json:"first"`
	Last      pointJSON       `json:"last"`
	Levels    []archiveLevel  `json:"levels"`
	Gaps      []archiveGap    `json:"gaps"`
	Labels    []snapshotLabel `json:"labels"`
	PageSize  uint32          `json:"page_size"`
	Encrypted bool            `json:"encrypted"`
	Older     []older         `json:"older"`
}

type archiveLevel struct {
	Level int   `json:"level"`
	Files int   `json:"files"`
	Bytes int64 `json:"bytes"`
}

type archiveGap struct {
	First string `json:"first"`
	Last  string `json:"last"`
}

type snapshotLabel struct {
	Label string `json:"label"`
	TXID  string `json:"txid"`
}

func newArchiveStatus(c *cli) *cobra.Command {
	var o archiveOptions
	cmd := &cobra.Command{
		Use:   "status NAME",
		Short: "Say what an archive has of a database",
		Long: `Says which states of a database an archive has, and in how many files of each level. It
reads the manifest and needs no node.`,
		Example: "  hasqlite archive status shop.db --archive s3://backup/cluster1",
		Args:    exit.Args(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.withArchive(cmd, o, func(ctx context.Context, a *archive.Archive) error {
				v, others, err := c.newest(ctx, a, o, args[0])
				if err != nil {
					return err
				}
				first, err := v.First(ctx)
				if err != nil {
					return err
				}
				d, err := v.Describe(ctx)
				if err != nil {
					return err
				}
				s := v.State()
				out := archiveStatus{
					Name: s.Name, ID: s.Database, Cluster: s.Cluster, Lineage: s.Lineage, Archive: a.Store().URL(), PageSize: s.PageSize,
					First: describePoint(v, first), Last: describePoint(v, v.Last()), Gaps: []archiveGap{}, Labels: []snapshotLabel{}, Encrypted: a.Encrypted(),
					Older: others,
				}
				for level, n := range d.Files {
					if n > 0 {
						out.Levels = append(out.Levels, archiveLevel{level, n, d.Bytes[level]})
					}
				}
				for _, g := range s.Gaps {
					out.Gaps = append(out.Gaps, archiveGap{fmt.Sprintf("%016x", g.MinTXID), fmt.Sprintf("%016x", g.MaxTXID)})
				}
				for _, l := range s.Labels {
					out.Labels = append(out.Labels, snapshotLabel{l.Name, fmt.Sprintf("%016x", l.TXID)})
				}
				if c.json {
					return c.printJSON(out)
				}
				return c.printArchive(out)
			})
		},
	}
	o.flags(cmd)
	return cmd
}

func (c *cli) printArchive(s archiveStatus) error {
	pairs := [][2]string{
		{"name", s.Name}, {"id", s.ID}, {"cluster", fmt.Sprintf("%s, lineage %d", s.Cluster, s.Lineage)}, {"archive", s.Archive}, {"encrypted", yesNo(s.Encrypted)},
		{"first", s.First.Time + "  " + s.First.Bookmark}, {"last", s.Last.Time + "  " + s.Last.Bookmark},
	}
	for _, l := range s.Levels {
		pairs = append(pairs, [2]string{fmt.Sprintf("level %d", l.Level), fmt.Sprintf("%d files, %s", l.Files, bytesText(l.Bytes))})
	}
	for _, g := range s.Gaps {
		pairs = append(pairs, [2]string{"not one by one", g.First + " to " + g.Last})
	}
	for _, l := range s.Labels {
		pairs = append(pairs, [2]string{"label " + l.Label, l.TXID})
	}
	return c.printFields(pairs)
}

// archiveReport is what archive verify prints with --json.
type archiveReport struct {
	Name     string   `json:"name"`
	ID       string   `json:"id"`
	Lineage  uint64   `json:"lineage"`
	OK       bool     `json:"ok"`
	Files    int      `json:"files"`
	Bytes    int64    `json:"bytes"`
	States   int      `json:"states"`
	Problems []string `json:"problems"`
	Unlisted []string `json:"unlisted"`
	Older    []older  `json:"older"`
}

func newArchiveVerify(c *cli) *cobra.Command {
	var o archiveOptions
	cmd := &cobra.Command{
		Use:   "verify NAME",
		Short: "Read and check all that an archive has of a database",
		Long: `Reads every file of a database in an archive to its end, and its page index, compares the
time of each file with that of its commit, by which litestream restores, checks that a
chain of files leads to each state, and restores the last one without keeping it. Files
that the manifest does not list are named; they do no harm.

Exit codes: 0 all is well, 9 something is missing or damaged, and the output names it.`,
		Example: "  hasqlite archive verify shop.db --archive /var/lib/hasqlite/archive",
		Args:    exit.Args(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.withArchive(cmd, o, func(ctx context.Context, a *archive.Archive) error {
				v, others, err := c.newest(ctx, a, o, args[0])
				if err != nil {
					return err
				}
				bar := c.progress("verify")
				r, err := v.Verify(ctx, bar.update)
				bar.done()
				if err != nil {
					return err
				}
				s := v.State()
				out := archiveReport{
					Name: args[0], ID: s.Database, Lineage: s.Lineage, OK: len(r.Problems) == 0, Files: r.Objects, Bytes: r.Bytes, States: r.Points,
					Problems: r.Problems, Unlisted: r.Unknown, Older: others,
				}
				if c.json {
					err = c.printJSON(out)
				} else {
					err = c.printArchiveReport(out)
				}
				if err == nil && !out.OK {
					err = exit.With(exit.Damaged, fmt.Errorf("archive of %s: %d problems", args[0], len(r.Problems)))
				}
				return err
			})
		},
	}
	o.flags(cmd)
	return cmd
}

func (c *cli) printArchiveReport(r archiveReport) error {
	var b strings.Builder
	for _, p := range r.Problems {
		fmt.Fprintf(&b, "damaged: %s\n", clean(p))
	}
	for _, k := range r.Unlisted {
		fmt.Fprintf(&b, "not in the manifest: %s\n", clean(k))
	}
	fmt.Fprintf(&b, "%s: %d files (%s), %d states, %d problems\n", clean(r.Name), r.Files, bytesText(r.Bytes), r.States, len(r.Problems))
	if _, err := fmt.Fprint(c.out, b.String()); err != nil {
		return fmt.Errorf("print answer: %w", err)
	}
	return nil
}
