package shell

import (
	"bufio"
	"fmt"
	"strings"

	"github.com/chzyer/readline"
)

// tableRows is how many rows the table mode looks at to find the widths; a
// longer result is printed in pieces of that many.
const tableRows = 2000

// modes are the output modes, in the order of the help.
var modes = []string{"table", "list", "csv", "json", "line"}

// printer writes one result. Row takes the values of one row; End writes what
// is left. Without a row, nothing is written.
type printer interface {
	Row(values []any) error
	End() error
}

func newPrinter(mode string, headers bool, columns []string, out *bufio.Writer) printer {
	switch mode {
	case "table":
		return &tablePrinter{out: out, headers: headers, columns: columns}
	case "csv":
		return &separated{out: out, columns: headerLine(headers, columns), sep: ",", end: "\r\n", field: csvText}
	case "json":
		return &jsonPrinter{out: out, columns: columns}
	case "line":
		return newLinePrinter(out, columns)
	}
	return &separated{out: out, columns: headerLine(headers, columns), sep: "|", end: "\n", field: func(s string) string { return s }}
}

func headerLine(headers bool, columns []string) []string {
	if headers {
		return columns
	}
	return nil
}

// separated writes one line a row, its fields apart by sep.
type separated struct {
	out     *bufio.Writer
	columns []string // written before the first row, then nil
	sep     string
	end     string
	field   func(string) string
}

func (p *separated) Row(values []any) error {
	if p.columns != nil {
		fields := make([]string, len(p.columns))
		for i, c := range p.columns {
			fields[i] = p.field(c)
		}
		p.columns = nil
		if _, err := p.out.WriteString(strings.Join(fields, p.sep) + p.end); err != nil {
			return err
		}
	}
	for i, v := range values {
		if i > 0 {
			p.out.WriteString(p.sep)
		}
		p.out.WriteString(p.field(text(v, "")))
	}
	_, err := p.out.WriteString(p.end)
	return err
}

func (p *separated) End() error { return nil }

// jsonPrinter writes an array of objects, a row each.
type jsonPrinter struct {
	out     *bufio.Writer
	columns []string
	rows    int
}

func (p *jsonPrinter) Row(values []any) error {
	start := ",\n{"
	if p.rows == 0 {
		start = "[{"
	}
	p.rows++
	p.out.WriteString(start)
	for i, v := range values {
		if i > 0 {
			p.out.WriteByte(',')
		}
		p.out.Write(jsonText(p.columns[i]))
		p.out.WriteByte(':')
		p.out.Write(jsonText(v))
	}
	return p.out.WriteByte('}')
}

func (p *jsonPrinter) End() error {
	if p.rows == 0 {
		return nil
	}
	_, err := p.out.WriteString("]\n")
	return err
}

// linePrinter writes one line a value.
type linePrinter struct {
	out     *bufio.Writer
	columns []string
	width   int
	rows    int
}

func newLinePrinter(out *bufio.Writer, columns []string) *linePrinter {
	p := &linePrinter{out: out, columns: make([]string, len(columns))}
	for i, c := range columns {
		p.columns[i] = printable(c)
		p.width = max(p.width, width(p.columns[i]))
	}
	return p
}

func (p *linePrinter) Row(values []any) error {
	if p.rows++; p.rows > 1 {
		p.out.WriteByte('\n')
	}
	var err error
	for i, v := range values {
		name := p.columns[i]
		_, err = fmt.Fprintf(p.out, "%s%s = %s\n", strings.Repeat(" ", p.width-width(name)), name, printable(text(v, "NULL")))
	}
	return err
}

func (p *linePrinter) End() error { return nil }

// tablePrinter writes rows in a frame.
type tablePrinter struct {
	out     *bufio.Writer
	headers bool
	columns []string
	rows    [][]string
	numbers [][]bool // which fields are numbers, and go to the right
}

func (p *tablePrinter) Row(values []any) error {
	row, numbers := make([]string, len(values)), make([]bool, len(values))
	for i, v := range values {
		row[i] = printable(text(v, "NULL"))
		switch v.(type) {
		case int64, float64:
			numbers[i] = true
		}
	}
	p.rows, p.numbers = append(p.rows, row), append(p.numbers, numbers)
	if len(p.rows) < tableRows {
		return nil
	}
	return p.End()
}

func (p *tablePrinter) End() error {
	if len(p.rows) == 0 {
		return nil
	}
	widths, names := make([]int, len(p.columns)), make([]string, len(p.columns))
	for i, c := range p.columns {
		if names[i] = printable(c); p.headers {
			widths[i] = width(names[i])
		}
		for _, row := range p.rows {
			widths[i] = max(widths[i], width(row[i]))
		}
	}
	var rule strings.Builder
	for _, w := range widths {
		rule.WriteString("+" + strings.Repeat("-", w+2))
	}
	rule.WriteString("+\n")
	p.out.WriteString(rule.String())
	if p.headers {
		p.line(names, nil, widths)
		p.out.WriteString(rule.String())
	}
	for i, row := range p.rows {
		p.line(row, p.numbers[i], widths)
	}
	p.rows, p.numbers = nil, nil
	_, err := p.out.WriteString(rule.String())
	return err
}

func (p *tablePrinter) line(fields []string, numbers []bool, widths []int) {
	for i, f := range fields {
		pad := strings.Repeat(" ", widths[i]-width(f))
		if numbers != nil && numbers[i] {
			f, pad = pad+f, ""
		}
		p.out.WriteString("| " + f + pad + " ")
	}
	p.out.WriteString("|\n")
}

// width is the number of cells that s takes on a terminal.
func width(s string) int { return readline.Runes{}.WidthAll([]rune(s)) }

// flush writes out what is buffered. bufio keeps the first error of any write
// before, so that the printers need not look at each.
func flush(out *bufio.Writer) error {
	if err := out.Flush(); err != nil {
		return fmt.Errorf("write output: %w", err)
	}
	return nil
}
