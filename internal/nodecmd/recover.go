package nodecmd

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/uglyer/ha-sqlite/internal/config"
	"github.com/uglyer/ha-sqlite/internal/exit"
	"github.com/uglyer/ha-sqlite/internal/node"
)

// RecoverLong is the help text of the commands that recover a cluster.
const RecoverLong = `Makes a stopped node whose cluster has lost its majority for good a cluster of its own, which
other nodes can join. First run it without --accept-data-loss: it reads the data directory,
and those of the other survivors given with --with, and says which is the furthest and what
each has of every database. Nothing is changed by that.

With --accept-data-loss and the id of the cluster the node becomes the only member. What it
has in its log is kept, also what was never acknowledged; what the lost majority has
acknowledged without it is lost. The cluster gets a new lineage: nodes of the former one are
refused by it, and come back only after hasqlite-node rejoin, with nothing of their own.

As long as a majority of the voters can be started, do not use this: start them.`

// RecoverFlags are the flags of the commands that recover a cluster.
func RecoverFlags(cmd *cobra.Command, opts *node.RecoverOptions) {
	cmd.Flags().StringArrayVar(&opts.With, "with", nil, "data directory of another stopped survivor, to compare; may be repeated")
	cmd.Flags().StringVar(&opts.AcceptDataLoss, "accept-data-loss", "", "the id of the cluster: go ahead")
}

// RecoverError gives an error of node.Recover its exit code.
func RecoverError(err error) error {
	if errors.Is(err, node.ErrNotConfirmed) {
		return exit.With(exit.Usage, err)
	}
	return err
}

func newRecover(name string, f Funcs) *cobra.Command {
	var opts node.RecoverOptions
	cmd := &cobra.Command{
		Use:   "recover --data DIR",
		Short: "Go on without a majority that is lost for good",
		Long:  RecoverLong,
		Example: fmt.Sprintf(`  %[1]s recover --data /var/lib/hasqlite
  %[1]s recover --data /var/lib/hasqlite --with /mnt/db2/hasqlite
  %[1]s recover --data /var/lib/hasqlite --accept-data-loss 0f3c5d2e9a714b8690c1d7e8f2a3b4c5`, name),
		Args:          exit.Args(cobra.NoArgs),
		SilenceUsage:  true,
		SilenceErrors: true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := load(cmd)
			if err != nil {
				return err
			}
			opts.Data = c.Node.Data
			r, err := f.Recover(opts, c.Logger(cmd.ErrOrStderr()))
			if r != nil {
				if perr := PrintRecovery(cmd.OutOrStdout(), r); err == nil {
					err = perr
				}
			}
			return RecoverError(err)
		},
	}
	config.Flags(cmd.Flags(), "data", "log-format", "log-level")
	RecoverFlags(cmd, &opts)
	cmd.Flags().SortFlags = false
	cmd.SetFlagErrorFunc(flagError)
	return cmd
}

func newRejoin(name string, f Funcs) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "rejoin --data DIR",
		Short: "Let a stopped node forget its cluster, so that it can join one",
		Long: `Makes a stopped node one that belongs to no cluster: a member that was removed, or one of a
lineage that a recovery has ended. What it had is moved into a directory set-aside-… of the
data directory, to be looked at and deleted; none of it is used any more. The next start with
--join makes the node a member as if its directory were new. The archive in the data directory
stays where it is, and goes on; to join another cluster, move it away.

As long as the node still is a member, remove it first: hasqlite cluster remove.`,
		Example:       fmt.Sprintf("  %[1]s rejoin --data /var/lib/hasqlite\n  %[1]s --data /var/lib/hasqlite --raft db2.lan:7441 --join db1.lan:7441", name),
		Args:          exit.Args(cobra.NoArgs),
		SilenceUsage:  true,
		SilenceErrors: true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := load(cmd)
			if err != nil {
				return err
			}
			aside, err := f.Rejoin(c.Node.Data, c.Logger(cmd.ErrOrStderr()))
			if err != nil {
				return err
			}
			text := "the node belongs to no cluster; it had nothing to set aside"
			if aside != "" {
				text = "the node belongs to no cluster; what it had is in " + aside
			}
			_, err = fmt.Fprintln(cmd.OutOrStdout(), text)
			return err
		},
	}
	config.Flags(cmd.Flags(), "data", "log-format", "log-level")
	cmd.Flags().SortFlags = false
	cmd.SetFlagErrorFunc(flagError)
	return cmd
}

