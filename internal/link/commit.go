package link

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"
)

// maxKeep bounds what VERDICT says about the next transaction.
const maxKeep = time.Minute

// sending is a transaction whose pages come in pieces.
type sending struct {
	pieces    int
	bytes     uint64 // of pages so far
	last      uint32 // the last page's number
	pageSize  uint32
	pageCount uint32
	answered  bool // refused before its COMMIT: what still comes is dropped
	buf       []byte
}

// room is the memory for the payload of a piece. It is used for each of them.
func (t *sending) room(n int) []byte {
	if cap(t.buf) < n {
		t.buf = make([]byte, n, max(n, maxCommitPayload))
	}
	return t.buf[:n]
}

// add checks that tx goes on where the pieces before it ended.
func (t *sending) add(tx *Tx) error {
	if t.pieces > 0 {
		switch {
		case tx.PageSize != t.pageSize || tx.PageCount != t.pageCount:
			return fmt.Errorf("a piece for %d pages of %d bytes after one for %d of %d: %w", tx.PageCount, tx.PageSize, t.pageCount, t.pageSize, ErrMalformed)
		case tx.Pages[0].Pgno <= t.last:
			return fmt.Errorf("a piece from page %d after page %d: %w", tx.Pages[0].Pgno, t.last, ErrMalformed)
		}
	}
	t.pageSize, t.pageCount = tx.PageSize, tx.PageCount
	t.last = tx.Pages[len(tx.Pages)-1].Pgno
	t.bytes += uint64(len(tx.Pages)) * uint64(tx.PageSize)
	return nil
}

// take decodes a piece of a transaction, the last included. Without an error and
// a transaction it was refused, or is to be dropped.
func (c *conn) take(f *frame) (*Tx, error) {
	if c.tx.answered {
		return nil, nil
	}
	tx, err := decodeCommit(f.payload())
	if err == nil {
		err = c.tx.add(tx)
	}
	if err != nil {
		return nil, err
	}
	if c.tx.bytes > c.maxTx {
		c.tx.answered = true
		return nil, c.fail(f, &Error{Code: CodeFull, Text: fmt.Sprintf("transaction of %d bytes or more is over the limit of %d bytes", c.tx.bytes, c.maxTx)})
	}
	return tx, nil
}

// answerPiece takes a piece. It is answered only if the transaction is refused.
func (c *conn) answerPiece(f *frame) error {
	tx, err := c.take(f)
	if tx == nil {
		return err
	}
	c.tx.pieces++
	if err := c.handle.Part(c.ctx, tx); err != nil {
		c.tx.answered = true
		return c.refuse(f, err)
	}
	c.startProgress()
	c.progress(f.sequence)
	return nil
}

// refuse answers a transaction of which nothing was proposed.
func (c *conn) refuse(f *frame, err error) error {
	if own := (*Error)(nil); errors.As(err, &own) && (own.Code == CodeFull || own.Code == CodeReadOnly) {
		return c.fail(f, err)
	}
	return c.verdict(f, Refused, err.Error())
}

func (c *conn) verdict(f *frame, outcome Outcome, text string) error {
	var keep uint16 // milliseconds
	if outcome == Accepted {
		keep = uint16(min(c.handle.Keep().Milliseconds(), maxKeep.Milliseconds()))
	}
	return c.reply(f, kindVerdict, func(b []byte) []byte {
		b = append(b, byte(outcome))
		b = binary.LittleEndian.AppendUint16(b, keep)
		return appendText(b, text[:min(len(text), maxErrorText)])
	})
}

func (c *conn) answerCommit(f *frame) error {
	tx, err := c.take(f)
	if tx == nil {
		return err
	}
	c.tx = sending{}
	c.setCommitting(true)
	sequence := f.sequence // f is the next frame when a late call comes
	outcome, text := c.handle.Commit(c.ctx, tx, func() { c.progress(sequence) })
	if outcome == Full { // there is no such verdict: an error with this code says the same
		err = c.fail(f, &Error{Code: CodeFull, Text: text})
	} else {
		err = c.verdict(f, outcome, text)
	}
	c.setCommitting(false)
	return err
}
