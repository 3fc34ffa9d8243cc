package replicate

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"math"
	"unicode/utf8"

	"github.com/uglyer/ha-sqlite/snapshot"
)

// An entry is the data of one raft log entry. Little-endian:
//
//	offset size
//	     0    1 codec version
//	     1    1 kind
//	     2    n body, by kind
//	   2+n    4 CRC-32C of everything before
//
//	term start   16 cluster id, 8 commit time, string node
//	create       16 id, 8 incarnation, 4 page size, 1 auto_vacuum, 8 commit time, string name
//	transaction  16 database, 16 entry id, 8 term, 8+8 pre position, 8+8 post position,
//	             8 commit time, 4 page size, 4 page count, 4 length of the LTX file, LTX file
//	delete       16 database, 8 commit time, 8+8 position that it has to have, zero: any
//	member       1 codec version, 1 removed, string id, string raft address, string HTTP address
//	version      1 cluster version
//	part, final  see part.go
//	archived     see archived.go
//	fork begin, fork ready  see fork.go
//
// A string is a 2-byte length and that many bytes of UTF-8. Every length is
// exact: bytes left over are an error.

// CodecVersion is the version of the entry codec and of the rules by which the
// FSM decides. It is raised with every change of either.
const CodecVersion = 1

const (
	entryPrefixSize       = 2
	entryChecksumSize     = 4
	transactionHeaderSize = entryPrefixSize + 92
	transactionOverhead   = transactionHeaderSize + entryChecksumSize

	maxStringBytes = 1024 // of any string in an entry
)

// Offsets in an encoded transaction of what is set late.
const (
	transactionTermOffset       = 34
	transactionPostOffset       = 58
	transactionCommitTimeOffset = 74
	transactionLengthOffset     = 90
)

