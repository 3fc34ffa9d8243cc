package archive

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/uglyer/ha-sqlite/snapshot"
	"github.com/uglyer/ha-sqlite/snapshot/store"
)

// sealed makes a wrong checksum right, so that fuzzing gets behind it.
func sealed(b []byte) []byte {
	if len(b) < 8 {
		return b
	}
	b = bytes.Clone(b)
	binary.LittleEndian.PutUint64(b[len(b)-8:], crc(b[:len(b)-8]))
	return b
}

func exampleState(t testing.TB) *State {
	s := &State{Identity: testID}
	o := Object{MinTXID: 1, MaxTXID: 1, Time: 5, Post: 1 << 63, PageCount: 1, Pages: 1, Size: 131, Stored: 131, Checksum: 1 << 63}
	changes := []change{{kind: changePageSize, pageSize: 4096}}
	for i := range uint64(6) {
		o.MinTXID, o.MaxTXID, o.Time = i+1, i+1, int64(i+1)
		changes = append(changes, change{kind: changeAdd, object: o})
	}
	for i := range uint64(4) { // in two packs
		p := Object{MinTXID: 7 + i, MaxTXID: 7 + i, Time: int64(7 + i), Post: 1 << 63, PageCount: uint32(9 - i), Pages: 1, Size: 131, Stored: 131, Checksum: 1 << 63}
		p.PackMin, p.PackMax, p.PackAt, p.PackStored, p.PackIndex, p.PackSum = 7+i/2*2, 8+i/2*2, int64(i%2)*131, 300, 38, 5
		changes = append(changes, change{kind: changeAdd, object: p})
	}
	for level := 1; level <= TopLevel; level++ {
		o.Level, o.MinTXID, o.MaxTXID = level, 1, 3
		changes = append(changes, change{kind: changeAdd, object: o}, change{kind: changeDone, level: level, txid: 3})
	}
	o.Level, o.MaxTXID, o.Time, o.IndexSize = SnapshotLevel, 13, 13, 77
	changes = append(changes, change{kind: changeGap, gap: Gap{11, 12}}, change{kind: changeAdd, object: o}, change{kind: changeLabel, label: Label{"x", 13}},
		change{kind: changeSeal, segment: Segment{MinTXID: 1, MaxTXID: 2, FirstTime: 1, LastTime: 2, Count: 2, Sum: 3}})
	for _, c := range changes {
		if err := s.apply(c); err != nil {
			t.Fatal(err)
		}
	}
	return s
}

func FuzzDecodeManifest(f *testing.F) {
	f.Add(encodeManifest(exampleState(f)))
	f.Add(encodeManifest(&State{Identity: testID}))
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, b := range [][]byte{b, sealed(b)} {
			s, err := decodeManifest(b)
			if err != nil {
				continue
			}
			again, err := decodeManifest(encodeManifest(s))
			if err != nil || !reflect.DeepEqual(s, again) {
				t.Errorf("%+v is read again as %+v, %v", s, again, err)
			}
		}
	})
}

func FuzzDecodeJournal(f *testing.F) {
	o := Object{MinTXID: 1, MaxTXID: 1, Time: 5, PageCount: 1, Pages: 1, Size: 131, Stored: 131}
	f.Add(encodeJournal(7, []change{
		{kind: changePageSize, pageSize: 512}, {kind: changeAdd, object: o}, {kind: changeRemove, object: o}, {kind: changeSeal, segment: Segment{1, 2, 3, 4, 2, 6}},
		{kind: changeUnseal}, {kind: changeGap, gap: Gap{1, 2}}, {kind: changeLabel, label: Label{"a", 1}}, {kind: changeUnlabel, label: Label{"a", 1}},
		{kind: changeDone, level: 1, txid: 1},
	}))
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, b := range [][]byte{b, sealed(b)} {
			seq, changes, err := decodeJournal(b)
			if err != nil {
				continue
			}
			s := exampleState(t)
			for _, c := range changes {
				if s.apply(c) != nil {
					break
				}
			}
			seq2, again, err := decodeJournal(encodeJournal(seq, changes))
			if err != nil || seq2 != seq || len(again) != len(changes) {
				t.Errorf("entry %d of %d changes is read again as %d of %d, %v", seq, len(changes), seq2, len(again), err)
			}
		}
	})
}

