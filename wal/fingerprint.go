package wal

import "fmt"

// Fingerprint is the part of the wal-index header that tells one state of a
// database from another. The salts are the file's bytes read as numbers in the
// byte order of the host.
type Fingerprint struct {
	Change, PageCount              uint32
	Salt1, Salt2                   uint32
	MaxFrame                       uint32
	FrameChecksum1, FrameChecksum2 uint32
}

// Matches tells whether f shows the state that was recorded as base. A restart
// of the log, which changes the salts and leaves no frame, and a checkpoint leave
// Change alone; a recovery sets it to 0, but finds the same frames. Change alone
// proves nothing: after two recoveries the same number stands for another state.
func (f Fingerprint) Matches(base Fingerprint) bool {
	if f.Salt1 == base.Salt1 && f.Salt2 == base.Salt2 {
		sameFrames := f.MaxFrame == base.MaxFrame &&
			f.FrameChecksum1 == base.FrameChecksum1 && f.FrameChecksum2 == base.FrameChecksum2
		return sameFrames && (f.Change == 0 || f.Change == base.Change && f.PageCount == base.PageCount)
	}
	return f.MaxFrame == 0 && f.Change == base.Change && f.PageCount == base.PageCount
}

// String returns the fields for a log line.
func (f Fingerprint) String() string {
	return fmt.Sprintf("change=%d pages=%d salts=%08x-%08x frames=%d sum=%08x-%08x",
		f.Change, f.PageCount, f.Salt1, f.Salt2, f.MaxFrame, f.FrameChecksum1, f.FrameChecksum2)
}
