// Package moment finds the state of a database that a person names: by a
// time, by a bookmark, or by a transaction number.
//
// Owns: the forms of --at and --to, of at= and to=, and what they mean in an
// archive that has had several databases of one name.
// Imports: internal/when, snapshot/archive.
// Invariant: a state is never rounded without a word: what was found says which
// commit it is, and whether there may have been others in between.
package moment

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/uglyer/ha-sqlite/internal/when"
	"github.com/uglyer/ha-sqlite/snapshot/archive"
)

// ErrInvalid is returned for a text that names no state.
var ErrInvalid = errors.New("invalid state")

// Moment names a state. The zero one is the last state of an archive.
type Moment struct {
	Time     time.Time // zero: the fields below say it
	TXID     uint64    // 0: no transaction was named
	Checksum uint64    // of the state; 0: none was given
	Database string    // id; "": none was given
}

// Parse reads a time or a bookmark, of which one is empty. A bookmark is
// <txid>/<checksum>@<database id>, of which the end may be left out.
func Parse(at, to string, now time.Time) (Moment, error) {
	var m Moment
	var err error
	switch {
	case at != "" && to != "":
		return m, fmt.Errorf("at %q and to %q name two states: give one: %w", at, to, ErrInvalid)
	case at != "":
		if m.Time, err = when.Parse(at, now); err != nil {
			return m, fmt.Errorf("at %w: %w", err, ErrInvalid)
		}
		if m.Time.After(now) {
			return m, fmt.Errorf("at %s is %s, in the future: it is %s now: %w", at, TimeText(m.Time), TimeText(now), ErrInvalid)
		}
	case to != "":
		position, db, hasDB := strings.Cut(to, "@")
		txid, sum, hasSum := strings.Cut(position, "/")
		if m.TXID, err = hex64(txid); err == nil && hasSum {
			m.Checksum, err = hex64(sum)
		}
		if err == nil && (m.TXID == 0 || hasSum && m.Checksum == 0 || hasDB && (len(db) != 32 || !hasSum)) {
			err = errors.New("it names no state")
		}
		if err != nil {
			return Moment{}, fmt.Errorf("to %q: %w; want <txid>/<checksum>@<database id> or a txid of 16 hex digits: %w", to, err, ErrInvalid)
		}
		m.Database = db
	}
	return m, nil
}

// ParseEither reads a bookmark, a transaction number or a time.
func ParseEither(text string, now time.Time) (Moment, error) {
	m, err := Parse("", text, now)
	if err == nil && m.TXID != 0 {
		return m, nil
	}
	if m, err = Parse(text, "", now); err == nil && !m.ByTime() {
		err = fmt.Errorf("an empty text: %w", ErrInvalid)
	}
	return m, err
}

// ParseURI is Parse for parameters of a URI, in which a + may stand for a blank.
func ParseURI(at, to string, now time.Time) (Moment, error) {
	m, err := Parse(at, to, now)
	if err != nil && strings.Contains(at, "+") {
		if plain, again := Parse(strings.ReplaceAll(at, "+", " "), to, now); again == nil {
			return plain, nil
		}
	}
	return m, err
}

func hex64(s string) (uint64, error) {
	if len(s) != 16 {
		return 0, fmt.Errorf("%q has not 16 hex digits", s)
	}
	return strconv.ParseUint(s, 16, 64)
}

// ByTime reports whether a time was given.
func (m Moment) ByTime() bool { return !m.Time.IsZero() }

// Found is the state that a Moment means in an archive.
type Found struct {
	View  *archive.View
	Point archive.Point
	// Dropped says that commits behind the state cannot be restored one by one any
	// more, of which some may be before the time that was asked for.
	Dropped bool
}

// Find chooses the database and the state.
func (m Moment) Find(ctx context.Context, a *archive.Archive, name string) (Found, error) {
	var f Found
	if m.Database != "" {
		// A damaged one that had the name before is not in the way.
		if v, err := a.ChooseID(ctx, name, m.Database); err == nil {
			return m.in(ctx, v, name)
		} else if !errors.Is(err, archive.ErrNoDatabase) {
			return f, err
		}
	}
	v, err := a.Choose(ctx, name, func(v *archive.View) (bool, error) {
		if !m.ByTime() {
			return true, nil
		}
		first, err := v.First(ctx)
		return err == nil && !first.Time.After(m.Time), err
	})
	if err != nil {
		return f, err
	}
	return m.in(ctx, v, name)
}

// in finds the state in a database.
func (m Moment) in(ctx context.Context, v *archive.View, name string) (f Found, err error) {
	f.View = v
	switch {
	case m.ByTime():
		f.Point, f.Dropped, err = v.At(ctx, m.Time)
	case m.TXID != 0:
		if m.Database != "" && v.State().Database != m.Database {
			return f, fmt.Errorf("the bookmark is of database %s, the archive has %s under the name %s: %w", m.Database, v.State().Database, name, archive.ErrNotArchived)
		}
		f.Point, err = v.PointOf(ctx, m.TXID)
		if err == nil && m.Checksum != 0 && m.Checksum != f.Point.Checksum {
			err = fmt.Errorf("the bookmark has checksum %016x, the archive %016x at that transaction: it is of another history: %w", m.Checksum, f.Point.Checksum, archive.ErrNotArchived)
		}
	default:
		f.Point = v.Last()
	}
	return f, err
}

// Last reports whether it is the last state of the archive.
func (f Found) Last() bool { return f.Point.TXID == f.View.Last().TXID }

// Bookmark names the state exactly.
func (f Found) Bookmark() string { return Bookmark(f.View, f.Point) }

// Bookmark names a state of a database exactly.
func Bookmark(v *archive.View, p archive.Point) string {
	return fmt.Sprintf("%016x/%016x@%s", p.TXID, p.Checksum, v.State().Database)
}

// TimeText writes a time to the microsecond.
func TimeText(t time.Time) string { return t.UTC().Format("2006-01-02T15:04:05.000000Z") }

// Remarks says, a line each, what a person has to know of a state that was
// found by the time that was given.
func (m Moment) Remarks(f Found) []string {
	var lines []string
	if err := f.View.Damage(); err != nil {
		lines = append(lines, fmt.Sprintf("the manifest before it was read, and nothing is missing: %v", err))
	}
	if m.ByTime() && f.Last() {
		lines = append(lines, "it is the last commit of the archive: what was committed later and not archived is not in it")
	}
	if f.Dropped {
		lines = append(lines, "commits behind it are no longer kept one by one; some of them may be before the time that was asked for")
	}
	return lines
}
