package replicate

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
	"strings"
)

var (
	// ErrInvalidPosition is returned by the parsers of this file for text that
	// is not a TXID, checksum, position, id or bookmark. The caller refuses the
	// request that carried the text.
	ErrInvalidPosition = errors.New("invalid position")
)

// TXID numbers the transactions of one database, from 1 (its creation) without
// gaps. In text it is 16 hex digits, in JSON a string of them, since JavaScript
// rounds above 2^53.
type TXID uint64

// String returns t as 16 hex digits.
func (t TXID) String() string { return string(appendHex64(nil, uint64(t))) }

// MarshalText implements encoding.TextMarshaler.
func (t TXID) MarshalText() ([]byte, error) { return appendHex64(nil, uint64(t)), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (t *TXID) UnmarshalText(b []byte) error {
	v, err := ParseTXID(string(b))
	if err != nil {
		return err
	}
	*t = v
	return nil
}

// ParseTXID reads 16 hex digits.
func ParseTXID(s string) (TXID, error) {
	v, err := parseHex64(s)
	if err != nil {
		return 0, fmt.Errorf("parse transaction number %q: %w", s, err)
	}
	return TXID(v), nil
}

// Checksum is the rolling checksum of a whole database as LTX defines it: the
// top bit set, XOR of the checksum of every page but the lock page.
type Checksum uint64

// String returns c as 16 hex digits.
func (c Checksum) String() string { return string(appendHex64(nil, uint64(c))) }

// MarshalText implements encoding.TextMarshaler.
func (c Checksum) MarshalText() ([]byte, error) { return appendHex64(nil, uint64(c)), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (c *Checksum) UnmarshalText(b []byte) error {
	v, err := ParseChecksum(string(b))
	if err != nil {
		return err
	}
	*c = v
	return nil
}

// ParseChecksum reads 16 hex digits.
func ParseChecksum(s string) (Checksum, error) {
	v, err := parseHex64(s)
	if err != nil {
		return 0, fmt.Errorf("parse checksum %q: %w", s, err)
	}
	return Checksum(v), nil
}

// Position names one state of one database. Equal positions of one database id
// are equal bytes.
type Position struct {
	TXID     TXID     `json:"txid"`
	Checksum Checksum `json:"checksum"`
}

// String returns the position as <txid>/<checksum>.
func (p Position) String() string {
	b := appendHex64(make([]byte, 0, 33), uint64(p.TXID))
	return string(appendHex64(append(b, '/'), uint64(p.Checksum)))
}

// IsZero reports whether p is the zero position, which no database has.
func (p Position) IsZero() bool { return p == Position{} }

// ParsePosition reads what String returns.
func ParsePosition(s string) (Position, error) {
	txid, sum, ok := strings.Cut(s, "/")
	if !ok {
		return Position{}, fmt.Errorf("parse position %q: no slash between number and checksum: %w", s, ErrInvalidPosition)
	}
	t, err := ParseTXID(txid)
	if err != nil {
		return Position{}, fmt.Errorf("parse position %q: %w", s, err)
	}
	c, err := ParseChecksum(sum)
	if err != nil {
		return Position{}, fmt.Errorf("parse position %q: %w", s, err)
	}
	return Position{TXID: t, Checksum: c}, nil
}

// DatabaseID identifies one database for ever: a name that is deleted and
// created again gets another id. The zero id is no database.
type DatabaseID [16]byte

// NewDatabaseID returns the id of the database that gets name after incarnation
// databases of that name were deleted. Every node computes the same.
func NewDatabaseID(cluster [16]byte, name string, incarnation uint64) DatabaseID {
	b := make([]byte, 0, len(cluster)+len(name)+8)
	b = append(b, cluster[:]...)
	b = append(b, name...)
	b = binary.LittleEndian.AppendUint64(b, incarnation)
	sum := sha256.Sum256(b)
	return DatabaseID(sum[:16])
}

// String returns id as 32 hex digits.
func (id DatabaseID) String() string { return hex.EncodeToString(id[:]) }

// IsZero reports whether id names no database.
func (id DatabaseID) IsZero() bool { return id == DatabaseID{} }

// MarshalText implements encoding.TextMarshaler.
func (id DatabaseID) MarshalText() ([]byte, error) { return hex.AppendEncode(nil, id[:]), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (id *DatabaseID) UnmarshalText(b []byte) error {
	v, err := ParseDatabaseID(string(b))
	if err != nil {
		return err
	}
	*id = v
	return nil
}

// ParseDatabaseID reads 32 hex digits.
func ParseDatabaseID(s string) (DatabaseID, error) {
	id, err := parseHex128(s)
	if err != nil {
		return DatabaseID{}, fmt.Errorf("parse database id %q: %w", s, err)
	}
	return id, nil
}

// EntryID identifies one attempt to commit one transaction: 128 random bits.
type EntryID [16]byte

// NewEntryID makes an id that no other attempt has.
func NewEntryID() EntryID {
	var id EntryID
	_, _ = rand.Read(id[:]) // documented never to fail
	return id
}

// String returns id as 32 hex digits.
func (id EntryID) String() string { return hex.EncodeToString(id[:]) }

// IsZero reports whether id is unset.
func (id EntryID) IsZero() bool { return id == EntryID{} }

// Bookmark names one state of one database in text that a user keeps.
type Bookmark struct {
	Position
	DB DatabaseID
	// Lineage is how often the cluster had been recovered by force when the state was its newest; 0 also where that is
	// not known. A later recovery may have lost the state.
	Lineage uint64
}

// String returns the bookmark as <txid>/<checksum>@<database id>, with -<lineage> behind it unless that is 0.
func (b Bookmark) String() string {
	out := appendHex64(make([]byte, 0, 72), uint64(b.TXID))
	out = appendHex64(append(out, '/'), uint64(b.Checksum))
	out = hex.AppendEncode(append(out, '@'), b.DB[:])
	if b.Lineage > 0 {
		out = strconv.AppendUint(append(out, '-'), b.Lineage, 10)
	}
	return string(out)
}

// MarshalText implements encoding.TextMarshaler.
func (b Bookmark) MarshalText() ([]byte, error) { return []byte(b.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (b *Bookmark) UnmarshalText(text []byte) error {
	v, err := ParseBookmark(string(text))
	if err != nil {
		return err
	}
	*b = v
	return nil
}

// ParseBookmark reads what String returns. A position of transaction 0 is no
// state of a database and is refused.
func ParseBookmark(s string) (Bookmark, error) {
	pos, id, ok := strings.Cut(s, "@")
	if !ok {
		return Bookmark{}, fmt.Errorf("parse bookmark %q: no @ before the database id: %w", s, ErrInvalidPosition)
	}
	p, err := ParsePosition(pos)
	if err != nil {
		return Bookmark{}, fmt.Errorf("parse bookmark %q: %w", s, err)
	}
	if p.TXID == 0 {
		return Bookmark{}, fmt.Errorf("parse bookmark %q: transaction 0 does not exist: %w", s, ErrInvalidPosition)
	}
	id, lineage, hasLineage := strings.Cut(id, "-")
	db, err := ParseDatabaseID(id)
	if err != nil {
		return Bookmark{}, fmt.Errorf("parse bookmark %q: %w", s, err)
	}
	b := Bookmark{Position: p, DB: db}
	if hasLineage {
		if b.Lineage, err = strconv.ParseUint(lineage, 10, 64); err != nil || b.Lineage == 0 || b.String() != strings.ToLower(s) {
			return Bookmark{}, fmt.Errorf("parse bookmark %q: lineage %q: %w", s, lineage, ErrInvalidPosition)
		}
	}
	return b, nil
}

func appendHex64(dst []byte, v uint64) []byte {
	var b [8]byte
	binary.BigEndian.PutUint64(b[:], v)
	return hex.AppendEncode(dst, b[:])
}

func parseHex64(s string) (uint64, error) {
	if len(s) != 16 {
		return 0, fmt.Errorf("%d characters, want 16 hex digits: %w", len(s), ErrInvalidPosition)
	}
	var b [8]byte
	if _, err := hex.Decode(b[:], []byte(s)); err != nil {
		return 0, fmt.Errorf("not hex digits: %w", ErrInvalidPosition)
	}
	return binary.BigEndian.Uint64(b[:]), nil
}

func parseHex128(s string) (id [16]byte, err error) {
	if len(s) != 32 {
		return id, fmt.Errorf("%d characters, want 32 hex digits: %w", len(s), ErrInvalidPosition)
	}
	if _, err := hex.Decode(id[:], []byte(s)); err != nil {
		return [16]byte{}, fmt.Errorf("not hex digits: %w", ErrInvalidPosition)
	}
	return id, nil
}
