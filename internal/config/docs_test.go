package config

import (
	"os"
	"strings"
	"testing"
)

// The page about operations has every option in its table.
func TestDocumentsHaveEveryOption(t *testing.T) {
	b, err := os.ReadFile("../../docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	rows := ""
	for line := range strings.Lines(string(b)) {
		if cells := strings.Split(line, "|"); len(cells) > 2 {
			rows += cells[1]
		}
	}
	for _, o := range options {
		if !strings.Contains(rows, "`--"+o.name+"`") {
			t.Errorf("no row for --%s", o.name)
		}
	}
}
