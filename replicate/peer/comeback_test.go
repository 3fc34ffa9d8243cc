package peer

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"
)

func TestARequestIsSentAgainWhenItsPeerComesBack(t *testing.T) {
	heartbeat := &raft.AppendEntriesRequest{Term: 3}
	entries := &raft.AppendEntriesRequest{Term: 3, PrevLogEntry: 7, PrevLogTerm: 2, Entries: []*raft.Log{{Index: 8}}}
	away := errors.New("connection refused")
	for name, row := range map[string]struct {
		meanwhile func(c *comebacks) // ten seconds later
		sent      int
		after     time.Duration
		fails     bool
	}{
		"it answers a heartbeat": {sent: 2, after: 10 * time.Second, meanwhile: func(c *comebacks) {
			if err := c.append("b", heartbeat, func() error { return nil }); err != nil {
				panic(err)
			}
		}},
		"a heartbeat fails too": {sent: 1, after: comebackPatience, fails: true, meanwhile: func(c *comebacks) {
			if err := c.append("b", heartbeat, func() error { return away }); !errors.Is(err, away) {
				panic(err)
			}
		}},
		"another peer answers": {sent: 1, after: comebackPatience, fails: true, meanwhile: func(c *comebacks) { c.answered("a") }},
		"the node stops":       {sent: 1, after: 10 * time.Second, fails: true, meanwhile: func(c *comebacks) { c.end(); c.end() }},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := newComebacks()
				begun, sent := time.Now(), 0
				time.AfterFunc(10*time.Second, func() { row.meanwhile(c) })
				err := c.append("b", entries, func() error {
					if sent++; sent == 1 {
						return away
					}
					return nil
				})
				if sent != row.sent || time.Since(begun) != row.after || (err != nil) != row.fails {
					t.Errorf("sent %d times, %v after %v; want %d times after %v", sent, err, time.Since(begun), row.sent, row.after)
				}
			})
		})
	}
}
