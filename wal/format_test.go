package wal

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"testing"
)

// plainSum is the checksum as the format's page describes it.
func plainSum(order binary.ByteOrder, b []byte) Sum {
	var s0, s1 uint32
	for i := 0; i+8 <= len(b); i += 8 {
		s0 += order.Uint32(b[i:]) + s1
		s1 += order.Uint32(b[i+4:]) + s0
	}
	return Sum{s0, s1}
}

func TestSumFollowsTheDefinition(t *testing.T) {
	b := make([]byte, 4096+40)
	for i := range b {
		b[i] = byte(i * 7)
	}
	for _, n := range []int{0, 8, 24, 40, 64, 72, 512, 4096, 4136} {
		if got, want := (Sum{}).Add(false, b[:n]), plainSum(binary.LittleEndian, b[:n]); got != want {
			t.Errorf("little, %d bytes: got %x, want %x", n, got, want)
		}
		if got, want := (Sum{}).Add(true, b[:n]), plainSum(binary.BigEndian, b[:n]); got != want {
			t.Errorf("big, %d bytes: got %x, want %x", n, got, want)
		}
	}
	if got, want := (Sum{}).Add(false, b[:64]).Add(false, b[64:128]), plainSum(binary.LittleEndian, b[:128]); got != want {
		t.Errorf("in two parts: got %x, want %x", got, want)
	}
}

func TestHeaderRoundTrip(t *testing.T) {
	for _, h := range []Header{
		{PageSize: 512, Salts: [8]byte{1, 2, 3, 4, 5, 6, 7, 8}},
		{PageSize: 65536, Sequence: 1 << 31, BigEndian: true},
	} {
		var b [HeaderSize]byte
		sum := h.Encode(b[:])
		got, gotSum, err := DecodeHeader(b[:])
		if err != nil || got != h || gotSum != sum {
			t.Errorf("got %+v, %x, %v, want %+v, %x", got, gotSum, err, h, sum)
		}
	}
}

func TestDecodeHeaderRefuses(t *testing.T) {
	encode := func(h Header, change func(b []byte)) []byte {
		b := make([]byte, HeaderSize)
		h.Encode(b)
		change(b)
		s := Sum{}.Add(h.BigEndian, b[:24])
		binary.BigEndian.PutUint32(b[24:], s[0])
		binary.BigEndian.PutUint32(b[28:], s[1])
		return b
	}
	good := Header{PageSize: 4096}
	for _, tc := range []struct {
		name string
		b    []byte
		want error
	}{
		{"an empty file", nil, ErrCorrupt},
		{"a truncated header", encode(good, func([]byte) {})[:31], ErrCorrupt},
		{"another magic number", encode(good, func(b []byte) { b[0] = 0 }), ErrCorrupt},
		{"another version", encode(good, func(b []byte) { b[7]++ }), ErrVersion},
		{"page size 0", encode(good, func(b []byte) { b[10] = 0 }), ErrCorrupt},
		{"page size 3000", encode(good, func(b []byte) { binary.BigEndian.PutUint32(b[8:], 3000) }), ErrCorrupt},
		{"page size 131072", encode(good, func(b []byte) { binary.BigEndian.PutUint32(b[8:], 131072) }), ErrCorrupt},
		{"a bad checksum", func() []byte { b := encode(good, func([]byte) {}); b[31]++; return b }(), ErrCorrupt},
	} {
		if _, _, err := DecodeHeader(tc.b); !errors.Is(err, tc.want) {
			t.Errorf("%s: got %v, want %v", tc.name, err, tc.want)
		}
	}
}

// buildLog returns a log with commits of the given numbers of frames, of random
// pages 1, 2, ….
func buildLog(big bool, pageSize uint32, commits ...int) []byte {
	rnd := rand.New(rand.NewPCG(1, uint64(pageSize)))
	h := Header{BigEndian: big, PageSize: pageSize, Salts: [8]byte{9, 8, 7, 6, 5, 4, 3, 2}}
	log := make([]byte, HeaderSize)
	sum := h.Encode(log)
	for _, n := range commits {
		for i := range n {
			f := FrameHeader{Pgno: uint32(i + 1)}
			if i == n-1 {
				f.PageCount = uint32(n)
			}
			frame := make([]byte, FrameHeaderSize+pageSize)
			for j := range frame {
				frame[j] = byte(rnd.Uint32())
			}
			sum = encodeFrame(frame, f, h.Salts, big, sum, frame[FrameHeaderSize:])
			log = append(log, frame...)
		}
	}
	return log
}

