package main

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// slack reads by how many nanoseconds the sleeps of a thread of this process may be late.
func slack(t *testing.T, thread int) int {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/timerslack_ns", thread))
	if err != nil {
		t.Fatal(err)
	}
	n, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// The runtime's monitor is the first thread that it starts. Reading the setting of another thread than one's own takes
// CAP_SYS_NICE.
func TestTheMonitorIsPatientAndTheMainThreadIsNot(t *testing.T) {
	entries, err := os.ReadDir("/proc/self/task")
	if err != nil {
		t.Fatal(err)
	}
	var threads []int
	for _, e := range entries {
		id, err := strconv.Atoi(e.Name())
		if err != nil {
			t.Fatal(err)
		}
		threads = append(threads, id)
	}
	slices.Sort(threads)
	if len(threads) < 2 || threads[0] != os.Getpid() {
		t.Fatalf("threads %v of process %d", threads, os.Getpid())
	}
	if _, err := os.ReadFile(fmt.Sprintf("/proc/%d/timerslack_ns", threads[1])); errors.Is(err, os.ErrPermission) {
		t.Log("THE MONITOR IS NOT LOOKED AT: this user may not")
		return
	}
	if got := slack(t, threads[0]); got >= monitorSlack {
		t.Errorf("sleeps of the main thread may be %d ns late", got)
	}
	if got := slack(t, threads[1]); got != monitorSlack {
		t.Errorf("sleeps of the monitor may be %d ns late, want %d", got, monitorSlack)
	}
}
