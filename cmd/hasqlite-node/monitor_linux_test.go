package main

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
)

// The runtime's monitor has the slack, and threads that it starts; the main thread has not. Reading it of another thread than
// one's own takes CAP_SYS_NICE.
func TestTheMonitorIsPatientAndTheMainThreadIsNot(t *testing.T) {
	entries, err := os.ReadDir("/proc/self/task")
	if err != nil {
		t.Fatal(err)
	}
	patient := 0
	for _, e := range entries {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%s/timerslack_ns", e.Name()))
		if errors.Is(err, os.ErrPermission) {
			t.Log("THE MONITOR IS NOT LOOKED AT: this user may not")
			return
		}
		if errors.Is(err, os.ErrNotExist) {
			continue // the thread has ended
		}
		if err != nil {
			t.Fatal(err)
		}
		slack, err := strconv.Atoi(strings.TrimSpace(string(b)))
		if err != nil {
			t.Fatal(err)
		}
		switch main := e.Name() == strconv.Itoa(os.Getpid()); {
		case main && slack >= monitorSlack:
			t.Errorf("sleeps of the main thread may be %d ns late", slack)
		case !main && slack == monitorSlack:
			patient++
		}
	}
	if patient == 0 {
		t.Errorf("none of %d threads has a slack of %d ns", len(entries), monitorSlack)
	}
}