var (
	// ErrCorruptEntry is returned for bytes that no encoder wrote. In a
	// committed log entry it means that this node must stop.
	ErrCorruptEntry = errors.New("corrupt entry")

	// ErrNewerVersion is returned for an entry or manifest of a codec version
	// that this program does not know. The node stops: it never guesses.
	ErrNewerVersion = errors.New("written by a newer version of hasqlite-node, upgrade this node")

	// ErrEntryTooLarge is returned by the encoders for a field over its limit.
	ErrEntryTooLarge = errors.New("entry field too large")
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Kind says what an entry does.
type Kind uint8

// The kinds of entries.
const (
	KindTermStart Kind = iota + 1
	KindCreate
	KindTransaction
	KindDelete
	KindMember
	KindVersion
	KindPart
	KindFinal
	KindArchived
	KindForkBegin
	KindForkReady
)

// String names the kind for logs.
func (k Kind) String() string {
	switch k {
	case KindTermStart:
		return "term start"
	case KindCreate:
		return "create"
	case KindTransaction:
		return "transaction"
	case KindDelete:
		return "delete"
	case KindMember:
		return "member"
	case KindVersion:
		return "version"
	case KindPart:
		return "part"
	case KindFinal:
		return "final"
	case KindArchived:
		return "archived"
	case KindForkBegin:
		return "fork begin"
	case KindForkReady:
		return "fork ready"
	}
	return fmt.Sprintf("kind %d", uint8(k))
}

// TermStart is the first entry of a leader. Deciding it refuses for good what
// earlier terms proposed and raft did not commit before.
type TermStart struct {
	Node       string
	Cluster    [16]byte // zero: unknown to the proposer
	CommitTime int64    // microseconds since 1970
}

// Create makes a database whose transaction 1 is the one-page empty image.
type Create struct {
	ID          DatabaseID
	Name        string
	Incarnation uint64
	PageSize    uint32
	AutoVacuum  uint8 // 0 none, 1 full, 2 incremental
	CommitTime  int64 // microseconds since 1970
}

// Transaction replaces pages of a database.
type Transaction struct {
	DB         DatabaseID
	ID         EntryID
	Term       uint64 // the only raft term in which it may be decided
	Pre, Post  Position
	CommitTime int64  // microseconds since 1970
	PageSize   uint32 // bytes
	PageCount  uint32 // pages of the database after it
	LTX        []byte // decoded: aliases the entry's bytes
}

// Delete removes a database; its id never comes back.
type Delete struct {
	DB         DatabaseID
	CommitTime int64    // microseconds since 1970
	At         Position // it is only deleted if this is its position; zero: whatever that is
}

// Member records how a node is reached and what it understands.
type Member struct {
	ID           string `json:"id"`
	RaftAddr     string `json:"raft"`
	HTTPAddr     string `json:"http"`
	CodecVersion uint8  `json:"codec_version"`
	Removed      bool   `json:"removed,omitempty"`
}

// Version raises the cluster version, once every member understands it.
type Version struct {
	Cluster uint8
}

// EncodeTermStart appends the entry to dst.
func EncodeTermStart(dst []byte, e *TermStart) ([]byte, error) {
	start := len(dst)
	dst = append(dst, CodecVersion, byte(KindTermStart))
	dst = append(dst, e.Cluster[:]...)
	dst = binary.LittleEndian.AppendUint64(dst, uint64(e.CommitTime))
	dst, err := appendString(dst, "node id", e.Node)
	return finishEntry(dst, start, KindTermStart, err)
}

// EncodeCreate appends the entry to dst.
func EncodeCreate(dst []byte, e *Create) ([]byte, error) {
	start := len(dst)
	dst = append(dst, CodecVersion, byte(KindCreate))
	dst = append(dst, e.ID[:]...)
	dst = binary.LittleEndian.AppendUint64(dst, e.Incarnation)
	dst = binary.LittleEndian.AppendUint32(dst, e.PageSize)
	dst = append(dst, e.AutoVacuum)
	dst = binary.LittleEndian.AppendUint64(dst, uint64(e.CommitTime))
	dst, err := appendString(dst, "name", e.Name)
	return finishEntry(dst, start, KindCreate, err)
}

// EncodeDelete appends the entry to dst.
func EncodeDelete(dst []byte, e *Delete) ([]byte, error) {
	start := len(dst)
	dst = append(dst, CodecVersion, byte(KindDelete))
	dst = append(dst, e.DB[:]...)
	dst = binary.LittleEndian.AppendUint64(dst, uint64(e.CommitTime))
	dst = appendPosition(dst, e.At)
	return finishEntry(dst, start, KindDelete, nil)
}

// EncodeMember appends the entry to dst.
func EncodeMember(dst []byte, e *Member) ([]byte, error) {
	start := len(dst)
	dst = append(dst, CodecVersion, byte(KindMember), e.CodecVersion, boolByte(e.Removed))
	dst, err1 := appendString(dst, "member id", e.ID)
	dst, err2 := appendString(dst, "raft address", e.RaftAddr)
	dst, err3 := appendString(dst, "HTTP address", e.HTTPAddr)
	return finishEntry(dst, start, KindMember, errors.Join(err1, err2, err3))
}

// EncodeVersion appends the entry to dst.
func EncodeVersion(dst []byte, e *Version) ([]byte, error) {
	start := len(dst)
	dst = append(dst, CodecVersion, byte(KindVersion), e.Cluster)
	return finishEntry(dst, start, KindVersion, nil)
}

// EncodeTransaction appends the entry to dst, copying t.LTX. Where the LTX file
// is not made yet, EncodeTransactionHeader, snapshot.EncodeTransaction and
// FinishTransaction in a row do without the copy.
func EncodeTransaction(dst []byte, t *Transaction) ([]byte, error) {
	start := len(dst)
	dst = EncodeTransactionHeader(dst, t)
	dst = append(dst, t.LTX...)
	return FinishTransaction(dst, start, t.Post)
}

// TransactionBound returns a capacity in which an entry with pages pages of
// pageSize bytes fits.
func TransactionBound(pageSize uint32, pages int) int {
	return transactionOverhead + snapshot.TransactionBound(pageSize, pages)
}

// EncodeTransactionHeader appends everything of t that precedes its LTX file;
// t.LTX is ignored, and t.Post need not be known yet. The caller appends the
// file, then calls FinishTransaction.
func EncodeTransactionHeader(dst []byte, t *Transaction) []byte {
	dst = append(dst, CodecVersion, byte(KindTransaction))
	dst = append(dst, t.DB[:]...)
	dst = append(dst, t.ID[:]...)
	dst = binary.LittleEndian.AppendUint64(dst, t.Term)
	dst = appendPosition(dst, t.Pre)
	dst = appendPosition(dst, t.Post)
	dst = binary.LittleEndian.AppendUint64(dst, uint64(t.CommitTime))
	dst = binary.LittleEndian.AppendUint32(dst, t.PageSize)
	dst = binary.LittleEndian.AppendUint32(dst, t.PageCount)
	return append(dst, 0, 0, 0, 0)
}

// FinishTransaction completes the entry that begins at buf[start] and whose LTX
// file ends at the end of buf: it sets the length and the post position, and
// appends the checksum.
func FinishTransaction(buf []byte, start int, post Position) ([]byte, error) {
	n := len(buf) - start - transactionHeaderSize
	if n < 0 || n > math.MaxUint32 {
		return buf[:start], fmt.Errorf("encode transaction entry: LTX file of %d bytes: %w", n, ErrEntryTooLarge)
	}
	appendPosition(buf[:start+transactionPostOffset], post)
	binary.LittleEndian.PutUint32(buf[start+transactionLengthOffset:], uint32(n))
	return finishEntry(buf, start, KindTransaction, nil)
}

// StampTransaction sets in an encoded transaction, in place, what only the
// leader knows: its term, and the commit time in the entry and (as
// milliseconds) in the LTX header. Both checksums are updated without
// decompressing a page. The entry's own checksum is verified first.
func StampTransaction(entry []byte, term uint64, commitTime int64) error {
	var t Transaction
	if err := decodeTransaction(entry, &t); err != nil {
		return fmt.Errorf("stamp transaction: %w", err)
	}
	if err := snapshot.Restamp(t.LTX, commitTimeMillis(commitTime)); err != nil {
		return fmt.Errorf("stamp transaction %s of %s: %w", t.Post.TXID, t.DB, err)
	}
	binary.LittleEndian.PutUint64(entry[transactionTermOffset:], term)
	binary.LittleEndian.PutUint64(entry[transactionCommitTimeOffset:], uint64(commitTime))
	body := entry[:len(entry)-entryChecksumSize]
	binary.LittleEndian.PutUint32(entry[len(body):], crc32.Checksum(body, castagnoli))
	return nil
}

// commitTimeMillis turns a commit time of an entry into one of an LTX header.
func commitTimeMillis(micros int64) int64 { return micros / 1000 }

// Decode returns a *TermStart, *Create, *Transaction, *Delete, *Member,
// *Version, *Part, *Final, *Archived, *ForkBegin or *ForkReady. The LTX of a transaction and the data of a part
// alias b; their content is not looked at.
func Decode(b []byte) (any, error) {
	kind, err := checkEntry(b)
	if err != nil {
		return nil, err
	}
	d := decoder{b: b[entryPrefixSize : len(b)-entryChecksumSize]}
	var e any
	switch kind {
	case KindTermStart:
		t := new(TermStart)
		d.bytes16(&t.Cluster)
		t.CommitTime = int64(d.uint64())
		t.Node = d.string()
		e = t
	case KindCreate:
		c := new(Create)
		d.bytes16((*[16]byte)(&c.ID))
		c.Incarnation = d.uint64()
		c.PageSize = d.uint32()
		c.AutoVacuum = d.uint8()
		c.CommitTime = int64(d.uint64())
		c.Name = d.string()
		e = c
	case KindTransaction:
		t := new(Transaction)
		d.transaction(t)
		e = t
	case KindDelete:
		x := new(Delete)
		d.bytes16((*[16]byte)(&x.DB))
		x.CommitTime = int64(d.uint64())
		x.At = d.position()
		e = x
	case KindMember:
		m := new(Member)
		m.CodecVersion = d.uint8()
		m.Removed = d.bool()
		m.ID = d.string()
		m.RaftAddr = d.string()
		m.HTTPAddr = d.string()
		e = m
	case KindVersion:
		e = &Version{Cluster: d.uint8()}
	case KindPart:
		p := new(Part)
		d.part(p)
		e = p
	case KindFinal:
		f := new(Final)
		d.final(f)
		e = f
	case KindForkBegin:
		b := new(ForkBegin)
		d.forkBegin(b)
		e = b
	case KindForkReady:
		r := new(ForkReady)
		d.forkReady(r)
		e = r
	case KindArchived:
		a := new(Archived)
		d.archived(a)
		e = a
	default:
		return nil, fmt.Errorf("decode entry: %v: %w", kind, ErrCorruptEntry)
	}
	if err := d.done(); err != nil {
		return nil, fmt.Errorf("decode %v entry: %w", kind, err)
	}
	return e, nil
}

func decodeTransaction(b []byte, t *Transaction) error {
	kind, err := checkEntry(b)
	if err != nil {
		return err
	}
	if kind != KindTransaction {
		return fmt.Errorf("decode transaction entry: it is a %v: %w", kind, ErrCorruptEntry)
	}
	d := decoder{b: b[entryPrefixSize : len(b)-entryChecksumSize]}
	d.transaction(t)
	if err := d.done(); err != nil {
		return fmt.Errorf("decode transaction entry: %w", err)
	}
	return nil
}

// checkEntry verifies version and checksum. The version comes first: where the
// checksum of a later version stands is not known.
func checkEntry(b []byte) (Kind, error) {
	if len(b) < entryPrefixSize+entryChecksumSize {
		return 0, fmt.Errorf("decode entry: %d bytes, an entry has at least %d: %w",
			len(b), entryPrefixSize+entryChecksumSize, ErrCorruptEntry)
	}
	if b[0] > CodecVersion {
		return 0, fmt.Errorf("decode entry: codec version %d, this program knows up to %d: %w", b[0], CodecVersion, ErrNewerVersion)
	}
	if b[0] == 0 {
		return 0, fmt.Errorf("decode entry: codec version 0: %w", ErrCorruptEntry)
	}
	body := b[:len(b)-entryChecksumSize]
	got, want := crc32.Checksum(body, castagnoli), binary.LittleEndian.Uint32(b[len(body):])
	if got != want {
		return 0, fmt.Errorf("decode entry: checksum %08x, want %08x: %w", got, want, ErrCorruptEntry)
	}
	return Kind(b[1]), nil
}

func finishEntry(b []byte, start int, kind Kind, err error) ([]byte, error) {
	if err != nil {
		return b[:start], fmt.Errorf("encode %v entry: %w", kind, err)
	}
	return binary.LittleEndian.AppendUint32(b, crc32.Checksum(b[start:], castagnoli)), nil
}

func appendPosition(dst []byte, p Position) []byte {
	dst = binary.LittleEndian.AppendUint64(dst, uint64(p.TXID))
	return binary.LittleEndian.AppendUint64(dst, uint64(p.Checksum))
}

func appendString(dst []byte, what, s string) ([]byte, error) {
	if len(s) > maxStringBytes {
		return dst, fmt.Errorf("%s of %d bytes, at most %d: %w", what, len(s), maxStringBytes, ErrEntryTooLarge)
	}
	if !utf8.ValidString(s) {
		return dst, fmt.Errorf("%s %q is not valid UTF-8", what, s)
	}
	dst = binary.LittleEndian.AppendUint16(dst, uint16(len(s)))
	return append(dst, s...), nil
}

func boolByte(v bool) byte {
	if v {
		return 1
	}
	return 0
}

// decoder reads fields off b. After the first failure it returns zero values
// and keeps the error.
type decoder struct {
	b   []byte
	err error
}

func (d *decoder) fail(format string, args ...any) {
	if d.err == nil {
		d.err = fmt.Errorf(format+": %w", append(args, ErrCorruptEntry)...)
	}
	d.b = nil
}

// take returns the next n bytes, or nil.
func (d *decoder) take(n int) []byte {
	if n > len(d.b) {
		d.fail("%d bytes left, %d needed", len(d.b), n)
		return nil
	}
	out := d.b[:n:n]
	d.b = d.b[n:]
	return out
}

func (d *decoder) uint8() uint8 {
	if b := d.take(1); b != nil {
		return b[0]
	}
	return 0
}

func (d *decoder) bool() bool {
	v := d.uint8()
	if v > 1 {
		d.fail("flag is %d", v)
	}
	return v == 1
}

func (d *decoder) uint16() uint16 {
	if b := d.take(2); b != nil {
		return binary.LittleEndian.Uint16(b)
	}
	return 0
}

func (d *decoder) uint32() uint32 {
	if b := d.take(4); b != nil {
		return binary.LittleEndian.Uint32(b)
	}
	return 0
}

func (d *decoder) uint64() uint64 {
	if b := d.take(8); b != nil {
		return binary.LittleEndian.Uint64(b)
	}
	return 0
}

func (d *decoder) bytes16(dst *[16]byte) {
	copy(dst[:], d.take(16))
}

func (d *decoder) position() Position {
	return Position{TXID: TXID(d.uint64()), Checksum: Checksum(d.uint64())}
}

func (d *decoder) string() string {
	n := int(d.uint16())
	if n > maxStringBytes {
		d.fail("string of %d bytes, at most %d", n, maxStringBytes)
		return ""
	}
	b := d.take(n)
	if !utf8.Valid(b) {
		d.fail("string is not valid UTF-8")
		return ""
	}
	return string(b)
}

func (d *decoder) transaction(t *Transaction) {
	d.bytes16((*[16]byte)(&t.DB))
	d.bytes16((*[16]byte)(&t.ID))
	t.Term = d.uint64()
	t.Pre = d.position()
	t.Post = d.position()
	t.CommitTime = int64(d.uint64())
	t.PageSize = d.uint32()
	t.PageCount = d.uint32()
	n := d.uint32()
	if uint64(n) != uint64(len(d.b)) {
		d.fail("LTX file of %d bytes, %d are left", n, len(d.b))
		return
	}
	t.LTX = d.take(int(n))
}

// done reports the first failure, or bytes left over.
func (d *decoder) done() error {
	if d.err == nil && len(d.b) != 0 {
		d.fail("%d bytes left over", len(d.b))
	}
	return d.err
}
