package peer

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"io"
	"unicode"
	"unicode/utf8"
)

// The dialling side opens every connection with a hello, and the listening
// side answers once:
//
//	hello   magic[8] version u16  kind u8  zero u8
//	        cluster[16] lineage u64 len(sender) u8 len(receiver) u8
//	        sender receiver
//	answer  status u8 (0 welcome, 1 refused) len(id) u8 len(text) u16
//	        cluster[16] lineage u64
//	        id text
//
// The first 12 bytes of a hello never change, so that a node can refuse
// another version in words.
const (
	magic           = "HASQPEER"
	protocolVersion = 1

	helloPrelude = 12
	helloRest    = 26
	answerFixed  = 28
	maxText      = 1024
	maxID        = 255
)

type connKind uint8

const (
	kindRaft   connKind = 1 // raft's own protocol follows
	kindRPC    connKind = 2 // request frames of one peer, for as long as it lives
	kindStream connKind = 3 // one request, one stream of chunks
	kindCall   connKind = 4 // as kindRPC, once, to a receiver that is not known
)

// ClusterID names a cluster; zero means that the node belongs to none yet.
type ClusterID = [16]byte

// Identity is who a node is at the moment.
type Identity struct {
	// NodeID is this node's id, never empty.
	NodeID string
	// Cluster is zero until the node has become a member.
	Cluster ClusterID
	// Lineage counts the recoveries by force; it has a meaning only together
	// with Cluster.
	Lineage uint64
}

func (i Identity) member() bool { return i.Cluster != ClusterID{} }

type hello struct {
	kind     connKind
	cluster  ClusterID
	lineage  uint64
	sender   string
	receiver string
}

type answer struct {
	refused bool
	id      string
	cluster ClusterID
	lineage uint64
	text    string
}

func appendHello(dst []byte, h hello) []byte {
	dst = append(dst, magic...)
	dst = binary.LittleEndian.AppendUint16(dst, protocolVersion)
	dst = append(dst, byte(h.kind), 0)
	dst = append(dst, h.cluster[:]...)
	dst = binary.LittleEndian.AppendUint64(dst, h.lineage)
	dst = append(dst, byte(len(h.sender)), byte(len(h.receiver)))
	dst = append(dst, h.sender...)
	return append(dst, h.receiver...)
}

// readHello reads exactly one hello and not a byte more. With another protocol
// version it returns *versionError.
func readHello(r io.Reader) (hello, error) {
	var h hello
	var b [helloPrelude + helloRest]byte
	if _, err := io.ReadFull(r, b[:helloPrelude]); err != nil {
		return h, fmt.Errorf("read hello: %w", err)
	}
	if string(b[:8]) != magic {
		return h, fmt.Errorf("read hello: no %s magic: %w", magic, ErrMalformed)
	}
	if v := binary.LittleEndian.Uint16(b[8:]); v != protocolVersion {
		return h, &versionError{v}
	}
	h.kind = connKind(b[10])
	if b[11] != 0 {
		return h, fmt.Errorf("read hello: reserved byte is %d: %w", b[11], ErrMalformed)
	}
	if _, err := io.ReadFull(r, b[helloPrelude:]); err != nil {
		return h, fmt.Errorf("read hello: %w", err)
	}
	copy(h.cluster[:], b[12:28])
	h.lineage = binary.LittleEndian.Uint64(b[28:])
	nSender, nReceiver := int(b[36]), int(b[37])
	names := make([]byte, nSender+nReceiver) // two bytes of length: at most 510
	if _, err := io.ReadFull(r, names); err != nil {
		return h, fmt.Errorf("read hello: names: %w", err)
	}
	h.sender, h.receiver = string(names[:nSender]), string(names[nSender:])
	if err := ValidNodeID(h.sender); err != nil {
		return h, fmt.Errorf("read hello: sender: %v: %w", err, ErrMalformed)
	}
	if h.receiver != "" {
		if err := ValidNodeID(h.receiver); err != nil {
			return h, fmt.Errorf("read hello: receiver: %v: %w", err, ErrMalformed)
		}
	}
	return h, nil
}

type versionError struct{ version uint16 }

func (e *versionError) Error() string {
	return fmt.Sprintf("peer protocol version %d, this node speaks %d: upgrade the older node", e.version, protocolVersion)
}

