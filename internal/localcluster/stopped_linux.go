package localcluster

import "syscall"

// Of waitid(2), which package syscall has the number of and no more.
const (
	idPID   = 1         // P_PID
	stopped = 2         // WSTOPPED
	noWait  = 0x1000000 // WNOWAIT
)

// waitStopped returns when a child that was sent SIGSTOP has stopped: the signal is on its way for a moment, in
// which the process still answers. It takes nothing from the one who waits for the child's end.
func waitStopped(pid int) {
	for {
		_, _, errno := syscall.Syscall6(syscall.SYS_WAITID, idPID, uintptr(pid), 0, stopped|noWait, 0, 0)
		if errno != syscall.EINTR {
			return // stopped, or gone
		}
	}
}
