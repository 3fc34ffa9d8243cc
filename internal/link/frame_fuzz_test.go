package link

import (
	"bytes"
	"io"
	"log/slog"
	"net"
	"testing"
	"time"
)

// FuzzDecode feeds payloads to every decoder: no panic, and what decodes
// encodes to the same bytes.
func FuzzDecode(f *testing.F) {
	f.Add(byte(kindHello), testHello)
	f.Add(byte(kindOpen), encodeOpen(OpenRequest{Name: "a", LockTimeout: time.Second}))
	f.Add(byte(kindCommit), encodeCommit(testTx(2)))
	f.Add(byte(kindPiece), pieceOf(3, 5))
	f.Add(byte(kindEnd), encodeEnd(End{Accepted: true, Seen: Fingerprint{1}}))
	f.Add(byte(kindMismatch), appendFingerprint(nil, Fingerprint{1}))
	f.Add(byte(kindPragma), appendText(appendText(nil, "a"), "b"))
	f.Add(byte(kindResolve), appendText(nil, "a"))
	f.Add(byte(kindCreate), []byte{0, 2, 0, 0, 1})
	f.Add(byte(kindPast), encodePast(PastRequest{Name: "a", At: "10+minutes+ago"}))
	f.Fuzz(func(t *testing.T, k byte, b []byte) {
		var again []byte
		var err error
		switch kind(k) {
		case kindHello:
			var h hello
			h, err = decodeHello(b)
			again = encodeHello(h)
		case kindOpen:
			var r OpenRequest
			r, err = decodeOpen(b)
			again = encodeOpen(r)
		case kindCommit, kindPiece:
			var tx *Tx
			if tx, err = decodeCommit(b); err == nil {
				again = encodeCommit(tx)
			}
		case kindEnd:
			var e End
			e, err = decodeEnd(b)
			again = encodeEnd(e)
		case kindMismatch:
			var p Fingerprint
			p, err = decodeMismatch(b)
			again = appendFingerprint(nil, p)
		case kindPragma:
			var name, arg string
			name, arg, err = decodePragma(b)
			again = appendText(appendText(nil, name), arg)
		case kindResolve:
			var name string
			name, err = decodeResolve(b)
			again = appendText(nil, name)
		case kindPast:
			var r PastRequest
			r, err = decodePast(b)
			again = encodePast(r)
		case kindCreate:
			_, _, err = decodeCreate(b)
			again = b
		default:
			_, err = parseHeader(b)
			again = b
		}
		if err == nil && !bytes.Equal(again, b) {
			t.Fatalf("type %d: %x encodes to %x", k, b, again)
		}
	})
}

func encodePast(r PastRequest) []byte {
	return appendText(appendText(appendText(nil, r.Name), r.At), r.To)
}

// FuzzServer feeds arbitrary bytes to a connection: it ends, and its handle is
// closed once if it was opened.
func FuzzServer(f *testing.F) {
	frame := func(k kind, payload []byte) []byte {
		return append(appendHeader(nil, header{length: uint32(len(payload)), kind: k}), payload...)
	}
	life := frame(kindHello, testHello)
	life = append(life, frame(kindOpen, encodeOpen(OpenRequest{Name: "shop.db"}))...)
	life = append(life, frame(kindBegin, []byte{0})...)
	life = append(life, frame(kindCommit, encodeCommit(testTx(2)))...)
	life = append(life, frame(kindEnd, encodeEnd(End{Accepted: true}))...)
	f.Add(life)
	parts := life[:len(life)-len(frame(kindCommit, encodeCommit(testTx(2))))-len(frame(kindEnd, encodeEnd(End{Accepted: true})))]
	parts = append(bytes.Clone(parts), frame(kindPiece, pieceOf(1, 2))...)
	parts = append(parts, frame(kindCommit, pieceOf(3, 3))...)
	f.Add(append(parts, frame(kindEnd, encodeEnd(End{Accepted: true}))...))
	f.Add(life[:40])
	f.Add(append(frame(kindHello, testHello), frame(kindPast, encodePast(PastRequest{Name: "shop.db", To: "b"}))...))
	f.Add([]byte("GET / HTTP/1.1\r\n\r\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		r := newRecorder()
		s := NewServer(r, slog.New(slog.NewTextHandler(io.Discard, nil)))
		ours, theirs := net.Pipe()
		done := make(chan struct{})
		go func() {
			s.ServeConn(theirs)
			close(done)
		}()
		go func() { _, _ = io.Copy(io.Discard, ours) }()
		_, _ = ours.Write(b)
		_ = ours.Close()
		<-done
		r.mu.Lock()
		defer r.mu.Unlock()
		closes := 0
		for i, call := range r.calls {
			if call == "close" {
				closes++
				if i != len(r.calls)-1 {
					t.Errorf("calls after Close: %v", r.calls)
				}
			}
		}
		if want := min(len(r.peer.Client), 1); r.open.Name != "" && closes != 1 && want == 1 {
			t.Errorf("closed %d times: %v", closes, r.calls)
		}
	})
}
