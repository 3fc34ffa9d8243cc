package link

import (
	"net"
	"os"

	"golang.org/x/sys/unix"
)

// peerPID asks the kernel which process connected, 0 when it cannot tell.
func peerPID(c net.Conn) int {
	pid := 0
	control(c, func(fd int) {
		if cred, err := unix.GetsockoptUcred(fd, unix.SOL_SOCKET, unix.SO_PEERCRED); err == nil {
			pid = int(cred.Pid)
		}
	})
	return pid
}

// watchExit calls gone once when the process that connected ends, even while a
// forked child keeps its socket open. stop ends the watch.
func watchExit(c net.Conn, pid int, gone func()) (stop func()) {
	f := openPidfd(c, pid)
	if f == nil {
		return func() {} // end of file on the socket is all there is
	}
	rc, err := f.SyscallConn()
	if err != nil {
		_ = f.Close()
		return func() {}
	}
	go func() {
		exited := false
		_ = rc.Read(func(fd uintptr) bool {
			p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
			n, err := unix.Poll(p, 0)
			exited = n > 0
			return exited || (err != nil && err != unix.EINTR)
		})
		if exited {
			gone()
		}
	}()
	return func() { _ = f.Close() }
}

// openPidfd returns a descriptor of the peer process, nil where the kernel
// gives none. The socket option has no race with reused pids; pidfd_open serves
// kernels before 6.5.
func openPidfd(c net.Conn, pid int) *os.File {
	fd := -1
	control(c, func(sock int) {
		if v, err := unix.GetsockoptInt(sock, unix.SOL_SOCKET, unix.SO_PEERPIDFD); err == nil {
			fd = v
		}
	})
	if fd < 0 && pid > 0 {
		if v, err := unix.PidfdOpen(pid, 0); err == nil {
			fd = v
		}
	}
	if fd < 0 {
		return nil
	}
	unix.CloseOnExec(fd)
	if err := unix.SetNonblock(fd, true); err != nil {
		_ = unix.Close(fd)
		return nil
	}
	return os.NewFile(uintptr(fd), "pidfd")
}

func control(c net.Conn, f func(fd int)) {
	uc, ok := c.(*net.UnixConn)
	if !ok {
		return
	}
	rc, err := uc.SyscallConn()
	if err != nil {
		return
	}
	_ = rc.Control(func(fd uintptr) { f(int(fd)) })
}
