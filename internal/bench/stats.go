package main

import (
	"fmt"
	"io"
	"slices"
	"text/tabwriter"
)

// Measure is one thing that is measured once in every round.
type Measure struct {
	Name   string    `json:"name"`
	Unit   string    `json:"unit"`
	Rounds []float64 `json:"rounds"`
	Median float64   `json:"median"`
}

// Ratio compares the medians of two measures of one run.
type Ratio struct {
	Name  string  `json:"name"`
	Value float64 `json:"value"`
	Want  float64 `json:"want"` // at least; 0 for a ratio that is only shown
}

// Holds reports whether the ratio is what was promised.
func (r Ratio) Holds() bool { return r.Value >= r.Want }

// Report is one run.
type Report struct {
	Machine  string    `json:"machine"`
	Rounds   int       `json:"rounds"`
	Measures []Measure `json:"measures"`
	Ratios   []Ratio   `json:"ratios"`
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

func (r *Report) median(name string) float64 {
	for _, m := range r.Measures {
		if m.Name == name {
			return m.Median
		}
	}
	panic(fmt.Sprintf("nothing was measured as %q", name))
}

// ratio adds the quotient of two medians.
func (r *Report) ratio(name, over, under string, want float64) {
	r.Ratios = append(r.Ratios, Ratio{Name: name, Value: r.median(over) / r.median(under), Want: want})
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
	fmt.Fprintln(t, "ratio\tvalue\twanted\t\t")
	for _, x := range r.Ratios {
		want, verdict := "", ""
		if x.Want > 0 {
			want, verdict = fmt.Sprintf("≥ %.2f", x.Want), "holds"
			if !x.Holds() {
				verdict = "MISSED"
			}
		}
		fmt.Fprintf(t, "%s\t%.3f\t%s\t%s\t\n", x.Name, x.Value, want, verdict)
	}
	return t.Flush()
}
