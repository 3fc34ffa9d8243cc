package archive

import (
	"bytes"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/uglyer/ha-sqlite/snapshot/s3store"
	"github.com/uglyer/ha-sqlite/snapshot/store"
	"github.com/uglyer/ha-sqlite/snapshot/store/storetest"
)

// Page indexes to their last block, and the times by which litestream restores, are verified, on each kind of store:
// every object that is changed is a problem, and is named.
func TestVerifyFindsDamagedPageIndexesAndTimes(t *testing.T) {
	g := storetest.StartGateway(t)
	o, err := s3store.ParseURL(g.URL("p"))
	if err != nil {
		t.Fatal(err)
	}
	s3, err := s3store.Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	for what, tt := range map[string]struct {
		s    store.Store
		keys *Keys
	}{"directory": {openDir(t), nil}, "S3": {s3, nil}, "encrypted": {openDir(t), newKeys(t)}} {
		t.Run(what, func(t *testing.T) {
			s := tt.s
			a := claim(t, s, tt.keys)
			r := newRecorder(t, 3, 4096, 0)
			r.exec("WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i<2000) INSERT INTO item(data) SELECT randomblob(1500) FROM n")
			r.commit()
			for range 6 {
				r.step()
			}
			w := openWriter(t, a, WriterOptions{})
			if err := errors.Join(w.Append(t.Context(), r.commits), w.Snapshot(t.Context())); err != nil {
				t.Fatal(err)
			}
			v := w.View()
			verify := func() []string {
				t.Helper()
				report, err := v.Verify(t.Context(), nil)
				if err != nil {
					t.Fatal(err)
				}
				return report.Problems
			}
			if found := verify(); len(found) != 0 {
				t.Fatalf("of a whole archive: %v", found)
			}
			replace := func(key string, b []byte, at time.Time) {
				t.Helper()
				if err := errors.Join(s.Delete(t.Context(), key), s.Put(t.Context(), key, bytes.NewReader(b), int64(len(b)), at)); err != nil {
					t.Fatal(err)
				}
			}
			big := v.state.Snapshots[0]
			key := v.indexKey(big)
			whole := mustGet(t, s, key)
			for what, b := range map[string][]byte{
				"the last byte":   append(bytes.Clone(whole[:len(whole)-1]), whole[len(whole)-1]^1),
				"a byte in it":    append(append(bytes.Clone(whole[:len(whole)/2]), whole[len(whole)/2]^1), whole[len(whole)/2+1:]...),
				"it is too short": whole[:len(whole)-1],
				"it is too long":  append(bytes.Clone(whole), 0),
			} {
				replace(key, b, time.Time{})
				if found := verify(); len(found) != 1 || !strings.Contains(found[0], key) {
					t.Errorf("%s: %v", what, found)
				}
			}
			if err := s.Delete(t.Context(), key); err != nil {
				t.Fatal(err)
			}
			if found := verify(); len(found) != 1 || !strings.Contains(found[0], key) {
				t.Errorf("it is missing: %v", found)
			}
			if err := s.Put(t.Context(), key, bytes.NewReader(whole), int64(len(whole)), time.Time{}); err != nil {
				t.Fatal(err)
			}
			for _, o := range []Object{big, v.state.Recent[0]} {
				key, at := v.Key(o), time.UnixMicro(o.Time)
				b := mustGet(t, s, key)
				wrong := []time.Time{at.Add(time.Microsecond), at.Add(-time.Millisecond), at.Add(time.Hour)}
				if what == "S3" {
					wrong = append(wrong, time.Time{}) // without the metadata
				}
				for _, bad := range wrong {
					replace(key, b, bad)
					if found := verify(); len(found) != 1 || !strings.Contains(found[0], key) || !strings.Contains(found[0], "its time is") {
						t.Errorf("time %s for %s: %v", bad, at, found)
					}
				}
				replace(key, b, at)
			}
			if found := verify(); len(found) != 0 {
				t.Errorf("after all was put back: %v", found)
			}
		})
	}
}
