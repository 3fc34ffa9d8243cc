package shell

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/chzyer/readline"
)

// ErrFailed is returned when a statement or command of the input failed; its
// text was printed where it happened.
var ErrFailed = errors.New("a statement failed")

// errQuit ends the reading of input.
var errQuit = errors.New("quit")

// Options say what a shell works on.
type Options struct {
	// DSN is the driver's data source name of the database.
	DSN string
	// Name is how the database is called in the prompt.
	Name string
	// Statements are run instead of the input, if there are any.
	Statements []string
	// Mode is the first output mode. Empty: table for a person, list else.
	Mode string
	// Bail stops at the first error.
	Bail bool
	// History is the file of the line history, empty for none.
	History string
	// Terminal says that In is a person's terminal: there is a prompt, and
	// lines can be edited.
	Terminal bool
	// Stdin, Stdout and Stderr are the shell's streams.
	Stdin          io.Reader
	Stdout, Stderr io.Writer
}

// shell is one run of the prompt.
type shell struct {
	opts    Options
	conn    *conn
	out     *bufio.Writer
	errs    io.Writer
	mode    string
	headers bool
	timer   bool
	failed  bool
	depth   int // of files read by .read
	// signals gets SIGINT from the return of a typed line on: one that comes
	// before its statement runs must stop that, not the process. Nil without a
	// terminal.
	signals chan os.Signal
}

// maxReadDepth bounds files that read files.
const maxReadDepth = 16

// Run reads and runs statements until the input ends. It returns ErrFailed
// when one of them failed, another error when it could not go on.
func Run(ctx context.Context, opts Options) (err error) {
	c, err := open(opts.DSN)
	if err != nil {
		return fmt.Errorf("open database %q: %s", opts.Name, describe(err))
	}
	defer func() {
		if cerr := c.close(); cerr != nil {
			err = errors.Join(err, fmt.Errorf("close database %q: %s", opts.Name, describe(cerr)))
		}
	}()
	s := &shell{opts: opts, conn: c, out: bufio.NewWriterSize(opts.Stdout, 64<<10), errs: opts.Stderr, mode: opts.Mode, headers: true}
	if s.mode == "" {
		s.mode = "list"
		if opts.Terminal {
			s.mode = "table"
		}
	}
	if s.mode == "list" || s.mode == "csv" {
		s.headers = false
	}
	if !contains(modes, s.mode) {
		return fmt.Errorf("output mode %q: want one of %s", s.mode, strings.Join(modes, ", "))
	}
	switch {
	case len(opts.Statements) > 0:
		err = s.runStatements(ctx)
	case opts.Terminal:
		err = s.runTerminal(ctx)
	default:
		err = s.runReader(ctx, "standard input", opts.Stdin)
	}
	if errors.Is(err, errQuit) {
		err = nil
	}
	if ferr := flush(s.out); ferr != nil {
		err = errors.Join(err, ferr)
	}
	if err == nil && s.failed && (!opts.Terminal || len(opts.Statements) > 0) {
		err = ErrFailed // a person has seen it
	}
	return err
}

func contains(list []string, v string) bool {
	for _, s := range list {
		if s == v {
			return true
		}
	}
	return false
}

func (s *shell) runStatements(ctx context.Context) error {
	for _, text := range s.opts.Statements {
		if err := s.runReader(ctx, "argument", strings.NewReader(text)); err != nil {
			return err
		}
	}
	return nil
}

// runReader runs what a file or pipe holds.
func (s *shell) runReader(ctx context.Context, name string, r io.Reader) error {
	in := bufio.NewReaderSize(r, 64<<10)
	var sp splitter
	line, first := 0, 1 // first line of the statement that is being read
	for {
		part, rerr := in.ReadString('\n')
		if rerr != nil && !errors.Is(rerr, io.EOF) {
			return fmt.Errorf("read %s: %w", name, rerr)
		}
		if part != "" {
			line++
			if !sp.pending() {
				sp.reset()
				first = line
				if strings.HasPrefix(part, ".") {
					if err := s.report(s.command(ctx, strings.TrimSpace(part)), name, line); err != nil {
						return err
					}
					part = ""
				}
			}
		}
		sp.add(part)
		for {
			statement, ok := sp.next()
			if !ok && rerr != nil {
				statement, ok = sp.rest()
			}
			if !ok {
				break
			}
			if err := s.report(s.run(ctx, statement), name, first); err != nil {
				return err
			}
			first = line
		}
		if rerr != nil {
			return flush(s.out)
		}
	}
}

