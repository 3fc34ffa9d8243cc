package link

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"
)

// pieceOf is a piece with the pages first to last of a database of 3000.
func pieceOf(first, last uint32) []byte {
	tx := &Tx{PageSize: 4096, PageCount: 3000}
	for pgno := first; pgno <= last; pgno++ {
		tx.Pages = append(tx.Pages, Page{Pgno: pgno, Data: make([]byte, 4096)})
	}
	return encodeCommit(tx)
}

func TestTransactionInPieces(t *testing.T) {
	r := newRecorder()
	_, path := startServer(t, r)
	c := opened(t, path)
	c.call(kindBegin, []byte{0}, kindGrant)
	c.send(kindPiece, pieceOf(1, 100))
	c.seq-- // all messages of a commit carry one number
	c.send(kindPiece, pieceOf(101, 200))
	c.seq--
	c.send(kindCommit, pieceOf(201, 250))
	for {
		k, reply := c.receive()
		if k == kindProgress {
			continue
		}
		if k != kindVerdict || reply[0] != byte(Accepted) {
			t.Fatalf("answer of type %d: %q", k, reply)
		}
		break
	}
	c.send(kindEnd, encodeEnd(End{Accepted: true}))
	c.call(kindRead, nil, kindReady)
	if got, want := r.list(), "begin part part commit end read"; got != want || r.parts != 200 || len(r.tx.Pages) != 50 {
		t.Errorf("calls %s with %d and %d pages, want %s with 200 and 50", got, r.parts, len(r.tx.Pages), want)
	}
}

// What follows an early refusal is dropped until END, the last piece included: the application had sent it
// before it heard.
func TestRefusalBetweenPieces(t *testing.T) {
	for _, tc := range []struct {
		name string
		part func() error
		kind kind
		code byte
		size uint32 // pages of each piece
	}{
		{"over the node's limit", nil, kindError, byte(CodeFull), 200},
		{"no space in the node", func() error { return &Error{Code: CodeFull, Text: "no space"} }, kindError, byte(CodeFull), 1},
		{"deleted", func() error { return &Error{Code: CodeReadOnly, Text: "deleted"} }, kindError, byte(CodeReadOnly), 1},
		{"the base is gone", func() error { return errors.New("late") }, kindVerdict, byte(Refused), 1},
		{"a code that says nothing about what was written", func() error { return &Error{Code: CodeIOErr, Text: "late"} }, kindVerdict, byte(Refused), 1},
	} {
		r := newRecorder()
		r.part = tc.part
		_, path := startServer(t, r)
		c := opened(t, path)
		for range 2 { // and the next transaction is not disturbed
			c.call(kindBegin, []byte{0}, kindGrant)
			for i := range uint32(12) {
				c.send(kindPiece, pieceOf(i*tc.size+1, (i+1)*tc.size))
				c.seq--
			}
			c.send(kindCommit, pieceOf(12*tc.size+1, 12*tc.size+1))
			k, reply := c.receive()
			for k == kindProgress {
				k, reply = c.receive()
			}
			if k != tc.kind || reply[0] != tc.code {
				t.Fatalf("%s: answer of type %d: %q", tc.name, k, reply)
			}
			c.send(kindEnd, encodeEnd(End{}))
			c.call(kindRead, nil, kindReady)
		}
		if strings.Contains(r.list(), "commit") {
			t.Errorf("%s: calls %s", tc.name, r.list())
		}
	}
}

func TestPiecesThatMakeNoSense(t *testing.T) {
	other := &Tx{PageSize: 4096, PageCount: 999, Pages: []Page{{Pgno: 500, Data: make([]byte, 4096)}}}
	for _, tc := range []struct {
		name string
		kind kind
		body []byte
	}{
		{"a page twice", kindPiece, pieceOf(100, 101)},
		{"another page count", kindPiece, encodeCommit(other)},
		{"a last piece that goes back", kindCommit, pieceOf(1, 1)},
		{"a question in between", kindRead, nil},
		{"a begin in between", kindBegin, []byte{0}},
		{"a piece without pages", kindPiece, encodeCommit(&Tx{PageSize: 4096, PageCount: 9})},
	} {
		r := newRecorder()
		_, path := startServer(t, r)
		c := opened(t, path)
		c.call(kindBegin, []byte{0}, kindGrant)
		c.send(kindPiece, pieceOf(1, 100))
		c.send(tc.kind, tc.body)
		k, reply := c.receive()
		for k == kindProgress {
			k, reply = c.receive()
		}
		if k != kindError || reply[0] != byte(CodeProtocol) || !c.closed() {
			t.Errorf("%s: answer of type %d: %q", tc.name, k, reply)
		}
		wait(t, r.closed, "Close")
	}
}

// PROGRESS is sent while the verdict is awaited, merged, and none after it.
func TestProgressOfALargeCommit(t *testing.T) {
	r := newRecorder()
	stop := make(chan struct{})
	r.commit = func(_ context.Context, progress func()) Outcome {
		for {
			progress()
			select {
			case <-stop:
				return Accepted
			case <-time.After(time.Millisecond):
			}
		}
	}
	_, path := startServer(t, r)
	c := opened(t, path)
	c.call(kindBegin, []byte{0}, kindGrant)
	c.send(kindPiece, pieceOf(1, 100))
	c.send(kindCommit, pieceOf(101, 101))
	start := time.Now()
	for range 4 {
		if k, _ := c.receive(); k != kindProgress {
			t.Fatalf("answer of type %d", k)
		}
	}
	if took := time.Since(start); took < 2*progressInterval {
		t.Errorf("4 PROGRESS within %v", took)
	}
	close(stop)
	for {
		if k, _ := c.receive(); k == kindVerdict {
			break
		}
	}
	c.send(kindEnd, encodeEnd(End{Accepted: true}))
	c.call(kindRead, nil, kindReady)
}
