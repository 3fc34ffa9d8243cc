package replicate

import (
	"context"
	"encoding/binary"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/uglyer/ha-sqlite/replicate/peer"
)

// What all databases fetch together stays within the rate.
func TestThrottle(t *testing.T) {
	th := throttle{rate: 1 << 20}
	start := time.Now()
	done := make(chan error, 4)
	for range 4 {
		go func() {
			var err error
			for range 4 {
				if err == nil {
					err = th.wait(context.Background(), 32<<10)
				}
			}
			done <- err
		}()
	}
	for range 4 {
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	}
	// 512 KiB at 1 MiB a second, of which the first tenth of a second and the last piece are free.
	if took := time.Since(start); took < 300*time.Millisecond {
		t.Errorf("%v", took)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if th.wait(ctx, 1<<30) == nil {
		t.Error("a wait goes on after its context has ended")
	}
	if err := (&throttle{}).wait(context.Background(), 1<<40); err != nil {
		t.Error(err)
	}
}

// All that a node fetches in bulk stays within the rate: pages, the checksums that come before them, the parts of large
// transactions, and commits for the archive.
func TestEverythingFetchedIsThrottled(t *testing.T) {
	const pages, pageSize, rate = 2000, 512, 2 << 20
	addrs := map[string]string{}
	port := func(id string) *peer.Port {
		p, err := peer.Listen("127.0.0.1:0", func() peer.Identity { return peer.Identity{NodeID: id, Cluster: testCluster, Lineage: 1} },
			func(id string) (string, bool) { a, ok := addrs[id]; return a, ok }, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { p.Close() })
		addrs[id] = p.Addr()
		return p
	}
	own, from := port("a"), port("b")
	fsm := newScript(t, &recorder{})
	id := fsm.create("db")
	tx := fsm.next(id)
	tx.PageCount = pages
	if d := fsm.apply(fsm.withPayload(tx)); !d.Accepted {
		t.Fatal(d.Reason)
	}
	s := &Service{port: own, fsm: fsm.f, ctx: t.Context(), log: slog.New(slog.DiscardHandler)}
	s.opts.Dir = t.TempDir()
	s.catchup.rate = rate
	st, _ := fsm.f.Get(id)
	d := &replica{svc: s, id: id, path: filepath.Join(s.opts.Dir, "db"), pageSize: pageSize, log: s.log}
	want := &target{pageSize: pageSize, position: Position{TXID: st.Position.TXID}}
	page := func(pgno uint32) []byte {
		b := make([]byte, pageSize)
		binary.LittleEndian.PutUint32(b, pgno)
		return b
	}
	for pgno := uint32(1); pgno <= pages; pgno++ {
		want.sums = append(want.sums, pageSum(pageSize, pgno, page(pgno)))
	}
	want.position.Checksum = want.sums.checksum()
	var asked time.Time // when the round began
	from.HandleStream(methodRound, func(_ context.Context, _ string, _ []byte, w io.Writer) error {
		asked = time.Now()
		_, err := w.Write(roundAnswer(want))
		return err
	})
	from.HandleStream(methodPages, func(_ context.Context, _ string, req []byte, w io.Writer) error {
		for at := 8; at < len(req); at += 8 {
			first, n := binary.LittleEndian.Uint32(req[at:]), binary.LittleEndian.Uint32(req[at+4:])
			for pgno := first; pgno < first+n; pgno++ {
				if _, err := w.Write(page(pgno)); err != nil {
					return err
				}
			}
		}
		return nil
	})
	parts := func(_ context.Context, _ string, _ []byte, w io.Writer) error {
		_, err := w.Write(make([]byte, pages*pageSize))
		return err
	}
	from.HandleStream(methodParts, parts)
	from.HandleStream(methodCommits, parts) // no commits: they are read nevertheless
	// took checks that n bytes were not faster than the rate; a burst and the last piece are free.
	took := func(what string, from time.Time, n int) {
		t.Helper()
		least := time.Duration(float64(n-throttlePiece)/rate*float64(time.Second)) - throttleBurst
		if took := time.Since(from); took < least {
			t.Errorf("%s: %d bytes took %v, at least %v are needed", what, n, took, least)
		}
	}
	start := time.Now()
	spool, err := d.openFetched()
	if err != nil {
		t.Fatal(err)
	}
	defer spool.file.Close()
	if got, err := d.fetchFrom(t.Context(), "b", st.Position.TXID, nil, spool); err != nil || got.position != want.position {
		t.Fatalf("%v", err)
	}
	took("pages", start, pages*(pageSize+8))
	took("pages after their checksums", asked, pages*pageSize)

	file, err := os.Create(filepath.Join(s.opts.Dir, "parts"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	start = time.Now()
	if err := s.fetchPartsFrom(t.Context(), "b", Running{Bytes: pages * pageSize}, file); err != nil {
		t.Fatal(err)
	}
	took("parts", start, pages*pageSize)

	// Without a byte to spare nothing begins.
	s.catchup.next = time.Now().Add(time.Hour)
	for what, fetch := range map[string]func(ctx context.Context) error{
		"a round": func(ctx context.Context) error {
			_, err := d.fetchFrom(ctx, "b", st.Position.TXID, nil, spool)
			return err
		},
		"pages": func(ctx context.Context) error {
			_, err := d.fetchPages(ctx, &round{target: *want, peer: "b"}, []uint32{1, 2, 3}, spool)
			return err
		},
		"parts": func(ctx context.Context) error {
			return s.fetchPartsFrom(ctx, "b", Running{Bytes: pageSize}, file)
		},
		"commits": func(ctx context.Context) error {
			_, err := (&archiver{s: s}).fromPeer(ctx, "b", id, 2)
			return err
		},
	} {
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		err := fetch(ctx)
		if err == nil || ctx.Err() == nil {
			t.Errorf("%s: %v", what, err)
		}
		cancel()
	}
}