func appendAnswer(dst []byte, a answer) []byte {
	text := a.text
	if len(text) > maxText {
		text = text[:maxText]
	}
	var status byte
	if a.refused {
		status = 1
	}
	dst = append(dst, status, byte(len(a.id)))
	dst = binary.LittleEndian.AppendUint16(dst, uint16(len(text)))
	dst = append(dst, a.cluster[:]...)
	dst = binary.LittleEndian.AppendUint64(dst, a.lineage)
	dst = append(dst, a.id...)
	return append(dst, text...)
}

// readAnswer reads exactly one answer and not a byte more.
func readAnswer(r io.Reader) (answer, error) {
	var a answer
	var b [answerFixed]byte
	if _, err := io.ReadFull(r, b[:]); err != nil {
		return a, fmt.Errorf("read handshake answer: %w", err)
	}
	if b[0] > 1 {
		return a, fmt.Errorf("read handshake answer: status %d: %w", b[0], ErrMalformed)
	}
	a.refused = b[0] == 1
	nID, nText := int(b[1]), int(binary.LittleEndian.Uint16(b[2:]))
	if nText > maxText {
		return a, fmt.Errorf("read handshake answer: text of %d bytes: %w", nText, ErrMalformed)
	}
	copy(a.cluster[:], b[4:20])
	a.lineage = binary.LittleEndian.Uint64(b[20:])
	rest := make([]byte, nID+nText)
	if _, err := io.ReadFull(r, rest); err != nil {
		return a, fmt.Errorf("read handshake answer: %w", err)
	}
	a.id, a.text = string(rest[:nID]), string(rest[nID:])
	if err := ValidNodeID(a.id); err != nil {
		return a, fmt.Errorf("read handshake answer: %v: %w", err, ErrMalformed)
	}
	return a, nil
}

// ValidNodeID tells why id cannot be a node id: it has 1 to 255 bytes of
// printable UTF-8 without blanks, '/' and '@'.
func ValidNodeID(id string) error {
	if id == "" || len(id) > maxID {
		return fmt.Errorf("node id has %d bytes, not 1 to %d", len(id), maxID)
	}
	if !utf8.ValidString(id) {
		return fmt.Errorf("node id %q is not UTF-8", id)
	}
	for _, r := range id {
		if r == '@' || r == '/' || unicode.IsSpace(r) || !unicode.IsPrint(r) {
			return fmt.Errorf("node id %q contains %q", id, r)
		}
	}
	return nil
}

// judge decides on a hello that arrived at me. A stranger may only use methods
// that are open to strangers: one of the two sides is no member yet.
func judge(h hello, me Identity) (stranger bool, refusal string) {
	switch h.kind {
	case kindRaft, kindRPC, kindStream:
		if h.receiver == "" {
			return false, "the hello names no receiver"
		}
		if h.sender == me.NodeID {
			return false, fmt.Sprintf("node id %q is in use by two nodes", me.NodeID)
		}
	case kindCall:
	default:
		return false, fmt.Sprintf("unknown kind of connection %d", h.kind)
	}
	if h.receiver != "" && h.receiver != me.NodeID {
		return false, fmt.Sprintf("this is node %q, not %q: the address belongs to another node now", me.NodeID, h.receiver)
	}
	if h.cluster == (ClusterID{}) || !me.member() {
		if h.kind == kindRaft || h.kind == kindStream {
			if !me.member() {
				return false, fmt.Sprintf("node %q is not a member of a cluster yet", me.NodeID)
			}
			return false, "the sender is not a member of a cluster yet"
		}
		return true, ""
	}
	if h.cluster != me.Cluster {
		return false, fmt.Sprintf("node %q belongs to cluster %s, not %s", me.NodeID, hex.EncodeToString(me.Cluster[:]), hex.EncodeToString(h.cluster[:]))
	}
	if h.lineage != me.Lineage {
		return false, fmt.Sprintf("node %q is of lineage %d of the cluster, not %d: the cluster was recovered by force, and the node of the lower lineage comes back with nothing of its own only (hasqlite-node rejoin)", me.NodeID, me.Lineage, h.lineage)
	}
	return false, ""
}

// judgeAnswer is what the dialling side checks.
func judgeAnswer(a answer, sent hello) error {
	if a.refused {
		return fmt.Errorf("node %q: %s: %w", a.id, a.text, ErrRefused)
	}
	if sent.receiver != "" && a.id != sent.receiver {
		return fmt.Errorf("node %q answered in place of %q: %w", a.id, sent.receiver, ErrRefused)
	}
	zero := ClusterID{}
	if sent.cluster != zero && a.cluster != zero && (a.cluster != sent.cluster || a.lineage != sent.lineage) {
		return fmt.Errorf("node %q of another cluster or lineage answered: %w", a.id, ErrRefused)
	}
	return nil
}
