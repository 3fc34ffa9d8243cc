package node

import (
	"fmt"
	"testing"
	"time"

	"github.com/uglyer/ha-sqlite/internal/moment"
	"github.com/uglyer/ha-sqlite/internal/testarchive"
	"github.com/uglyer/ha-sqlite/replicate"
	"github.com/uglyer/ha-sqlite/snapshot/archive"
)

// pastImage is the database after a commit, with another transaction number.
type pastImage struct {
	db       *testarchive.DB
	of, txid int
	sum      uint64
}

func (i pastImage) Position() (uint64, int64, uint64) {
	return uint64(i.txid), i.db.Time(i.txid).UnixMicro(), i.sum
}
func (i pastImage) PageSize() uint32  { return 4096 }
func (i pastImage) PageCount() uint32 { return uint32(len(i.db.Images[i.of-1]) / 4096) }
func (i pastImage) ReadPage(pgno uint32, data []byte) error {
	copy(data, i.db.Images[i.of-1][int(pgno-1)*4096:])
	return nil
}

// What another lineage has is no sign that the archive of this one is late, nor that it is complete.
func TestAnArchiveIsLateInItsOwnLineageOnly(t *testing.T) {
	for _, begun := range []bool{false, true} {
		db, _ := testarchive.InDir(t, "shop.db") // lineage 1
		db.Exec("CREATE TABLE t(v)", "INSERT INTO t VALUES(1)", "INSERT INTO t VALUES(2)", "INSERT INTO t VALUES(3)", "INSERT INTO t VALUES(4)", "INSERT INTO t VALUES(5)")
		p, err := db.Writer.View().PointOf(t.Context(), 4)
		if err != nil {
			t.Fatal(err)
		}
		if begun { // lineage 2 has its first state archived, of two
			id := db.ID
			id.Lineage = 2
			w, err := db.Archive.Writer(t.Context(), id, archive.WriterOptions{})
			if err == nil {
				err = w.SnapshotOf(t.Context(), pastImage{db, 4, 8, p.Checksum})
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		id, err := replicate.ParseDatabaseID(db.ID.Database)
		if err != nil {
			t.Fatal(err)
		}
		st := replicate.DatabaseState{ID: id, Position: replicate.Position{TXID: 9}, CreatedTime: db.Time(1).UnixMicro(), CommitTime: db.Time(9).UnixMicro()}
		for _, tt := range []struct {
			at         int
			to         string
			late       bool // where the lineage has begun in the archive
			lateBefore bool // where it has not
		}{
			{at: 3, late: false, lateBefore: true},
			{at: 7, late: false, lateBefore: true},
			{at: 8, late: true, lateBefore: true},
			{to: db.Bookmark(3), late: false, lateBefore: false},
			{to: fmt.Sprintf("%016x", 3), late: false, lateBefore: true},
			{to: fmt.Sprintf("%016x", 9), late: true, lateBefore: true},
			{to: fmt.Sprintf("%016x", 10), late: false, lateBefore: false},
		} {
			m, err := moment.Parse("", tt.to, time.Now())
			if err != nil {
				t.Fatal(err)
			}
			if tt.to == "" {
				m.Time, m.Now = db.Time(tt.at), time.Now()
			}
			want := tt.lateBefore
			if begun {
				want = tt.late
			}
			f, err := m.Find(t.Context(), db.Archive, "shop.db")
			if got := lateFor(m, f, err, st, 2); got != want {
				t.Errorf("begun %v, at %d to %q: late %v, want %v (%v)", begun, tt.at, tt.to, got, want, err)
			}
		}
	}
}
