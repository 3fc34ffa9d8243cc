package replicate

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/uglyer/ha-sqlite/snapshot"
	"github.com/uglyer/ha-sqlite/wal"
)

// inParts is a transaction as the entries that a leader proposes.
type inParts struct {
	ltx   []byte
	parts []*Part
	final *Final
}

// large returns a transaction of three parts that will be accepted.
func (s *script) large(id DatabaseID) *inParts {
	s.t.Helper()
	tx := s.next(id)
	r := rand.New(rand.NewPCG(1, uint64(tx.Post.TXID)))
	const pages = 2200
	h := snapshot.Header{PageSize: 512, PageCount: pages, TXID: uint64(tx.Post.TXID), CommitTimeMillis: partsCommitMillis}
	l := &inParts{}
	var list []wal.Page
	for i := range uint32(pages) {
		data := make([]byte, 512)
		for j := range data {
			data[j] = byte(r.Uint32())
		}
		list = append(list, wal.Page{Pgno: i + 1, Data: data})
	}
	var err error
	if l.ltx, err = snapshot.EncodeTransaction(nil, h, list); err != nil {
		s.t.Fatal(err)
	}
	chunks := slices.Collect(slices.Chunk(l.ltx, PartBytes))
	l.final = &Final{
		DB: id, ID: tx.ID, Term: s.term, Pre: tx.Pre, Post: tx.Post, CommitTime: tx.CommitTime, PageSize: 512, PageCount: pages,
		Pages: pages, Count: uint32(len(chunks)), Size: uint64(len(l.ltx)),
	}
	for i, b := range chunks {
		l.parts = append(l.parts, &Part{DB: id, ID: tx.ID, Term: s.term, Pre: tx.Pre, Count: uint32(len(chunks)), Number: uint32(i) + 1, Data: b})
		l.final.Hash = partHash(l.final.Hash, b)
	}
	if len(chunks) != 3 {
		s.t.Fatalf("%d parts", len(chunks))
	}
	return l
}

// applyParts decides the first n parts, which are taken.
func (s *script) applyParts(l *inParts, n int) {
	s.t.Helper()
	for _, p := range l.parts[:n] {
		if d := s.apply(p); !d.Accepted {
			s.t.Fatalf("part %d: %s", p.Number, d.Reason)
		}
	}
}

func (s *script) verdictOf(f *Final) Verdict {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	v, _, _, _ := s.f.Wait(ctx, f.DB, f.Pre.TXID, f.ID, f.Term)
	return v
}

func TestTransactionInPartsIsDecidedByItsFinalEntry(t *testing.T) {
	rec := &recorder{}
	s := newScript(t, rec)
	id := s.create("shop.db")
	l := s.large(id)
	for i := range l.parts {
		before, _ := s.f.Get(id)
		s.applyParts(l, 0)
		if d := s.apply(l.parts[i]); !d.Accepted || d.Position != before.Position {
			t.Fatalf("part %d: %+v", i+1, d)
		}
		if v := s.verdictOf(l.final); v != VerdictUnknown {
			t.Fatalf("after part %d the verdict is %v", i+1, v)
		}
	}
	if d := s.apply(l.final); !d.Accepted || d.Position != l.final.Post {
		t.Fatalf("%+v", d)
	}
	if v := s.verdictOf(l.final); v != VerdictAccepted || len(s.f.Running()) != 0 {
		t.Fatalf("verdict %v, %d under way", v, len(s.f.Running()))
	}
	want := []string{
		"3 part 1 of 3, 524288 bytes at 0", "4 part 2 of 3, 524288 bytes at 524288",
		"5 part 3 of 3, ", "6 accepted 0000000000000002",
	}
	for i, w := range want {
		if got := rec.events[2+i]; !strings.HasPrefix(got, w) {
			t.Errorf("event %d is %q, want %q", i, got, w)
		}
	}
	if d := s.apply(l.final); d.Accepted {
		t.Fatal("accepted twice")
	}
	if v := s.verdictOf(l.final); v != VerdictAccepted {
		t.Fatalf("after a second final entry the verdict is %v", v)
	}
}

