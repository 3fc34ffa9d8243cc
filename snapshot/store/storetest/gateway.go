package storetest

import (
	"bytes"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// Credentials of the gateway.
const (
	AccessKey = "test"
	SecretKey = "testsecret"
)

// Gateway is an S3 server over a directory, in a process of its own.
type Gateway struct {
	Endpoint string
	Bucket   string
	Dir      string // the bucket's objects are files in it

	t       testing.TB
	addr    string
	command *exec.Cmd
	out     *bytes.Buffer
}

// gatewayBinary builds the server, which is pinned by tools/go.mod; it stays in
// the build cache.
var gatewayBinary = sync.OnceValues(func() (string, error) {
	mod, err := exec.Command("go", "env", "GOMOD").Output()
	if err != nil {
		return "", err
	}
	tools := filepath.Join(filepath.Dir(strings.TrimSpace(string(mod))), "tools")
	cmd := exec.Command("go", "tool", "-n", "versitygw")
	cmd.Dir = tools
	var errs bytes.Buffer
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil {
		return errs.String(), err
	}
	return strings.TrimSpace(string(out)), nil
})

// StartGateway starts a server with one empty bucket on a free port, and sets
// the credentials for it in the environment of the test.
func StartGateway(t testing.TB) *Gateway {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	l.Close()
	root := t.TempDir()
	g := &Gateway{Endpoint: "http://" + addr, Bucket: "archive", Dir: filepath.Join(root, "archive"), t: t, addr: addr}
	if err := os.Mkdir(g.Dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, value := range map[string]string{
		"AWS_ACCESS_KEY_ID": AccessKey, "AWS_SECRET_ACCESS_KEY": SecretKey, "AWS_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true",
		"AWS_CONFIG_FILE": filepath.Join(root, "none"), "AWS_SHARED_CREDENTIALS_FILE": filepath.Join(root, "none"),
	} {
		t.Setenv(name, value)
	}
	t.Cleanup(g.Stop)
	g.Start()
	return g
}

// Start starts the server, on its port, and waits until it answers.
func (g *Gateway) Start() {
	g.t.Helper()
	bin, err := gatewayBinary()
	if err != nil {
		g.t.Fatalf("build versitygw: %v: %s", err, bin)
	}
	g.out = new(bytes.Buffer)
	g.command = exec.Command(bin, "--port", g.addr, "--quiet", "--health", "/health", "posix", filepath.Dir(g.Dir))
	g.command.Env = append(os.Environ(), "ROOT_ACCESS_KEY="+AccessKey, "ROOT_SECRET_KEY="+SecretKey)
	g.command.Stdout, g.command.Stderr = g.out, g.out
	if err := g.command.Start(); err != nil {
		g.t.Fatalf("start versitygw: %v", err)
	}
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(30 * time.Second)
	for {
		if resp, err := http.Get(g.Endpoint + "/health"); err == nil {
			resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				return
			}
		}
		select {
		case <-tick.C:
		case <-deadline:
			g.Stop()
			g.t.Fatalf("versitygw did not answer: %s", g.out)
		}
	}
}

// Stop kills the server. Its objects stay.
func (g *Gateway) Stop() {
	if g.command == nil {
		return
	}
	_ = g.command.Process.Kill() // an error says that it is dead
	_ = g.command.Wait()
	g.command = nil
}

// URL is that of a prefix in the bucket.
func (g *Gateway) URL(prefix string) string {
	return "s3://" + g.Bucket + "/" + prefix + "?endpoint=" + g.Endpoint
}
