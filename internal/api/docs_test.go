package api

import (
	"fmt"
	"os"
	"strings"
	"testing"
)

// The page about the HTTP interface has every error code, with its status.
func TestDocumentsHaveEveryErrorCode(t *testing.T) {
	b, err := os.ReadFile("../../docs/http.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, k := range kinds {
		if row := fmt.Sprintf("\n| %d | %s |", k.status, k.code); !strings.Contains(string(b), row) {
			t.Errorf("no row %q", row)
		}
	}
}
