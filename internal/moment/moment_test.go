package moment

import (
	"errors"
	"strings"
	"testing"
	"time"
)

var now = time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)

func TestParse(t *testing.T) {
	const db = "00112233445566778899aabbccddeeff"
	for _, tt := range []struct {
		at, to string
		want   Moment
	}{
		{"", "", Moment{}},
		{"10 minutes ago", "", Moment{Time: now.Add(-10 * time.Minute), Now: now}},
		{"now", "", Moment{Time: now, Now: now}},
		{"", "000000000000002a", Moment{TXID: 42}},
		{"", "000000000000002a/8000000000000001", Moment{TXID: 42, Checksum: 1<<63 | 1}},
		{"", "000000000000002a/8000000000000001@" + db, Moment{TXID: 42, Checksum: 1<<63 | 1, Database: db}},
	} {
		got, err := Parse(tt.at, tt.to, now)
		if err != nil || got != tt.want {
			t.Errorf("at %q to %q: got %+v, %v, want %+v", tt.at, tt.to, got, err, tt.want)
		}
	}
	for _, tt := range []struct{ at, to, says string }{
		{"now", "000000000000002a", "two states"},
		{"soon", "", "write for example"},
		{"", "2a", "16 hex digits"},
		{"", "000000000000002g", "16 hex digits"},
		{"", "0000000000000000", "names no state"},
		{"", "000000000000002a/0000000000000000", "names no state"},
		{"", "000000000000002a@" + db, "names no state"},
		{"", "000000000000002a/8000000000000001@00", "names no state"},
		{"", "+00000000000002a", "16 hex digits"},
	} {
		if m, err := Parse(tt.at, tt.to, now); !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), tt.says) {
			t.Errorf("at %q to %q: got %+v, %v, want %q", tt.at, tt.to, m, err, tt.says)
		}
	}
}

// What is in the future is refused, to the microsecond; what is not, and what is no time, is not.
func TestFuture(t *testing.T) {
	for at, future := range map[string]bool{"2026-11-22T12:00:00.000001Z": true, "9999-01-01": true, "now": false, "2026-11-22T12:00:00Z": false, "": false} {
		m, err := Parse(at, "", now)
		if err != nil {
			t.Fatal(err)
		}
		if err := m.Refusal(); future != errors.Is(err, ErrInvalid) || future && !strings.Contains(err.Error(), "in the future: it is 2026-11-22T12:00:00.000000Z now") {
			t.Errorf("%q: got %v", at, err)
		}
	}
}

// A + is a blank, except where it is that of a time zone.
func TestParseURI(t *testing.T) {
	for at, want := range map[string]time.Time{
		"10+minutes+ago":            now.Add(-10 * time.Minute),
		"10 minutes ago":            now.Add(-10 * time.Minute),
		"2026-11-22T10:00:00+02:00": now.Add(-4 * time.Hour),
		"2026-11-22+10:00":          now.Add(-2 * time.Hour),
	} {
		if m, err := ParseURI(at, "", now); err != nil || !m.Time.Equal(want) {
			t.Errorf("%s: got %v, %v, want %v", at, m.Time, err, want)
		}
	}
	if _, err := ParseURI("so+on", "", now); !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), "so+on") {
		t.Errorf("got %v", err)
	}
}

func TestParseEither(t *testing.T) {
	for text, want := range map[string]Moment{
		"000000000000002a":                  {TXID: 42},
		"000000000000002a/8000000000000001": {TXID: 42, Checksum: 1<<63 | 1},
		"2026-11-22 10:00":                  {Time: now.Add(-2 * time.Hour), Now: now},
	} {
		if m, err := ParseEither(text, now); err != nil || m != want {
			t.Errorf("%q: got %+v, %v", text, m, err)
		}
	}
	for _, text := range []string{"", "2a", "so on"} {
		if m, err := ParseEither(text, now); !errors.Is(err, ErrInvalid) {
			t.Errorf("%q: got %+v, %v", text, m, err)
		}
	}
}

// FuzzParse: no text panics, and what is taken names exactly one kind of state.
func FuzzParse(f *testing.F) {
	f.Add("10 minutes ago", "")
	f.Add("", "000000000000002a/8000000000000001@00112233445566778899aabbccddeeff")
	f.Fuzz(func(t *testing.T, at, to string) {
		m, err := Parse(at, to, now)
		if err == nil && (at != "") != m.ByTime() || err == nil && (to != "") != (m.TXID != 0) {
			t.Errorf("at %q to %q: %+v", at, to, m)
		}
	})
}

// FuzzParseEither: no text panics, and what is taken names exactly one state, a bookmark as Parse has it.
func FuzzParseEither(f *testing.F) {
	for _, text := range []string{"000000000000002a/8000000000000001@00112233445566778899aabbccddeeff", "000000000000002a", "yesterday 18:00", "10+minutes+ago", "2026-11-22T10:00:00+02:00", ""} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		m, err := ParseEither(text, now)
		if err == nil && m.ByTime() == (m.TXID != 0) {
			t.Errorf("%q: %+v", text, m)
		}
		if to, plain := Parse("", text, now); plain == nil && text != "" && (err != nil || to != m) {
			t.Errorf("%q: %+v, %v, as a bookmark %+v", text, m, err, to)
		}
		if err == nil && m.Time.After(now) != (m.Refusal() != nil) {
			t.Errorf("%q: %v: %v", text, m.Time, m.Refusal())
		}
		if uri, err := ParseURI(text, "", now); err == nil && text != "" && !uri.ByTime() {
			t.Errorf("%q in a URI: %+v", text, uri)
		}
	})
}
