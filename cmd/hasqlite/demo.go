package main

import (
	"github.com/spf13/cobra"

	"github.com/uglyer/ha-sqlite/internal/demo"
)

// newDemoCommand makes "hasqlite demo".
func newDemoCommand() *cobra.Command {
	var opts demo.Options
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "Show three nodes on this machine, with the leader killed, in under a minute",
		Long: `Starts three nodes as processes of their own in a temporary directory, writes through the VFS on each of them,
kills the leader with kill -9, writes on, starts it again, and prints the position of each node: the same
transaction with the same checksum. It stops the nodes and removes the directory at the end.`,
		Example: `  hasqlite demo
  hasqlite demo --keep`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return demo.Run(cmd.Context(), cmd.OutOrStdout(), opts)
		},
	}
	cmd.Flags().StringVar(&opts.Dir, "dir", "", "directory for the nodes (default: a temporary one)")
	cmd.Flags().BoolVar(&opts.KeepDir, "keep", false, "leave the temporary directory")
	return cmd
}
