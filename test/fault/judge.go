package fault

import (
	"fmt"
	"math"
	"slices"
	"time"
)

// Row is one row that a KindRows transaction made, as a node shows it.
type Row struct {
	ID     int64 // AUTOINCREMENT, and rows are never deleted: the order of ids is the order of commits
	Writer string
	Seq    int
	Part   int
	Parts  int
}

// Final is what one node shows after all writers have stopped.
type Final struct {
	Rows    []Row
	Audited int   // rows that the trigger made, one for each of Rows
	Same    int   // rows of KindSame
	Counter int   // the counter of KindCount
	Balance int64 // the sum of all accounts: 0
}

// maxViolations bounds what judge says: one bug breaks thousands of rows.
const maxViolations = 20

// key names a transaction of KindRows.
type key struct {
	writer string
	seq    int
}

// judge says in which ways the rows contradict what the writers were told; nothing when they do not.
func judge(txns []Txn, final Final) []string {
	var v violations
	rows := make(map[key][]Row)
	for _, r := range final.Rows {
		k := key{r.Writer, r.Seq}
		rows[k] = append(rows[k], r)
	}
	var same, counter tally
	known := make(map[key]bool)
	for _, t := range txns {
		switch t.Kind {
		case KindRows:
			k := key{t.Writer, t.Seq}
			known[k] = true
			judgeRows(&v, t, rows[k])
		case KindSame:
			same.add(t)
		case KindCount:
			counter.add(t)
		}
	}
	for k, r := range rows {
		if !known[k] {
			v.add("%d rows of %s/%d, which nobody meant to write", len(r), k.writer, k.seq)
		}
	}
	same.judge(&v, "identical rows", final.Same)
	counter.judge(&v, "increments", final.Counter)
	if final.Audited != len(final.Rows) {
		v.add("the trigger made %d rows for %d inserted ones", final.Audited, len(final.Rows))
	}
	if final.Balance != 0 {
		v.add("the sum of the accounts is %d: half a transfer is there", final.Balance)
	}
	judgeOrder(&v, txns, rows)
	return v.list
}

// judgeRows judges one transaction that made rows with a name.
func judgeRows(v *violations, t Txn, rows []Row) {
	if len(rows) == 0 {
		if t.Fate == Acknowledged {
			v.add("acknowledged transaction %s/%d of %d rows is lost", t.Writer, t.Seq, t.Parts)
		}
		return
	}
	if t.Fate == Refused || t.Fate == Open {
		v.add("%s transaction %s/%d is there (%s)", t.Fate, t.Writer, t.Seq, t.Reason)
	}
	count := make(map[int]int)
	for _, r := range rows {
		count[r.Part]++
	}
	for part := range t.Parts {
		if n := count[part]; n != 1 {
			v.add("%s transaction %s/%d has row %d of %d %d times", t.Fate, t.Writer, t.Seq, part, t.Parts, n)
		}
		delete(count, part)
	}
	for part := range count {
		v.add("%s transaction %s/%d has a row %d that it never wrote", t.Fate, t.Writer, t.Seq, part)
	}
}

// tally counts the transactions whose effects cannot be told apart.
type tally struct{ acknowledged, unknown int }

func (c *tally) add(t Txn) {
	switch t.Fate {
	case Acknowledged:
		c.acknowledged++
	case Unknown:
		c.unknown++
	}
}

func (c *tally) judge(v *violations, what string, got int) {
	if got < c.acknowledged || got > c.acknowledged+c.unknown {
		v.add("%d %s, but %d were acknowledged and %d are unknown", got, what, c.acknowledged, c.unknown)
	}
}

// judgeOrder holds the order of commits against the clock: a transaction that ended before another began comes first.
func judgeOrder(v *violations, txns []Txn, rows map[key][]Row) {
	type placed struct {
		Txn
		id int64
	}
	var order []placed
	for _, t := range txns {
		if r := rows[key{t.Writer, t.Seq}]; t.Kind == KindRows && len(r) > 0 {
			order = append(order, placed{t, r[0].ID})
		}
	}
	slices.SortFunc(order, func(a, b placed) int { return int(a.id - b.id) })
	// From the last to the first: the earliest end of all that come later.
	earliest, who := time.Duration(math.MaxInt64), Txn{}
	for _, p := range slices.Backward(order) {
		if p.Begin > earliest {
			v.add("%s/%d comes before %s/%d, but began %v after that had ended",
				p.Writer, p.Seq, who.Writer, who.Seq, p.Begin-earliest)
		}
		if p.Fate == Acknowledged && p.End < earliest {
			earliest, who = p.End, p.Txn
		}
	}
}

type violations struct{ list []string }

func (v *violations) add(format string, args ...any) {
	switch {
	case len(v.list) < maxViolations:
		v.list = append(v.list, fmt.Sprintf(format, args...))
	case len(v.list) == maxViolations:
		v.list = append(v.list, "and more")
	}
}
