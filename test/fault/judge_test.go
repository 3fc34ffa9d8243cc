package fault

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"
)

// history is a right one; each row of the test below breaks it in one way.
func history() ([]Txn, Final) {
	ms := func(n int) time.Duration { return time.Duration(n) * time.Millisecond }
	txns := []Txn{
		{Writer: "a", Seq: 1, Kind: KindRows, Parts: 1, Begin: ms(10), End: ms(20), Fate: Acknowledged},
		{Writer: "b", Seq: 1, Kind: KindRows, Parts: 2, Begin: ms(15), End: ms(30), Fate: Acknowledged},
		{Writer: "a", Seq: 2, Kind: KindRows, Parts: 1, Begin: ms(31), End: ms(40), Fate: Refused, Reason: "517"},
		{Writer: "b", Seq: 2, Kind: KindRows, Parts: 2, Begin: ms(32), End: ms(50), Fate: Unknown, Reason: "778"},
		{Writer: "a", Seq: 3, Kind: KindRows, Parts: 1, Begin: ms(41), End: ms(60), Fate: Acknowledged},
		{Writer: "a", Seq: 4, Kind: KindSame, Begin: ms(61), End: ms(62), Fate: Acknowledged},
		{Writer: "b", Seq: 3, Kind: KindSame, Begin: ms(61), End: ms(62), Fate: Unknown},
		{Writer: "a", Seq: 5, Kind: KindCount, Begin: ms(63), End: ms(64), Fate: Acknowledged},
		{Writer: "b", Seq: 4, Kind: KindRows, Parts: 3, Begin: ms(65), Fate: Open},
	}
	final := Final{
		Rows: []Row{
			{ID: 1, Writer: "a", Seq: 1, Part: 0, Parts: 1},
			{ID: 2, Writer: "b", Seq: 1, Part: 0, Parts: 2},
			{ID: 3, Writer: "b", Seq: 1, Part: 1, Parts: 2},
			{ID: 4, Writer: "b", Seq: 2, Part: 0, Parts: 2},
			{ID: 5, Writer: "b", Seq: 2, Part: 1, Parts: 2},
			{ID: 6, Writer: "a", Seq: 3, Part: 0, Parts: 1},
		},
		Audited: 6, Same: 1, Counter: 1,
	}
	return txns, final
}

func TestJudgeFindsEveryWrong(t *testing.T) {
	for name, row := range map[string]struct {
		change func(txns []Txn, f *Final)
		want   string // "" for no violation
	}{
		"a right history":               {func([]Txn, *Final) {}, ""},
		"an unknown one is not there":   {func(_ []Txn, f *Final) { f.Rows = slices.Delete(f.Rows, 3, 5); f.Audited -= 2 }, ""},
		"an unknown identical is there": {func(_ []Txn, f *Final) { f.Same = 2 }, ""},
		"an acknowledged row is lost":   {func(_ []Txn, f *Final) { f.Rows = f.Rows[1:]; f.Audited-- }, "a/1 of 1 rows is lost"},
		"a refused row is there":        {func(txns []Txn, _ *Final) { txns[0].Fate = Refused }, "refused transaction a/1 is there"},
		"an open one is there": {func(_ []Txn, f *Final) {
			for part := range 3 {
				f.Rows = append(f.Rows, Row{ID: int64(7 + part), Writer: "b", Seq: 4, Part: part, Parts: 3})
			}
			f.Audited += 3
		}, "open transaction b/4 is there"},
		"an acknowledged row is doubled": {func(_ []Txn, f *Final) {
			f.Rows = append(f.Rows, Row{ID: 7, Writer: "a", Seq: 3, Parts: 1})
			f.Audited++
		}, "a/3 has row 0 of 1 2 times"},
		"an unknown row is doubled": {func(_ []Txn, f *Final) {
			f.Rows = append(f.Rows, Row{ID: 7, Writer: "b", Seq: 2, Part: 1, Parts: 2})
			f.Audited++
		}, "b/2 has row 1 of 2 2 times"},
		"half a transaction is there": {func(_ []Txn, f *Final) { f.Rows = slices.Delete(f.Rows, 2, 3); f.Audited-- }, "b/1 has row 1 of 2 0 times"},
		"a row of nobody":             {func(_ []Txn, f *Final) { f.Rows[0].Writer = "c" }, "nobody meant"},
		"a row that was never written": {func(_ []Txn, f *Final) {
			f.Rows[0].Part = 7
		}, "row 7 that it never wrote"},
		"an identical insert is lost":    {func(_ []Txn, f *Final) { f.Same = 0 }, "0 identical rows, but 1"},
		"an identical insert is doubled": {func(_ []Txn, f *Final) { f.Same = 3 }, "3 identical rows"},
		"an increment is lost":           {func(_ []Txn, f *Final) { f.Counter = 0 }, "0 increments"},
		"an increment is doubled":        {func(_ []Txn, f *Final) { f.Counter = 2 }, "2 increments"},
		"the trigger did not run":        {func(_ []Txn, f *Final) { f.Audited-- }, "trigger"},
		"half a transfer":                {func(_ []Txn, f *Final) { f.Balance = -5 }, "half a transfer"},
		"commits against the clock": {func(_ []Txn, f *Final) {
			f.Rows[0].ID, f.Rows[5].ID = 6, 1
		}, "began"},
	} {
		t.Run(name, func(t *testing.T) {
			txns, final := history()
			row.change(txns, &final)
			got := strings.Join(judge(txns, final), "; ")
			if row.want == "" && got != "" || !strings.Contains(got, row.want) {
				t.Errorf("got %q, want %q", got, row.want)
			}
		})
	}
}

