package main

import (
	"bytes"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/uglyer/ha-sqlite/internal/api"
)

// A step whose length is known has a bar, one whose length is not says how long it takes, by itself; when it is over
// nothing is left on the line.
func TestProgressOfStepsWithAndWithoutAnEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		p := newProgress(&out, "import")
		said := func() string {
			synctest.Wait()
			p.mu.Lock()
			defer p.mu.Unlock()
			s := out.String()
			out.Reset()
			return s
		}
		<-time.After(2*time.Second + time.Millisecond)
		if got := said(); !strings.Contains(got, "import, 1s") || !strings.HasSuffix(strings.TrimRight(got, " "), "import, 2s") {
			t.Errorf("%q", got)
		}
		p.told(api.Progress{Step: "send", Done: 512, Total: 1024})
		<-time.After(3 * time.Second)
		if got := said(); strings.Count(got, "\r") != 1 || !strings.Contains(got, "send [===============               ] 512 B of 1.0 KiB") {
			t.Errorf("%q", got)
		}
		p.told(api.Progress{Step: "check"})
		<-time.After(90 * time.Second)
		if got := said(); !strings.Contains(got, "check, 0s") || !strings.Contains(got, "check, 1m29s") {
			t.Errorf("%q", got)
		}
		p.done()
		if got := said(); strings.Trim(got, "\r ") != "" || got == "" {
			t.Errorf("%q", got)
		}
		p.done()
		p.step("late", 0, 0)
		<-time.After(5 * time.Second)
		if got := said(); got != "" {
			t.Errorf("%q", got)
		}
	})
}
