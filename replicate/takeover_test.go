package replicate

import (
	"testing"
	"time"
)

func TestAMajorityHasToFindTheLeaderGone(t *testing.T) {
	gone := func(index, term uint64) leaderJudgement {
		return leaderJudgement{Gone: true, LastIndex: index, LastTerm: term}
	}
	hears := leaderJudgement{}
	for name, row := range map[string]struct {
		voter  bool
		voters int
		others []leaderJudgement
		want   bool
	}{
		"one of two others agrees":           {true, 3, []leaderJudgement{hears, gone(10, 2)}, true},
		"nobody agrees":                      {true, 3, []leaderJudgement{hears, hears}, false},
		"nobody answers":                     {true, 3, nil, false},
		"two nodes have no majority":         {true, 2, nil, false},
		"one of four others is too few":      {true, 5, []leaderJudgement{gone(9, 2), hears, hears, hears}, false},
		"two of four others":                 {true, 5, []leaderJudgement{gone(9, 2), hears, gone(10, 2)}, true},
		"no vote, no candidate":              {false, 3, []leaderJudgement{gone(1, 1), gone(1, 1)}, false},
		"another has more of the same term":  {true, 3, []leaderJudgement{gone(11, 2)}, false},
		"another has a later term":           {true, 3, []leaderJudgement{gone(3, 3)}, false},
		"another has more of an older term":  {true, 3, []leaderJudgement{gone(99, 1)}, true},
		"who hears the leader may have more": {true, 3, []leaderJudgement{gone(10, 2), {LastIndex: 12, LastTerm: 2}}, true},
	} {
		t.Run(name, func(t *testing.T) {
			if got := maySucceed(row.voter, row.voters, 10, 2, row.others); got != row.want {
				t.Errorf("got %v, want %v", got, row.want)
			}
		})
	}
}

func TestFollowersTakeTurns(t *testing.T) {
	voters := []string{"n3", "n1", "n2", "n4"}
	for self, want := range map[string]time.Duration{"n1": 0, "n3": takeoverStep, "n4": 2 * takeoverStep} {
		if got := takeoverTurn(voters, "n2", self); got != want {
			t.Errorf("%s waits %v, want %v", self, got, want)
		}
	}
}
