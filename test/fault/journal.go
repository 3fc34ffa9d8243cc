package fault

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Kind is what a transaction does; judge counts each kind in its own way.
type Kind string

// Kinds of transactions.
const (
	KindRows     Kind = "rows"     // inserts Parts rows that carry the writer's name and the number of the transaction
	KindSame     Kind = "same"     // INSERT INTO same(v) VALUES(1): the same bytes whoever does it
	KindCount    Kind = "count"    // UPDATE counter SET n = n + 1
	KindTransfer Kind = "transfer" // moves an amount between two accounts
	KindBlob     Kind = "blob"     // replaces a blob of some hundred KiB
)

// Fate is what the writer was told about a transaction.
type Fate string

// Fates of a transaction. A journal that ends after the intent is Open, one that ends after "commit is sent" is Unknown.
const (
	Open         Fate = "open"         // the writer died before it asked for the commit
	Acknowledged Fate = "acknowledged" // COMMIT gave no error
	Refused      Fate = "refused"      // an error that promises that nothing happened
	Unknown      Fate = "unknown"      // an error that promises nothing, or no answer
)

// Txn is one transaction of a writer as its journal tells it.
type Txn struct {
	Writer string
	Seq    int
	Kind   Kind
	Parts  int           // rows, for KindRows
	Begin  time.Duration // on the clock of the machine, before the first statement
	End    time.Duration // after the outcome; 0 when there was none
	Fate   Fate
	Reason string // the error, for Refused and Unknown
}

// now reads a clock that all processes of the machine share and that never jumps.
func now() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		panic(fmt.Sprintf("read the monotonic clock: %v", err))
	}
	return time.Duration(ts.Nano())
}

// Journal is a writer's record of its transactions. Each line is written by one write(2), so that kill -9 of the writer
// loses none; the machine does not lose power, so nothing is synced.
type Journal struct {
	file *os.File
	seq  int
}

// CreateJournal starts a new journal.
func CreateJournal(path string) (*Journal, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return nil, fmt.Errorf("create journal: %w", err)
	}
	return &Journal{file: f}, nil
}

func (j *Journal) line(format string, args ...any) error {
	if _, err := fmt.Fprintf(j.file, format+"\n", args...); err != nil {
		return fmt.Errorf("write journal: %w", err)
	}
	return nil
}

// Intent records that the next transaction begins, and returns its number.
func (j *Journal) Intent(kind Kind, parts int) (int, error) {
	j.seq++
	return j.seq, j.line("intent %d %d %s %d", j.seq, now(), kind, parts)
}

// Sent records that the commit is about to be asked for: from here on the transaction may be there.
func (j *Journal) Sent() error { return j.line("sent %d %d", j.seq, now()) }

// Outcome records what the writer was told.
func (j *Journal) Outcome(fate Fate, reason string) error {
	return j.line("%s %d %d %s", fate, j.seq, now(), strings.ReplaceAll(reason, "\n", " "))
}

// errJournal is returned for a journal that no Journal can have written.
var errJournal = errors.New("malformed journal")

// ReadJournal reads what a writer has recorded, whether it lives or not. A last line without its end is left out.
func ReadJournal(writer string, r io.Reader) ([]Txn, error) {
	var txns []Txn
	sent := false
	reader := bufio.NewReader(r)
	for number := 1; ; number++ {
		line, err := reader.ReadString('\n')
		if err == io.EOF {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("read journal of %s: %w", writer, err)
		}
		bad := fmt.Errorf("read journal of %s: line %d %q: %w", writer, number, strings.TrimSpace(line), errJournal)
		f := strings.SplitN(strings.TrimSuffix(line, "\n"), " ", 4)
		if len(f) < 3 {
			return nil, bad
		}
		seq, err1 := strconv.Atoi(f[1])
		at, err2 := strconv.ParseInt(f[2], 10, 64)
		if err1 != nil || err2 != nil {
			return nil, bad
		}
		if f[0] == "intent" {
			var kind Kind
			var parts int
			if len(f) < 4 || seq != len(txns)+1 {
				return nil, bad
			}
			if _, err := fmt.Sscanf(f[3], "%s %d", &kind, &parts); err != nil {
				return nil, bad
			}
			txns = append(txns, Txn{Writer: writer, Seq: seq, Kind: kind, Parts: parts, Begin: time.Duration(at), Fate: Open})
			sent = false
			continue
		}
		if seq != len(txns) || seq == 0 {
			return nil, bad
		}
		t := &txns[seq-1]
		switch fate := Fate(f[0]); {
		case f[0] == "sent" && t.End == 0:
			t.Fate, sent = Unknown, true
			t.Reason = "no answer"
		case fate == Refused && t.End == 0, sent && t.End == 0 && (fate == Acknowledged || fate == Unknown):
			t.Fate, t.End, t.Reason = fate, time.Duration(at), ""
			if len(f) == 4 {
				t.Reason = f[3]
			}
		default:
			return nil, bad
		}
	}
	return txns, nil
}

// readJournalFile reads the journal of a writer.
func readJournalFile(writer, path string) ([]Txn, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("open journal: %w", err)
	}
	defer f.Close()
	return ReadJournal(writer, f)
}
