package link

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"sync"
	"syscall"
	"time"
)

// Errors of Listen.
var (
	// ErrInUse: a live process answers on the socket. Start with another one,
	// or stop that process.
	ErrInUse = errors.New("another process answers on this socket")
	// ErrNotSocket: the path is taken by something that is no socket. It is
	// never removed.
	ErrNotSocket = errors.New("the path exists and is not a socket")
	// ErrPathTooLong: the path does not fit into a socket address.
	ErrPathTooLong = errors.New("socket path is too long")
)

// maxSocketPath is what fits into sun_path with its end mark, with room for the
// suffix under which the socket is prepared.
const maxSocketPath = 107 - len(newSuffix)

const newSuffix = ".new"

// Listen opens the transport on which the shim finds the node: a unix socket
// with the given mode and, when gid is not negative, group. A socket on which a
// live process answers is refused, a dead one is replaced. The socket appears
// under its name with its mode already set.
func Listen(path string, mode os.FileMode, gid int) (net.Listener, error) {
	if len(path) > maxSocketPath {
		return nil, fmt.Errorf("listen on %s: %d bytes, limit %d: %w", path, len(path), maxSocketPath, ErrPathTooLong)
	}
	if err := checkFree(path); err != nil {
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	fresh := path + newSuffix
	if err := os.Remove(fresh); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("remove old socket: %w", err)
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: fresh, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	l.SetUnlinkOnClose(false)
	if err := publish(fresh, path, mode, gid); err != nil {
		_ = l.Close()
		_ = os.Remove(fresh)
		return nil, err
	}
	return &listener{UnixListener: l, path: path}, nil
}

// checkFree tells why path cannot be taken, if so.
func checkFree(path string) error {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if info.Mode()&os.ModeSocket == 0 {
		return ErrNotSocket
	}
	c, err := net.DialTimeout("unix", path, time.Second)
	if err == nil {
		_ = c.Close()
		return ErrInUse
	}
	if errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, fs.ErrNotExist) {
		return nil // its process is gone
	}
	return fmt.Errorf("%w: %w", ErrInUse, err) // a full backlog, or not ours to ask
}

// publish sets owner and mode of the prepared socket and gives it its name.
func publish(fresh, path string, mode os.FileMode, gid int) error {
	if gid >= 0 {
		if err := os.Chown(fresh, -1, gid); err != nil {
			return fmt.Errorf("change group of socket: %w", err)
		}
	}
	if err := os.Chmod(fresh, mode); err != nil {
		return fmt.Errorf("change mode of socket: %w", err)
	}
	if err := os.Rename(fresh, path); err != nil {
		return fmt.Errorf("publish socket: %w", err)
	}
	return nil
}

// listener removes its socket when it closes.
type listener struct {
	*net.UnixListener
	path string
	once sync.Once
}

// Addr returns the published path.
func (l *listener) Addr() net.Addr { return &net.UnixAddr{Name: l.path, Net: "unix"} }

// Close stops listening and removes the socket.
func (l *listener) Close() error {
	err := l.UnixListener.Close()
	l.once.Do(func() { _ = os.Remove(l.path) })
	return err
}