// Each way in which a large transaction ends without being accepted: dropped, its verdict definite where the log
// alone says so, and its final entry refused.
func TestTransactionInPartsIsDropped(t *testing.T) {
	for _, tc := range []struct {
		name    string
		end     func(s *script, l *inParts)
		verdict Verdict
	}{
		{"another transaction took its position", func(s *script, l *inParts) { s.commit(l.final.DB) }, VerdictRefused},
		{"another large transaction took its position", func(s *script, l *inParts) {
			other := s.large(l.final.DB)
			s.applyParts(other, 3)
			if d := s.apply(other.final); !d.Accepted {
				s.t.Fatal(d.Reason)
			}
		}, VerdictRefused},
		{"a term started", func(s *script, l *inParts) { s.startTerm() }, VerdictRefused},
		{"its writer gave up", func(s *script, l *inParts) {
			s.apply(&Final{Abort: true, DB: l.final.DB, ID: l.final.ID, Term: s.term, Pre: l.final.Pre})
		}, VerdictRefused},
		{"a part is missing", func(s *script, l *inParts) { s.apply(l.parts[2]) }, VerdictRefused},
		{"a part came twice", func(s *script, l *inParts) { s.apply(l.parts[0]) }, VerdictRefused},
		{"its final entry came early", func(s *script, l *inParts) { s.apply(l.final) }, VerdictRefused},
		{"a part of another count", func(s *script, l *inParts) { p := *l.parts[1]; p.Count = 4; s.apply(&p) }, VerdictRefused},
		{"a part of another base", func(s *script, l *inParts) { p := *l.parts[1]; p.Pre.TXID++; s.apply(&p) }, VerdictRefused},
		{"a part of another length", func(s *script, l *inParts) { p := *l.parts[1]; p.Data = p.Data[1:]; s.apply(&p) }, VerdictRefused},
		{"its database was deleted", func(s *script, l *inParts) { s.apply(&Delete{DB: l.final.DB}) }, VerdictUnknown},
	} {
		t.Run(tc.name, func(t *testing.T) {
			rec := &recorder{}
			s := newScript(t, rec)
			id := s.create("shop.db")
			l := s.large(id)
			s.applyParts(l, 1)
			tc.end(s, l)
			if !slices.ContainsFunc(rec.events, func(e string) bool { return strings.HasSuffix(e, "dropped 1") }) {
				t.Errorf("the sink heard %q", rec.events)
			}
			if n := len(s.f.Running()); n != 0 {
				t.Errorf("%d under way", n)
			}
			if v := s.verdictOf(l.final); v != tc.verdict {
				t.Errorf("verdict %v, want %v", v, tc.verdict)
			}
			for _, e := range []any{l.parts[1], l.parts[2], l.final} {
				if d := s.apply(e); d.Accepted {
					t.Errorf("%T was taken afterwards", e)
				}
			}
			// The database, if it is there, goes on.
			if _, ok := s.f.Get(id); ok {
				next := s.large(id)
				s.applyParts(next, 3)
				if d := s.apply(next.final); !d.Accepted {
					t.Errorf("the next one: %s", d.Reason)
				}
			}
		})
	}
}

