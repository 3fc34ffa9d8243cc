package main

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"unicode"
)

// printJSON prints v for programs.
func (c *cli) printJSON(v any) error { return writeJSON(c.out, v) }

func writeJSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	if err := enc.Encode(v); err != nil {
		return fmt.Errorf("print answer: %w", err)
	}
	return nil
}

// result is what a command without an answer prints with --json.
type result struct {
	Done string `json:"done"`
}

// printDone says what was done.
func (c *cli) printDone(format string, args ...any) error {
	text := fmt.Sprintf(format, args...)
	if c.json {
		return c.printJSON(result{text})
	}
	if _, err := fmt.Fprintln(c.out, text); err != nil {
		return fmt.Errorf("print answer: %w", err)
	}
	return nil
}

// printTable prints rows in columns; the first row has their names.
func (c *cli) printTable(rows [][]string) error {
	w := tabwriter.NewWriter(c.out, 0, 0, 2, ' ', 0)
	for _, row := range rows {
		for i := range row {
			row[i] = clean(row[i])
		}
		fmt.Fprintln(w, strings.TrimRight(strings.Join(row, "\t"), "\t"))
	}
	if err := w.Flush(); err != nil {
		return fmt.Errorf("print answer: %w", err)
	}
	return nil
}

// printFields prints one line a pair.
func (c *cli) printFields(pairs [][2]string) error {
	rows := make([][]string, len(pairs))
	for i, p := range pairs {
		rows[i] = []string{p[0] + ":", p[1]}
	}
	return c.printTable(rows)
}

// clean keeps control characters of an answer off the terminal.
func clean(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return ' '
		}
		return r
	}, s)
}

// dash stands for what there is not.
func dash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

func yesNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

// bytesText writes a size for people.
func bytesText(n int64) string {
	const unit = 1024
	if n < unit {
		return fmt.Sprintf("%d B", n)
	}
	f, i := float64(n)/unit, 0
	for f >= unit && i < len("KMGTPE")-1 {
		f /= unit
		i++
	}
	return fmt.Sprintf("%.1f %ciB", f, "KMGTPE"[i])
}
