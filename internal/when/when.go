// Package when reads times as people write them: "10 minutes ago",
// "yesterday 18:00", or to the microsecond.
//
// Owns: the forms that --at takes.
// Imports: the standard library only.
// Invariant: a text means one time, whoever reads it, but for the clock and the
// time zone that the caller gives; what is not understood is refused.
package when

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// ErrInvalid is returned for a text that is no time.
var ErrInvalid = errors.New("invalid time")

// Forms lists what Parse takes, for a help text.
const Forms = `2026-11-22T10:00:00Z, 2026-11-22 10:00, 18:00, now, today, yesterday 18:00, 10 minutes ago, 1h30m ago`

var dates = []string{
	time.RFC3339Nano,
	"2006-01-02 15:04:05.999999999Z07:00",
	"2006-01-02 15:04:05.999999999",
	"2006-01-02T15:04:05.999999999",
	"2006-01-02 15:04",
	"2006-01-02T15:04",
	"2006-01-02",
}

var clocks = []string{"15:04:05.999999999", "15:04"}

var units = map[string]time.Duration{
	"microsecond": time.Microsecond, "millisecond": time.Millisecond, "second": time.Second, "sec": time.Second, "s": time.Second,
	"minute": time.Minute, "min": time.Minute, "m": time.Minute, "hour": time.Hour, "h": time.Hour,
}

// Parse reads a time. Forms without a zone are in the one of now; a form
// without a clock is midnight.
func Parse(text string, now time.Time) (time.Time, error) {
	t, err := parse(strings.Join(strings.Fields(text), " "), now)
	if err != nil {
		return time.Time{}, fmt.Errorf("%q: %w; write for example %s: %w", text, err, Forms, ErrInvalid)
	}
	if y := t.Year(); y < 1970 || y > 9999 {
		return time.Time{}, fmt.Errorf("%q: the year %d is out of range: %w", text, y, ErrInvalid)
	}
	return t, nil
}

func parse(text string, now time.Time) (time.Time, error) {
	for _, layout := range dates {
		if t, err := time.Parse(layout, text); err == nil {
			if layout == time.RFC3339Nano || strings.HasSuffix(layout, "Z07:00") {
				return t, nil
			}
			return local(t.Date, t, now.Location())
		}
	}
	low := strings.ToLower(text)
	if low == "now" {
		return now, nil
	}
	if rest, ok := strings.CutSuffix(low, " ago"); ok {
		return ago(rest, now)
	}
	day, clock := now, low
	for word, back := range map[string]int{"today": 0, "yesterday": -1} {
		if rest, ok := strings.CutPrefix(low, word); ok && (rest == "" || rest[0] == ' ') {
			day, clock = now.AddDate(0, 0, back), strings.TrimPrefix(rest, " ")
			if clock == "" {
				clock = "00:00"
			}
		}
	}
	for _, layout := range clocks {
		if t, err := time.Parse(layout, clock); err == nil {
			return local(day.Date, t, now.Location())
		}
	}
	return time.Time{}, errors.New("it is no time")
}

// local returns when clocks in a zone show a time of a day. Where they are put forward or back there is none, or two:
// which one is meant nobody can say but who wrote it.
func local(date func() (int, time.Month, int), clock time.Time, zone *time.Location) (time.Time, error) {
	y, m, d := date()
	t := time.Date(y, m, d, clock.Hour(), clock.Minute(), clock.Second(), clock.Nanosecond(), zone)
	if t.Hour() != clock.Hour() || t.Minute() != clock.Minute() || t.Day() != d {
		return time.Time{}, fmt.Errorf("clocks in %s are put forward over that time: give the offset, as in %s", zone, t.Format(time.RFC3339))
	}
	for _, at := range []time.Time{t.Add(-24 * time.Hour), t.Add(24 * time.Hour)} {
		_, offset := t.Zone()
		_, there := at.Zone()
		other := t.Add(time.Duration(offset-there) * time.Second)
		if _, is := other.Zone(); offset != there && is == there {
			return time.Time{}, fmt.Errorf("clocks in %s are put back and show that time twice: give the offset, as in %s or %s", zone, t.Format(time.RFC3339), other.Format(time.RFC3339))
		}
	}
	return t, nil
}

// ago reads "10 minutes", "1 hour 30 minutes", "an hour", "1h30m", "2 days".
func ago(text string, now time.Time) (time.Time, error) {
	if d, err := time.ParseDuration(text); err == nil {
		if d < 0 {
			return time.Time{}, errors.New("a negative duration")
		}
		return now.Add(-d), nil
	}
	words := strings.Fields(text)
	if len(words) == 0 || len(words)%2 != 0 {
		return time.Time{}, errors.New("want pairs of number and unit before ago")
	}
	t := now
	for i := 0; i < len(words); i += 2 {
		n := 1.0
		if words[i] != "a" && words[i] != "an" && words[i] != "one" {
			var err error
			if n, err = strconv.ParseFloat(words[i], 64); err != nil || !(n >= 0 && n < 1e6) {
				return time.Time{}, fmt.Errorf("%q is no number", words[i])
			}
		}
		unit := words[i+1]
		if _, ok := units[unit]; !ok {
			unit = strings.TrimSuffix(unit, "s")
		}
		days := map[string]int{"day": 1, "week": 7}[unit]
		switch d, ok := units[unit]; {
		case ok:
			t = t.Add(-time.Duration(n * float64(d)))
		case days > 0 && n == float64(int(n)):
			// The same clock, also where it was put forward in between.
			var err error
			if t, err = local(t.AddDate(0, 0, -days*int(n)).Date, t, t.Location()); err != nil {
				return time.Time{}, err
			}
		case days > 0:
			t = t.Add(-time.Duration(n * float64(days) * 24 * float64(time.Hour)))
		default:
			return time.Time{}, fmt.Errorf("%q is no unit of time", words[i+1])
		}
	}
	return t, nil
}
