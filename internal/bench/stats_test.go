package main

import (
	"encoding/json"
	"os"
	"reflect"
	"strings"
	"testing"
	"time"
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

func TestPairedComparesWhatWasMeasuredInTheSameRound(t *testing.T) {
	var r Report
	for i, disk := range []float64{1, 1, 4, 4, 2} { // times as fast
		r.add("with", "1/s", []float64{9, 10, 9, 2, 9}[i]*disk)
		r.add("without", "1/s", 10*disk)
	}
	r.paired("with / without", "with", "without", 0.9)
	if row := r.Rows[0]; row.Value != 0.9 || !row.Holds() {
		t.Errorf("got %+v", row)
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
	r.Rows = append(r.Rows,
		Row{Name: "too long", Value: 1.5, Unit: "s", Want: 1, Most: true},
		Row{Name: "short", Value: 0.5, Unit: "s", Want: 1, Most: true},
		Row{Name: "less, but otherwise good", Value: 3, Want: 4, Instead: true, Note: "all processors busy"})
	r.Skipped = []string{"the rest"}
	if r.Rows[0].Holds() || !r.Rows[1].Holds() || r.Rows[0].Value != 0.5 {
		t.Errorf("rows: %+v", r.Rows)
	}
	var out strings.Builder
	if err := r.print(&out); err != nil {
		t.Fatal(err)
	}
	for text, want := range map[string]int{"MISSED": 2, "holds": 3, "≤ 1 s": 2, "all processors busy": 1, "not measured: the rest": 1} {
		if got := strings.Count(out.String(), text); got != want {
			t.Errorf("%q is there %d times, want %d:\n%s", text, got, want, out.String())
		}
	}
	out.Reset()
	if err := r.writeJSON(&out); err != nil {
		t.Fatal(err)
	}
	var back Report
	if err := json.Unmarshal([]byte(out.String()), &back); err != nil || !reflect.DeepEqual(back, r) {
		t.Errorf("read back: %v\n%+v\n%+v", err, back, r)
	}
}

func TestCPUTimesAreRead(t *testing.T) {
	before, err := cpuTime(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	busy, total, err := machineCPU()
	if err != nil || busy <= 0 || total < busy {
		t.Fatalf("machine: %v of %v, %v", busy, total, err)
	}
	for begun := time.Now(); ; {
		now, err := cpuTime(os.Getpid())
		if err != nil {
			t.Fatal(err)
		}
		if now > before {
			break
		}
		if time.Since(begun) > 10*time.Second {
			t.Fatal("the time stands still")
		}
	}
	if n, err := resident(os.Getpid()); err != nil || n < 1<<20 {
		t.Errorf("memory %d, %v", n, err)
	}
	if _, err := cpuTime(-1); err == nil {
		t.Error("a process that is not has CPU time")
	}
}
