package peer

import (
	"encoding/binary"
	"fmt"
	"io"
	"time"
)

// After the handshake every connection but raft's carries frames:
//
//	length u32   bytes of payload, at most MaxFrame
//	type u8      see frameType
//	method u8    of requests, else 0
//	code u16     of failures, else 0
//	timeout u32  of requests: milliseconds the caller still waits, 0 = for ever
//	zero u32
//	seq u64      of requests, their answers and cancels; else 0
//	payload
const (
	headerSize = 24

	// MaxFrame is the largest payload of a request or response, in bytes.
	MaxFrame = 16 << 20
	// maxStrangerFrame is the largest request of a sender that is no member.
	maxStrangerFrame = 64 << 10
	// maxStreamRequest is the largest request that opens a stream.
	maxStreamRequest = 4 << 20
)

type frameType uint8

const (
	frameRequest   frameType = 1
	frameResponse  frameType = 2
	frameFailure   frameType = 3 // payload: text
	frameCancel    frameType = 4 // the caller of seq no longer waits
	framePing      frameType = 5
	framePong      frameType = 6
	frameChunk     frameType = 7 // stream data
	frameEnd       frameType = 8 // the stream is complete
	frameKeepalive frameType = 9 // the stream is slow, not dead
)

type header struct {
	length  uint32
	kind    frameType
	method  uint8
	code    uint16
	timeout uint32
	seq     uint64
}

func (h header) put(b *[headerSize]byte) {
	binary.LittleEndian.PutUint32(b[0:], h.length)
	b[4] = byte(h.kind)
	b[5] = h.method
	binary.LittleEndian.PutUint16(b[6:], h.code)
	binary.LittleEndian.PutUint32(b[8:], h.timeout)
	binary.LittleEndian.PutUint32(b[12:], 0)
	binary.LittleEndian.PutUint64(b[16:], h.seq)
}

func parseHeader(b []byte) (header, error) {
	if len(b) < headerSize {
		return header{}, io.ErrUnexpectedEOF
	}
	h := header{
		length:  binary.LittleEndian.Uint32(b[0:]),
		kind:    frameType(b[4]),
		method:  b[5],
		code:    binary.LittleEndian.Uint16(b[6:]),
		timeout: binary.LittleEndian.Uint32(b[8:]),
		seq:     binary.LittleEndian.Uint64(b[16:]),
	}
	if zero := binary.LittleEndian.Uint32(b[12:]); zero != 0 {
		return header{}, fmt.Errorf("parse frame: reserved field is %#x: %w", zero, ErrMalformed)
	}
	if h.length > MaxFrame {
		return header{}, fmt.Errorf("parse frame: %d bytes: %w", h.length, ErrMalformed)
	}
	switch h.kind {
	case frameRequest, frameResponse, frameFailure, frameChunk:
	case frameCancel, framePing, framePong, frameEnd, frameKeepalive:
		if h.length != 0 {
			return header{}, fmt.Errorf("parse frame: type %d with %d bytes: %w", h.kind, h.length, ErrMalformed)
		}
	default:
		return header{}, fmt.Errorf("parse frame: type %d: %w", h.kind, ErrMalformed)
	}
	return h, nil
}

// wireTimeout rounds up, so that the far side never gives up before the caller.
func wireTimeout(d time.Duration) uint32 {
	ms := (d + time.Millisecond - 1) / time.Millisecond
	if ms < 1 {
		return 1
	}
	if ms > 1<<31 {
		return 0
	}
	return uint32(ms)
}

// newFrame makes a frame over parts, which are not copied.
func newFrame(h header, parts ...[]byte) *outFrame {
	f := new(outFrame)
	f.init(h, parts)
	return f
}

// outFrame is one frame on its way out. Its state belongs to the link's mutex.
type outFrame struct {
	head  [headerSize]byte
	few   [4][]byte // backs bufs for the usual number of parts
	bufs  [][]byte  // head first; never changed after init
	size  int
	state outState
}

func (f *outFrame) init(h header, parts [][]byte) {
	f.bufs = append(f.few[:0], f.head[:])
	n := 0
	for _, p := range parts {
		if len(p) > 0 {
			f.bufs = append(f.bufs, p)
			n += len(p)
		}
	}
	h.length = uint32(n)
	h.put(&f.head)
	f.size = n + headerSize
}
