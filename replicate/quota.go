package replicate

import (
	"errors"
	"fmt"
	"sync"
)

// ErrQuota is returned for what a quota does not allow. Nothing was proposed, and trying again is of no use before
// something is deleted or the quota is raised.
var ErrQuota = errors.New("quota exceeded")

// Quota limits the databases whose names match a pattern. A limit of 0 is none.
//
// Quotas are the configuration of a node and no part of the state that the log decides: the leader enforces its own
// when something is proposed, the node of an application its own before that, and whatever is in the log counts.
// Nodes with different quotas therefore never differ in their data.
type Quota struct {
	// Pattern is a name in which * stands for any number of characters, slashes included, and ? for one.
	Pattern string `json:"pattern"`
	// Databases is how many there may be that match this pattern and none before it.
	Databases int `json:"databases,omitempty"`
	// Size bounds the pages of one database, Transaction those that one transaction writes, in bytes.
	Size        int64 `json:"size,omitempty"`
	Transaction int64 `json:"transaction,omitempty"`
}

// matches reports whether the quota is about a name.
func (q *Quota) matches(name string) bool {
	// The last star, and where the name went on behind it: what follows a star is tried at every later place.
	p, n, star, mark := 0, 0, -1, 0
	for n < len(name) {
		switch {
		case p < len(q.Pattern) && q.Pattern[p] == '*':
			star, mark = p, n
			p++
		case p < len(q.Pattern) && q.Pattern[p] == '?':
			p++
			n += runeLen(name[n:])
		case p < len(q.Pattern) && q.Pattern[p] == name[n]:
			p++
			n++
		case star >= 0:
			mark++
			p, n = star+1, mark
		default:
			return false
		}
	}
	for p < len(q.Pattern) && q.Pattern[p] == '*' {
		p++
	}
	return p == len(q.Pattern)
}

// runeLen is the length of the first character; names are valid UTF-8.
func runeLen(s string) int {
	for i := range s {
		if i > 0 {
			return i
		}
	}
	return len(s)
}

// QuotaUse is a quota and how many databases it counts.
type QuotaUse struct {
	Quota
	Used int
}

// quotas counts the databases of each rule. The first rule that matches a name is the one that counts it. Its lock
// comes after the state machine's.
type quotas struct {
	rules []Quota

	mu       sync.Mutex
	used     []int
	creating map[string]*place // by name
}

// place is held for a database that is being created.
type place struct{ rule, requests int }

func newQuotas(rules []Quota) *quotas {
	return &quotas{rules: rules, used: make([]int, len(rules)), creating: map[string]*place{}}
}

// rule returns the number of the rule for a name, -1 if there is none.
func (q *quotas) rule(name string) int {
	for i := range q.rules {
		if q.rules[i].matches(name) {
			return i
		}
	}
	return -1
}

// of returns the quota for a name, nil if there is none.
func (q *quotas) of(name string) *Quota {
	if i := q.rule(name); i >= 0 {
		return &q.rules[i]
	}
	return nil
}

// count notes that a database came (1) or went (-1).
func (q *quotas) count(name string, by int) {
	i := q.rule(name)
	if i < 0 {
		return
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	q.used[i] += by
	if by > 0 {
		delete(q.creating, name) // it counts once
	}
}

// recount replaces all counts.
func (q *quotas) recount(states []DatabaseState) {
	used := make([]int, len(q.rules))
	for i := range states {
		if r := q.rule(states[i].Name); r >= 0 {
			used[r]++
		}
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	q.used = used
}

// admit holds a place for a database that is about to be created, or says that there is none. done gives it back,
// whatever became of it.
func (q *quotas) admit(name string) (done func(), err error) {
	i := q.rule(name)
	if i < 0 || q.rules[i].Databases == 0 {
		return func() {}, nil
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	mine := q.creating[name]
	if mine == nil {
		n := q.used[i]
		for _, p := range q.creating {
			if p.rule == i {
				n++
			}
		}
		if n >= q.rules[i].Databases {
			return nil, fmt.Errorf("%d databases match %q, %d are allowed: %w", n, q.rules[i].Pattern, q.rules[i].Databases, ErrQuota)
		}
		mine = &place{rule: i}
		q.creating[name] = mine
	}
	mine.requests++
	return func() {
		q.mu.Lock()
		defer q.mu.Unlock()
		if mine.requests--; mine.requests == 0 && q.creating[name] == mine {
			delete(q.creating, name)
		}
	}, nil
}

// use returns the rules and their counts.
func (q *quotas) use() []QuotaUse {
	q.mu.Lock()
	defer q.mu.Unlock()
	all := make([]QuotaUse, len(q.rules))
	for i := range all {
		all[i] = QuotaUse{q.rules[i], q.used[i]}
	}
	return all
}

// admitSize says whether a transaction may leave the database with so many pages. One that does not let it grow may:
// otherwise nothing could be deleted in a database that is over its quota.
func (q *Quota) admitSize(pageSize, before, after uint32) error {
	if q == nil || q.Size == 0 || after <= before {
		return nil
	}
	if size := int64(after) * int64(pageSize); size > q.Size {
		return fmt.Errorf("the database would have %d bytes, %d are allowed for %q: %w", size, q.Size, q.Pattern, ErrQuota)
	}
	return nil
}

// admitTransaction says whether a transaction may write so many bytes of pages.
func (q *Quota) admitTransaction(size int64) error {
	if q == nil || q.Transaction == 0 || size <= q.Transaction {
		return nil
	}
	return fmt.Errorf("transaction of %d bytes or more, %d are allowed for %q: %w", size, q.Transaction, q.Pattern, ErrQuota)
}

// Quotas returns the quotas of this node and how many databases each of them counts.
func (s *Service) Quotas() []QuotaUse { return s.quotas.use() }

// MaxTransactionOf is the most bytes of pages in one transaction of a database of this name through this node.
func (s *Service) MaxTransactionOf(name string) int64 {
	most := s.MaxTransaction()
	if q := s.quotas.of(name); q != nil && q.Transaction > 0 {
		most = min(most, q.Transaction)
	}
	return most
}

// admitCommit is what the leader asks before it proposes a transaction. What the application's node said before may
// have been by other quotas and another limit.
func (s *Service) admitCommit(st DatabaseState, pageCount uint32, size int64) error {
	if limit := s.MaxTransaction(); size > limit {
		return &FullError{Size: size, Limit: limit}
	}
	if len(s.quotas.rules) == 0 {
		return nil
	}
	q := s.quotas.of(st.Name)
	if err := q.admitSize(st.PageSize, st.PageCount, pageCount); err != nil {
		return err
	}
	return q.admitTransaction(size)
}

// refusalOf is the outcome of a transaction that was not proposed for a reason.
func refusalOf(err error) Outcome {
	var full *FullError
	if errors.Is(err, ErrQuota) || errors.As(err, &full) {
		return OutcomeFull
	}
	return OutcomeRefused
}
