package main

import (
	"strings"
	"testing"
)

func TestMedians(t *testing.T) {
	for name, row := range map[string]struct {
		in   []float64
		want float64
	}{
		"nothing":         {nil, 0},
		"one":             {[]float64{3}, 3},
		"odd, mixed":      {[]float64{9, 1, 5}, 5},
		"even":            {[]float64{4, 1, 3, 2}, 2.5},
		"with an outlier": {[]float64{1, 1, 1, 1, 1000}, 1},
	} {
		t.Run(name, func(t *testing.T) {
			if got := median(row.in); got != row.want {
				t.Errorf("got %v, want %v", got, row.want)
			}
		})
	}
}

func TestReportSaysWhatWasMissed(t *testing.T) {
	r := Report{Rounds: 3}
	for _, v := range []float64{10, 30, 20} {
		r.add("a", "1/s", v)
		r.add("b", "1/s", 2*v)
	}
	r.ratio("a over b", "a", "b", 0.6)
	r.ratio("b over a", "b", "a", 2)
	r.ratio("shown only", "b", "a", 0)
	if r.Ratios[0].Holds() || !r.Ratios[1].Holds() || r.Ratios[0].Value != 0.5 {
		t.Errorf("ratios: %+v", r.Ratios)
	}
	var out strings.Builder
	if err := r.print(&out); err != nil {
		t.Fatal(err)
	}
	if got := out.String(); strings.Count(got, "MISSED") != 1 || strings.Count(got, "holds") != 1 {
		t.Errorf("table:\n%s", got)
	}
}
