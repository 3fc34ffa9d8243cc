package vfs

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"testing"

	"github.com/uglyer/ha-sqlite/wal"
)

const (
	accounts     = 100
	totalBalance = accounts * 1000
)

// workload makes random transactions on a source. What every snapshot of it must
// show is checked by checkInvariants.
type workload struct {
	*source
	rnd      *rand.Rand
	pageSize int
	indexed  bool
}

func newWorkload(t testing.TB, rnd *rand.Rand, pageSize uint32, autoVacuum uint8) *workload {
	return &workload{source: newSource(t, pageSize, autoVacuum), rnd: rnd, pageSize: int(pageSize)}
}

// setup is the first transaction.
func (w *workload) setup(t testing.TB) transaction {
	return w.exec(t,
		"CREATE TABLE meta(n INTEGER NOT NULL)",
		"INSERT INTO meta VALUES(0)",
		"CREATE TABLE log(n INTEGER PRIMARY KEY, note TEXT)",
		"CREATE TABLE acct(id INTEGER PRIMARY KEY, bal INTEGER NOT NULL)",
		fmt.Sprintf("WITH RECURSIVE c(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM c WHERE i<%d) INSERT INTO acct SELECT i, %d FROM c", accounts, totalBalance/accounts),
		"CREATE TABLE item(k INTEGER PRIMARY KEY, v INTEGER NOT NULL, data BLOB)",
		"CREATE INDEX item_v ON item(v, k)",
	)
}

// step runs one random transaction. big is the most pages it should write.
func (w *workload) step(t testing.TB, big int) transaction {
	stmts := []string{
		"UPDATE meta SET n = n + 1",
		"INSERT INTO log SELECT n, hex(randomblob(8)) FROM meta",
	}
	for range 1 + w.rnd.IntN(3) {
		from, to, amount := 1+w.rnd.IntN(accounts), 1+w.rnd.IntN(accounts), w.rnd.IntN(100)
		stmts = append(stmts,
			fmt.Sprintf("UPDATE acct SET bal = bal - %d WHERE id = %d", amount, from),
			fmt.Sprintf("UPDATE acct SET bal = bal + %d WHERE id = %d", amount, to))
	}
	insert := func(rows, size int) {
		stmts = append(stmts, fmt.Sprintf("WITH RECURSIVE c(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM c WHERE i<%d) INSERT INTO item(v, data) SELECT random()%%1000, randomblob(%d) FROM c", rows, size))
	}
	switch k := w.rnd.IntN(20); {
	case k < 8: // a small one
	case k < 12:
		insert(1+w.rnd.IntN(5), w.pageSize*(1+w.rnd.IntN(4)))
	case k < 13:
		insert(4, w.pageSize*(1+w.rnd.IntN(big))/4)
	case k < 15:
		stmts = append(stmts, "DELETE FROM item WHERE k % 2 = (SELECT n % 2 FROM meta)")
	case k < 17:
		stmts = append(stmts, "UPDATE item SET v = v + 1 WHERE k % 5 = 0")
	case k < 18:
		if w.indexed = !w.indexed; w.indexed {
			stmts = append(stmts, "CREATE INDEX item_data ON item(substr(data, 1, 8))")
		} else {
			stmts = append(stmts, "DROP INDEX item_data")
		}
	case k < 19:
		stmts = append(stmts, "DELETE FROM item WHERE k > 3", "PRAGMA incremental_vacuum")
	default:
		return w.exec(t, "VACUUM")
	}
	return w.exec(t, stmts...)
}

// checkInvariants is what any snapshot must show.
const checkInvariants = `SELECT
	(SELECT n FROM meta),
	(SELECT count(*) FROM log), (SELECT coalesce(max(n), 0) FROM log),
	(SELECT sum(bal) FROM acct),
	(SELECT count(*) || '/' || coalesce(sum(v), 0) FROM item NOT INDEXED),
	(SELECT count(*) || '/' || coalesce(sum(v), 0) FROM item INDEXED BY item_v WHERE v > -1000000)`

// writeTransaction appends tx to a file of transactions.
func writeTransaction(w io.Writer, tx transaction) error {
	b := bufio.NewWriterSize(w, 1<<20)
	head := binary.LittleEndian.AppendUint32(nil, tx.pageCount)
	head = binary.LittleEndian.AppendUint32(head, uint32(len(tx.pages)))
	head = binary.LittleEndian.AppendUint32(head, uint32(len(tx.pages[0].Data)))
	b.Write(head)
	for _, p := range tx.pages {
		b.Write(binary.LittleEndian.AppendUint32(head[:0], p.Pgno))
		b.Write(p.Data)
	}
	return b.Flush()
}

// readTransaction reads the transaction at off and returns where the next is.
func readTransaction(f *os.File, off int64) (transaction, int64, error) {
	var head [12]byte
	if _, err := f.ReadAt(head[:], off); err != nil {
		return transaction{}, off, err
	}
	n, size := binary.LittleEndian.Uint32(head[4:]), binary.LittleEndian.Uint32(head[8:])
	data := make([]byte, int64(n)*int64(4+size))
	if _, err := f.ReadAt(data, off+12); err != nil {
		return transaction{}, off, err
	}
	tx := transaction{pageCount: binary.LittleEndian.Uint32(head[:])}
	next := off + 12 + int64(len(data))
	for ; len(data) > 0; data = data[4+size:] {
		tx.pages = append(tx.pages, wal.Page{Pgno: binary.LittleEndian.Uint32(data), Data: data[4 : 4+size]})
	}
	return tx, next, nil
}