func FuzzDecodeCommits(f *testing.F) {
	f.Add(encodeCommits(exampleState(f).Recent))
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, b := range [][]byte{b, sealed(b)} {
			if list, err := decodeCommits(b); err == nil {
				if again, err := decodeCommits(encodeCommits(list)); err != nil || !reflect.DeepEqual(list, again) {
					t.Errorf("%v is read again as %v, %v", list, again, err)
				}
			}
		}
	})
}

func FuzzPageIndex(f *testing.F) {
	w := &indexWriter{}
	at := int64(100)
	for pgno := uint32(1); pgno < 1000; pgno += 1 + pgno%3 {
		w.add(snapshot.Frame{Pgno: pgno, Offset: at, Size: 50, Sum: uint64(pgno)})
		at += 50
	}
	b, sum := w.bytes()
	f.Add(b, sum, uint32(500))
	f.Fuzz(func(t *testing.T, b []byte, sum uint64, pgno uint32) {
		n, err := directorySize(b, int64(len(b)))
		if err != nil {
			return
		}
		for range 2 {
			d, err := decodeDirectory(b[:n], int64(len(b)), sum)
			if err == nil {
				if e, ok := d.find(pgno); ok {
					if e.first > pgno {
						t.Errorf("page %d in the block of %d", pgno, e.first)
					}
					_, _, _ = findInBlock(e, b[e.at:e.at+int64(e.size)], pgno) // it must not panic
				}
			}
			b = bytes.Clone(b) // once more with a checksum that fits
			sum = crc(b[:n-8])
			binary.LittleEndian.PutUint64(b[n-8:], sum)
		}
	})
}

func FuzzBacklogRecord(f *testing.F) {
	f.Add(encodeRecord(Commit{TXID: 3, Time: 5, Post: 7, LTX: bytes.NewReader(make([]byte, 200))}), int64(0), int64(1000))
	f.Fuzz(func(t *testing.T, b []byte, at, size int64) {
		if r, ok := decodeRecord(b, 1, at, size); ok && at >= 0 && size >= 0 && r.at+r.size > size {
			t.Errorf("%d bytes at %d of %d", r.size, r.at, size)
		}
	})
}

func TestPageIndexFindsEveryPage(t *testing.T) {
	w := &indexWriter{}
	at := int64(100)
	places := map[uint32]place{}
	last := uint32(0)
	for pgno := uint32(3); pgno < 5000; pgno += 1 + pgno%5 {
		size := 30 + int(pgno%900)
		w.add(snapshot.Frame{Pgno: pgno, Offset: at, Size: size, Sum: uint64(pgno) * 77})
		places[pgno], last = place{at, size, uint64(pgno) * 77}, pgno
		at += int64(size)
	}
	b, sum := w.bytes()
	n, err := directorySize(b[:indexHead], int64(len(b)))
	if err != nil {
		t.Fatal(err)
	}
	d, err := decodeDirectory(b[:n], int64(len(b)), sum)
	if err != nil {
		t.Fatal(err)
	}
	for pgno := uint32(0); pgno < last+100; pgno++ {
		want, there := places[pgno]
		e, ok := d.find(pgno)
		var got place
		if ok {
			if got, ok, err = findInBlock(e, b[e.at:e.at+int64(e.size)], pgno); err != nil {
				t.Fatal(err)
			}
		}
		if ok != there || got != want {
			t.Fatalf("page %d: got %v, %v, want %v, %v", pgno, got, ok, want, there)
		}
	}
}

