package replicate

import (
	"sync"
	"time"
)

// firstReadSlot is the lock slot of a wal-index that readers of the database file alone hold; the four after it
// are for readers of the log.
const firstReadSlot = 3

// slotHolder is a process that holds a lock slot of a wal-index.
type slotHolder struct {
	slot int
	pid  int // 0: of another container
}

// holderTable knows who holds lock slots of the wal-index files of this machine, as of holderAge ago at most.
type holderTable struct {
	mu   sync.Mutex
	at   time.Time
	list map[uint64][]slotHolder // by inode
}

const holderAge = 200 * time.Millisecond

// of returns the holders of the lock slots of a database. The wal-index itself is never opened: closing it
// would drop every lock of this process (RULES A6).
func (t *holderTable) of(files Files, path string) []slotHolder {
	st, err := files.Stat(path + "-shm")
	if err != nil {
		return nil
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if now := time.Now(); now.Sub(t.at) > holderAge {
		t.list, t.at = slotHolders(), now
	}
	return t.list[st.Inode]
}
