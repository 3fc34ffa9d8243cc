package shell

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/chzyer/readline"
)

// command is one dot command.
type command struct {
	name, args, help string
	min, max         int // number of arguments
	run              func(s *shell, ctx context.Context, args []string) error
}

// commands is in the order of the help. It is a function because .help is in
// it.
func commands() []command {
	return []command{
		{"databases", "", "attached databases and their files", 0, 0, (*shell).databases},
		{"dump", "[TABLE...]", "the database, or some tables, as SQL", 0, 1 << 10, (*shell).dump},
		{"headers", "on|off", "column names above results", 1, 1, (*shell).setHeaders},
		{"help", "", "this list", 0, 0, (*shell).help},
		{"indexes", "[TABLE]", "indexes, all or of one table", 0, 1, (*shell).indexes},
		{"mode", "[" + strings.Join(modes, "|") + "]", "form of results", 0, 1, (*shell).setMode},
		{"quit", "", "leave; so do .exit and Ctrl-D", 0, 0, func(*shell, context.Context, []string) error { return errQuit }},
		{"read", "FILE", "run the statements in a file", 1, 1, (*shell).read},
		{"schema", "[NAME]", "CREATE statements, all or of one table, index, view or trigger", 0, 1, (*shell).schema},
		{"status", "", "position of the database and state of the node's copy", 0, 0, (*shell).status},
		{"tables", "[PATTERN]", "tables and views, all or those LIKE a pattern", 0, 1, (*shell).tables},
		{"timer", "on|off", "time taken after each statement", 1, 1, (*shell).setTimer},
	}
}

func completer() readline.AutoCompleter {
	var items []readline.PrefixCompleterInterface
	for _, c := range commands() {
		item := readline.PcItem("." + c.name)
		switch c.name {
		case "mode":
			for _, m := range modes {
				item.Children = append(item.Children, readline.PcItem(m))
			}
		case "headers", "timer":
			item.Children = append(item.Children, readline.PcItem("on"), readline.PcItem("off"))
		}
		items = append(items, item)
	}
	return readline.NewPrefixCompleter(items...)
}

// command runs a line that begins with a dot.
func (s *shell) command(ctx context.Context, line string) error {
	words, err := fields(line)
	if err != nil {
		return err
	}
	name, args := strings.TrimPrefix(words[0], "."), words[1:]
	if name == "exit" {
		name = "quit"
	}
	for _, c := range commands() {
		if c.name != name {
			continue
		}
		if len(args) < c.min || len(args) > c.max {
			return fmt.Errorf("usage: .%s %s", c.name, c.args)
		}
		ctx, stop := s.interruptible(ctx)
		defer stop()
		return c.run(s, ctx, args)
	}
	return fmt.Errorf("unknown command .%s; .help lists the commands", name)
}

// fields cuts a line into words; a word in quotes may hold blanks.
func fields(line string) ([]string, error) {
	var words []string
	for line = strings.TrimSpace(line); line != ""; line = strings.TrimLeft(line, " \t") {
		if q := line[0]; q == '\'' || q == '"' {
			word, rest, ok := strings.Cut(line[1:], string(q))
			if !ok {
				return nil, fmt.Errorf("read command: no closing %c", q)
			}
			words, line = append(words, word), rest
			continue
		}
		end := strings.IndexAny(line, " \t")
		if end < 0 {
			end = len(line)
		}
		words, line = append(words, line[:end]), line[end:]
	}
	return words, nil
}

func (s *shell) help(context.Context, []string) error {
	for _, c := range commands() {
		fmt.Fprintf(s.out, "%-48s %s\n", "."+c.name+" "+c.args, c.help)
	}
	_, err := fmt.Fprintln(s.out, "A statement may have several lines and ends with a semicolon. Ctrl-C stops one that runs.")
	return err
}

func (s *shell) setMode(_ context.Context, args []string) error {
	if len(args) == 0 {
		_, err := fmt.Fprintln(s.out, s.mode)
		return err
	}
	if !contains(modes, args[0]) {
		return fmt.Errorf(".mode %q: want one of %s", args[0], strings.Join(modes, ", "))
	}
	s.mode = args[0]
	return nil
}

