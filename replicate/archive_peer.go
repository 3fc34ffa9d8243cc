package replicate

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/uglyer/ha-sqlite/snapshot/archive"
)

// Commits that a node lacks, from a peer, little-endian:
//
//	request  16 database, 8 first TXID
//	answer   of each commit: 8 TXID, 8 time, 8 post checksum, 8 size, LTX file; none: the peer has not got the first one
const (
	commitsRequestSize = 16 + 8
	commitsHeaderSize  = 4 * 8

	// commitsAsked is how much is fetched at a time.
	commitsAsked      = 1024
	commitsAskedBytes = 16 << 20
	// commitsPatience is for how long one peer may send nothing.
	commitsPatience = 2 * time.Minute
)

// serveCommits sends commits that are kept here for the archive, or are in an archive of this node.
func (s *Service) serveCommits(ctx context.Context, req []byte, w io.Writer) error {
	if len(req) != commitsRequestSize {
		return fmt.Errorf("request for commits of %d bytes, want %d: %w", len(req), commitsRequestSize, ErrInvalid)
	}
	a := s.archiver
	if a == nil {
		return nil
	}
	id, from := DatabaseID(req[:16]), TXID(binary.LittleEndian.Uint64(req[16:]))
	if from <= 1 {
		return nil
	}
	batch, err := a.local(ctx, id, from, commitsAsked, commitsAskedBytes)
	if errors.Is(err, archive.ErrNotInBacklog) && a.opts.Local {
		batch, err = a.fromOwn(ctx, id, from)
	}
	if errors.Is(err, archive.ErrNotInBacklog) || errors.Is(err, archive.ErrNoDatabase) {
		return nil
	}
	if err != nil {
		return err
	}
	defer batch.Close()
	out := bufio.NewWriterSize(w, 256<<10)
	for _, c := range batch.Commits {
		head := make([]byte, 0, commitsHeaderSize)
		for _, v := range []uint64{c.TXID, uint64(c.Time), c.Post, uint64(c.LTX.Size())} {
			head = binary.LittleEndian.AppendUint64(head, v)
		}
		if _, err := out.Write(head); err != nil {
			return err
		}
		if _, err := io.Copy(out, io.NewSectionReader(c.LTX, 0, c.LTX.Size())); err != nil {
			return err
		}
	}
	return out.Flush()
}

// fromOwn returns commits of this node's own archive.
func (a *archiver) fromOwn(ctx context.Context, id DatabaseID, from TXID) (*archive.Batch, error) {
	st, ok := a.s.fsm.Get(id)
	own := a.s.Archive()
	if !ok || own == nil {
		return nil, archive.ErrNotInBacklog
	}
	v, err := own.Load(ctx, archive.Identity{Cluster: own.Cluster(), Lineage: a.opts.Lineage(), Database: id.String(), Name: st.Name})
	if err != nil {
		return nil, err
	}
	return v.Batch(ctx, uint64(from), commitsAsked, commitsAskedBytes)
}

// fromPeers fetches commits from the first peer that has them.
func (a *archiver) fromPeers(ctx context.Context, id DatabaseID, from TXID) (*archive.Batch, bool) {
	if from <= 1 {
		return nil, false
	}
	for _, peer := range a.s.peersLeaderLast() {
		batch, err := a.fromPeer(ctx, peer, id, from)
		if err != nil {
			a.s.log.Debug("ask a member for commits", "member", peer, "id", id.String(), "txid", from.String(), "err", err)
			continue
		}
		if batch == nil {
			continue
		}
		a.mu.Lock()
		a.fetched += uint64(len(batch.Commits))
		a.mu.Unlock()
		return batch, true
	}
	return nil, false
}

func (a *archiver) fromPeer(ctx context.Context, peer string, id DatabaseID, from TXID) (*archive.Batch, error) {
	ctx, tick, stop := watchProgress(ctx, commitsPatience, nil)
	defer stop()
	req := binary.LittleEndian.AppendUint64(append(make([]byte, 0, commitsRequestSize), id[:]...), uint64(from))
	stream, err := a.s.bulk(ctx, peer, methodCommits, req)
	if err != nil {
		return nil, remoteError(err)
	}
	defer stream.Close()
	if err := os.MkdirAll(a.s.spoolDir(), 0o770); err != nil {
		return nil, err
	}
	f, err := os.CreateTemp(a.s.spoolDir(), "commits-*")
	if err != nil {
		return nil, err
	}
	release := func() {
		f.Close()
		_ = os.Remove(f.Name()) // the next start clears the directory
	}
	commits, err := readCommits(bufio.NewReaderSize(ticking{stream, tick}, 256<<10), f, from)
	if err != nil || len(commits) == 0 {
		release()
		return nil, remoteError(err)
	}
	return archive.NewBatch(commits, release), nil
}

// ticking tells of each read, so that only a peer that sends nothing is given up.
type ticking struct {
	io.Reader
	tick func()
}

func (t ticking) Read(p []byte) (int, error) {
	n, err := t.Reader.Read(p)
	t.tick()
	return n, err
}

// commitsFile is a file that commits are read into.
type commitsFile interface {
	io.ReaderAt
	io.WriterAt
}

// readCommits reads the answer of a peer into a file. The content is verified by who archives it.
func readCommits(in io.Reader, f commitsFile, from TXID) ([]archive.Commit, error) {
	var commits []archive.Commit
	at := int64(0)
	for {
		var head [commitsHeaderSize]byte
		if _, err := io.ReadFull(in, head[:]); errors.Is(err, io.EOF) {
			return commits, nil
		} else if err != nil {
			return nil, fmt.Errorf("read commits of a peer: %w", err)
		}
		v := func(i int) uint64 { return binary.LittleEndian.Uint64(head[8*i:]) }
		if v(0) != uint64(from)+uint64(len(commits)) || v(3) == 0 || v(3) > 1<<62 || len(commits) >= commitsAsked {
			return nil, fmt.Errorf("a peer sends commit %016x of %d bytes as number %d from %s on", v(0), v(3), len(commits), from)
		}
		n, err := io.Copy(io.NewOffsetWriter(f, at), io.LimitReader(in, int64(v(3))))
		if err == nil && n != int64(v(3)) {
			err = io.ErrUnexpectedEOF
		}
		if err != nil {
			return nil, fmt.Errorf("read commit %016x of a peer: %w", v(0), err)
		}
		commits = append(commits, archive.Commit{TXID: v(0), Time: int64(v(1)), Post: v(2), LTX: io.NewSectionReader(f, at, n)})
		at += n
	}
}
