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
	Time     time.Time     // zero: TXID and the fields below it say it
	Now      time.Time     // with Time: what is behind it is in the future,
	Slack    time.Duration // but for this: by how much the clock that Time was read from may be ahead
	TXID     uint64        // 0: no transaction was named
	Checksum uint64        // of the state; 0: none was given
	Database string        // id; "": none was given
}

// Parse reads a time or a bookmark, of which one is empty. A bookmark is
// <txid>/<checksum>@<database id>-<lineage>, of which the end may be left out. A time in
// the future names no state, but only Find can say which ones there are.
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
		m.Now = now
	case to != "":
		position, db, hasDB := strings.Cut(to, "@")
		db, lineage, hasLineage := strings.Cut(db, "-")
		txid, sum, hasSum := strings.Cut(position, "/")
		if m.TXID, err = hex64(txid); err == nil && hasSum {
			m.Checksum, err = hex64(sum)
		}
		if err == nil && hasLineage {
			_, err = strconv.ParseUint(lineage, 10, 64)
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

// Refusal is the error, an ErrInvalid, of a time in the future.
func (m Moment) Refusal() error {
	if !m.Time.After(m.Now.Add(m.Slack)) {
		return nil
	}
	return fmt.Errorf("%s is in the future: it is %s now: %w", TimeText(m.Time), TimeText(m.Now), ErrInvalid)
}

// Found is the state that a Moment means in an archive.
type Found struct {
	View  *archive.View
	Point archive.Point
	// First is the first state that the database has in the archive, for a state that was
	// found by time.
	First archive.Point
	// Dropped says that commits behind the state cannot be restored one by one, of
	// which some may be before the time that was asked for. Next is the first state
	// behind them.
	Dropped  bool
	NextView *archive.View
	Next     archive.Point
	// Views are those that were looked at, the newest first.
	Views []*archive.View
}

// Find chooses the database and the state.
func (m Moment) Find(ctx context.Context, a *archive.Archive, name string) (f Found, err error) {
	err = archive.Again(ctx, func() error {
		f, err = m.find(ctx, a, name)
		return err
	})
	return f, err
}

func (m Moment) find(ctx context.Context, a *archive.Archive, name string) (Found, error) {
	views, err := a.Views(ctx, name, nil)
	if err != nil {
		return Found{}, err
	}
	return m.FindIn(ctx, views)
}

// FindIn chooses the state in views of the databases that had a name, of which
// there is at least one. The newest one that has what a bookmark or a transaction
// number names is meant; with a time, that which begins last at or before it. One
// that is damaged is in the way of what it could be, and of no state that is known
// by its checksum.
func (m Moment) FindIn(ctx context.Context, views archive.Views) (Found, error) {
	f := Found{Views: views.List, View: views.List[0]}
	if m.TXID == 0 {
		if _, err := views.All(); err != nil {
			return f, err
		}
	}
	switch {
	case m.ByTime():
		return m.at(ctx, f)
	case m.TXID != 0:
		if m.Database != "" {
			views = views.Of(m.Database)
		}
		if len(views.List) == 0 && views.Damaged() == nil {
			s := f.View.State()
			return f, fmt.Errorf("the bookmark is of database %s, the archive has %s under the name %s: %w", m.Database, s.Database, s.Name, archive.ErrNotArchived)
		}
		v, p, err := archive.FindState(ctx, views, m.TXID, m.Checksum)
		if err != nil {
			return f, err
		}
		f.View, f.Point = v, p
	default:
		f.Point = f.View.Last()
	}
	return f, nil
}

// at chooses the last state at or before the time.
func (m Moment) at(ctx context.Context, f Found) (Found, error) {
	var begun, next *archive.View
	var begins, follows archive.Point
	for _, v := range f.Views {
		first, err := v.First(ctx)
		switch {
		case err != nil:
			return f, err
		case first.Time.After(m.Time):
			if next == nil || first.Time.Before(follows.Time) {
				next, follows = v, first
			}
		case begun == nil || first.Time.After(begins.Time):
			begun, begins = v, first
		}
	}
	if begun == nil {
		last := f.View.Last()
		err := &archive.RangeError{At: m.Time, First: follows.Time, Last: last.Time}
		return f, fmt.Errorf("%w (%s to %s)", err, Bookmark(next, follows), Bookmark(f.View, last))
	}
	f.View, f.First = begun, begins
	var err error
	if f.Point, f.Dropped, err = begun.At(ctx, m.Time); err != nil {
		return f, err
	}
	switch {
	case f.Dropped:
		f.NextView = begun
		if f.Next, err = begun.After(ctx, f.Point.TXID); err != nil {
			return f, err
		}
	case f.Last() && f.Point.Time.Before(m.Time) && next != nil && follows.TXID > 1 &&
		(next.State().Database != begun.State().Database || follows.TXID > f.Point.TXID+1):
		// What has the name then does not begin with its first commit.
		f.Dropped, f.NextView, f.Next = true, next, follows
	}
	if err := m.Refusal(); err != nil {
		return f, fmt.Errorf("%w; %s", err, f.span())
	}
	return f, nil
}

// span says which states there are.
func (f Found) span() string {
	last := f.View.Last()
	return fmt.Sprintf("the archive has %s to %s (%s to %s)", TimeText(f.First.Time), TimeText(last.Time), Bookmark(f.View, f.First), Bookmark(f.View, last))
}

// Exact refuses a state of which it is not known whether it is that of the time
// that was asked for.
func (f Found) Exact() error {
	if !f.Dropped {
		return nil
	}
	return fmt.Errorf("the commits between %s of %s and %s of %s cannot be restored one by one, and some of them may be before the time that was asked for: choose one of the two by its bookmark: %w",
		f.Bookmark(), TimeText(f.Point.Time), Bookmark(f.NextView, f.Next), TimeText(f.Next.Time), archive.ErrNotArchived)
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

// DroppedNote is what a person has to know of a state with Dropped.
const DroppedNote = "commits behind it are no longer kept one by one; some of them may be before the time that was asked for"

// Remarks says, a line each, what a person has to know of a state that was
// found by the time that was given.
func (m Moment) Remarks(f Found) []string {
	var lines []string
	if err := f.View.Damage(); err != nil {
		lines = append(lines, fmt.Sprintf("the manifest before it was read, and nothing is missing: %v", err))
	}
	if m.ByTime() && f.Last() {
		lines = append(lines, "it is the last commit of the archive: what was committed later and not archived is not in it; "+f.span())
	}
	if f.Dropped {
		lines = append(lines, DroppedNote)
	}
	return lines
}
