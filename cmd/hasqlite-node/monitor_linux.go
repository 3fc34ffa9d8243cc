package main

/*
#include <sys/prctl.h>

// Nanoseconds by which sleeps of the thread that Go's runtime starts first may be late.
enum { monitor_slack = 1000000 };

// It runs before Go does. Threads inherit the setting from the one that starts them.
__attribute__((constructor)) static void patient_monitor(void) { prctl(PR_SET_TIMERSLACK, (unsigned long)monitor_slack, 0, 0, 0); }
*/
import "C"

import "golang.org/x/sys/unix"

const monitorSlack = C.monitor_slack

// Go's monitor thread looks every 20 µs, while anything runs, for threads that a system call keeps, and gives their
// processor to another thread: two switches of threads for each sync of the log, and a timer's interrupt every 20 µs. While its
// log is synced a node does little that does not wait for that sync as well. See decision 033.
//
// The runtime runs this on the main thread, whose own sleeps are as exact again as they were.
func init() { _ = unix.Prctl(unix.PR_SET_TIMERSLACK, 0, 0, 0, 0) }
