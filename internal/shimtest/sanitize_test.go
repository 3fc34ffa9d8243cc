package shimtest

import (
	"bytes"
	"encoding/binary"
	"flag"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

var cases = flag.Int("cases", 20000, "cases of the fuzz of the C client")

const vfsDir = "../../vfs"

// compile runs the C compiler over files of the vfs directory and others.
func compile(t *testing.T, out string, files []string, flags ...string) {
	t.Helper()
	args := append([]string{"-Wall", "-Wextra", "-Werror", "-I", vfsDir, "-o", out}, flags...)
	args = append(args, files...)
	if msg, err := exec.Command("gcc", args...).CombinedOutput(); err != nil {
		t.Fatalf("gcc %s: %v\n%s", strings.Join(args, " "), err, msg)
	}
}

func inVFS(names ...string) []string {
	var out []string
	for _, n := range names {
		out = append(out, filepath.Join(vfsDir, n))
	}
	return out
}

// built holds the extensions that this run of the tests made, by flags.
var built = map[string]string{}

// TestMain removes them.
func TestMain(m *testing.M) {
	flag.Parse()
	code := m.Run()
	for _, so := range built {
		_ = os.RemoveAll(filepath.Dir(so))
	}
	os.Exit(code)
}

// extension builds hasqlite.so the way doc.go of package vfs says.
func extension(t *testing.T, flags ...string) string {
	t.Helper()
	key := strings.Join(flags, " ")
	if so := built[key]; so != "" {
		return so
	}
	dir, err := os.MkdirTemp("", "shim")
	if err != nil {
		t.Fatal(err)
	}
	so := filepath.Join(dir, "hasqlite.so")
	built[key] = so
	doc, err := os.ReadFile(filepath.Join(vfsDir, "doc.go"))
	if err != nil {
		t.Fatal(err)
	}
	_, line, _ := strings.Cut(string(doc), "//\tgcc ")
	line, _, _ = strings.Cut(line, "\n")
	args := strings.Fields(strings.Replace(line, "-o hasqlite.so", "-o "+so, 1))
	cmd := exec.Command("gcc", append(flags, args...)...)
	cmd.Dir = filepath.Dir(vfsDir)
	if msg, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("gcc %s: %v\n%s", strings.Join(args, " "), err, msg)
	}
	return so
}

// TestClientFuzz feeds mutated and random answers of a node to the C client
// under the address and undefined-behaviour sanitizers.
func TestClientFuzz(t *testing.T) {
	bin := filepath.Join(t.TempDir(), "link_fuzz")
	compile(t, bin, append(inVFS("link.c", "transport.c"), "testdata/link_fuzz.c"), "-g", "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")

	r := rand.New(rand.NewPCG(*seed, 1))
	var in bytes.Buffer
	for range *cases {
		which := r.IntN(10)
		b := answer(r, which)
		if r.IntN(3) == 0 {
			b = append(b, answer(r, which)...)
		}
		for range r.IntN(4) {
			switch {
			case len(b) == 0:
			case r.IntN(4) == 0:
				b = b[:r.IntN(len(b))]
			default:
				b[r.IntN(len(b))] = byte(r.Uint32())
			}
		}
		head := binary.LittleEndian.AppendUint32(nil, uint32(len(b)))
		in.Write(append(head, byte(which)))
		in.Write(b)
	}
	cmd := exec.Command(bin)
	cmd.Stdin = &in
	cmd.Env = append(os.Environ(), "UBSAN_OPTIONS=print_stacktrace=1")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("seed %d: %v\n%s", *seed, err, out)
	}
	t.Logf("seed %d: %s", *seed, bytes.TrimSpace(out))
}

// answer is a right answer to request which of link_fuzz.c, or an ERROR.
func answer(r *rand.Rand, which int) []byte {
	kinds := []byte{4, 6, 8, 10, 12, 17, 19, 19, 12, 22}
	kind := kinds[which]
	text := func(b []byte, s string) []byte {
		b = binary.LittleEndian.AppendUint16(b, uint16(len(s)))
		return append(b, s...)
	}
	var p []byte
	switch which {
	case 0:
		p = text(append([]byte{1}, make([]byte, 16)...), strings.Repeat("/d", r.IntN(40)))
	case 1:
		p = text(append([]byte{1}, make([]byte, 8)...), strings.Repeat("n", r.IntN(30)))
	case 2:
		p = make([]byte, 8)
	case 3:
		p = make([]byte, 16+28)
	case 4, 8:
		p = text([]byte{byte(r.IntN(4)), 0, 0}, "why")
	case 9:
		p = text(text(text(nil, strings.Repeat("/d", r.IntN(40))), strings.Repeat("b", r.IntN(40))), strings.Repeat("n", r.IntN(30)))
	case 6, 7:
		p = text(nil, strings.Repeat("s", r.IntN(2000)))
	}
	if r.IntN(5) == 0 {
		kind = 255
		p = text([]byte{5, 0, 0, 0}, strings.Repeat("e", r.IntN(1000)))
	}
	b := binary.LittleEndian.AppendUint32(nil, uint32(len(p)))
	b = append(b, kind, 0, 0, 0, 1, 0, 0, 0)
	if (which == 4 || which == 9) && r.IntN(2) == 0 {
		b = append([]byte{0, 0, 0, 0, 13, 0, 0, 0, 1, 0, 0, 0}, b...)
	}
	return append(b, p...)
}