func TestPartsRefuse(t *testing.T) {
	for _, tc := range []struct {
		name string
		edit func(p *Part)
	}{
		{"an unknown database", func(p *Part) { p.DB = DatabaseID{1} }},
		{"another term", func(p *Part) { p.Term++ }},
		{"an old position", func(p *Part) { p.Pre.TXID-- }},
		{"no id", func(p *Part) { p.ID = EntryID{} }},
		{"number 0", func(p *Part) { p.Number = 0 }},
		{"a number beyond the count", func(p *Part) { p.Number = 4 }},
		{"no parts at all", func(p *Part) { p.Count = 0 }},
		{"too many parts", func(p *Part) { p.Count = maxParts + 1 }},
		{"no bytes", func(p *Part) { p.Data = nil }},
		{"fewer bytes than a part has", func(p *Part) { p.Data = p.Data[:1000] }},
		{"bytes that are no LTX file", func(p *Part) { p.Data = make([]byte, PartBytes) }},
		{"an LTX file with a commit time", func(p *Part) { p.Data = bytes.Clone(p.Data); p.Data[32] = 1 }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := newScript(t, nil)
			id := s.create("shop.db")
			s.commit(id)
			l := s.large(id)
			tc.edit(l.parts[0])
			if d := s.apply(l.parts[0]); d.Accepted || d.Reason == "" || len(s.f.Running()) != 0 {
				t.Fatalf("%+v", d)
			}
		})
	}
}

func TestFinalEntryRefuses(t *testing.T) {
	for _, tc := range []struct {
		name string
		edit func(f *Final)
	}{
		{"another hash", func(f *Final) { f.Hash[0]++ }},
		{"another count", func(f *Final) { f.Count++ }},
		{"another length", func(f *Final) { f.Size++ }},
		{"another database size", func(f *Final) { f.PageCount++ }},
		{"another page size", func(f *Final) { f.PageSize = 4096 }},
		{"no pages", func(f *Final) { f.Pages = 0 }},
		{"more pages than the database", func(f *Final) { f.Pages = f.PageCount + 1 }},
		{"another term", func(f *Final) { f.Term++ }},
		{"another base", func(f *Final) { f.Pre.Checksum++ }},
		{"a TXID that does not follow", func(f *Final) { f.Post.TXID++ }},
		{"no checksum", func(f *Final) { f.Post.Checksum = 0 }},
		{"a commit time that goes back", func(f *Final) { f.CommitTime = 1 }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := newScript(t, nil)
			id := s.create("shop.db")
			l := s.large(id)
			s.applyParts(l, 3)
			before, _ := s.f.Get(id)
			f := *l.final
			tc.edit(&f)
			if d := s.apply(&f); d.Accepted || d.Reason == "" {
				t.Fatalf("%+v", d)
			}
			if after, _ := s.f.Get(id); after != before || len(s.f.Running()) != 0 {
				t.Fatalf("%+v, it was %+v", after, before)
			}
		})
	}
}

// A snapshot between the parts, and a restart from it, decide what goes on without one.
func TestSnapshotBetweenParts(t *testing.T) {
	for parts := 1; parts <= 3; parts++ {
		s := newScript(t, nil)
		id := s.create("shop.db")
		l := s.large(id)
		s.applyParts(l, parts)
		again := &script{t: t, f: restored(t, manifestOf(t, s.f)), index: s.index, term: s.term}
		if got, want := again.f.Running(), s.f.Running(); !slices.Equal(got, want) || len(got) != 1 {
			t.Fatalf("after %d parts: %+v, want %+v", parts, got, want)
		}
		for _, p := range l.parts[parts:] {
			a, b := s.apply(p), again.apply(p)
			if !a.Accepted || *a != *b {
				t.Fatalf("part %d: %+v and %+v", p.Number, a, b)
			}
		}
		a, b := s.apply(l.final), again.apply(l.final)
		if !a.Accepted || *a != *b {
			t.Fatalf("%+v and %+v", a, b)
		}
		if !bytes.Equal(manifestOf(t, s.f), manifestOf(t, again.f)) {
			t.Fatal("the states differ")
		}
	}
}

