package main

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"

	"github.com/chzyer/readline"
	"github.com/spf13/cobra"

	"github.com/uglyer/ha-sqlite/internal/api"
	"github.com/uglyer/ha-sqlite/internal/exit"
	"github.com/uglyer/ha-sqlite/internal/node"
	"github.com/uglyer/ha-sqlite/internal/shell"
	_ "github.com/uglyer/ha-sqlite/vfs" // registers the VFS hasqlite
)

func newShell(c *cli) *cobra.Command {
	var socket, mode string
	var readOnly, linearizable, bail bool
	cmd := &cobra.Command{
		Use:   "shell NAME [SQL...]",
		Short: "Run SQL on a database",
		Long: `Opens a database through the VFS hasqlite, as an application on this machine does, and runs
SQL: that of the arguments, or what is typed or piped in. A new name makes a database at
the first write. .help lists the commands that begin with a dot.

The socket of the node is that of --socket, else of HASQLITE_SOCKET, else the one that the
node of --node names. The line history is kept in ~/.hasqlite_history, or in the file that
HASQLITE_HISTORY names; HASQLITE_HISTORY=off keeps none.`,
		Example: `  hasqlite shell shop.db
  hasqlite shell shop.db "SELECT count(*) FROM item"
  hasqlite shell shop.db < schema.sql
  hasqlite shell shop.db .dump > shop.sql
  hasqlite shell shop.db --mode json "SELECT * FROM item"`,
		Args:              exit.Args(cobra.MinimumNArgs(1)),
		ValidArgsFunction: c.databaseNames,
		RunE: func(cmd *cobra.Command, args []string) error {
			if c.json {
				if cmd.Flags().Changed("mode") && mode != "json" {
					return exit.Usagef("shell: --json and --mode=%s are both given", mode)
				}
				mode = "json"
			}
			if err := checkName(args[0]); err != nil {
				return err
			}
			path, err := c.socket(cmd, socket)
			if err != nil {
				return err
			}
			params := []string{"vfs=hasqlite", "node=" + uriEscape(path)}
			if readOnly {
				params = append(params, "mode=ro")
			}
			if linearizable {
				params = append(params, "consistency=linearizable")
			}
			stdin, isFile := c.in.(*os.File)
			err = shell.Run(cmd.Context(), shell.Options{
				DSN:        "file:" + (&url.URL{Path: args[0]}).EscapedPath() + "?" + strings.Join(params, "&"),
				Name:       args[0],
				Statements: args[1:],
				Mode:       mode,
				Bail:       bail,
				History:    c.history(),
				Terminal:   isFile && len(args) == 1 && readline.IsTerminal(int(stdin.Fd())),
				Stdin:      c.in,
				Stdout:     c.out,
				Stderr:     c.err,
			})
			if errors.Is(err, shell.ErrFailed) {
				return errPrinted
			}
			return err
		},
	}
	f := cmd.Flags()
	f.StringVar(&socket, "socket", "", "socket of the node")
	f.StringVar(&mode, "mode", "", "form of results: table, list, csv, json or line (default: table on a terminal, else list)")
	f.BoolVar(&readOnly, "readonly", false, "open for reading only")
	f.BoolVar(&linearizable, "linearizable", false, "each read sees all that was acknowledged before it, on any node")
	f.BoolVar(&bail, "bail", false, "stop at the first error")
	if err := cmd.RegisterFlagCompletionFunc("mode", cobra.FixedCompletions([]string{"table", "list", "csv", "json", "line"}, cobra.ShellCompDirectiveNoFileComp)); err != nil {
		panic(err) // the flag is not the one of the line above
	}
	return cmd
}

// checkName refuses what the VFS would take for a plain file.
func checkName(name string) error {
	drive := len(name) > 1 && name[1] == ':'
	for _, prefix := range []string{"/", `\`, "./", "../"} {
		if drive || strings.HasPrefix(name, prefix) {
			return exit.Usagef("shell: %q is the path of a plain file, not the name of a replicated database", name)
		}
	}
	if name == "" || name == ":memory:" {
		return exit.Usagef("shell: %q is not the name of a replicated database", name)
	}
	return nil
}

// socket finds the socket of the node on this machine.
func (c *cli) socket(cmd *cobra.Command, given string) (string, error) {
	from := "--socket"
	if given == "" {
		given, from = c.env("HASQLITE_SOCKET"), "HASQLITE_SOCKET"
	}
	if given == "" {
		var st api.Status
		err := c.ask(cmd, c.timeout, func(ctx context.Context, client *api.Client) (err error) {
			st, err = client.Status(ctx, api.DatabaseQuery{})
			return err
		})
		given, from = st.Node.Socket, "the node "+st.Node.ID
		if err != nil {
			if _, serr := os.Stat(node.DefaultSocket); serr != nil || errors.Is(err, errInterrupted) {
				return "", fmt.Errorf("find the node's socket: %w; give it with --socket", err)
			}
			given, from = node.DefaultSocket, "the default"
		}
	}
	path, err := filepath.Abs(given)
	if err != nil {
		return "", fmt.Errorf("find the node's socket: %w", err)
	}
	if _, err := os.Stat(path); err != nil {
		return "", exit.With(exit.Unreachable, fmt.Errorf("find the node's socket, named by %s: %w; a shell runs on the machine of its node", from, err))
	}
	return path, nil
}

// history names the file of the line history, empty for none.
func (c *cli) history() string {
	switch path := c.env("HASQLITE_HISTORY"); path {
	case "off":
		return ""
	case "":
		home, err := os.UserHomeDir()
		if err != nil {
			return ""
		}
		return filepath.Join(home, ".hasqlite_history")
	default:
		return path
	}
}

// uriEscape escapes a value of SQLite's URI, which takes + as it is.
func uriEscape(s string) string {
	return strings.ReplaceAll(url.QueryEscape(s), "+", "%20")
}