// commitsOf returns the last frames of the transactions in a log.
func commitsOf(t testing.TB, log []byte) (last []uint32) {
	t.Helper()
	r, err := NewReader(bytes.NewReader(log))
	if err != nil {
		return nil
	}
	for {
		c, err := r.Next()
		if errors.Is(err, io.EOF) {
			return last
		}
		if err != nil {
			t.Fatal(err)
		}
		last = append(last, c.Last)
	}
}

func TestReaderStopsAtTheLastValidCommit(t *testing.T) {
	const size, frame = 512, 512 + FrameHeaderSize
	for _, big := range []bool{false, true} {
		log := buildLog(big, size, 2, 1, 3)
		at := func(n int) int { return HeaderSize + (n-1)*frame }
		for _, tc := range []struct {
			name   string
			damage func(b []byte) []byte
			want   int // transactions found
		}{
			{"whole", func(b []byte) []byte { return b }, 3},
			{"last frame torn", func(b []byte) []byte { return b[:len(b)-1] }, 2},
			{"commit frame missing", func(b []byte) []byte { return b[:at(6)] }, 2},
			{"header only", func(b []byte) []byte { return b[:HeaderSize] }, 0},
			{"empty", func([]byte) []byte { return nil }, 0},
			{"salt of frame 3 differs", func(b []byte) []byte { b[at(3)+8]++; return b }, 1},
			{"page of frame 2 changed", func(b []byte) []byte { b[at(2)+100]++; return b }, 0},
			{"page number of frame 4 is 0", func(b []byte) []byte { clear(b[at(4) : at(4)+4]); return b }, 2},
			{"checksum of frame 6 differs", func(b []byte) []byte { b[at(6)+20]++; return b }, 2},
			{"frames of an older generation follow", func(b []byte) []byte { return append(b[:at(4)], buildLog(!big, size, 5)[at(4):]...) }, 2},
		} {
			if got := len(commitsOf(t, tc.damage(bytes.Clone(log)))); got != tc.want {
				t.Errorf("big=%v, %s: got %d transactions, want %d", big, tc.name, got, tc.want)
			}
		}
	}
}

func TestReaderGoesOnWhenTheLogGrows(t *testing.T) {
	log := buildLog(false, 512, 2, 3)
	f := &MemoryFile{Data: log[:HeaderSize+3*536]}
	r, err := NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	if c, err := r.Next(); err != nil || c.Last != 2 {
		t.Fatalf("got %+v, %v", c, err)
	}
	if _, err := r.Next(); !errors.Is(err, io.EOF) {
		t.Fatalf("got %v, want the end", err)
	}
	if err := r.ReadFrame(3, make([]byte, 512)); !errors.Is(err, ErrInvalid) {
		t.Fatalf("frame of an unfinished transaction: got %v, want ErrInvalid", err)
	}
	f.Data = log
	if c, err := r.Next(); err != nil || c.First != 3 || c.Last != 5 {
		t.Fatalf("got %+v, %v", c, err)
	}
}

func TestIndexHeaderRoundTrip(t *testing.T) {
	for _, size := range []uint32{0, 512, 4096, 32768, 65536} {
		h := IndexHeader{Change: 7, BigEndian: size == 512, PageSize: size, PageCount: 5, FrameSum: Sum{1, 2}, Salts: [8]byte{1, 2, 3, 4, 5, 6, 7, 8}}
		if size != 0 {
			h.MaxFrame = 9
		}
		var b [indexHeaderSize]byte
		h.Encode(b[:])
		if got, err := DecodeIndexHeader(b[:]); err != nil || got != h {
			t.Errorf("page size %d: got %+v, %v, want %+v", size, got, err, h)
		}
		for i := range b {
			damaged := b
			damaged[i] ^= 0x40
			if got, err := DecodeIndexHeader(damaged[:]); err == nil {
				t.Errorf("page size %d, byte %d changed: got %+v, want an error", size, i, got)
			}
		}
	}
	if _, err := DecodeIndexHeader(make([]byte, indexHeaderSize)); !errors.Is(err, ErrUnstable) {
		t.Errorf("zeros: got %v, want ErrUnstable", err)
	}
}

