package replicate

import (
	"testing"
	"time"
)

func TestPressureCountsFreshReportsOnly(t *testing.T) {
	var p pressure
	now := time.Unix(100, 0)
	a, b := DatabaseID{1}, DatabaseID{2}
	p.report("n1", []DatabaseID{a, b}, now.Add(time.Second))
	p.report("n2", []DatabaseID{a}, now.Add(2*time.Second))
	for _, tc := range []struct {
		at   time.Duration
		id   DatabaseID
		want int
	}{{0, a, 2}, {0, b, 1}, {time.Second, a, 1}, {time.Second, b, 0}, {2 * time.Second, a, 0}} {
		if got := p.count(tc.id, now.Add(tc.at)); got != tc.want {
			t.Errorf("%v late with %s after %v, want %d", got, tc.id, tc.at, tc.want)
		}
	}
	p.report("n2", nil, now)
	if got := p.count(a, now); got != 1 {
		t.Errorf("%d late after n2 has caught up, want 1", got)
	}
}