func TestJudgeSaysNotTooMuch(t *testing.T) {
	var txns []Txn
	for i := range 1000 {
		txns = append(txns, Txn{Writer: "a", Seq: i + 1, Kind: KindRows, Parts: 1, Fate: Acknowledged})
	}
	if got := judge(txns, Final{}); len(got) != maxViolations+1 {
		t.Errorf("got %d violations, want %d and a last line", len(got), maxViolations)
	}
}

func TestJournalIsReadAsWritten(t *testing.T) {
	path := t.TempDir() + "/journal"
	j, err := CreateJournal(path)
	if err != nil {
		t.Fatal(err)
	}
	steps := []struct {
		sent bool
		fate Fate
	}{{true, Acknowledged}, {true, Refused}, {false, Refused}, {true, Unknown}, {true, ""}}
	for _, s := range steps {
		if _, err := j.Intent(KindRows, 2); err != nil {
			t.Fatal(err)
		}
		if s.sent {
			err = j.Sent()
		}
		if err == nil && s.fate != "" {
			err = j.Outcome(s.fate, "because\nof x")
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if _, err := j.Intent(KindSame, 0); err != nil {
		t.Fatal(err)
	}
	txns, err := readJournalFile("w", path)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, x := range txns {
		got = append(got, string(x.Fate))
	}
	if want := "acknowledged refused refused unknown unknown open"; strings.Join(got, " ") != want {
		t.Errorf("got %v, want %s", got, want)
	}
	if txns[0].End <= txns[0].Begin || txns[0].Parts != 2 || txns[0].Reason != "because of x" {
		t.Errorf("first transaction: %+v", txns[0])
	}
}

func TestMalformedJournalsAreRefused(t *testing.T) {
	for name, text := range map[string]string{
		"outcome without intent":    "acknowledged 1 5\n",
		"acknowledged, never sent":  "intent 1 5 rows 1\nacknowledged 1 6\n",
		"two outcomes":              "intent 1 5 rows 1\nsent 1 6\nacknowledged 1 7\nrefused 1 8\n",
		"numbers with a gap":        "intent 2 5 rows 1\n",
		"no number":                 "intent x 5 rows 1\n",
		"a word that means nothing": "intent 1 5 rows 1\nmaybe 1 6\n",
		"too short":                 "intent 1\n",
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := ReadJournal("w", strings.NewReader(text)); !errors.Is(err, errJournal) {
				t.Errorf("got %v, want errJournal", err)
			}
		})
	}
	txns, err := ReadJournal("w", strings.NewReader("intent 1 5 rows 1\nsent 1 6\nackn"))
	if err != nil || len(txns) != 1 || txns[0].Fate != Unknown {
		t.Errorf("torn last line: got %v, %v, want one unknown transaction", txns, err)
	}
}
