package replicate

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/uglyer/ha-sqlite/snapshot"
	"github.com/uglyer/ha-sqlite/wal"
)

// A round is one position of a database that a peer holds still for a node that catches up: first it sends the
// checksum of each page, then the pages that the other asks for, all under one pin of at most ten seconds (RULES A5).
//
// The checksums of the first pages, as many as the request says, are of their bytes, read now, and not what the peer
// remembers. A node asks that for the pages that it has itself: all others are sent, and read and compared for that.
//
//	round request   16 database id, 8 least TXID, 4 pages to read back
//	round answer    8 token, 8 TXID, 8 checksum, 4 page size, 4 pages, then 8 checksum of each page; little-endian
//	pages request   8 token, then 4 first page, 4 count for each run of pages; none: the round is over
//	pages answer    the pages, in the order asked for; fewer of them when the time is over
const (
	roundRequestSize = 16 + 8 + 4
	roundHeaderSize  = 8 + 8 + 8 + 4 + 4
	roundTime        = 10 * time.Second
	// maxRounds bounds what peers may hold still here at a time.
	maxRounds = 16
)

// servedRound is a position that is held still here.
type servedRound struct {
	d    *replica
	snap *wal.Snapshot
	sums sumTable
	pos  Position
	from string // who may read
	stop func() bool
}

// servedRounds are all of them.
type servedRounds struct {
	mu  sync.Mutex
	all map[uint64]*servedRound
}

var errTooManyRounds = errors.New("too many nodes catch up here at a time")

func (r *servedRounds) add(k *servedRound) (uint64, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.all) >= maxRounds {
		return 0, errTooManyRounds
	}
	if r.all == nil {
		r.all = map[uint64]*servedRound{}
	}
	token := rand.Uint64()
	for r.all[token] != nil || token == 0 {
		token = rand.Uint64()
	}
	r.all[token] = k
	t := time.AfterFunc(roundTime, func() { r.end(token) })
	k.stop = t.Stop
	return token, nil
}

func (r *servedRounds) get(token uint64, from string) (*servedRound, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	k, ok := r.all[token]
	return k, ok && k.from == from
}

// end lets the position go. Who reads it gets wal.ErrClosed.
func (r *servedRounds) end(token uint64) {
	r.mu.Lock()
	k := r.all[token]
	delete(r.all, token)
	r.mu.Unlock()
	if k != nil {
		k.stop()
		k.snap.Close()
	}
}

// pinSums is pin, together with the page checksums at that position.
func (d *replica) pinSums(ctx context.Context, at TXID) (*wal.Snapshot, Position, sumTable, error) {
	for {
		snap, pos, err := d.pin(ctx, at)
		if err != nil {
			return nil, Position{}, nil, err
		}
		d.mu.Lock()
		same := d.known && d.fenced == nil && d.position == pos
		var sums sumTable
		if same {
			sums = append(sums, d.sums...)
		}
		d.mu.Unlock()
		if same {
			return snap, pos, sums, nil
		}
		snap.Close() // it moved on between the two
		if ctx.Err() != nil {
			return nil, Position{}, nil, ctx.Err()
		}
	}
}

