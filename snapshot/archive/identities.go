package archive

import (
	"fmt"
	"os"
)

// ReadIdentities reads a file of age identities. One that is empty is refused:
// who names a key means an encrypted archive.
func ReadIdentities(path string) (*Keys, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read identities: %w", err)
	}
	k, err := NewKeys("", string(b))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	if k == nil {
		return nil, fmt.Errorf("%s: the file is empty: %w", path, ErrKey)
	}
	return k, nil
}
