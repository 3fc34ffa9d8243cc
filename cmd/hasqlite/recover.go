package main

import (
	"errors"
	"log/slog"

	"github.com/spf13/cobra"

	"github.com/uglyer/ha-sqlite/internal/exit"
	"github.com/uglyer/ha-sqlite/internal/node"
	"github.com/uglyer/ha-sqlite/internal/nodecmd"
)

func newClusterRecover(c *cli) *cobra.Command {
	var opts node.RecoverOptions
	cmd := &cobra.Command{
		Use:   "recover --data DIR",
		Short: "Go on without a majority that is lost for good",
		Long:  nodecmd.RecoverLong + "\n\nIt works on the data directory itself, on the machine of the node.",
		Example: `  hasqlite cluster recover --data /var/lib/hasqlite
  hasqlite cluster recover --data /var/lib/hasqlite --with /mnt/db2/hasqlite
  hasqlite cluster recover --data /var/lib/hasqlite --accept-data-loss 0f3c5d2e9a714b8690c1d7e8f2a3b4c5`,
		Args: exit.Args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if opts.Data == "" {
				return exit.Usagef("recover: give the data directory of a stopped node with --data")
			}
			r, err := node.Recover(opts, slog.New(slog.NewTextHandler(c.err, &slog.HandlerOptions{Level: slog.LevelWarn})))
			if r != nil {
				perr := error(nil)
				if c.json {
					perr = c.printJSON(r)
				} else {
					perr = nodecmd.PrintRecovery(c.out, r)
				}
				err = errors.Join(err, perr)
			}
			return nodecmd.RecoverError(err)
		},
	}
	cmd.Flags().StringVar(&opts.Data, "data", "", "data directory of the stopped node that goes on")
	nodecmd.RecoverFlags(cmd, &opts)
	return cmd
}
