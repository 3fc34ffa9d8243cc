package archive

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/uglyer/ha-sqlite/snapshot"
	"github.com/uglyer/ha-sqlite/snapshot/store"
	"github.com/uglyer/ha-sqlite/snapshot/store/storetest"
)

func openView(t testing.TB, s store.Store, keys *Keys) *View {
	t.Helper()
	a, err := Open(t.Context(), s, Options{Keys: keys})
	if err != nil {
		t.Fatal(err)
	}
	v, err := a.Load(t.Context(), testID)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// Every page of every state, read on its own, is the recorded one.
func TestReaderReadsEveryPage(t *testing.T) {
	for what, keys := range map[string]*Keys{"plain": nil, "encrypted": newKeys(t)} {
		t.Run(what, func(t *testing.T) {
			root, r := filled(t, keys, 20)
			d, err := store.OpenDir(root)
			if err != nil {
				t.Fatal(err)
			}
			v := openView(t, d, keys)
			indexed := false
			if err := v.Commits(t.Context(), 0, func(p Point) error {
				plan, err := v.Plan(t.Context(), p)
				if err != nil {
					return err
				}
				for _, o := range plan.Objects {
					indexed = indexed || o.IndexSize > 0
				}
				in := v.NewReader(t.Context(), plan, 64<<10)
				want := r.images[p.TXID-1]
				if int(in.PageCount())*int(in.PageSize()) != len(want) {
					t.Fatalf("%d pages, want %d bytes", in.PageCount(), len(want))
				}
				var wg sync.WaitGroup
				for worker := range uint32(2) {
					wg.Go(func() {
						for pgno := worker + 1; pgno <= in.PageCount(); pgno += 2 {
							got, err := in.Page(pgno)
							if err != nil || !bytes.Equal(got, want[(pgno-1)*4096:pgno*4096]) {
								t.Errorf("transaction %d, page %d: %v", p.TXID, pgno, err)
								return
							}
						}
					})
				}
				wg.Wait()
				in.mu.Lock()
				defer in.mu.Unlock()
				if in.used > 0 && in.order.Len() > 1 {
					t.Errorf("the cache is %d bytes too large", in.used)
				}
				return nil
			}); err != nil {
				t.Fatal(err)
			}
			if !indexed {
				t.Error("no file had a page index")
			}
		})
	}
}

func TestReaderNamesDamage(t *testing.T) {
	for what, keys := range map[string]*Keys{"plain": nil, "encrypted": newKeys(t)} {
		t.Run(what, func(t *testing.T) { readerNamesDamage(t, keys) })
	}
}

func readerNamesDamage(t *testing.T, keys *Keys) {
	root, r := filled(t, keys, 20)
	var paths []string
	if err := filepath.WalkDir(filepath.Join(root, "acme"), func(path string, e fs.DirEntry, err error) error {
		if err == nil && !e.IsDir() && (strings.Contains(filepath.Base(path), ".ltx") || filepath.Base(filepath.Dir(path)) == "index") {
			paths = append(paths, path)
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	found := 0
	for i, path := range paths {
		if i%2 == 0 {
			continue
		}
		rel, _ := filepath.Rel(root, path)
		bad := copyTree(t, root)
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if i%4 == 1 {
			b[r.rand.IntN(len(b))] ^= 1 << r.rand.IntN(8)
		} else {
			b = b[:r.rand.IntN(len(b))]
		}
		if err := os.WriteFile(filepath.Join(bad, rel), b, 0o640); err != nil {
			t.Fatal(err)
		}
		d, err := store.OpenDir(bad)
		if err != nil {
			t.Fatal(err)
		}
		v := openView(t, d, keys)
		if err := v.Commits(t.Context(), 0, func(p Point) error {
			plan, err := v.Plan(t.Context(), p)
			if err != nil {
				return err
			}
			in := v.NewReader(t.Context(), plan, 0)
			for pgno := uint32(1); pgno <= in.PageCount(); pgno++ {
				got, err := in.Page(pgno)
				var named *ObjectError
				switch {
				case err == nil && !bytes.Equal(got, r.images[p.TXID-1][(pgno-1)*4096:pgno*4096]):
					t.Fatalf("%s: transaction %d, page %d is another, without an error", rel, p.TXID, pgno)
				case err != nil && (!errors.As(err, &named) || !errors.Is(err, ErrDamaged) && (keys == nil || !errors.Is(err, ErrKey)) || filepath.Base(named.Key) != filepath.Base(rel)):
					t.Fatalf("%s: %v", rel, err)
				case err != nil:
					found++
				}
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
	}
	if found == 0 {
		t.Error("no damage was met")
	}
}

// One page of a large snapshot costs three small requests.
func TestReaderFetchesLittle(t *testing.T) {
	d := openDir(t)
	counted := &counting{Store: d}
	w := openWriter(t, claim(t, counted, nil), WriterOptions{})
	img := synthetic(t, 4096, 20_000)
	if err := w.SnapshotOf(t.Context(), img); err != nil {
		t.Fatal(err)
	}
	v := openView(t, counted, nil)
	plan, err := v.Plan(t.Context(), v.Last())
	if err != nil {
		t.Fatal(err)
	}
	counted.reset()
	in := v.NewReader(t.Context(), plan, 0)
	want := make([]byte, 4096)
	for _, pgno := range []uint32{1, 9_999, 20_000} {
		got, err := in.Page(pgno)
		if err := errors.Join(err, img.ReadPage(pgno, want)); err != nil || !bytes.Equal(got, want) {
			t.Fatalf("page %d: %v", pgno, err)
		}
	}
	if n, b := counted.get(); n > 7 || b > 64<<10 {
		t.Errorf("3 pages of %d took %d requests and %d bytes", plan.Bytes, n, b)
	}
}

// syntheticImage has pages that depend on their numbers.
type syntheticImage struct {
	size, count uint32
	sum         uint64
}

func synthetic(t testing.TB, size, count uint32) *syntheticImage {
	t.Helper()
	i := &syntheticImage{size, count, snapshot.ChecksumFlag}
	page := make([]byte, size)
	for pgno := uint32(1); pgno <= count; pgno++ {
		if err := i.ReadPage(pgno, page); err != nil {
			t.Fatal(err)
		}
		i.sum = snapshot.Roll(i.sum, snapshot.PageSum(pgno, page))
	}
	return i
}

func (i *syntheticImage) Position() (uint64, int64, uint64) { return 1000, epoch.UnixMicro(), i.sum }
func (i *syntheticImage) PageSize() uint32                  { return i.size }
func (i *syntheticImage) PageCount() uint32                 { return i.count }
func (i *syntheticImage) ReadPage(pgno uint32, data []byte) error {
	for at := 0; at < len(data); at += 16 {
		binary.LittleEndian.PutUint64(data[at:], uint64(pgno)*uint64(at+1)*0x9E3779B97F4A7C15)
		clear(data[at+8 : at+16])
	}
	return nil
}

var _ store.Store = (*storetest.Faulty)(nil)
