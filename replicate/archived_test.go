package replicate

import (
	"bytes"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"
)

func TestArchivedPositionsAreStateAndOnlyGrow(t *testing.T) {
	r := &recorder{}
	s := newScript(t, r)
	a, b := s.create("a"), s.create("b")
	for range 5 {
		s.apply(s.next(a))
	}
	at := func(f *FSM, archive uint64, wantA, wantB TXID) {
		t.Helper()
		stA, _ := f.Get(a)
		stB, _ := f.Get(b)
		if f.Archive() != archive || stA.Archived != wantA || stB.Archived != wantB {
			t.Fatalf("archive %d: %d and %d, want %d: %d and %d", f.Archive(), stA.Archived, stB.Archived, archive, wantA, wantB)
		}
	}
	at(s.f, 0, 0, 0)
	s.apply(&Archived{Archive: 7, Positions: []ArchivedPosition{{a, 4}, {b, 1}}})
	at(s.f, 7, 4, 1)
	s.apply(&Archived{Archive: 7, Positions: []ArchivedPosition{{a, 2}}}) // of a leader that was slow
	at(s.f, 7, 4, 1)
	s.apply(&Archived{Archive: 7, Positions: []ArchivedPosition{{a, 99}, {DatabaseID{0xee}, 3}}}) // of what was never decided
	at(s.f, 7, 4, 1)

	other := NewFSM(nil, nil)
	if err := other.Restore(io.NopCloser(bytes.NewReader(manifestOf(t, s.f)))); err != nil {
		t.Fatal(err)
	}
	at(other, 7, 4, 1)

	s.apply(&Archived{Archive: 8, Positions: []ArchivedPosition{{a, 3}}})
	at(s.f, 8, 3, 0)
	if n := len(slices.DeleteFunc(slices.Clone(r.events), func(e string) bool { return !strings.HasPrefix(e, "archived ") })); n != 4 {
		t.Errorf("the sink heard of %d entries: %q", n, r.events)
	}
}

func TestAnArchivedEntryBoundsItsDatabases(t *testing.T) {
	e := &Archived{Positions: make([]ArchivedPosition, maxArchived+1)}
	if _, err := EncodeArchived(nil, e); !errors.Is(err, ErrEntryTooLarge) {
		t.Errorf("%d databases: %v", len(e.Positions), err)
	}
	b := mustEncodeEntry(t, &Archived{Positions: []ArchivedPosition{{DatabaseID{1}, 3}, {DatabaseID{2}, 4}}})
	twice := slices.Clone(b)
	copy(twice[entryPrefixSize+10+archivedSize:], twice[entryPrefixSize+10:][:16])
	if _, err := Decode(resum(twice)); !errors.Is(err, ErrCorruptEntry) {
		t.Errorf("a database twice: %v", err)
	}
	many := slices.Clone(b)
	many[entryPrefixSize+8], many[entryPrefixSize+9] = 0xff, 0xff
	if _, err := Decode(resum(many)); !errors.Is(err, ErrCorruptEntry) {
		t.Errorf("65535 databases: %v", err)
	}
}

func FuzzReadCommits(f *testing.F) {
	f.Add([]byte{})
	f.Add(append(append([]byte{9, 0, 0, 0, 0, 0, 0, 0}, make([]byte, 16)...), 3, 0, 0, 0, 0, 0, 0, 0, 'a', 'b', 'c'))
	f.Fuzz(func(t *testing.T, b []byte) {
		file := &memoryFile{}
		commits, err := readCommits(bytes.NewReader(b), file, 9)
		if err != nil {
			return
		}
		size := 0
		for i, c := range commits {
			if c.TXID != 9+uint64(i) || c.LTX.Size() == 0 {
				t.Fatalf("commit %d is %d of %d bytes", i, c.TXID, c.LTX.Size())
			}
			size += commitsHeaderSize + int(c.LTX.Size())
		}
		if size != len(b) {
			t.Fatalf("%d bytes were read of %d", size, len(b))
		}
	})
}

// memoryFile keeps what is written to it in memory.
type memoryFile struct{ b []byte }

func (m *memoryFile) WriteAt(p []byte, off int64) (int, error) {
	m.b = append(m.b[:off], p...)
	return len(p), nil
}

func (m *memoryFile) ReadAt(p []byte, off int64) (int, error) {
	return bytes.NewReader(m.b).ReadAt(p, off)
}
