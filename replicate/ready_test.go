package replicate

import (
	"bytes"
	"log/slog"
	"math/rand/v2"
	"os"
	"sync"
	"testing"

	"github.com/uglyer/ha-sqlite/snapshot"
	"github.com/uglyer/ha-sqlite/wal"
)

// Pages come back as they were put, in any order, also between others that are put; one that the disk has changed is found
// out, and the file goes when it is over.
func TestReadyPagesComeBackOrFail(t *testing.T) {
	rnd := rand.New(rand.NewPCG(9, 9))
	dir := t.TempDir()
	var wg sync.WaitGroup
	s := newSpools(dir, slog.New(slog.DiscardHandler), t.Context(), func(f func()) { wg.Go(f) })
	r, err := newReadyPages(s)
	if err != nil {
		t.Fatal(err)
	}
	p := snapshot.NewPacker(4096)
	want := map[uint32]snapshot.PackedPage{}
	get := func(pgno uint32) {
		t.Helper()
		got, err := r.get(pgno)
		if w := want[pgno]; err != nil || got.Pgno != pgno || got.Image != w.Image || !bytes.Equal(got.Bytes, w.Bytes) {
			t.Fatalf("page %d: %d of %d bytes, %v", pgno, len(got.Bytes), len(w.Bytes), err)
		}
	}
	var pgnos []uint32
	for pgno := uint32(2); pgno < 1000; pgno++ { // several windows
		data := make([]byte, 4096)
		for i := range data {
			data[i] = byte(rnd.Uint32())
		}
		f, err := p.Pack(wal.Page{Pgno: pgno, Data: data})
		if err == nil {
			err = r.put(f)
		}
		if err != nil {
			t.Fatal(err)
		}
		f.Bytes = bytes.Clone(f.Bytes)
		want[pgno] = f
		if pgnos = append(pgnos, pgno); pgno%50 == 0 {
			get(pgnos[rnd.IntN(len(pgnos))])
		}
	}
	for _, pgno := range pgnos {
		get(pgno)
	}
	rnd.Shuffle(len(pgnos), func(i, j int) { pgnos[i], pgnos[j] = pgnos[j], pgnos[i] })
	for _, pgno := range pgnos {
		get(pgno)
	}
	if r.has(1) || !r.has(2) || (*readyPages)(nil).has(2) {
		t.Error("it does not know what it has")
	}
	if _, err := r.file.file.WriteAt([]byte{^want[700].Bytes[20]}, r.at[700].offset+20); err != nil {
		t.Fatal(err)
	}
	r.window = nil
	if _, err := r.get(700); err == nil {
		t.Error("a page that the disk has changed came back")
	}
	get(701)
	r.close()
	wg.Wait()
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}
