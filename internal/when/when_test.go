package when

import (
	"errors"
	"strings"
	"testing"
	"time"
)

func TestParse(t *testing.T) {
	zone, err := time.LoadLocation("Europe/Berlin")
	if err != nil {
		zone = time.FixedZone("CET", 3600)
	}
	now := time.Date(2026, 11, 23, 9, 30, 15, 123456789, zone)
	at := func(d, h, m, s, n int) time.Time { return time.Date(2026, 11, d, h, m, s, n, zone) }
	for text, want := range map[string]time.Time{
		"2026-11-22T10:00:00Z":           time.Date(2026, 11, 22, 10, 0, 0, 0, time.UTC),
		"2026-11-22T10:00:00.123456Z":    time.Date(2026, 11, 22, 10, 0, 0, 123456000, time.UTC),
		"2026-11-22T10:00:00+02:00":      time.Date(2026, 11, 22, 8, 0, 0, 0, time.UTC),
		"2026-11-22 10:00:00.5Z":         time.Date(2026, 11, 22, 10, 0, 0, 500000000, time.UTC),
		"2026-11-22 10:00":               at(22, 10, 0, 0, 0),
		"2026-11-22 10:00:01.5":          at(22, 10, 0, 1, 500000000),
		"2026-11-22T10:00":               at(22, 10, 0, 0, 0),
		"2026-11-22":                     at(22, 0, 0, 0, 0),
		"now":                            now,
		"Now":                            now,
		"18:00":                          at(23, 18, 0, 0, 0),
		"today":                          at(23, 0, 0, 0, 0),
		"today 08:15":                    at(23, 8, 15, 0, 0),
		"yesterday":                      at(22, 0, 0, 0, 0),
		"yesterday  18:00":               at(22, 18, 0, 0, 0),
		"Yesterday 18:00:30":             at(22, 18, 0, 30, 0),
		"10 minutes ago":                 now.Add(-10 * time.Minute),
		"1 hour 30 minutes ago":          now.Add(-90 * time.Minute),
		"an hour ago":                    now.Add(-time.Hour),
		"1.5 hours ago":                  now.Add(-90 * time.Minute),
		"1h30m ago":                      now.Add(-90 * time.Minute),
		"250 milliseconds ago":           now.Add(-250 * time.Millisecond),
		"5 s ago":                        now.Add(-5 * time.Second),
		"0 seconds ago":                  now,
		"2 days ago":                     now.AddDate(0, 0, -2),
		"0.5 days ago":                   now.Add(-12 * time.Hour),
		"a week ago":                     now.AddDate(0, 0, -7),
		" 2026-11-22  10:00 ":            at(22, 10, 0, 0, 0),
		"2026-11-22 10:00:00.000001":     at(22, 10, 0, 0, 1000),
		"2026-11-22T10:00:00.000001Z":    time.Date(2026, 11, 22, 10, 0, 0, 1000, time.UTC),
		"2026-11-22T10:00:00.000000001Z": time.Date(2026, 11, 22, 10, 0, 0, 1, time.UTC),
	} {
		if got, err := Parse(text, now); err != nil || !got.Equal(want) {
			t.Errorf("%q: got %v, %v, want %v", text, got, err, want)
		}
	}
	for _, text := range []string{
		"", "tomorrow", "yesterdays 18:00", "yesterday 25:00", "10 minutes", "ten minutes ago", "ago", " ago", "-5m ago", "-5 minutes ago",
		"5 lightyears ago", "1e9 hours ago", "NaN hours ago", "2026-13-01", "2026-11-22 10", "1969-01-01", "3000000 days ago", "10000000h ago", "22.11.2026",
	} {
		if got, err := Parse(text, now); !errors.Is(err, ErrInvalid) {
			t.Errorf("%q: got %v, %v", text, got, err)
		}
	}
}

