package archive

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/uglyer/ha-sqlite/snapshot/store"
	"github.com/uglyer/ha-sqlite/snapshot/store/storetest"
)

// A key that is valid, and not that of the archive, opens nothing and writes nothing.
func TestAKeyThatDoesNotFitIsRefusedAtOnce(t *testing.T) {
	d := storetest.NewFaulty(openDir(t), 1)
	claim(t, d, newKeys(t))
	wrong := Options{Keys: newKeys(t)}
	puts := d.Calls("put")
	for what, open := range map[string]func() (*Archive, error){
		"open":  func() (*Archive, error) { return Open(t.Context(), d, wrong) },
		"claim": func() (*Archive, error) { return Claim(t.Context(), d, testID.Cluster, wrong) },
	} {
		if _, err := open(); !errors.Is(err, ErrKey) || !strings.Contains(err.Error(), "the key does not fit") {
			t.Errorf("%s: %v", what, err)
		}
	}
	if got := d.Calls("put") - puts; got != 0 {
		t.Errorf("%d objects were written", got)
	}
	d.Down(true)
	if _, err := Claim(t.Context(), d, testID.Cluster, wrong); !errors.Is(err, storetest.ErrInjected) || errors.Is(err, ErrKey) {
		t.Errorf("while the store is down: %v", err)
	}
	d.Down(false)
	// A marker that another one's token was put into is damage, not a key.
	if err := d.Delete(t.Context(), markerKey); err != nil {
		t.Fatal(err)
	}
	other := &Archive{objects: objects{store: d, keys: wrong.Keys}, cluster: "another"}
	m, err := other.makeMarker(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	m.Cluster = testID.Cluster
	if err := other.fits(t.Context(), m); !errors.Is(err, ErrDamaged) {
		t.Errorf("a token of another cluster: %v", err)
	}
}

// Keys change by identities and recipients that are added: each that was one reads what was encrypted to it.
func TestKeysAreChangedByAddingThem(t *testing.T) {
	d := openDir(t)
	old, fresh, spare := generateIdentity(t), generateIdentity(t), generateIdentity(t)
	keys := func(identities ...string) *Keys {
		t.Helper()
		k, err := NewKeys("", strings.Join(identities, "\n"))
		if err != nil {
			t.Fatal(err)
		}
		return k
	}
	recipients := func(list ...string) (all string) {
		for _, r := range keys(list...).recipients {
			all += fmt.Sprintln(r)
		}
		return all
	}
	claim(t, d, keys(old))
	if _, err := Open(t.Context(), d, Options{Keys: keys(spare)}); !errors.Is(err, ErrKey) {
		t.Errorf("a recipient that is to come: %v", err)
	}
	both, err := NewKeys(recipients(old, fresh, spare), strings.Join([]string{fresh, old}, "\n"))
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		openWriter(t, claim(t, d, both), WriterOptions{})
	}
	for what, k := range map[string]*Keys{"old": keys(old), "new": keys(fresh), "a further recipient": keys(spare), "all": both} {
		a, err := Open(t.Context(), d, Options{Keys: k})
		if err != nil {
			t.Errorf("%s: %v", what, err)
			continue
		}
		if list, err := a.Databases(t.Context()); err != nil || len(list) != 1 {
			t.Errorf("%s: databases %v, %v", what, list, err)
		}
	}
	if _, err := Open(t.Context(), d, Options{Keys: keys(generateIdentity(t))}); !errors.Is(err, ErrKey) {
		t.Errorf("another key: %v", err)
	}
	tokens := 0
	if err := d.List(t.Context(), keysDir, "", func(store.Info) error { tokens++; return nil }); err != nil || tokens != 1 {
		t.Errorf("%d tokens for recipients that came later, %v", tokens, err)
	}
}