func (s *shell) setHeaders(_ context.Context, args []string) error {
	return onOff(".headers", args[0], &s.headers)
}

func (s *shell) setTimer(_ context.Context, args []string) error {
	return onOff(".timer", args[0], &s.timer)
}

func onOff(name, v string, to *bool) error {
	switch v {
	case "on":
		*to = true
	case "off":
		*to = false
	default:
		return fmt.Errorf("%s %q: want on or off", name, v)
	}
	return nil
}

// print prints a query of our own in the present mode.
func (s *shell) print(ctx context.Context, statement string) error {
	var p printer
	err := s.conn.query(ctx, statement,
		func(columns []string) error { p = newPrinter(s.mode, s.headers, columns, s.out); return nil },
		func(values []any) error { return p.Row(values) })
	if p != nil {
		err = errors.Join(err, p.End())
	}
	return err
}

// lines prints the first column of a query, a line each.
func (s *shell) lines(ctx context.Context, statement, end string) error {
	rows, err := s.conn.all(ctx, statement)
	if err != nil {
		return err
	}
	for _, r := range rows {
		if _, err := fmt.Fprintln(s.out, r[0]+end); err != nil {
			return err
		}
	}
	return nil
}

func (s *shell) databases(ctx context.Context, _ []string) error {
	return s.print(ctx, "SELECT name, file FROM pragma_database_list")
}

func (s *shell) tables(ctx context.Context, args []string) error {
	where := ""
	if len(args) == 1 {
		where = " AND name LIKE " + quoteText(args[0])
	}
	return s.lines(ctx, "SELECT name FROM pragma_table_list WHERE schema = 'main' AND type IN ('table', 'virtual', 'view')"+
		" AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\'"+where+" ORDER BY 1", "")
}

func (s *shell) indexes(ctx context.Context, args []string) error {
	where := ""
	if len(args) == 1 {
		where = " AND tbl_name = " + quoteText(args[0]) + " COLLATE NOCASE"
	}
	return s.lines(ctx, "SELECT name FROM sqlite_schema WHERE type = 'index'"+where+" ORDER BY 1", "")
}

func (s *shell) schema(ctx context.Context, args []string) error {
	where := ""
	if len(args) == 1 {
		name := quoteText(args[0]) + " COLLATE NOCASE"
		where = " AND (name = " + name + " OR tbl_name = " + name + ")"
	}
	return s.lines(ctx, "SELECT sql FROM sqlite_schema WHERE sql IS NOT NULL"+where+
		" ORDER BY tbl_name, CASE type WHEN 'table' THEN 0 WHEN 'view' THEN 0 WHEN 'index' THEN 1 ELSE 2 END, name", ";")
}

// status asks the VFS; a plain database has no answer to give.
func (s *shell) status(ctx context.Context, _ []string) error {
	rows, err := s.conn.all(ctx, "PRAGMA hasqlite_status")
	if err != nil {
		return err
	}
	if len(rows) == 0 {
		return errors.New(".status: the database is not replicated")
	}
	for _, r := range rows {
		if _, err := fmt.Fprintln(s.out, strings.Join(r, " ")); err != nil {
			return err
		}
	}
	return nil
}

func (s *shell) read(ctx context.Context, args []string) error {
	if s.depth == maxReadDepth {
		return fmt.Errorf(".read %s: files read each other %d deep", args[0], maxReadDepth)
	}
	f, err := os.Open(args[0])
	if err != nil {
		return fmt.Errorf(".read: %w", err)
	}
	defer f.Close()
	s.depth++
	defer func() { s.depth-- }()
	start := time.Now()
	if err := s.runReader(ctx, args[0], f); err != nil {
		return err
	}
	if s.timer {
		_, err = fmt.Fprintf(s.out, "%s: real %.3f s\n", args[0], time.Since(start).Seconds())
	}
	return err
}
