package replicate

const (
	// checkpointFrames is the length of the WAL at which the node checkpoints it, SQLite's own default.
	checkpointFrames = 1000
	// truncateBytes is the size of the WAL file at which a checkpoint also truncates it.
	truncateBytes = 64 << 20
)

// runCheckpoint copies the WAL into the main file. Only the node does so: applications get BUSY.
func (d *replica) runCheckpoint() {
	defer func() {
		d.mu.Lock()
		d.checkpoint = false
		d.mu.Unlock()
	}()
	if d.takeCopierIO() != nil {
		return
	}
	defer d.endCopierIO()
	d.mu.Lock()
	live := d.live
	last := d.lastFrames
	frames := d.fingerprint.MaxFrame
	d.mu.Unlock()
	if live == nil {
		return
	}
	size, err := live.WALSize()
	if err != nil {
		d.log.Warn("size of the WAL unknown", "err", err)
		return
	}
	if frames > last && frames-last < checkpointFrames/4 && size < truncateBytes {
		return // a reader holds the log; try again after more frames
	}
	walFrames, backfilled, err := live.Checkpoint(size >= truncateBytes)
	result := checkpointOK
	switch {
	case err != nil:
		result = checkpointError
		d.svc.metrics.error("checkpoint")
		d.log.Warn("checkpoint", "err", err)
	case backfilled < walFrames:
		result = checkpointBusy
	}
	d.svc.metrics.checkpoint(size >= truncateBytes, result)
	d.mu.Lock()
	d.lastFrames = 0
	if result != checkpointOK {
		d.lastFrames = frames
	}
	d.mu.Unlock()
}
