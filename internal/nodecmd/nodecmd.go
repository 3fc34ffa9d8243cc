package nodecmd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/uglyer/ha-sqlite/internal/buildinfo"
	"github.com/uglyer/ha-sqlite/internal/config"
	"github.com/uglyer/ha-sqlite/internal/exit"
	"github.com/uglyer/ha-sqlite/internal/node"
)

// shutdownTime bounds a clean shutdown: commits in flight, the handover of
// leadership, checkpoints.
const shutdownTime = 30 * time.Second

// Runner is a node that was started.
type Runner interface {
	// Wait returns when the node has stopped: nil after Shutdown, else the
	// error that it cannot go on after.
	Wait() error
	// Shutdown stops the node cleanly, or as well as it can until ctx ends.
	Shutdown(ctx context.Context) error
}

var _ Runner = (*node.Node)(nil)

// Funcs is what the command does its work with.
type Funcs struct {
	Start   func(cfg node.Config, log *slog.Logger) (Runner, error)
	Migrate func(data, to string, log *slog.Logger) error
	Recover func(opts node.RecoverOptions, log *slog.Logger) (*node.Recovery, error)
	Rejoin  func(data string, log *slog.Logger) (string, error)
}

// Real returns the functions of package node.
func Real() Funcs {
	return Funcs{
		Start: func(cfg node.Config, log *slog.Logger) (Runner, error) {
			n, err := node.Start(cfg, log)
			if err != nil {
				return nil, err // not n: a nil *node.Node is no nil Runner
			}
			return n, nil
		},
		Migrate: node.Migrate,
		Recover: node.Recover,
		Rejoin:  node.Rejoin,
	}
}

const example = `  # A single node, with everything at its default:
  %[1]s --data /var/lib/hasqlite

  # The first of three nodes that start a cluster together; the other two get their own --raft:
  %[1]s --data /var/lib/hasqlite --raft db1.lan:7441 --bootstrap-expect 3 --join db1.lan:7441,db2.lan:7441,db3.lan:7441

  # A fourth one, later:
  %[1]s --data /var/lib/hasqlite --raft db4.lan:7441 --join db1.lan:7441

  # The same options from a file, one from the environment:
  HASQLITE_LOG_FORMAT=json %[1]s --config /etc/hasqlite/node.yaml`

const long = `Runs a node of HA-Sqlite: a sidecar for the applications on this machine, which open
databases through its socket by the SQLite VFS named hasqlite.

Each option is a flag, a variable (--raft-log is HASQLITE_RAFT_LOG) and a key of the
YAML file of --config (raft-log: wal). A flag wins over a variable, a variable over the
file. The log goes to standard error.

SIGTERM and SIGINT stop the node cleanly: commits in flight get their verdict, a leader
hands over. A second signal ends the process at once, which is safe and makes the next
start slower.

Exit codes: 0 stopped cleanly, 1 error, 2 wrong options, 8 the disk failed, 128+n ended by
a second signal n.`

// New returns the command under the given name.
func New(name string, f Funcs) *cobra.Command {
	cmd := &cobra.Command{
		Use:           name + " --data DIR",
		Short:         "Run a node",
		Long:          long,
		Example:       fmt.Sprintf(example, name),
		Version:       buildinfo.Version(),
		Args:          exit.Args(cobra.NoArgs),
		SilenceUsage:  true,
		SilenceErrors: true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return run(cmd, f)
		},
	}
	config.Flags(cmd.Flags())
	cmd.Flags().SortFlags = false
	cmd.SetFlagErrorFunc(flagError)
	for name, words := range map[string][]string{
		"raft-log": {"wal", "boltdb"}, "log-format": {"text", "json"}, "log-level": {"debug", "info", "warn", "error"}, "verify": {"off", "full"},
	} {
		if err := cmd.RegisterFlagCompletionFunc(name, cobra.FixedCompletions(words, cobra.ShellCompDirectiveNoFileComp)); err != nil {
			panic(err) // a name in this table is no option
		}
	}
	cmd.AddCommand(newMigrate(name, f), newRecover(name, f), newRejoin(name, f))
	return cmd
}

