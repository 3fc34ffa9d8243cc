package main

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/uglyer/ha-sqlite/internal/localcluster"
)

// ticksPerSecond is the unit of CPU times in /proc, the same on every Linux that Go runs on.
const ticksPerSecond = 100

// cpuTime is the CPU time that a process has used.
func cpuTime(pid int) (time.Duration, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, fmt.Errorf("read CPU time: %w", err)
	}
	// The name in brackets may hold anything; what follows it starts with field 3.
	f := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))
	if len(f) < 13 {
		return 0, fmt.Errorf("read CPU time: /proc/%d/stat has %d fields", pid, len(f))
	}
	user, err1 := strconv.ParseInt(f[11], 10, 64)
	system, err2 := strconv.ParseInt(f[12], 10, 64)
	if err1 != nil || err2 != nil {
		return 0, fmt.Errorf("read CPU time: /proc/%d/stat has %q and %q", pid, f[11], f[12])
	}
	return time.Duration(user+system) * time.Second / ticksPerSecond, nil
}

// clusterCPU is the CPU time of all nodes and of this process, the application.
func clusterCPU(c *localcluster.Cluster) (time.Duration, error) {
	sum, err := cpuTime(os.Getpid())
	if err != nil {
		return 0, err
	}
	for _, n := range c.Nodes() {
		one, err := cpuTime(n.Process().PID())
		if err != nil {
			return 0, err
		}
		sum += one
	}
	return sum, nil
}

// machineCPU is how long all processors together were busy, and how long they were there, since boot.
func machineCPU() (busy, total time.Duration, err error) {
	b, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, 0, fmt.Errorf("read the machine's CPU time: %w", err)
	}
	line, _, _ := strings.Cut(string(b), "\n")
	f := strings.Fields(line)
	if len(f) < 9 || f[0] != "cpu" {
		return 0, 0, fmt.Errorf("read the machine's CPU time: %q", line)
	}
	for i, text := range f[1:9] { // user nice system idle iowait irq softirq steal
		v, err := strconv.ParseInt(text, 10, 64)
		if err != nil {
			return 0, 0, fmt.Errorf("read the machine's CPU time: %w", err)
		}
		d := time.Duration(v) * time.Second / ticksPerSecond
		total += d
		if i != 3 && i != 4 {
			busy += d
		}
	}
	return busy, total, nil
}

// resident is the resident memory of a process, in bytes.
func resident(pid int) (int64, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, fmt.Errorf("read memory: %w", err)
	}
	for line := range strings.Lines(string(b)) {
		if rest, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			kib, err := strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
			if err != nil {
				return 0, fmt.Errorf("read memory: %w", err)
			}
			return kib << 10, nil
		}
	}
	return 0, fmt.Errorf("read memory: /proc/%d/status has no VmRSS", pid)
}
