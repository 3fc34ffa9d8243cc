package storetest

import (
	"bytes"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

// Credentials of the gateway.
const (
	AccessKey = "test"
	SecretKey = "testsecret"
)

// Server is an S3 server over a directory, in a process of its own.
type Server struct {
	Endpoint string
	Bucket   string
	Dir      string // the bucket's objects are files in it

	addr    string
	command *exec.Cmd
	out     *bytes.Buffer
}

// NewServer makes a server with one empty bucket below root, on a free port.
func NewServer(root string) (*Server, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	addr := l.Addr().String()
	if err := l.Close(); err != nil {
		return nil, err
	}
	s := &Server{Endpoint: "http://" + addr, Bucket: "archive", Dir: filepath.Join(root, "archive"), addr: addr}
	return s, os.MkdirAll(s.Dir, 0o755)
}

// Environment is what a client of the server needs; root has no file of that
// name.
func Environment(root string) map[string]string {
	none := filepath.Join(root, "none")
	return map[string]string{
		"AWS_ACCESS_KEY_ID": AccessKey, "AWS_SECRET_ACCESS_KEY": SecretKey, "AWS_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true",
		"AWS_CONFIG_FILE": none, "AWS_SHARED_CREDENTIALS_FILE": none,
	}
}

// Launch starts the server, on its port, and waits until it answers.
func (s *Server) Launch() error {
	bin, err := gatewayBinary()
	if err != nil {
		return err
	}
	s.out = new(bytes.Buffer)
	s.command = exec.Command(bin, "--port", s.addr, "--quiet", "--health", "/health", "posix", filepath.Dir(s.Dir))
	s.command.Env = append(os.Environ(), "ROOT_ACCESS_KEY="+AccessKey, "ROOT_SECRET_KEY="+SecretKey)
	s.command.Stdout, s.command.Stderr = s.out, s.out
	if err := s.command.Start(); err != nil {
		return fmt.Errorf("start versitygw: %w", err)
	}
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(30 * time.Second)
	for {
		if resp, err := http.Get(s.Endpoint + "/health"); err == nil {
			resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				return nil
			}
		}
		select {
		case <-tick.C:
		case <-deadline:
			s.Stop()
			return fmt.Errorf("versitygw did not answer: %s", s.out)
		}
	}
}

// Stop kills the server. Its objects stay.
func (s *Server) Stop() {
	if s.command == nil {
		return
	}
	_ = s.command.Process.Kill() // an error says that it is dead
	_ = s.command.Wait()
	s.command = nil
}

// Process is that of the server, nil while it does not run.
func (s *Server) Process() *os.Process {
	if s.command == nil {
		return nil
	}
	return s.command.Process
}

// URL is that of a prefix in the bucket.
func (s *Server) URL(prefix string) string { return s.URLAt(s.Endpoint, prefix) }

// URLAt is URL through another endpoint, a Proxy's.
func (s *Server) URLAt(endpoint, prefix string) string {
	return "s3://" + s.Bucket + "/" + prefix + "?endpoint=" + endpoint
}

// Gateway is a Server of a test.
type Gateway struct {
	*Server
	t testing.TB
}

// StartGateway starts a server with one empty bucket on a free port, and sets
// the credentials for it in the environment of the test.
func StartGateway(t testing.TB) *Gateway {
	t.Helper()
	return StartGatewayIn(t, t.TempDir())
}

// StartGatewayIn is StartGateway with the bucket below root.
func StartGatewayIn(t testing.TB, root string) *Gateway {
	t.Helper()
	s, err := NewServer(root)
	if err != nil {
		t.Fatal(err)
	}
	g := &Gateway{s, t}
	for name, value := range Environment(root) {
		t.Setenv(name, value)
	}
	t.Cleanup(g.Stop)
	g.Start()
	return g
}

// Start starts the server, on its port, and waits until it answers.
func (g *Gateway) Start() {
	g.t.Helper()
	if err := g.Launch(); err != nil {
		g.t.Fatal(err)
	}
}
