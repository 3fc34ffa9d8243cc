package replicate

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"
)

const bookmarkText = "000000000000002a/8123456789abcdef@000102030405060708090a0b0c0d0e0f"

func TestBookmarkSurvivesText(t *testing.T) {
	b, err := ParseBookmark(bookmarkText)
	if err != nil {
		t.Fatal(err)
	}
	if b.TXID != 42 || b.Checksum != 0x8123456789abcdef || b.DB[15] != 15 {
		t.Fatalf("got %+v", b)
	}
	if got := b.String(); got != bookmarkText {
		t.Fatalf("got %q, want %q", got, bookmarkText)
	}
	if got, want := b.Position.String(), bookmarkText[:33]; got != want {
		t.Fatalf("got %q, want %q", got, want)
	}
}

func TestBookmarkOfALineage(t *testing.T) {
	b, err := ParseBookmark(bookmarkText + "-12")
	if err != nil {
		t.Fatal(err)
	}
	if plain, _ := ParseBookmark(bookmarkText); b.Lineage != 12 || b.Position != plain.Position || b.DB != plain.DB || plain.Lineage != 0 {
		t.Errorf("got %+v and %+v", b, plain)
	}
	if got := b.String(); got != bookmarkText+"-12" {
		t.Errorf("got %q", got)
	}
}

func TestPositionIsStringsInJSON(t *testing.T) {
	p := Position{TXID: 1 << 60, Checksum: 1<<63 | 5}
	b, err := json.Marshal(p)
	if err != nil {
		t.Fatal(err)
	}
	if want := `{"txid":"1000000000000000","checksum":"8000000000000005"}`; string(b) != want {
		t.Fatalf("got %s, want %s", b, want)
	}
	var back Position
	if err := json.Unmarshal(b, &back); err != nil || back != p {
		t.Fatalf("got %v, %v", back, err)
	}
	if err := json.Unmarshal([]byte(`{"txid":7}`), &back); err == nil {
		t.Fatal("a number is taken for a transaction number")
	}
}

func TestParseBookmarkRefuses(t *testing.T) {
	for name, text := range map[string]string{
		"nothing":                     "",
		"position alone":              bookmarkText[:33],
		"no slash":                    strings.Replace(bookmarkText, "/", "-", 1),
		"short transaction number":    bookmarkText[1:],
		"letters that are not digits": strings.Replace(bookmarkText, "2a", "2g", 1),
		"short id":                    bookmarkText[:len(bookmarkText)-1],
		"long id":                     bookmarkText + "0",
		"plus sign":                   "+" + bookmarkText[1:],
		"two ids":                     bookmarkText + "@" + bookmarkText[34:],
		"lineage 0":                   bookmarkText + "-0",
		"no lineage":                  bookmarkText + "-",
		"a lineage of letters":        bookmarkText + "-x",
		"a lineage with zeros":        bookmarkText + "-01",
		"transaction 0":               strings.Replace(bookmarkText, "2a", "00", 1),
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := ParseBookmark(text); !errors.Is(err, ErrInvalidPosition) {
				t.Fatalf("%q: got %v, want %v", text, err, ErrInvalidPosition)
			}
		})
	}
}

func TestDatabaseIDDependsOnClusterNameAndIncarnation(t *testing.T) {
	a := NewDatabaseID([16]byte{1}, "shop.db", 0)
	if a != NewDatabaseID([16]byte{1}, "shop.db", 0) {
		t.Fatal("two nodes make different ids")
	}
	for name, other := range map[string]DatabaseID{
		"cluster":     NewDatabaseID([16]byte{2}, "shop.db", 0),
		"name":        NewDatabaseID([16]byte{1}, "shop.dc", 0),
		"incarnation": NewDatabaseID([16]byte{1}, "shop.db", 1),
	} {
		if a == other {
			t.Errorf("same id with another %s", name)
		}
	}
}

func FuzzParseBookmark(f *testing.F) {
	f.Add(bookmarkText)
	f.Add(bookmarkText + "-1")
	f.Add("@/")
	f.Fuzz(func(t *testing.T, s string) {
		b, err := ParseBookmark(s)
		if err != nil {
			return
		}
		if again, err := ParseBookmark(b.String()); err != nil || again != b {
			t.Fatalf("%q: %+v, then %+v, %v", s, b, again, err)
		}
		if b.String() != strings.ToLower(s) {
			t.Fatalf("%q printed as %q", s, b)
		}
	})
}
