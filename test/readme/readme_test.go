package readme

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"
)

const root = "../.."

// notRun are the commands that this test does not run, and why.
var notRun = map[string]string{
	"make test": "it runs this test",
}

var fence = regexp.MustCompile("(?ms)^```(sh|go)\n(.*?)^```$")

// blocks returns the code of one language, in order.
func blocks(t *testing.T, language string) []string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(root, "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	var list []string
	for _, m := range fence.FindAllStringSubmatch(string(b), -1) {
		if m[1] == language {
			list = append(list, m[2])
		}
	}
	return list
}

func TestEveryCommandOfTheReadmeRuns(t *testing.T) {
	dir, err := filepath.Abs(root)
	if err != nil {
		t.Fatal(err)
	}
	work := filepath.Join(dir, "build", "readme")
	if err := os.RemoveAll(work); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(work, 0o755); err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(work)
	programs := blocks(t, "go")
	if len(programs) != 1 {
		t.Fatalf("the README has %d Go programs, want 1", len(programs))
	}
	if err := os.WriteFile(filepath.Join(work, "main.go"), []byte(programs[0]), 0o644); err != nil {
		t.Fatal(err)
	}
	// Job control gives %1 its meaning; what runs in the background ends with
	// the shell. The data goes where nobody else's try/ is.
	script := []string{"set -eum", "trap 'kill -9 $(jobs -p) 2>/dev/null || true; wait 2>/dev/null' EXIT"}
	ran := 0
	for _, block := range blocks(t, "sh") {
		if notRun[strings.TrimSpace(block)] != "" {
			continue
		}
		ran++
		script = append(script, "echo '>>' block "+string(rune('0'+ran)), block)
	}
	if ran < 5 {
		t.Fatalf("only %d blocks of the README were found", ran)
	}
	script = append(script, "echo '>>' go program", "go run ./build/readme", "kill -TERM %2 %3 %4", "wait %4")
	ctx, cancel := context.WithTimeout(t.Context(), 8*time.Minute)
	defer cancel()
	http, raft := freePorts(t), freePorts(t)
	text := strings.NewReplacer("try", "build/readme/try", "127.0.0.1:745", http, "127.0.0.1:746", raft).Replace(strings.Join(script, "\n"))
	cmd := exec.CommandContext(ctx, "bash", "-c", text)
	cmd.Dir = dir
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.WaitDelay = 10 * time.Second
	cmd.Env = append(os.Environ(), "HASQLITE_HISTORY=off")
	out, err := cmd.CombinedOutput()
	if err != nil {
		logs, _ := filepath.Glob(filepath.Join(work, "try", "*.log"))
		for _, l := range logs {
			b, _ := os.ReadFile(l)
			t.Logf("%s:\n%s", l, b)
		}
		t.Fatalf("%v\n%s", err, out)
	}
	for _, want := range []string{
		"Equal: every acknowledged row", "1|tea\n2|milk\n", "(3, 'bread')", "\n4\n", "shop.db equal at ", "tea milk bread jam", "4 items",
	} {
		if !strings.Contains(string(out), want) {
			t.Errorf("the output lacks %q:\n%s", want, out)
		}
	}
}

// freePorts returns the address of three free ports, less the last digit,
// which is 1, 2 and 3: another cluster may run on this machine.
func freePorts(t *testing.T) string {
	t.Helper()
	for range 100 {
		front := fmt.Sprintf("127.0.0.1:%d", 1100+rand.IntN(2000))
		free := true
		for _, digit := range "123" {
			l, err := net.Listen("tcp", front+string(digit))
			if err != nil {
				free = false
				break
			}
			l.Close()
		}
		if free {
			return front
		}
	}
	t.Fatal("no three free ports in a row")
	return ""
}