// Where clocks are put forward or back a time may be none, or two.
func TestTimesThatAreNoneOrTwoAreRefused(t *testing.T) {
	for _, tt := range []struct {
		zone, now string
		fine      map[string]string // what it is in UTC
		none, two []string
	}{
		{"Europe/Berlin", "2026-03-29T10:00:00Z", map[string]string{
			"2026-03-29 01:59:59": "2026-03-29T00:59:59Z", "03:00": "2026-03-29T01:00:00Z", "2026-03-29": "2026-03-28T23:00:00Z",
			"2026-03-29T02:30:00+01:00": "2026-03-29T01:30:00Z", "yesterday 02:30": "2026-03-28T01:30:00Z", "10 hours ago": "2026-03-29T00:00:00Z",
		}, []string{"2026-03-29 02:00", "2026-03-29T02:30:00", "02:59:59.999999", "today 02:30"}, nil},
		{"Europe/Berlin", "2026-10-26T01:30:00Z", map[string]string{
			"2026-10-25 01:59:59.999999": "2026-10-24T23:59:59.999999Z", "2026-10-25 03:00": "2026-10-25T02:00:00Z",
			"2026-10-25T02:30:00+02:00": "2026-10-25T00:30:00Z", "2026-10-25 02:30:00+01:00": "2026-10-25T01:30:00Z", "02:30": "2026-10-26T01:30:00Z",
		}, nil, []string{"2026-10-25 02:00", "2026-10-25T02:59:59", "yesterday 02:30", "1 day ago"}},
		{"America/New_York", "2026-03-09T06:30:00Z", map[string]string{
			"2026-03-08 01:59": "2026-03-08T06:59:00Z", "2026-03-08 03:00": "2026-03-08T07:00:00Z", "2026-03-08T02:30:00-05:00": "2026-03-08T07:30:00Z",
		}, []string{"2026-03-08 02:00", "2026-03-08 02:59", "yesterday 02:30", "a day ago"}, nil},
		{"America/New_York", "2026-11-01T12:00:00Z", map[string]string{
			"00:59": "2026-11-01T04:59:00Z", "2026-11-01 02:00": "2026-11-01T07:00:00Z", "2026-11-01T01:30:00-04:00": "2026-11-01T05:30:00Z",
			"2026-11-01T01:30:00-05:00": "2026-11-01T06:30:00Z", "2 weeks ago": "2026-10-18T11:00:00Z",
		}, nil, []string{"01:00", "today 01:59:59", "2026-11-01 01:30"}},
	} {
		zone, err := time.LoadLocation(tt.zone)
		if err != nil {
			t.Fatal(err)
		}
		now, err := time.Parse(time.RFC3339, tt.now)
		if err != nil {
			t.Fatal(err)
		}
		now = now.In(zone)
		for text, want := range tt.fine {
			if got, err := Parse(text, now); err != nil || got.UTC().Format(time.RFC3339Nano) != want {
				t.Errorf("%s, %q: got %v, %v, want %s", tt.zone, text, got, err, want)
			}
		}
		for why, list := range map[string][]string{"put forward": tt.none, "twice": tt.two} {
			for _, text := range list {
				if got, err := Parse(text, now); !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), why) || !strings.Contains(err.Error(), "offset") {
					t.Errorf("%s, %q: got %v, %v, want that clocks are %s", tt.zone, text, got, err, why)
				}
			}
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{"2026-11-22 10:00", "10 minutes ago", "yesterday 18:00", "1h ago"} {
		f.Add(s)
	}
	now := time.Date(2026, 11, 23, 9, 30, 0, 0, time.UTC)
	f.Fuzz(func(t *testing.T, s string) {
		got, err := Parse(s, now)
		if err != nil {
			return
		}
		again, err := Parse(got.Format(time.RFC3339Nano), now)
		if err != nil || !again.Equal(got) {
			t.Errorf("%q is %v, which is %v, %v", s, got, again, err)
		}
	})
}
