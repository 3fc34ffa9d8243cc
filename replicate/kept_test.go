package replicate

import (
	"encoding/binary"
	"hash/crc32"
	"os"
	"path/filepath"
	"testing"

	"github.com/uglyer/ha-sqlite/snapshot"
)

// keptFile is a kept image of n pages of 512 bytes.
func keptFile(n int) []byte {
	m := image{position: Position{TXID: 7}, pageSize: 512, pageCount: uint32(n)}
	sum := uint64(snapshot.ChecksumFlag)
	var b []byte
	for i := range n {
		page := make([]byte, 512)
		page[0] = byte(i)
		sum ^= pageSum(512, uint32(i)+1, page)
		b = append(b, page...)
	}
	m.position.Checksum = Checksum(sum | snapshot.ChecksumFlag)
	head := m.head()
	return binary.LittleEndian.AppendUint32(append(b, head...), crc32.Checksum(head, castagnoli))
}

func TestKeptImageRefusesDamage(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x"+keptSuffix)
	whole := keptFile(3)
	open := func(b []byte) error {
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		m, err := openKept(path, 512)
		if err == nil {
			m.file.Close()
		}
		return err
	}
	if err := open(whole); err != nil {
		t.Fatal(err)
	}
	for n := 0; n < len(whole); n += 7 {
		if open(whole[:n]) == nil {
			t.Fatalf("%d of %d bytes are accepted", n, len(whole))
		}
		damaged := append([]byte(nil), whole...)
		damaged[n] ^= 1
		if open(damaged) == nil {
			t.Fatalf("an image with byte %d flipped is accepted", n)
		}
	}
	if _, err := openKept(path, 4096); err == nil {
		t.Error("an image of another page size is accepted")
	}
}

func FuzzKeptImage(f *testing.F) {
	f.Add(keptFile(2))
	f.Add([]byte{})
	path := filepath.Join(f.TempDir(), "x"+keptSuffix)
	f.Fuzz(func(t *testing.T, b []byte) {
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		m, err := openKept(path, 512)
		if err != nil {
			return
		}
		defer m.file.Close()
		if int(m.pageCount)*512+keptTrailerSize != len(b) {
			t.Fatalf("%d pages in a file of %d bytes", m.pageCount, len(b))
		}
	})
}