// FuzzMarker: a marker that is read says whose the archive is, and how it is encrypted.
func FuzzMarker(f *testing.F) {
	f.Add([]byte(`{"format":1,"cluster":"c1","encryption":"none"}`))
	f.Add([]byte(`{"format":1,"cluster":"c1","encryption":"age"}`))
	f.Add([]byte(`{"format":1,"cluster":"c1","encryption":"age","recipients":"0123456789abcdef","token":"YWdl"}`))
	f.Add([]byte(`{"format":2,"cluster":"","encryption":"rot13","more":[]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := parseMarker(b)
		if err == nil && (m.Format != format || m.Cluster == "" || m.Encryption != "none" && m.Encryption != "age" || (m.Encryption == "age") != (len(m.Token) > 0)) {
			t.Errorf("%q is read as %+v", b, m)
		}
	})
}

// FuzzIdentity: what an object announces is a database of this archive, and is found again under its name.
func FuzzIdentity(f *testing.F) {
	a := &Archive{cluster: testID.Cluster}
	for _, id := range []Identity{testID, {Cluster: testID.Cluster, Lineage: 3, Database: strings.Repeat("ab", 16), Name: "_a/_b.db"}} {
		b, err := json.Marshal(id)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(a.identityKey(id), b)
		f.Add(a.identityKey(testID), b)
	}
	f.Fuzz(func(t *testing.T, key string, b []byte) {
		id, err := a.identity(key, b)
		if err != nil {
			return
		}
		if err := store.CheckKey(id.dir()); err != nil || id.Cluster != a.cluster || a.identityKey(id) != key {
			t.Errorf("%s of %q is %+v: %v", key, b, id, err)
		}
	})
}

// FuzzIdentities: a text is a usable key, none, or refused; nothing else.
func FuzzIdentities(f *testing.F) {
	for _, text := range []string{"", "# nothing\n", "AGE-SECRET-KEY-1", "age1qqqq", "\x00"} {
		f.Add("", text)
		f.Add(text, "")
	}
	f.Fuzz(func(t *testing.T, recipients, identities string) {
		if k, err := NewKeys(recipients, identities); err == nil && (k == nil) != (recipients == "" && identities == "") {
			t.Errorf("%q and %q give %+v", recipients, identities, k)
		}
	})
}

// FuzzPackIndex: what an index says lies within the pack, in order, and is written again as it was read.
func FuzzPackIndex(f *testing.F) {
	var x packIndex
	for commit := range uint32(3) {
		for _, pgno := range []uint32{1, 2 + commit, 9} {
			x = append(x, packVersion{pgno, commit, int64(100*commit + 10*pgno), 10, pgno})
		}
	}
	b, _ := x.bytes()
	f.Add(b, uint64(3), int64(400))
	b, _ = packIndex{}.bytes()
	f.Add(b, uint64(1), int64(0))
	f.Fuzz(func(t *testing.T, b []byte, commits uint64, size int64) {
		if size < 0 {
			return
		}
		for _, b := range [][]byte{b, sealed(b)} {
			x, err := decodePackIndex(b, crc(b), commits, size)
			if err != nil {
				continue
			}
			for i, v := range x {
				if v.size <= 0 || v.offset < 0 || int64(v.size) > size-v.offset || uint64(v.commit) >= commits {
					t.Errorf("%+v in a pack of %d commits and %d bytes", v, commits, size)
				}
				if i > 0 && (x[i-1].pgno > v.pgno || x[i-1].pgno == v.pgno && x[i-1].commit >= v.commit) {
					t.Errorf("%+v behind %+v", v, x[i-1])
				}
				if found, ok := x.find(v.pgno, 0, v.commit); !ok || found != v {
					t.Errorf("%+v is found as %+v", v, found)
				}
			}
			again, sum := slices.Clone(x).bytes()
			if back, err := decodePackIndex(again, sum, commits, size); err != nil || !slices.Equal(back, x) {
				t.Errorf("%+v is read again as %+v, %v", x, back, err)
			}
		}
	})
}
