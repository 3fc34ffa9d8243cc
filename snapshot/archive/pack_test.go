package archive

import (
	"fmt"
	"slices"
	"testing"
)

// BenchmarkAppend is what a commit of one row costs that is archived with others.
func BenchmarkAppend(b *testing.B) {
	r := newRecorder(b, 7, 4096, 0)
	r.keep = false
	for len(r.commits) < 1000 {
		r.exec("INSERT INTO item(name) VALUES('one row')")
		r.commit()
		r.commits[len(r.commits)-1].Sound = true // as those of the log are
	}
	for _, each := range []int{40, 1000} {
		b.Run(fmt.Sprint(each), func(b *testing.B) {
			n := 0
			for b.Loop() {
				b.StopTimer()
				w, err := claim(b, openDir(b), nil).Writer(b.Context(), testID, WriterOptions{})
				if err != nil {
					b.Fatal(err)
				}
				b.StartTimer()
				for list := range slices.Chunk(r.commits, each) {
					if err := w.Append(b.Context(), list); err != nil {
						b.Fatal(err)
					}
					n += len(list)
				}
			}
			b.ReportMetric(float64(b.Elapsed().Microseconds())/float64(n), "µs/commit")
		})
	}
}
