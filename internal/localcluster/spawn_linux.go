package localcluster

import (
	"os/exec"
	"runtime"
	"sync"
	"syscall"
)

// spawner starts every child from one thread that lives as long as this process. The kernel delivers the parent death
// signal when the *thread* that forked ends, and Go ends threads as it likes.
var spawner = sync.OnceValue(func() chan<- func() {
	calls := make(chan func())
	go func() {
		runtime.LockOSThread()
		for call := range calls {
			call()
		}
	}()
	return calls
})

// spawn starts cmd so that it is killed when this process dies, however it dies.
func spawn(cmd *exec.Cmd) error {
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	done := make(chan error, 1)
	spawner() <- func() { done <- cmd.Start() }
	return <-done
}
