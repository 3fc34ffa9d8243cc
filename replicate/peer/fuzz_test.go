package peer

import (
	"bytes"
	"context"
	"io"
	"net"
	"testing"
	"time"
)

func FuzzHello(f *testing.F) {
	good := appendHello(nil, hello{kind: kindRPC, cluster: clusterA, lineage: 7, sender: "a", receiver: "node-b"})
	f.Add(good)
	f.Add(good[:20])
	f.Add(appendHello(nil, hello{kind: kindCall, sender: "x"}))
	f.Fuzz(func(t *testing.T, b []byte) {
		r := bytes.NewReader(b)
		h, err := readHello(r)
		if err != nil {
			return
		}
		used := b[:len(b)-r.Len()]
		if got := appendHello(nil, h); !bytes.Equal(got, used) {
			t.Fatalf("%x became %x", used, got)
		}
		judge(h, Identity{NodeID: "node-b", Cluster: clusterA})
	})
}

func FuzzAnswer(f *testing.F) {
	f.Add(appendAnswer(nil, answer{id: "b", cluster: clusterA, lineage: 3}))
	f.Add(appendAnswer(nil, answer{refused: true, id: "b", text: "no"}))
	f.Fuzz(func(t *testing.T, b []byte) {
		r := bytes.NewReader(b)
		a, err := readAnswer(r)
		if err != nil {
			return
		}
		used := b[:len(b)-r.Len()]
		if got := appendAnswer(nil, a); !bytes.Equal(got, used) {
			t.Fatalf("%x became %x", used, got)
		}
	})
}

func FuzzHeader(f *testing.F) {
	var b [headerSize]byte
	header{length: 5, kind: frameRequest, method: 3, timeout: 9, seq: 1}.put(&b)
	f.Add(b[:])
	f.Add(b[:9])
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := parseHeader(b)
		if err != nil {
			return
		}
		if h.length > MaxFrame {
			t.Fatalf("length %d", h.length)
		}
		var out [headerSize]byte
		h.put(&out)
		if !bytes.Equal(out[:], b[:headerSize]) {
			t.Fatalf("%x became %x", b[:headerSize], out)
		}
	})
}

// FuzzServerConn feeds a connection that has shaken hands.
func FuzzServerConn(f *testing.F) {
	frame := func(h header, payload string) []byte {
		fr := newFrame(h, []byte(payload))
		return bytes.Join(fr.bufs, nil)
	}
	echo := frame(header{kind: frameRequest, method: mEcho, seq: 1}, "hello")
	f.Add(echo)
	f.Add(append(append(frame(header{kind: framePing}, ""), echo...), echo...)) // the same seq twice
	f.Add(append(frame(header{kind: frameRequest, method: 200, seq: 2}, "none"), frame(header{kind: frameCancel, seq: 2}, "")...))
	f.Add(echo[:headerSize+2])
	n := newNetwork()
	p := n.start(f, member("b"))
	p.Handle(mEcho, func(_ context.Context, _ string, req []byte) ([]byte, error) { return req, nil })
	f.Fuzz(func(t *testing.T, b []byte) {
		here, there := net.Pipe()
		c := newServerConn(p.Port, there, hello{kind: kindCall, cluster: clusterA, lineage: 1, sender: "a"}, len(b)%2 == 0)
		p.wg.Add(1)
		go func() { defer p.wg.Done(); c.serve() }()
		go io.Copy(io.Discard, here)
		here.SetWriteDeadline(time.Now().Add(10 * time.Second))
		here.Write(b)
		here.Close()
		<-c.done
	})
}
