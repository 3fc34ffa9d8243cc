package wal

import "testing"

// RULES A2: a state is the one that was granted, or it is not; what SQLite changes without changing the
// database must not count, and a counter that started anew must not hide a change.
func TestFingerprintMatches(t *testing.T) {
	base := Fingerprint{Change: 7, PageCount: 3, Salt1: 1, Salt2: 2, MaxFrame: 10, FrameChecksum1: 4, FrameChecksum2: 5}
	with := func(f Fingerprint, change func(*Fingerprint)) Fingerprint {
		change(&f)
		return f
	}
	recovered := with(base, func(f *Fingerprint) { f.Change = 0 })
	for _, k := range []struct {
		name       string
		seen, base Fingerprint
		want       bool
	}{
		{"the same", base, base, true},
		{"a recovery", recovered, base, true},
		{"a restarted log", with(base, func(f *Fingerprint) { f.Salt1, f.Salt2, f.MaxFrame = 2, 9, 0 }), base, true},
		{"a commit", with(base, func(f *Fingerprint) { f.Change, f.MaxFrame, f.FrameChecksum1 = 8, 12, 6 }), base, false},
		{"a commit that begins the log anew", with(base, func(f *Fingerprint) { f.Change, f.Salt2, f.MaxFrame = 8, 9, 2 }), base, false},
		{"another size", with(base, func(f *Fingerprint) { f.PageCount = 4 }), base, false},
		{"frames after a recovery that counts from 0 again", with(recovered, func(f *Fingerprint) { f.MaxFrame, f.FrameChecksum1 = 12, 6 }), recovered, false},
		{"a commit after a recovery that reaches the same count", with(base, func(f *Fingerprint) { f.MaxFrame, f.FrameChecksum1 = 12, 6 }), base, false},
		{"a recovery that found one transaction more", with(recovered, func(f *Fingerprint) { f.MaxFrame++ }), base, false},
		{"a recovery with other frames", with(recovered, func(f *Fingerprint) { f.FrameChecksum2++ }), base, false},
		{"a recovery of another log", with(recovered, func(f *Fingerprint) { f.Salt2++ }), base, false},
		{"another log with the same count", with(base, func(f *Fingerprint) { f.Salt1, f.Salt2 = 5, 6 }), base, false},
	} {
		t.Run(k.name, func(t *testing.T) {
			if got := k.seen.Matches(k.base); got != k.want {
				t.Errorf("matches: %v, want %v\nseen %v\nbase %v", got, k.want, k.seen, k.base)
			}
		})
	}
}
