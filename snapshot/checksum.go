package snapshot

import (
	"encoding/binary"
	"math/bits"
	"sync"
)

// ChecksumFlag is set in every checksum of LTX, so that none is zero.
const ChecksumFlag uint64 = 1 << 63

// PageSum returns the checksum of one page as LTX defines it: CRC-64/ISO over
// the page number (4 bytes, big-endian) and the image, with ChecksumFlag set.
func PageSum(pgno uint32, data []byte) uint64 {
	r := pageNumberState(pgno)
	return ChecksumFlag | ^crcUpdate(r, data)
}

// Roll takes one page out of or into a database checksum; both are the same
// operation. The lock page takes no part: do not roll it. The checksum of no
// pages is ChecksumFlag.
func Roll(sum, pageSum uint64) uint64 { return ChecksumFlag | (sum ^ pageSum) }

// LockPgno returns the number of the page that holds SQLite's lock bytes. It is
// never written, shipped or summed.
func LockPgno(pageSize uint32) uint32 { return (1<<30)/pageSize + 1 }

// ValidPageSize reports whether SQLite allows the page size.
func ValidPageSize(n uint32) bool { return n >= 512 && n <= 65536 && n&(n-1) == 0 }

// CRC-64/ISO is the remainder modulo P = x^64 + x^4 + x^3 + x + 1, bit-reflected:
// bit 63 of a word is the coefficient of x^0. Since x^64 = x^4 + x^3 + x + 1
// (mod P) has four terms, appending 64 zero bits is four shifts, and so is any
// power of it whose exponent is doubled (squaring spreads the terms): no tables
// are needed, and words at a distance do not wait for each other. This is
// several times as fast as the table-driven hash/crc64, and every page is
// summed on every node.
//
// A "state" below is the register between bytes; the CRC is its complement, and
// the state before the first byte is ^0.

const crcPoly = 0xD800000000000000

var crcTable = func() (t [256]uint64) {
	for i := range t {
		c := uint64(i)
		for range 8 {
			c = c>>1 ^ crcPoly&-(c&1)
		}
		t[i] = c
	}
	return t
}()

// reduce multiplies by x^64 what does not overflow by that: all of a word of
// degree 59 at most.
func reduce(o uint64) uint64 { return o ^ o>>1 ^ o>>3 ^ o>>4 }

// step64 multiplies by x^64.
func step64(c uint64) uint64 {
	return reduce(c) ^ reduce(c<<63^c<<61^c<<60)
}

// step256 multiplies by x^256, whose remainder is x^16 + x^12 + x^4 + 1.
func step256(c uint64) uint64 {
	return c ^ c>>4 ^ c>>12 ^ c>>16 ^ reduce(c<<60^c<<52^c<<48)
}

// crcUpdate advances a state over p.
func crcUpdate(c uint64, p []byte) uint64 {
	if n := len(p) &^ 63; carryless && n > 0 {
		hi, lo := crcFold(c, &p[0], n, &foldConstants)
		return crcWords(step64(step64(hi)^lo), p[n:])
	}
	return crcWords(c, p)
}

// foldConstants multiply the two words of 16 bytes by what moves them 64 bytes ahead, then 16 bytes: by x^512 for the
// second word and by x^576 for the first, which is 64 powers ahead; by x^128 and x^192. Each is one power less, because
// the carry-less product of two words with bit 63 for x^0 has bit 127 for x^1 and not for x^0.
var foldConstants = [4]uint64{power(575), power(511), power(191), power(127)}

// power returns x^n.
func power(n int) uint64 {
	r := uint64(1) << 63 // x^0
	for range n {
		r = r>>1 ^ crcPoly&-(r&1)
	}
	return r
}

// crcWords is crcUpdate without carry-less multiplication.
func crcWords(c uint64, p []byte) uint64 {
	if len(p) >= 64 {
		// Four interleaved remainders of every fourth word.
		c0, c1, c2, c3 := c^le64(p), le64(p[8:]), le64(p[16:]), le64(p[24:])
		p = p[32:]
		for len(p) >= 32 {
			q := p[:32:32]
			c0 = step256(c0) ^ le64(q)
			c1 = step256(c1) ^ le64(q[8:])
			c2 = step256(c2) ^ le64(q[16:])
			c3 = step256(c3) ^ le64(q[24:])
			p = p[32:]
		}
		c = step64(step64(step64(step64(c0)^c1)^c2) ^ c3)
	}
	for len(p) >= 8 {
		c = step64(c ^ le64(p))
		p = p[8:]
	}
	for _, b := range p {
		c = crcTable[byte(c)^b] ^ c>>8
	}
	return c
}

// pageNumberState returns the state after the four bytes of a page number.
func pageNumberState(pgno uint32) uint64 {
	c := ^uint64(0) ^ uint64(bits.ReverseBytes32(pgno))
	// Multiply by x^32: the low 32 bits overflow.
	return c>>32 ^ reduce(c<<32)
}

func le64(p []byte) uint64 { return binary.LittleEndian.Uint64(p) }

// pageShift multiplies by x^(8*page size): it appends a page of zeros. With it
// the CRC of a page's image, taken once, gives both its page checksum and its
// share in the checksum of the file.
type pageShift [16][16]uint64

func (s *pageShift) apply(c uint64) uint64 {
	var r uint64
	for i := range s {
		r ^= s[i][c>>(4*i)&15]
	}
	return r
}

var (
	pageShiftOnce [8]sync.Once
	pageShifts    [8]pageShift
)

// shiftOfPage returns the table for a valid page size.
func shiftOfPage(pageSize uint32) *pageShift {
	i := bits.TrailingZeros32(pageSize) - 9
	pageShiftOnce[i].Do(func() {
		k := zeros(uint64(pageSize))
		for n := range 16 {
			for v := range 16 {
				pageShifts[i][n][v] = multiply(uint64(v)<<(4*n), k)
			}
		}
	})
	return &pageShifts[i]
}

// zeros returns x^(8n), by which multiplying a state appends n zero bytes.
func zeros(n uint64) uint64 {
	r := uint64(1) << 63 // x^0
	for i := 0; n != 0; i, n = i+1, n>>1 {
		if n&1 != 0 {
			r = multiply(r, zeroPowers[i])
		}
	}
	return r
}

// zeroPowers[i] is x^(8*2^i).
var zeroPowers = func() (t [64]uint64) {
	t[0] = 1 << 55
	for i := 1; i < len(t); i++ {
		t[i] = multiply(t[i-1], t[i-1])
	}
	return t
}()

// multiply returns a*b modulo P.
func multiply(a, b uint64) uint64 {
	var r uint64
	for b != 0 {
		r ^= a & -(b >> 63)
		b <<= 1
		a = a>>1 ^ crcPoly&-(a&1)
	}
	return r
}
