package main

import (
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"text/tabwriter"
)

// Measure is one thing that is measured once in every round, or once for every repetition.
type Measure struct {
	Name   string    `json:"name"`
	Unit   string    `json:"unit"`
	Rounds []float64 `json:"rounds"`
	Median float64   `json:"median"`
}

// Row is one line of the result: a figure, most often the quotient of two medians of one run, and what it has to be.
type Row struct {
	Name  string  `json:"name"`
	Value float64 `json:"value"`
	Unit  string  `json:"unit,omitempty"`
	Want  float64 `json:"want"` // 0: only shown
	Most  bool    `json:"most"` // Want is the most; otherwise the least
	Note  string  `json:"note,omitempty"`
	// Instead says that another condition holds which counts as well.
	Instead bool `json:"instead,omitempty"`
}

// Holds reports whether the figure is what was promised.
func (r Row) Holds() bool {
	switch {
	case r.Want == 0 || r.Instead:
		return true
	case r.Most:
		return r.Value <= r.Want
	}
	return r.Value >= r.Want
}

// Report is one run.
type Report struct {
	Machine  string    `json:"machine"`
	Rounds   int       `json:"rounds"`
	Measures []Measure `json:"measures"`
	Rows     []Row     `json:"rows"`
	Skipped  []string  `json:"skipped,omitempty"` // what was not measured, and why
}

func median(v []float64) float64 {
	s := slices.Sorted(slices.Values(v))
	n := len(s)
	switch {
	case n == 0:
		return 0
	case n%2 == 1:
		return s[n/2]
	}
	return (s[n/2-1] + s[n/2]) / 2
}

// add records one round of a measure.
func (r *Report) add(name, unit string, value float64) {
	for i := range r.Measures {
		if m := &r.Measures[i]; m.Name == name {
			m.Rounds = append(m.Rounds, value)
			m.Median = median(m.Rounds)
			return
		}
	}
	r.Measures = append(r.Measures, Measure{Name: name, Unit: unit, Rounds: []float64{value}, Median: value})
}

func (r *Report) measure(name string) Measure {
	for _, m := range r.Measures {
		if m.Name == name {
			return m
		}
	}
	panic(fmt.Sprintf("nothing was measured as %q", name))
}

// ratio adds the quotient of two medians, which must be at least want.
func (r *Report) ratio(name, over, under string, want float64) {
	r.Rows = append(r.Rows, Row{Name: name, Value: r.measure(over).Median / r.measure(under).Median, Want: want})
}

// paired adds the median of the quotients of each round, which must be at least want: for what is measured one right
// after the other, on a disk whose speed changes from round to round.
func (r *Report) paired(name, over, under string, want float64) {
	o, u := r.measure(over).Rounds, r.measure(under).Rounds
	quotients := make([]float64, min(len(o), len(u)))
	for i := range quotients {
		quotients[i] = o[i] / u[i]
	}
	r.Rows = append(r.Rows, Row{Name: name, Value: median(quotients), Want: want})
}

// print writes the tables for people.
func (r *Report) print(out io.Writer) error {
	fmt.Fprintf(out, "%s, medians of %d interleaved rounds\n\n", r.Machine, r.Rounds)
	t := tabwriter.NewWriter(out, 0, 8, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, "measure\tmedian\tlowest\thighest\tunit\t")
	for _, m := range r.Measures {
		fmt.Fprintf(t, "%s\t%.4g\t%.4g\t%.4g\t%s\t\n", m.Name, m.Median, slices.Min(m.Rounds), slices.Max(m.Rounds), m.Unit)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	fmt.Fprintln(out)
	t = tabwriter.NewWriter(out, 0, 8, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, "result\tvalue\twanted\t\t")
	for _, x := range r.Rows {
		want, verdict := "", ""
		if x.Want > 0 {
			sign := "≥"
			if x.Most {
				sign = "≤"
			}
			want, verdict = fmt.Sprintf("%s %g %s", sign, x.Want, x.Unit), "holds"
			if !x.Holds() {
				verdict = "MISSED"
			}
		}
		fmt.Fprintf(t, "%s\t%.4g %s\t%s\t%s\t\n", x.Name, x.Value, x.Unit, want, verdict)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	for _, x := range r.Rows {
		if x.Note != "" {
			fmt.Fprintf(out, "%s: %s\n", x.Name, x.Note)
		}
	}
	for _, s := range r.Skipped {
		fmt.Fprintln(out, "not measured:", s)
	}
	return nil
}

func (r *Report) writeJSON(out io.Writer) error {
	enc := json.NewEncoder(out)
	enc.SetIndent("", "  ")
	return enc.Encode(r)
}