func TestHashTableHoldsEveryFrame(t *testing.T) {
	var shm MemoryShm
	rnd := rand.New(rand.NewPCG(3, 4))
	const frames = 2*framesPerRegion + framesInRegion0 + 100
	newest := map[uint32][]uint32{}
	for n := uint32(1); n <= frames; n++ {
		pgno := 1 + rnd.Uint32N(500)
		if rnd.IntN(10) == 0 {
			pgno = 1 + 8192*rnd.Uint32N(1<<18) // all in one chain of slots
		}
		mem, err := shm.Map(hashRegion(n))
		if err != nil {
			t.Fatal(err)
		}
		if err := insertFrame(mem, n, pgno, n-1); err != nil {
			t.Fatal(err)
		}
		newest[pgno] = append(newest[pgno], n)
	}
	for pgno, at := range newest {
		for _, maxFrame := range []uint32{frames, frames / 2, framesInRegion0, framesInRegion0 + 1, 1} {
			for _, minFrame := range []uint32{1, 5000} {
				want := uint32(0)
				for _, n := range at {
					if n >= minFrame && n <= maxFrame {
						want = n
					}
				}
				if got, err := findFrame(&shm, pgno, minFrame, maxFrame); err != nil || got != want {
					t.Fatalf("page %d in frames %d to %d: got %d, %v, want %d", pgno, minFrame, maxFrame, got, err, want)
				}
			}
		}
	}
}

func TestEmptyDatabaseRefuses(t *testing.T) {
	for _, tc := range []struct {
		size uint32
		av   uint8
	}{{0, 0}, {256, 0}, {1000, 0}, {131072, 0}, {4096, 3}} {
		if b, err := EmptyDatabase(tc.size, tc.av); err == nil {
			t.Errorf("page size %d, auto_vacuum %d: got %d bytes, want an error", tc.size, tc.av, len(b))
		}
	}
}

func FuzzReader(f *testing.F) {
	f.Add(buildLog(false, 512, 1, 2))
	f.Add(buildLog(true, 512, 2)[:1000])
	f.Fuzz(func(t *testing.T, b []byte) {
		last := commitsOf(t, b)
		for _, n := range last {
			if int64(n) > int64(len(b))/536 {
				t.Fatalf("frame %d in %d bytes", n, len(b))
			}
		}
	})
}

func FuzzHeader(f *testing.F) {
	f.Add(buildLog(false, 4096))
	f.Add(buildLog(true, 65536))
	f.Fuzz(func(t *testing.T, b []byte) {
		h, sum, err := DecodeHeader(b)
		if err != nil {
			return
		}
		var again [HeaderSize]byte
		if got := h.Encode(again[:]); got != sum || !bytes.Equal(again[:], b[:HeaderSize]) {
			t.Fatalf("%x encoded again is %x", b[:HeaderSize], again)
		}
	})
}

func FuzzIndex(f *testing.F) {
	var b [indexHeaderSize]byte
	IndexHeader{Change: 3, PageSize: 4096, MaxFrame: 2, PageCount: 2}.Encode(b[:])
	f.Add(b[:], uint32(1), uint32(1), uint32(4000))
	f.Add(bytes.Repeat([]byte{1, 0}, 9000), uint32(7), uint32(1), uint32(9000))
	f.Fuzz(func(t *testing.T, b []byte, pgno, minFrame, maxFrame uint32) {
		if h, err := DecodeIndexHeader(b); err == nil {
			var again [indexHeaderSize]byte
			h.Encode(again[:])
			if back, err := DecodeIndexHeader(again[:]); err != nil || back != h {
				t.Fatalf("%+v encoded and decoded is %+v, %v", h, back, err)
			}
		}
		if c, err := DecodeCheckpointInfo(b); err == nil {
			var again [checkpointSize]byte
			c.Encode(again[:])
			if back, err := DecodeCheckpointInfo(again[:]); err != nil || back != c {
				t.Fatalf("%+v encoded and decoded is %+v, %v", c, back, err)
			}
		}
		// A lookup in any bytes ends and stays in bounds.
		shm := &MemoryShm{}
		for i := 0; i < 3; i++ {
			mem, _ := shm.Map(i)
			for off := 0; off < RegionSize && len(b) > 0; off += len(b) {
				copy(mem[off:], b)
			}
		}
		maxFrame %= 3 * framesPerRegion
		if n, err := findFrame(shm, pgno, minFrame, maxFrame); err == nil && n > maxFrame {
			t.Fatalf("found frame %d beyond %d", n, maxFrame)
		}
	})
}

func TestHostByteOrder(t *testing.T) {
	if got := binary.NativeEndian.Uint16([]byte{0, 1}) == 1; got != hostBig {
		t.Fatalf("hostBig is %v on this machine", hostBig)
	}
}