func TestManifestWithTransactionsThatCannotBeUnderWay(t *testing.T) {
	for _, tc := range []struct {
		name string
		edit func(r *Running)
	}{
		{"of no database", func(r *Running) { r.DB = DatabaseID{9} }},
		{"of another term", func(r *Running) { r.Term++ }},
		{"on another base", func(r *Running) { r.Pre.TXID++ }},
		{"without a part", func(r *Running) { r.Parts = 0 }},
		{"of more parts than it has", func(r *Running) { r.Parts = r.Count + 1 }},
		{"of bytes that do not fit", func(r *Running) { r.Bytes++ }},
		{"of too many parts", func(r *Running) { r.Count = maxParts + 1 }},
		{"without an id", func(r *Running) { r.ID = EntryID{} }},
	} {
		s := newScript(t, nil)
		s.applyParts(s.large(s.create("shop.db")), 2)
		m := s.f.s.manifest()
		tc.edit(&m.running[0])
		if _, err := decodeManifest(m.encode(nil)); !errors.Is(err, ErrCorruptManifest) {
			t.Errorf("%s: got %v", tc.name, err)
		}
	}
}

func TestDecodeLarge(t *testing.T) {
	s := newScript(t, nil)
	l := s.large(s.create("shop.db"))
	req := append(make([]byte, commitHeaderSize), EncodeFinal(nil, l.final)...)
	req[0], req[8] = 5, 7
	p, err := decodeLarge(req)
	if err != nil || p.handle != 5 || p.term != 7 || p.id != l.final.ID || p.final != *l.final {
		t.Fatalf("%+v, %v", p, err)
	}
	for name, f := range map[string]Final{
		"an abort":               {Abort: true, Count: 1, Size: 1},
		"no parts":               {},
		"parts that do not fit":  {Count: 2, Size: PartBytes},
		"more parts than may be": {Count: maxParts + 1, Size: (maxParts + 1) * PartBytes},
	} {
		if _, err := decodeLarge(append(make([]byte, commitHeaderSize), EncodeFinal(nil, &f)...)); !errors.Is(err, ErrCorruptEntry) {
			t.Errorf("%s: got %v", name, err)
		}
	}
	for n := range len(req) {
		if _, err := decodeLarge(req[:n]); err == nil {
			t.Fatalf("%d of %d bytes: no error", n, len(req))
		}
	}
	if _, err := decodeLarge(append(make([]byte, commitHeaderSize), EncodePart(nil, l.parts[0])...)); err == nil {
		t.Fatal("a part: no error")
	}
}

// A transaction whose pages come one by one leaves the sums that it leaves as a whole.
func TestStepsAreTheStep(t *testing.T) {
	r := rand.New(rand.NewPCG(8, 9))
	table := make(sumTable, 20)
	for i := range table {
		table[i] = snapshot.ChecksumFlag | r.Uint64()
	}
	for range 500 {
		count := uint32(1 + r.IntN(30))
		var pages []wal.Page
		var sums []uint64
		for pgno := uint32(1); pgno <= count+1; pgno++ {
			if pgno > 20 && r.IntN(40) > 0 || r.IntN(3) == 0 {
				pages = append(pages, wal.Page{Pgno: pgno})
				sums = append(sums, snapshot.ChecksumFlag|r.Uint64())
			}
		}
		st := table.steps(7, 512, count)
		var err error
		for i := range pages {
			if err = st.add(table, pages[i].Pgno, sums[i]); err != nil {
				break
			}
		}
		var delta *sumDelta
		var sum Checksum
		if err == nil {
			delta, sum, err = st.end(table)
		}
		wantDelta, want, wantErr := table.step(7, 512, count, pages, slices.Clone(sums))
		if (err == nil) != (wantErr == nil) || sum != want {
			t.Fatalf("%v, %v; as a whole %v, %v", sum, err, want, wantErr)
		}
		if err == nil && (!slices.Equal(delta.pgnos, wantDelta.pgnos) || !slices.Equal(delta.sums, wantDelta.sums) || delta.pageCount != wantDelta.pageCount) {
			t.Fatal("the deltas differ")
		}
	}
}
