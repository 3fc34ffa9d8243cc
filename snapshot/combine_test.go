package snapshot

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"testing"

	"github.com/uglyer/ha-sqlite/wal"
)

// changing are files of transactions that follow each other, of a database that grows and shrinks.
func changing(t testing.TB, n int) [][]byte {
	t.Helper()
	rng := rand.New(rand.NewPCG(1, 2))
	var files [][]byte
	count := uint32(1)
	for txid := uint64(1); txid <= uint64(n); txid++ {
		var pages []wal.Page
		if txid > 1 {
			count = max(2, count+uint32(rng.IntN(5))-2)
		}
		for pgno := uint32(1); pgno <= count; pgno++ {
			if txid == 1 || pgno == 1 || pgno == count || rng.IntN(4) == 0 || pgno+4 > count {
				data := bytes.Repeat([]byte{byte(rng.Uint32())}, 512)
				data[7] = byte(txid)
				pages = append(pages, wal.Page{Pgno: pgno, Data: data})
			}
		}
		b, err := EncodeTransaction(nil, Header{PageSize: 512, PageCount: count, TXID: txid, CommitTimeMillis: int64(txid) * 1000}, pages)
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, b)
	}
	return files
}

func mergeOf(files ...[]byte) ([]byte, error) {
	var readers []*FileReader
	for _, b := range files {
		r, err := NewFileReader(bytes.NewReader(b))
		if err != nil {
			return nil, err
		}
		readers = append(readers, r)
	}
	var out bytes.Buffer
	_, err := Merge(&out, readers, nil)
	return out.Bytes(), err
}

// Combine gives the bytes that Merge gives, and believes nothing of a file that nobody has looked at.
func TestCombineIsMergeInMemory(t *testing.T) {
	files := changing(t, 40)
	combine := func(files [][]byte, sound bool) ([]byte, error) {
		var out bytes.Buffer
		told := 0
		_, err := Combine(&out, files, func(int) bool { return sound }, func(i int, info FileInfo) error {
			told++
			if want, err := VerifyFile(bytes.NewReader(files[i])); err == nil && want != info {
				t.Errorf("file %d is told to be %+v, it is %+v", i, info, want)
			}
			return nil
		}, func(Frame) {})
		if err == nil && told != len(files) {
			t.Errorf("told of %d files of %d", told, len(files))
		}
		return out.Bytes(), err
	}
	for from := range files {
		for _, n := range []int{1, 2, 7, 40} {
			list := files[from:min(from+n, len(files))]
			want, err := mergeOf(list...)
			if err != nil {
				t.Fatal(err)
			}
			for _, sound := range []bool{true, false} {
				if got, err := combine(list, sound); err != nil || !bytes.Equal(got, want) {
					t.Fatalf("files %d to %d: %v, %d bytes, want %d", from, from+len(list), err, len(got), len(want))
				}
			}
		}
	}
	bad := [][]byte{files[0], bytes.Clone(files[1])}
	bad[1][len(bad[1])-3] ^= 1
	if _, err := combine(bad, false); !errors.Is(err, ErrCorrupt) {
		t.Errorf("a damaged file: %v", err)
	}
	if _, err := combine([][]byte{files[0], files[2]}, true); !errors.Is(err, ErrNotContiguous) {
		t.Errorf("a file is missing: %v", err)
	}
}

// FuzzCombine: no two files panic, and what is combined of files that are verified is what Merge makes of them.
func FuzzCombine(f *testing.F) {
	files := changing(f, 4)
	f.Add(files[0], files[1], false)
	f.Add(files[2], files[3], true)
	f.Add(files[0], files[2], true)
	f.Add(files[0][:headerSize], files[1], true)
	f.Fuzz(func(t *testing.T, a, b []byte, sound bool) {
		var out bytes.Buffer
		_, err := Combine(&out, [][]byte{a, b}, func(int) bool { return sound }, func(int, FileInfo) error { return nil }, func(Frame) {})
		if err != nil || sound {
			return
		}
		if want, err := mergeOf(a, b); err != nil || !bytes.Equal(out.Bytes(), want) {
			t.Errorf("combined to %d bytes, merged to %d: %v", out.Len(), len(want), err)
		}
	})
}
