//go:build unix

package link

import (
	"net"
	"syscall"

	"golang.org/x/sys/unix"
)

// endOfFile waits until there is something to read, takes nothing of it, and
// reports whether it is the end. A read deadline ends the wait.
func endOfFile(c net.Conn) (eof bool) {
	sc, ok := c.(syscall.Conn)
	if !ok {
		return false
	}
	rc, err := sc.SyscallConn()
	if err != nil {
		return false
	}
	_ = rc.Read(func(fd uintptr) bool {
		var b [1]byte
		n, _, err := unix.Recvfrom(int(fd), b[:], unix.MSG_PEEK|unix.MSG_DONTWAIT)
		if err == unix.EAGAIN || err == unix.EINTR {
			return false
		}
		eof = err != nil || n == 0
		return true
	})
	return eof
}