// serveRound begins a round.
func (s *Service) serveRound(ctx context.Context, from string, req []byte, w io.Writer) error {
	if len(req) != roundRequestSize {
		return fmt.Errorf("catch-up request of %d bytes, want %d: %w", len(req), roundRequestSize, ErrInvalid)
	}
	id := DatabaseID(req[:16])
	d, ok := s.replica(id)
	if !ok {
		if name, index, gone := s.fsm.Tombstone(id); gone {
			return fmt.Errorf("database %q was deleted at log index %d: %w", name, index, ErrDeleted)
		}
		return fmt.Errorf("database %s: %w", id, ErrNotFound)
	}
	pctx, cancel := context.WithTimeout(ctx, roundTime)
	defer cancel()
	snap, pos, sums, err := d.pinSums(pctx, TXID(binary.LittleEndian.Uint64(req[16:])))
	if err != nil {
		return err
	}
	k := &servedRound{d: d, snap: snap, sums: sums, pos: pos, from: from}
	token, err := s.rounds.add(k)
	if err != nil {
		snap.Close()
		return err
	}
	out := bufio.NewWriterSize(w, 256<<10)
	head := binary.LittleEndian.AppendUint64(make([]byte, 0, roundHeaderSize), token)
	head = binary.LittleEndian.AppendUint64(head, uint64(pos.TXID))
	head = binary.LittleEndian.AppendUint64(head, uint64(pos.Checksum))
	head = binary.LittleEndian.AppendUint32(head, d.pageSize)
	head = binary.LittleEndian.AppendUint32(head, uint32(len(sums)))
	if _, err = out.Write(head); err == nil {
		err = k.sendSums(out, binary.LittleEndian.Uint32(req[24:]))
	}
	if err == nil {
		err = out.Flush()
	}
	if err != nil {
		s.rounds.end(token)
	}
	return err
}

// sendSums sends the checksums, the first of them read back from the files. Where reading them takes longer than the round
// may last, the rest is not sent; the next rounds then go by what is remembered.
func (k *servedRound) sendSums(out io.Writer, readBack uint32) error {
	n := min(int64(readBack), int64(len(k.sums)))
	b := make([]byte, 0, 8*servedPages(k.d.pageSize))
	err := k.read(1, uint32(n), func(pgno uint32, data []byte) error {
		b = b[:0]
		for range len(data) / int(k.d.pageSize) {
			b = binary.LittleEndian.AppendUint64(b, k.sums[pgno-1])
			pgno++
		}
		_, err := out.Write(b)
		return err
	})
	if errors.Is(err, wal.ErrClosed) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, sum := range k.sums[n:] {
		if _, err := out.Write(binary.LittleEndian.AppendUint64(b[:0], sum)); err != nil {
			return err
		}
	}
	return nil
}

// servedPages is how many pages are read at a time.
func servedPages(pageSize uint32) uint32 { return max((64<<10)/pageSize, 1) }

// read reads count pages from first on, compares them with the table, and gives them to f, some at a time: this node must
// not hand on what differs (RULES B8).
func (k *servedRound) read(first, count uint32, f func(pgno uint32, data []byte) error) error {
	size := k.d.pageSize
	lock := snapshot.LockPgno(size)
	buf := make([]byte, servedPages(size)*size)
	for pgno := first; count > 0; {
		n := min(count, servedPages(size))
		data := buf[:n*size]
		if err := k.snap.ReadPages(pgno, data); err != nil {
			return fmt.Errorf("read %d pages from %d of database %q: %w", n, pgno, k.d.name, err)
		}
		for i := range n {
			if p := pgno + i; p != lock && pageSum(size, p, data[i*size:(i+1)*size]) != k.sums[p-1] {
				return k.d.fence(fmt.Errorf("serve a peer: page %d is not what transaction %s left: %w", p, k.pos.TXID, errForeign))
			}
		}
		if err := f(pgno, data); err != nil {
			return err
		}
		pgno += n
		count -= n
	}
	return nil
}

// servePages sends pages of a round.
func (s *Service) servePages(_ context.Context, from string, req []byte, w io.Writer) error {
	if len(req) < 8 || len(req)%8 != 0 {
		return fmt.Errorf("request for pages of %d bytes: %w", len(req), ErrInvalid)
	}
	token := binary.LittleEndian.Uint64(req)
	k, ok := s.rounds.get(token, from)
	if !ok {
		return nil // its time is over: nothing is sent
	}
	if len(req) == 8 {
		s.rounds.end(token)
		return nil
	}
	out := bufio.NewWriterSize(w, 256<<10)
	for at := 8; at < len(req); at += 8 {
		first, count := binary.LittleEndian.Uint32(req[at:]), binary.LittleEndian.Uint32(req[at+4:])
		if first == 0 || count == 0 || uint64(first)+uint64(count)-1 > uint64(len(k.sums)) {
			return fmt.Errorf("request for %d pages from %d of %d: %w", count, first, len(k.sums), ErrInvalid)
		}
		err := k.read(first, count, func(_ uint32, data []byte) error {
			s.metrics.shippedPages.Add(uint64(len(data)) / uint64(k.d.pageSize))
			_, err := out.Write(data)
			return err
		})
		if errors.Is(err, wal.ErrClosed) {
			return out.Flush()
		}
		if err != nil {
			return err
		}
	}
	return out.Flush()
}

