package link

import (
	"encoding/binary"
	"io"
	"net"
	"testing"
	"time"
)

// client speaks the application's side, frame by frame.
type client struct {
	t   *testing.T
	nc  net.Conn
	seq uint32
}

func dial(t *testing.T, path string) *client {
	t.Helper()
	nc, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = nc.Close() })
	if err := nc.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	return &client{t: t, nc: nc}
}

// send sends one frame.
func (c *client) send(k kind, payload []byte) {
	c.t.Helper()
	c.seq++
	b := appendHeader(nil, header{length: uint32(len(payload)), kind: k, sequence: c.seq})
	if _, err := c.nc.Write(append(b, payload...)); err != nil {
		c.t.Fatalf("write frame: %v", err)
	}
}

// receive reads one frame.
func (c *client) receive() (kind, []byte) {
	c.t.Helper()
	var head [headerSize]byte
	if _, err := io.ReadFull(c.nc, head[:]); err != nil {
		c.t.Fatalf("read frame: %v", err)
	}
	payload := make([]byte, binary.LittleEndian.Uint32(head[:]))
	if _, err := io.ReadFull(c.nc, payload); err != nil {
		c.t.Fatalf("read payload: %v", err)
	}
	return kind(head[4]), payload
}

// call sends a request and returns a reply of the wanted type.
func (c *client) call(k kind, payload []byte, want kind) []byte {
	c.t.Helper()
	c.send(k, payload)
	got, reply := c.receive()
	if got != want {
		c.t.Fatalf("reply to type %d is of type %d (%q), want %d", k, got, reply, want)
	}
	return reply
}

// closed tells whether the server ended the connection.
func (c *client) closed() bool {
	_, err := c.nc.Read(make([]byte, 1))
	return err != nil
}

func encodeHello(h hello) []byte {
	b := binary.LittleEndian.AppendUint32(nil, h.version)
	b = binary.LittleEndian.AppendUint32(b, h.pid)
	return appendText(appendText(b, h.client), h.sqlite)
}

func encodeOpen(r OpenRequest) []byte {
	b := append(appendText(nil, r.Name), r.ID[:]...)
	var flags byte
	if r.ReadOnly {
		flags |= openReadOnly
	}
	if r.Create {
		flags |= openCreate
	}
	if r.Linearizable {
		flags |= openLinearizable
	}
	b = append(b, flags)
	b = binary.LittleEndian.AppendUint32(b, uint32(r.LockTimeout/time.Millisecond))
	return binary.LittleEndian.AppendUint32(b, uint32(r.CommitTimeout/time.Millisecond))
}

func encodeCommit(tx *Tx) []byte {
	b := binary.LittleEndian.AppendUint32(nil, tx.PageSize)
	b = binary.LittleEndian.AppendUint32(b, tx.PageCount)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(tx.Pages)))
	for _, p := range tx.Pages {
		b = binary.LittleEndian.AppendUint32(b, p.Pgno)
		b = append(b, p.Data...)
	}
	return b
}

func encodeEnd(e End) []byte {
	var flags byte
	if e.Accepted {
		flags |= endAccepted
	}
	if e.Published {
		flags |= endPublished
	}
	if e.Empty {
		flags |= endEmpty
	}
	return appendFingerprint([]byte{flags}, e.Seen)
}
