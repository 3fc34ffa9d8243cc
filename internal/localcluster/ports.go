package localcluster

import (
	"fmt"
	"math/rand/v2"
	"net"
	"strconv"
	"sync"
)

// Ports are taken below the range that Linux and the BSDs hand out for outgoing connections, so that a node that is
// down does not find its port taken by a connection of its neighbours when it comes back.
const (
	firstPort = 15000
	lastPort  = 31999
)

// ports remembers what this process handed out: a port is free for the kernel until its node listens on it.
var ports struct {
	sync.Mutex
	taken map[int]bool
}

// FreeAddr returns a loopback address on which nothing listens now, and which it returns once in a process.
func FreeAddr() (string, error) {
	ports.Lock()
	defer ports.Unlock()
	if ports.taken == nil {
		ports.taken = make(map[int]bool)
	}
	var last error
	for range 1000 {
		port := firstPort + rand.IntN(lastPort-firstPort+1)
		if ports.taken[port] {
			continue
		}
		addr := net.JoinHostPort("127.0.0.1", strconv.Itoa(port))
		l, err := net.Listen("tcp", addr)
		if err != nil {
			last = err
			continue
		}
		if err := l.Close(); err != nil {
			return "", fmt.Errorf("release port %d: %w", port, err)
		}
		ports.taken[port] = true
		return addr, nil
	}
	return "", fmt.Errorf("find a free port from %d to %d: %w", firstPort, lastPort, last)
}
