package peer

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"
)

func TestAFailureIsReportedWhenThePeerComesBack(t *testing.T) {
	heartbeat := &raft.AppendEntriesRequest{Term: 3}
	entries := &raft.AppendEntriesRequest{Term: 3, PrevLogEntry: 7, PrevLogTerm: 2, Entries: []*raft.Log{{Index: 8}}}
	away := errors.New("connection refused")
	for name, row := range map[string]struct {
		meanwhile func(c *comebacks) // ten seconds later
		after     time.Duration
	}{
		"it answers a heartbeat": {after: 10 * time.Second, meanwhile: func(c *comebacks) {
			if err := c.append("b", heartbeat, func() error { return nil }); err != nil {
				panic(err)
			}
		}},
		"a heartbeat fails too": {after: comebackPatience, meanwhile: func(c *comebacks) {
			if err := c.append("b", heartbeat, func() error { return away }); !errors.Is(err, away) {
				panic(err)
			}
		}},
		"another peer answers":   {after: comebackPatience, meanwhile: func(c *comebacks) { c.answered("a") }},
		"the node leads no more": {after: 10 * time.Second, meanwhile: (*comebacks).release},
		"the node stops":         {after: 10 * time.Second, meanwhile: func(c *comebacks) { c.end(); c.end() }},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := newComebacks()
				begun := time.Now()
				time.AfterFunc(10*time.Second, func() { row.meanwhile(c) })
				if err := c.append("b", entries, func() error { return away }); !errors.Is(err, away) {
					t.Errorf("got %v", err)
				}
				if time.Since(begun) != row.after {
					t.Errorf("reported after %v, want %v", time.Since(begun), row.after)
				}
				if err := c.append("b", entries, func() error { return nil }); err != nil {
					t.Error(err)
				}
			})
		})
	}
}