func newMigrate(name string, f Funcs) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "migrate --data DIR --raft-log KIND",
		Short: "Convert the log store of a stopped node",
		Long: `Converts the log store of a stopped node to the kind that --raft-log names. A node refuses
to start with another kind than its data directory was written with, because it would not
see its own log and could lose acknowledged transactions.`,
		Example:       fmt.Sprintf("  %s migrate --data /var/lib/hasqlite --raft-log boltdb", name),
		Args:          exit.Args(cobra.NoArgs),
		SilenceUsage:  true,
		SilenceErrors: true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := load(cmd)
			if err != nil {
				return err
			}
			if fl := cmd.Flags().Lookup("raft-log"); !fl.Changed {
				return exit.Usagef("migrate: give the kind to convert to with --raft-log=wal or --raft-log=boltdb")
			}
			return f.Migrate(c.Node.Data, c.Node.RaftLog, c.Logger(cmd.ErrOrStderr()))
		},
	}
	config.Flags(cmd.Flags(), "data", "raft-log", "log-format", "log-level")
	cmd.Flags().SortFlags = false
	cmd.SetFlagErrorFunc(flagError)
	return cmd
}

func flagError(cmd *cobra.Command, err error) error {
	return exit.Usagef("%w; %s --help lists the options", err, cmd.CommandPath())
}

func load(cmd *cobra.Command) (config.Config, error) {
	c, err := config.Load(cmd.Flags(), os.LookupEnv)
	if err != nil {
		return config.Config{}, exit.With(exit.Usage, err)
	}
	c.Node.Version = buildinfo.Version()
	return c, nil
}

func run(cmd *cobra.Command, f Funcs) error {
	c, err := load(cmd)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(cmd.Context())
	defer cancel()
	raiseHeap()
	shareProcessors(ctx, allProcessors)
	// A buffer of two: neither the first nor the second signal may get lost
	// while the node starts.
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT)
	defer signal.Stop(signals)
	return supervise(c.Node, c.Logger(cmd.ErrOrStderr()), f, signals, os.Exit, shutdownTime)
}

func startError(err error) error {
	text := fmt.Errorf("start node: %w", err)
	if errors.Is(err, node.ErrDevice) {
		return exit.With(exit.Device, text)
	}
	return text
}

// supervise runs the node until it ends by itself or a signal asks for it.
// quit ends the process and does not return outside tests.
func supervise(cfg node.Config, log *slog.Logger, f Funcs, signals <-chan os.Signal, quit func(int), limit time.Duration) error {
	started := make(chan error, 1)
	var n Runner
	go func() {
		var err error
		n, err = f.Start(cfg, log)
		started <- err
	}()
	var stop os.Signal
	select {
	case err := <-started:
		if err != nil {
			return startError(err)
		}
	case stop = <-signals:
		log.Info("stopping as soon as the start is through; a second signal ends the process at once", "signal", stop.String())
		select {
		case err := <-started:
			if err != nil {
				return startError(err)
			}
		case second := <-signals:
			return abandon(log, second, quit)
		}
	}
	ended := make(chan error, 1)
	go func() { ended <- n.Wait() }()
	if stop == nil {
		select {
		case err := <-ended:
			if err == nil {
				return nil
			}
			if errors.Is(err, node.ErrDevice) {
				return exit.With(exit.Device, fmt.Errorf("node cannot go on: %w", err))
			}
			ctx, cancel := context.WithTimeout(context.Background(), limit)
			defer cancel()
			return errors.Join(fmt.Errorf("node cannot go on: %w", err), n.Shutdown(ctx))
		case stop = <-signals:
		}
	}
	log.Info("shutting down; a second signal ends the process at once", "signal", stop.String())
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	down := make(chan error, 1)
	go func() { down <- n.Shutdown(ctx) }()
	for {
		select {
		case err := <-down:
			if err != nil {
				return fmt.Errorf("shut down node: %w", err)
			}
			log.Info("node stopped")
			return nil
		case err := <-ended:
			if errors.Is(err, node.ErrDevice) { // the shutdown may wait for ever
				return exit.With(exit.Device, fmt.Errorf("node cannot go on: %w", err))
			}
			ended = nil
		case second := <-signals:
			return abandon(log, second, quit)
		}
	}
}

func abandon(log *slog.Logger, sig os.Signal, quit func(int)) error {
	log.Warn("second signal, ending at once", "signal", sig.String())
	code := exit.Failure
	if s, ok := sig.(syscall.Signal); ok {
		code = 128 + int(s)
	}
	quit(code)
	return exit.With(code, errors.New("ended by a second signal"))
}

// Main runs a command and returns the exit code of the process.
func Main(cmd *cobra.Command) int {
	err := cmd.Execute()
	if err != nil {
		fmt.Fprintf(cmd.ErrOrStderr(), "%s: %v\n", cmd.Name(), err)
	}
	return exit.Code(err)
}