// round is a round as the node sees it that catches up.
type round struct {
	target
	token uint64
	peer  string
	whole bool // all checksums came
}

// openRound begins a round at a peer that is at transaction at or later.
func (d *replica) openRound(ctx context.Context, peer string, at TXID, readBack uint32) (*round, error) {
	req := binary.LittleEndian.AppendUint64(append(make([]byte, 0, roundRequestSize), d.id[:]...), uint64(at))
	stream, err := d.svc.port.Stream(ctx, peer, methodRound, binary.LittleEndian.AppendUint32(req, readBack))
	if err != nil {
		return nil, remoteError(err)
	}
	defer stream.Close()
	in := bufio.NewReaderSize(stream, 256<<10)
	r, err := readRound(in, d.pageSize, at)
	if err != nil {
		return nil, fmt.Errorf("read the page checksums of database %q: %w", d.name, remoteError(err))
	}
	r.peer = peer
	return r, nil
}

// readRound reads the answer of a peer. Memory grows with what really comes.
func readRound(in io.Reader, pageSize uint32, at TXID) (*round, error) {
	var head [roundHeaderSize]byte
	if _, err := io.ReadFull(in, head[:]); err != nil {
		return nil, err
	}
	r := &round{token: binary.LittleEndian.Uint64(head[0:])}
	r.position = Position{TXID(binary.LittleEndian.Uint64(head[8:])), Checksum(binary.LittleEndian.Uint64(head[16:]))}
	r.pageSize = binary.LittleEndian.Uint32(head[24:])
	count := binary.LittleEndian.Uint32(head[28:])
	if r.pageSize != pageSize || count == 0 || count > maxPages || r.position.TXID < at {
		return nil, fmt.Errorf("peer offers %d pages of %d bytes at transaction %s, wanted pages of %d bytes at %s or later",
			count, r.pageSize, r.position.TXID, pageSize, at)
	}
	batch := make([]byte, 8*1024)
	for left := int(count); left > 0; {
		n, err := io.ReadFull(in, batch[:8*min(left, 1024)])
		if n%8 != 0 {
			return nil, io.ErrUnexpectedEOF
		}
		for i := 0; i < n; i += 8 {
			r.sums = append(r.sums, binary.LittleEndian.Uint64(batch[i:]))
		}
		left -= n / 8
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return r, nil // the peer's time was over
		}
		if err != nil {
			return nil, err
		}
	}
	var one [1]byte
	if _, err := io.ReadFull(in, one[:]); !errors.Is(err, io.EOF) {
		return nil, cmpError(err, errors.New("the peer sends more checksums than it announced"))
	}
	if lock := snapshot.LockPgno(pageSize); count >= lock && r.sums[lock-1] != 0 {
		return nil, fmt.Errorf("peer offers a checksum of page %d, which is never written", lock)
	}
	if sum := r.sums.checksum(); sum != r.position.Checksum {
		return nil, fmt.Errorf("the page checksums sent give %s, not %s: %w", sum, r.position, errDiverged)
	}
	r.whole = true
	return r, nil
}

func cmpError(err, otherwise error) error {
	if err != nil {
		return err
	}
	return otherwise
}

// closeRound tells the peer that the round is over. It is not waited for longer than a moment: the peer ends it anyway.
func (d *replica) closeRound(ctx context.Context, r *round) {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	stream, err := d.svc.port.Stream(ctx, r.peer, methodPages, binary.LittleEndian.AppendUint64(nil, r.token))
	if err == nil {
		stream.Close()
	}
}