// PrintRecovery says what a recovery keeps and may lose.
func PrintRecovery(w io.Writer, r *node.Recovery) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintf(t, "cluster %s, lineage %d\n\n", r.Cluster, r.Lineage)
	fmt.Fprintln(t, "NODE\tDATA\tLAST ENTRY\tCOMMITTED FOR CERTAIN\tMEMBERS IT KNOWS")
	for _, n := range r.Nodes {
		mark := ""
		if n.Data == r.Furthest {
			mark = " (furthest)"
		}
		fmt.Fprintf(t, "%s%s\t%s\t%d of term %d\t%d\t%s\n", n.Node, mark, n.Data, n.Last, n.LastTerm, n.Certain, strings.Join(n.Members, " "))
	}
	fmt.Fprintln(t)
	fmt.Fprintln(t, "DATABASE\tNODE\tLAST TRANSACTION\tOF\tNOT KNOWN WHETHER ACKNOWLEDGED\tLOST WITH IT")
	for _, d := range r.Database {
		for i, e := range d.Ends {
			name := d.Name
			if i > 0 {
				name = ""
			}
			if !e.Present {
				fmt.Fprintf(t, "%q\t%s\tnone\t\t\t%s\n", name, r.Nodes[i].Node, lost(d, i))
				continue
			}
			unsure := "-"
			if n := uint64(e.Position.TXID) - uint64(e.Certain); n > 0 {
				unsure = fmt.Sprintf("the last %d", n)
			}
			fmt.Fprintf(t, "%q\t%s\t%s\t%s\t%s\t%s\n", name, r.Nodes[i].Node, e.Position, e.CommitTime.Format(time.RFC3339), unsure, lost(d, i))
		}
	}
	if err := t.Flush(); err != nil {
		return err
	}
	for _, d := range r.Database {
		for i, e := range d.Ends {
			if !e.Files.IsZero() {
				fmt.Fprintf(w, "\nThe files of %q on %s show %d transactions more than its log, up to %s. They were committed,\n"+
					"and nothing can be written after them: once the node leads, export the database, delete it with --force, and import it.\n",
					d.Name, r.Nodes[i].Node, uint64(e.Files.TXID)-uint64(e.Position.TXID), e.Files)
			}
		}
	}
	_, err := fmt.Fprint(w, "\n", verdict(r))
	return err
}

// lost says what other survivors have of a database that node i has not.
func lost(d node.RecoveryDatabase, i int) string {
	var most uint64
	for _, e := range d.Ends {
		most = max(most, uint64(e.Position.TXID), uint64(e.Files.TXID))
	}
	if n := most - max(uint64(d.Ends[i].Position.TXID), uint64(d.Ends[i].Files.TXID)); n > 0 {
		return fmt.Sprintf("%d that another one has", n)
	}
	return "-"
}

func verdict(r *node.Recovery) string {
	main := r.Nodes[0]
	if r.Done {
		return fmt.Sprintf("%s is the only member now, of lineage %d. Start it, then let other nodes join it; those of lineage %d\nonly after hasqlite-node rejoin.\n",
			main.Node, r.NewLineage, r.Lineage)
	}
	text := fmt.Sprintf("Lost is what was acknowledged after the last transactions of %s by a majority that does not answer any more. How much\nthat is nobody here can tell. Kept is all of its log, also transactions that were never acknowledged.\n", main.Node)
	if main.Data != r.Furthest {
		return text + fmt.Sprintf("\n%s has more: recover that one.\n", r.Furthest)
	}
	return text + fmt.Sprintf("\nNothing was changed. To go ahead: --accept-data-loss %s\n", r.Cluster)
}
