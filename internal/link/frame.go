package link

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"
)

// ErrMalformed is wrapped by every decode error: the peer does not speak the
// protocol, and its connection must be closed.
var ErrMalformed = errors.New("malformed frame")

// Version is the protocol version that this package speaks.
const Version = 1

// Limits of the protocol. Only the pages of a transaction may use the larger one.
const (
	headerSize       = 12
	maxCommitPayload = 1 << 20
	maxPayload       = 64 << 10
	maxString        = 1<<16 - 1
)

// kind is the type byte of a frame.
type kind uint8

// The types, as docs/protocol.md lists them.
const (
	kindHello    kind = 1
	kindWelcome  kind = 2
	kindResolve  kind = 3
	kindResolved kind = 4
	kindOpen     kind = 5
	kindOpened   kind = 6
	kindCreate   kind = 7
	kindCreated  kind = 8
	kindBegin    kind = 9
	kindGrant    kind = 10
	kindCommit   kind = 11
	kindVerdict  kind = 12
	kindProgress kind = 13
	kindEnd      kind = 14
	kindMismatch kind = 15
	kindRead     kind = 16
	kindReady    kind = 17
	kindPragma   kind = 18
	kindText     kind = 19
	kindPiece    kind = 20
	kindPast     kind = 21
	kindPastFile kind = 22
	kindError    kind = 255
)

// Bits of OPEN's flags.
const (
	openReadOnly     = 1
	openCreate       = 2
	openLinearizable = 4
)

// Bits of END's flags.
const (
	beginKept    = 1
	endAccepted  = 1
	endPublished = 2
	endEmpty     = 4
)

// header is the fixed part of every frame.
//
//	0  length    u32  bytes of payload that follow
//	4  kind      u8
//	5  flags     u8   0
//	6  reserved  u16  0
//	8  sequence  u32  of the request; a reply repeats it
type header struct {
	length   uint32
	kind     kind
	sequence uint32
}

func appendHeader(b []byte, h header) []byte {
	b = binary.LittleEndian.AppendUint32(b, h.length)
	b = append(b, byte(h.kind), 0, 0, 0)
	return binary.LittleEndian.AppendUint32(b, h.sequence)
}

// parseHeader decodes and validates a header that a client sent.
func parseHeader(b []byte) (header, error) {
	if len(b) < headerSize {
		return header{}, fmt.Errorf("parse header: %d bytes of %d: %w", len(b), headerSize, ErrMalformed)
	}
	h := header{
		length:   binary.LittleEndian.Uint32(b),
		kind:     kind(b[4]),
		sequence: binary.LittleEndian.Uint32(b[8:]),
	}
	if b[5] != 0 || b[6] != 0 || b[7] != 0 {
		return header{}, fmt.Errorf("parse header: reserved bytes %x: %w", b[5:8], ErrMalformed)
	}
	limit := uint32(maxPayload)
	if h.kind == kindCommit || h.kind == kindPiece {
		limit = maxCommitPayload
	}
	if h.length > limit {
		return header{}, fmt.Errorf("parse header: type %d with %d bytes of payload, limit %d: %w", h.kind, h.length, limit, ErrMalformed)
	}
	return h, nil
}

// decoder reads one payload. The first error sticks; end reports it.
type decoder struct {
	b   []byte
	err error
}

func (d *decoder) take(n int) []byte {
	if d.err == nil && len(d.b) < n {
		d.err = fmt.Errorf("%d bytes left, %d wanted: %w", len(d.b), n, ErrMalformed)
	}
	if d.err != nil {
		return nil
	}
	out := d.b[:n]
	d.b = d.b[n:]
	return out
}

func (d *decoder) u8() uint8 {
	if b := d.take(1); b != nil {
		return b[0]
	}
	return 0
}

func (d *decoder) u16() uint16 {
	if b := d.take(2); b != nil {
		return binary.LittleEndian.Uint16(b)
	}
	return 0
}

func (d *decoder) u32() uint32 {
	if b := d.take(4); b != nil {
		return binary.LittleEndian.Uint32(b)
	}
	return 0
}

func (d *decoder) text() string { return string(d.take(int(d.u16()))) }

func (d *decoder) id() (id [16]byte) {
	copy(id[:], d.take(len(id)))
	return id
}

func (d *decoder) fingerprint() (f Fingerprint) {
	for i := range f {
		f[i] = d.u32()
	}
	return f
}

// end returns the first error, or that bytes are left over.
func (d *decoder) end(what string) error {
	if d.err == nil && len(d.b) > 0 {
		d.err = fmt.Errorf("%d bytes too many: %w", len(d.b), ErrMalformed)
	}
	if d.err != nil {
		return fmt.Errorf("decode %s: %w", what, d.err)
	}
	return nil
}

func appendText(b []byte, s string) []byte {
	if len(s) > maxString {
		s = s[:maxString]
	}
	b = binary.LittleEndian.AppendUint16(b, uint16(len(s)))
	return append(b, s...)
}

func appendFingerprint(b []byte, f Fingerprint) []byte {
	for _, w := range f {
		b = binary.LittleEndian.AppendUint32(b, w)
	}
	return b
}

