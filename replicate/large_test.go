package replicate

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
)

// Parts that the device does not give now are no damaged ones: the transaction is tried again.
func TestPartsThatCannotBeReadAreTriedAgain(t *testing.T) {
	path := filepath.Join(t.TempDir(), "parts")
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY, 0o600) // a read of it fails
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	d := newCopy(newFilesNode(t), "shop.db 16 bytes", nil)
	err = d.applyLargeIO(t.Context(), nil, item{spool: &spool{file: f}, size: 1 << 20, pages: 200})
	var device deviceError
	if !errors.As(err, &device) {
		t.Errorf("parts that cannot be read: %v", err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	short, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer short.Close()
	if err := d.applyLargeIO(t.Context(), nil, item{spool: &spool{file: short}, size: 1 << 20, pages: 200}); errors.As(err, &device) {
		t.Errorf("parts that are not there: %v", err)
	}
}