// runTerminal runs what a person types.
func (s *shell) runTerminal(ctx context.Context) error {
	if s.opts.History != "" {
		// The editor would make it readable by all; statements hold secrets.
		if f, err := os.OpenFile(s.opts.History, os.O_CREATE|os.O_APPEND, 0o600); err == nil {
			f.Close()
		}
	}
	prompt := s.opts.Name + "> "
	more := strings.Repeat(" ", max(0, width(prompt)-4)) + "..> "
	rl, err := readline.NewEx(&readline.Config{
		Prompt: prompt, HistoryFile: s.opts.History, HistoryLimit: 2000, AutoComplete: completer(),
		InterruptPrompt: "^C", EOFPrompt: ".quit",
	})
	if err != nil {
		return fmt.Errorf("open terminal: %w", err)
	}
	defer rl.Close()
	s.signals = make(chan os.Signal, 1)
	signal.Notify(s.signals, syscall.SIGINT)
	defer signal.Stop(s.signals)
	var sp splitter
	for {
		select {
		case <-s.signals: // it came after the statement had ended
		default:
		}
		line, err := rl.Readline()
		switch {
		case errors.Is(err, readline.ErrInterrupt):
			if !sp.pending() && line == "" {
				fmt.Fprintln(s.errs, "(.quit or Ctrl-D leaves)")
			}
			sp.reset()
			rl.SetPrompt(prompt)
			continue
		case errors.Is(err, io.EOF):
			if statement, ok := sp.rest(); ok {
				return s.report(s.run(ctx, statement), "", 0)
			}
			return nil
		case err != nil:
			return fmt.Errorf("read terminal: %w", err)
		}
		if !sp.pending() {
			sp.reset()
			if strings.HasPrefix(line, ".") {
				if err := s.report(s.command(ctx, strings.TrimSpace(line)), "", 0); err != nil {
					return err
				}
				continue
			}
		}
		sp.add(line + "\n")
		for {
			statement, ok := sp.next()
			if !ok {
				break
			}
			if err := s.report(s.run(ctx, statement), "", 0); err != nil {
				return err
			}
		}
		rl.SetPrompt(prompt)
		if sp.pending() {
			rl.SetPrompt(more)
		}
	}
}

// report prints an error with the place it comes from. It returns an error
// only when the shell is to end.
func (s *shell) report(err error, source string, line int) error {
	if ferr := flush(s.out); ferr != nil {
		return ferr
	}
	if err == nil || errors.Is(err, errQuit) {
		return err
	}
	s.failed = true
	where := ""
	if source == "argument" {
		source = ""
	}
	if source != "" {
		where = fmt.Sprintf("%s, line %d: ", source, line)
	}
	fmt.Fprintf(s.errs, "Error: %s%s\n", where, printable(s.conn.describe(context.Background(), err)))
	if s.opts.Bail {
		return errQuit
	}
	return nil
}

// run runs one statement and prints its result.
func (s *shell) run(ctx context.Context, statement string) error {
	ctx, stop := s.interruptible(ctx)
	defer stop()
	start := time.Now()
	var p printer
	err := s.conn.query(ctx, statement,
		func(columns []string) error { p = newPrinter(s.mode, s.headers, columns, s.out); return nil },
		func(values []any) error { return p.Row(values) })
	if p != nil {
		err = errors.Join(err, p.End())
	}
	if errors.Is(err, context.Canceled) {
		err = errors.New("interrupted")
	}
	if s.timer {
		fmt.Fprintf(s.out, "Run Time: real %.3f s\n", time.Since(start).Seconds())
	}
	return err
}

// interruptible returns a context that Ctrl-C ends: it stops the statement,
// not the shell.
func (s *shell) interruptible(parent context.Context) (context.Context, func()) {
	ctx, cancel := context.WithCancel(parent)
	signals := s.signals
	if signals == nil {
		return ctx, cancel // without a terminal Ctrl-C ends the process
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		select {
		case <-signals:
			cancel()
		case <-ctx.Done():
		}
	})
	return ctx, func() {
		cancel()
		wg.Wait()
	}
}