func appendBool(b []byte, v bool) []byte {
	if v {
		return append(b, 1)
	}
	return append(b, 0)
}

// hello is the first message on every connection.
type hello struct {
	version uint32
	pid     uint32
	client  string
	sqlite  string
}

func decodeHello(b []byte) (hello, error) {
	d := decoder{b: b}
	h := hello{version: d.u32(), pid: d.u32(), client: d.text(), sqlite: d.text()}
	return h, d.end("HELLO")
}

func decodeResolve(b []byte) (string, error) {
	d := decoder{b: b}
	name := d.text()
	return name, d.end("RESOLVE")
}

func decodeOpen(b []byte) (OpenRequest, error) {
	d := decoder{b: b}
	r := OpenRequest{Name: d.text(), ID: d.id()}
	flags := d.u8()
	r.LockTimeout = time.Duration(d.u32()) * time.Millisecond
	r.CommitTimeout = time.Duration(d.u32()) * time.Millisecond
	r.ReadOnly = flags&openReadOnly != 0
	r.Create = flags&openCreate != 0
	r.Linearizable = flags&openLinearizable != 0
	if flags&^(openReadOnly|openCreate|openLinearizable) != 0 && d.err == nil {
		d.err = fmt.Errorf("flags %#x: %w", flags, ErrMalformed)
	}
	return r, d.end("OPEN")
}

func decodePast(b []byte) (PastRequest, error) {
	d := decoder{b: b}
	r := PastRequest{Name: d.text(), At: d.text(), To: d.text()}
	if d.err == nil && (r.At == "") == (r.To == "") {
		d.err = fmt.Errorf("at %q and to %q: %w", r.At, r.To, ErrMalformed)
	}
	return r, d.end("PAST")
}

func decodeCreate(b []byte) (pageSize uint32, autoVacuum uint8, err error) {
	d := decoder{b: b}
	pageSize, autoVacuum = d.u32(), d.u8()
	if d.err == nil && (!validPageSize(pageSize) || autoVacuum > 2) {
		d.err = fmt.Errorf("page size %d, auto_vacuum %d: %w", pageSize, autoVacuum, ErrMalformed)
	}
	return pageSize, autoVacuum, d.end("CREATE")
}

// validPageSize tells whether SQLite knows pages of n bytes.
func validPageSize(n uint32) bool { return n >= 512 && n <= 65536 && n&(n-1) == 0 }

// decodeCommit decodes COMMIT and PIECE without copying: the pages alias b.
func decodeCommit(b []byte) (*Tx, error) {
	d := decoder{b: b}
	tx := &Tx{PageSize: d.u32(), PageCount: d.u32()}
	n := d.u32()
	switch {
	case d.err != nil:
	case !validPageSize(tx.PageSize):
		d.err = fmt.Errorf("page size %d: %w", tx.PageSize, ErrMalformed)
	case n == 0 || uint64(len(d.b)) != uint64(n)*uint64(4+tx.PageSize):
		d.err = fmt.Errorf("%d pages of %d bytes in %d bytes: %w", n, tx.PageSize, len(d.b), ErrMalformed)
	}
	if d.err != nil {
		return nil, d.end("COMMIT")
	}
	tx.Pages = make([]Page, n)
	last := uint32(0)
	for i := range tx.Pages {
		pgno := d.u32()
		if pgno <= last || pgno > tx.PageCount {
			return nil, fmt.Errorf("decode COMMIT: page %d after page %d in a database of %d pages: %w", pgno, last, tx.PageCount, ErrMalformed)
		}
		last = pgno
		tx.Pages[i] = Page{Pgno: pgno, Data: d.take(int(tx.PageSize))}
	}
	return tx, d.end("COMMIT")
}

func decodeBegin(b []byte) (kept bool, err error) {
	d := decoder{b: b}
	flags := d.u8()
	if flags&^beginKept != 0 && d.err == nil {
		d.err = fmt.Errorf("flags %#x: %w", flags, ErrMalformed)
	}
	return flags&beginKept != 0, d.end("BEGIN")
}

func decodeEnd(b []byte) (End, error) {
	d := decoder{b: b}
	flags := d.u8()
	e := End{
		Accepted:  flags&endAccepted != 0,
		Published: flags&endPublished != 0,
		Empty:     flags&endEmpty != 0,
		Seen:      d.fingerprint(),
	}
	if flags&^(endAccepted|endPublished|endEmpty) != 0 && d.err == nil {
		d.err = fmt.Errorf("flags %#x: %w", flags, ErrMalformed)
	}
	return e, d.end("END")
}

func decodeMismatch(b []byte) (Fingerprint, error) {
	d := decoder{b: b}
	f := d.fingerprint()
	return f, d.end("MISMATCH")
}

func decodeRead(b []byte) error {
	d := decoder{b: b}
	return d.end("READ")
}

func decodePragma(b []byte) (name, arg string, err error) {
	d := decoder{b: b}
	name, arg = d.text(), d.text()
	return name, arg, d.end("PRAGMA")
}
