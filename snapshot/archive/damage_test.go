package archive

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"filippo.io/age"

	"github.com/uglyer/ha-sqlite/snapshot/store"
)

// filled makes an archive with files of all levels, in a directory.
func filled(t testing.TB, keys *Keys, commits int) (string, *recorder) {
	t.Helper()
	root := filepath.Join(t.TempDir(), "archive")
	d, err := store.OpenDir(root)
	if err != nil {
		t.Fatal(err)
	}
	r := newRecorder(t, 99, 4096, 0)
	w := openWriter(t, claim(t, d, keys), quick())
	sent := 0
	for len(r.commits) < commits {
		for range 5 {
			r.step()
		}
		if err := w.Append(t.Context(), r.commits[sent:]); err != nil {
			t.Fatal(err)
		}
		sent = len(r.commits)
		if err := w.Compact(t.Context(), r.now); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Snapshot(t.Context()); err != nil {
		t.Fatal(err)
	}
	return root, r
}

func copyTree(t testing.TB, from string) string {
	t.Helper()
	to := filepath.Join(t.TempDir(), "copy")
	if err := filepath.WalkDir(from, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(from, path)
		if err != nil {
			return err
		}
		if e.IsDir() {
			return os.MkdirAll(filepath.Join(to, rel), 0o750)
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		at := filepath.Join(to, rel)
		return errors.Join(os.WriteFile(at, b, 0o640), os.Chtimes(at, info.ModTime(), info.ModTime()))
	}); err != nil {
		t.Fatal(err)
	}
	return to
}

// restoreAll restores every state of an archive into files, in dir. It returns
// the errors, and fails the test for a file that is not the recorded image.
func restoreAll(t testing.TB, root string, keys *Keys, r *recorder) []error {
	t.Helper()
	ctx := context.Background()
	d, err := store.OpenDir(root)
	if err != nil {
		return []error{err}
	}
	a, err := Open(ctx, d, Options{Keys: keys, TempDir: t.TempDir()})
	if err != nil {
		return []error{err}
	}
	v, err := a.Load(ctx, testID)
	if err != nil {
		return []error{err}
	}
	var errs []error
	dir := t.TempDir()
	for txid := uint64(1); txid <= uint64(len(r.commits)); txid++ {
		path := filepath.Join(dir, "out.db")
		p, err := v.PointOf(ctx, txid)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		plan, err := v.Plan(ctx, p)
		if err == nil {
			err = v.RestoreFile(ctx, plan, path, RestoreOptions{})
		}
		if err != nil {
			errs = append(errs, err)
			if left, _ := os.ReadDir(dir); len(left) != 0 {
				t.Fatalf("a restore that failed leaves %s", left[0].Name())
			}
			continue
		}
		got, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, r.images[txid-1]) {
			t.Fatalf("transaction %d is restored as another, without an error", txid)
		}
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
	}
	return errs
}

// Whatever is wrong with an object, restore names it or does not need it.
func TestDamagedObjectsAreNamedAndNeverRestored(t *testing.T) {
	root, r := filled(t, nil, 25)
	if errs := restoreAll(t, root, nil, r); len(errs) != 0 {
		t.Fatal(errs)
	}
	var paths []string
	if err := filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
		if err == nil && !e.IsDir() && !strings.Contains(path, "_databases") {
			paths = append(paths, path)
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	harmed, level := 0, map[string]string{}
	for i, path := range paths {
		rel, _ := filepath.Rel(root, path)
		body, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		flipped := bytes.Clone(body)
		flipped[r.rand.IntN(len(body))] ^= 1 << r.rand.IntN(8)
		other := level[filepath.Dir(path)] // another object of the same kind
		if other == "" {
			level[filepath.Dir(path)] = path
		}
		damages := map[string][]byte{"flipped": flipped, "truncated": body[:r.rand.IntN(len(body))], "missing": nil, "longer": append(bytes.Clone(body), 0)}
		if other != "" {
			if damages["swapped"], err = os.ReadFile(other); err != nil {
				t.Fatal(err)
			}
		}
		// One damage of each object, in turn; what is drawn is in the message.
		names := []string{"flipped", "truncated", "missing", "longer", "swapped"}
		what := names[i%len(names)]
		damage, ok := damages[what]
		if !ok {
			continue
		}
		bad := copyTree(t, root)
		target := filepath.Join(bad, rel)
		if damage == nil {
			err = os.Remove(target)
		} else {
			err = os.WriteFile(target, damage, 0o640)
		}
		if err != nil {
			t.Fatal(err)
		}
		for _, err := range restoreAll(t, bad, nil, r) {
			harmed++
			if errors.Is(err, ErrNotArchived) || errors.Is(err, ErrNoDatabase) || rel == markerKey {
				continue // a journal entry at the end is gone, or the only manifest
			}
			var named *ObjectError
			if !errors.As(err, &named) || !errors.Is(err, ErrDamaged) {
				t.Fatalf("%s %s: %v", what, rel, err)
			}
			if !strings.Contains(rel, named.Key) {
				t.Fatalf("%s %s: the error names %s: %v", what, rel, named.Key, err)
			}
		}
	}
	if harmed == 0 {
		t.Error("no restore failed")
	}
	t.Logf("%d objects damaged, %d restores refused", len(paths), harmed)
}

func TestVerifyFindsEveryDamagedFile(t *testing.T) {
	root, _ := filled(t, nil, 15)
	verify := func(root string) *Report {
		d, err := store.OpenDir(root)
		if err != nil {
			t.Fatal(err)
		}
		a, err := Open(t.Context(), d, Options{})
		if err != nil {
			t.Fatal(err)
		}
		v, err := a.Load(t.Context(), testID)
		if err != nil {
			t.Fatal(err)
		}
		r, err := v.Verify(t.Context(), nil)
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	if r := verify(root); len(r.Problems) != 0 || len(r.Unknown) != 0 || r.Points != 17 && r.Points < 15 {
		t.Fatalf("%+v", r)
	}
	paths, err := filepath.Glob(filepath.Join(root, "acme/shop.db/_*/*/*/*"))
	if err != nil || len(paths) < 15 {
		t.Fatal(paths, err)
	}
	for i, path := range paths {
		pack := strings.Contains(path, "/packs/")
		if !strings.HasSuffix(path, ".ltx") && !strings.Contains(path, "/index/") && !pack || i%3 != 0 && !pack {
			continue
		}
		rel, _ := filepath.Rel(root, path)
		bad := copyTree(t, root)
		f, err := os.OpenFile(filepath.Join(bad, rel), os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.WriteAt([]byte("damage"), 6); err != nil {
			t.Fatal(err)
		}
		f.Close()
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(filepath.Join(bad, rel), info.ModTime(), info.ModTime()); err != nil {
			t.Fatal(err)
		}
		r := verify(bad)
		if !strings.Contains(strings.Join(r.Problems, "\n"), filepath.Base(rel)) {
			t.Errorf("%s: %v", rel, r.Problems)
		}
	}
	stray := copyTree(t, root)
	const name = "00000000000000ff-0000000000000100.ltx"
	if err := os.WriteFile(filepath.Join(stray, testID.dir(), "ltx/0", name), nil, 0o640); err != nil {
		t.Fatal(err)
	}
	if r := verify(stray); len(r.Problems) != 0 || len(r.Unknown) != 1 || !strings.HasSuffix(r.Unknown[0], name) {
		t.Errorf("a file that is not listed: %+v", r)
	}
}

func TestRestoreFileReplacesNothing(t *testing.T) {
	root, r := filled(t, nil, 5)
	d, err := store.OpenDir(root)
	if err != nil {
		t.Fatal(err)
	}
	a, err := Open(t.Context(), d, Options{})
	if err != nil {
		t.Fatal(err)
	}
	v, err := a.Load(t.Context(), testID)
	if err != nil {
		t.Fatal(err)
	}
	plan, err := v.Plan(t.Context(), v.Last())
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"x.db", "x.db-wal", "x.db-journal"} {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, name), []byte("mine"), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := v.RestoreFile(t.Context(), plan, filepath.Join(dir, "x.db"), RestoreOptions{}); !errors.Is(err, ErrTargetExists) {
			t.Errorf("beside %s: %v", name, err)
		}
		if left, _ := os.ReadDir(dir); len(left) != 1 {
			t.Errorf("beside %s: %v", name, left)
		}
	}
	dir := t.TempDir()
	refused := errors.New("refused")
	if err := v.RestoreFile(t.Context(), plan, filepath.Join(dir, "x.db"), RestoreOptions{Check: func(path string) error {
		b, err := os.ReadFile(path)
		if err != nil || !bytes.Equal(b, r.image) {
			t.Errorf("the check sees another file: %v", err)
		}
		return refused
	}}); !errors.Is(err, refused) {
		t.Errorf("got %v", err)
	}
	if left, _ := os.ReadDir(dir); len(left) != 0 {
		t.Errorf("a check that refuses leaves %v", left)
	}
	full := errors.New("disk full")
	if err := v.Restore(t.Context(), plan, failing{full}, nil); !errors.Is(err, full) {
		t.Errorf("a write that fails: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := v.RestoreFile(ctx, plan, filepath.Join(dir, "x.db"), RestoreOptions{}); !errors.Is(err, context.Canceled) {
		t.Errorf("interrupted: %v", err)
	}
}

type failing struct{ err error }

func (failing) Truncate(int64) error                     { return nil }
func (f failing) WriteAt(p []byte, _ int64) (int, error) { return 0, f.err }

func generateIdentity(t testing.TB) string {
	t.Helper()
	id, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	return id.String()
}

func newKeys(t testing.TB) *Keys {
	t.Helper()
	k, err := NewKeys("", generateIdentity(t))
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func TestAnEncryptedArchiveNeedsItsKey(t *testing.T) {
	keys := newKeys(t)
	root, r := filled(t, keys, 15)
	if errs := restoreAll(t, root, keys, r); len(errs) != 0 {
		t.Fatal(errs)
	}
	for what, k := range map[string]*Keys{"no key": nil, "a wrong key": newKeys(t)} {
		errs := restoreAll(t, root, k, r)
		if len(errs) != 1 || !errors.Is(errs[0], ErrKey) {
			t.Errorf("%s: %v", what, errs)
		} else if k != nil && !strings.Contains(errs[0].Error(), "wrong key") {
			t.Errorf("%s: %v", what, errs[0])
		}
	}
	// Nothing of the content is in the store, and no name that litestream reads.
	if err := filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		b, err := os.ReadFile(path)
		if bytes.Contains(b, []byte("SQLite format")) || bytes.HasPrefix(b, []byte("LTX1")) || bytes.HasPrefix(b, []byte("HS")) || strings.HasSuffix(path, ".ltx") {
			t.Errorf("%s is not encrypted", path)
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	plain, _ := filled(t, nil, 5)
	d, err := store.OpenDir(plain)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Claim(t.Context(), d, testID.Cluster, Options{Keys: keys}); !errors.Is(err, ErrKey) {
		t.Errorf("writing encrypted into a plain archive: %v", err)
	}
	enc, err := store.OpenDir(root)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Claim(t.Context(), enc, testID.Cluster, Options{}); !errors.Is(err, ErrKey) {
		t.Errorf("writing plain into an encrypted archive: %v", err)
	}
}

func TestKeysThatCannotWorkAreRefused(t *testing.T) {
	id := generateIdentity(t)
	other, err := NewKeys("", generateIdentity(t))
	if err != nil {
		t.Fatal(err)
	}
	recipient := other.recipients[0].(interface{ String() string }).String()
	for what, k := range map[string][2]string{
		"recipients alone":              {recipient, ""},
		"an identity that does not fit": {recipient, id},
		"no recipient":                  {"nonsense", id},
		"no identity":                   {"", "nonsense"},
		"only comments":                 {"", "# nothing\n"},
		"a passphrase":                  {"", "passphrase: x"},
	} {
		if keys, err := NewKeys(k[0], k[1]); !errors.Is(err, ErrKey) {
			t.Errorf("%s: %v, %v", what, keys, err)
		}
	}
	if keys, err := NewKeys("", ""); keys != nil || err != nil {
		t.Errorf("no key at all: %v, %v", keys, err)
	}
}

func TestTwoClustersDoNotShareAnArchive(t *testing.T) {
	d := openDir(t)
	a := claim(t, d, nil)
	openWriter(t, a, WriterOptions{})
	if _, err := Claim(t.Context(), d, "another", Options{}); !errors.Is(err, ErrForeign) {
		t.Errorf("another cluster: %v", err)
	}
	id := testID
	id.Cluster = "another"
	if _, err := a.Writer(t.Context(), id, WriterOptions{}); !errors.Is(err, ErrForeign) {
		t.Errorf("a database of another cluster: %v", err)
	}
	// A recovered cluster goes on beside what it had.
	id = testID
	id.Lineage = 2
	if _, err := a.Writer(t.Context(), id, WriterOptions{}); err != nil {
		t.Fatal(err)
	}
	list, err := a.Find(t.Context(), testID.Name)
	if err != nil || len(list) != 2 {
		t.Errorf("%v, %v", list, err)
	}
	if all, err := a.Databases(t.Context()); err != nil || len(all) != 2 {
		t.Errorf("%v, %v", all, err)
	}
}

func TestTwoWritersDoNotMix(t *testing.T) {
	a := claim(t, openDir(t), nil)
	r := newRecorder(t, 1, 4096, 0)
	r.step()
	one, two := openWriter(t, a, WriterOptions{}), openWriter(t, a, WriterOptions{})
	if err := one.Append(t.Context(), r.commits[:2]); err != nil {
		t.Fatal(err)
	}
	// The same commits in another cut: the files are the same, the entry is not.
	if err := two.Append(t.Context(), r.commits[:3]); !errors.Is(err, ErrForeign) {
		t.Fatalf("the second writer: %v", err)
	}
	if err := two.Append(t.Context(), r.commits[:3]); !errors.Is(err, ErrForeign) {
		t.Fatalf("again: %v", err)
	}
	two = openWriter(t, a, WriterOptions{})
	if err := two.Append(t.Context(), r.commits[2:3]); err != nil {
		t.Fatal(err)
	}
	if err := one.Append(t.Context(), r.commits[2:3]); err == nil {
		// It wrote the very entry that is there.
		if one.Position() != 3 {
			t.Fatal("lost")
		}
	} else if !errors.Is(err, ErrForeign) {
		t.Fatal(err)
	}
}

func TestNamesNeverMeetOurs(t *testing.T) {
	for name, want := range map[string]string{"a": "a", "_a": "__a", "a/_archive.json": "a/__archive.json", "_databases/x": "__databases/x", "a_b/c_": "a_b/c_"} {
		if got := escapeName(name); got != want {
			t.Errorf("%s: got %s, want %s", name, got, want)
		}
	}
	a := claim(t, openDir(t), nil)
	names := []string{"_archive.json", "a", "a/b", "a/" + testID.Database, "_tmp", "ä ö", "a/_" + testID.Database + "-1", "a/_" + testID.Database + "-1/ltx/0"}
	for i, name := range names {
		id := testID
		id.Name, id.Database = name, strings.Repeat(string("0123456789abcdef"[i]), 32)
		if _, err := a.Writer(t.Context(), id, WriterOptions{}); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	for i, name := range names {
		list, err := a.Find(t.Context(), name)
		if err != nil || len(list) != 1 || list[0].Database[0] != "0123456789abcdef"[i] {
			t.Errorf("%s: %v, %v", name, list, err)
		}
	}
	if _, err := a.Find(t.Context(), "none"); !errors.Is(err, ErrNoDatabase) {
		t.Errorf("got %v", err)
	}
	for _, bad := range []string{"", "..", "a//b", "/a", "a/../b"} {
		if _, err := a.Find(t.Context(), bad); err == nil {
			t.Errorf("%q was taken", bad)
		}
	}
}

func TestLabelledStatesStay(t *testing.T) {
	ctx := t.Context()
	a := claim(t, openDir(t), nil)
	w := openWriter(t, a, quick())
	r := newRecorder(t, 4, 512, 1)
	sent := 0
	send := func(n int) {
		for range n {
			r.step()
		}
		if err := errors.Join(w.Append(ctx, r.commits[sent:]), w.Compact(ctx, r.now)); err != nil {
			t.Fatal(err)
		}
		sent = len(r.commits)
		if _, err := w.Retain(ctx, r.now); err != nil {
			t.Fatal(err)
		}
	}
	send(10)
	p, err := w.Label(ctx, "before the migration")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Label(ctx, "before the migration"); err == nil {
		t.Error("a label was given twice")
	}
	for range 15 {
		r.now = r.now.Add(time.Minute)
		send(2)
	}
	for i, want := range []error{nil, ErrNotArchived} {
		got, err := restoreTX(ctx, w.View(), p.TXID)
		if !errors.Is(err, want) || err == nil && !bytes.Equal(got, r.images[p.TXID-1]) {
			t.Errorf("%d: %v", i, err)
		}
		if err == nil {
			if err := w.Unlabel(ctx, "before the migration"); err != nil {
				t.Fatal(err)
			}
			r.now = r.now.Add(time.Minute)
			send(1)
		}
	}
	if first, err := w.View().First(ctx); err != nil || first.TXID < 12 {
		t.Errorf("retention has kept %d, %v", first.TXID, err)
	}
}

// A damaged manifest costs nothing where the one before it is there, and a writer replaces it.
func TestTheManifestBeforeADamagedOneServes(t *testing.T) {
	ctx := t.Context()
	m := newMemoryStore()
	a := claim(t, m, nil)
	c := &counter{t: t}
	w := openWriter(t, a, WriterOptions{})
	for i := range 3 {
		if err := errors.Join(w.Append(ctx, c.commits(5, epoch.Add(time.Duration(i)*time.Minute), time.Second)), w.Manifest(ctx, true)); err != nil {
			t.Fatal(err)
		}
	}
	newest := a.seqKey(testID.dir(), manifestDir, w.view.state.Seq)
	m.objs[newest].b[20] ^= 1
	v := mustLoad(t, a)
	var at *ObjectError
	if !errors.As(v.Damage(), &at) || at.Key != newest || v.Last().TXID != 15 {
		t.Errorf("%v, last %+v", v.Damage(), v.Last())
	}
	if report, err := v.Verify(ctx, nil); err != nil || len(report.Problems) != 1 || !strings.Contains(report.Problems[0], newest) || report.Points != 15 {
		t.Errorf("%+v, %v", report, err)
	}
	w = openWriter(t, a, WriterOptions{})
	if err := w.Manifest(ctx, true); err != nil {
		t.Errorf("before the next entry: %v", err)
	}
	if err := errors.Join(w.Append(ctx, c.commits(5, epoch.Add(time.Hour), time.Second)), w.Manifest(ctx, true)); err != nil {
		t.Fatal(err)
	}
	if v := mustLoad(t, a); v.Damage() != nil || v.Last().TXID != 20 {
		t.Errorf("%v, last %+v", v.Damage(), v.Last())
	}
	// Without the entries that it had it is what is missing.
	newest = a.seqKey(testID.dir(), manifestDir, w.view.state.Seq)
	m.objs[newest].b[20] ^= 1
	delete(m.objs, a.seqKey(testID.dir(), journalDir, w.view.state.Seq))
	if _, err := a.Load(ctx, testID); !errors.As(err, &at) || at.Key != newest || !errors.Is(err, ErrDamaged) {
		t.Errorf("with a hole: %v", err)
	}
}

// A list of all databases has all of them, or says which object is at fault.
func TestEveryDatabaseIsListedOrMissed(t *testing.T) {
	ctx := t.Context()
	root := filepath.Join(t.TempDir(), "archive")
	d, err := store.OpenDir(root)
	if err != nil {
		t.Fatal(err)
	}
	a := claim(t, d, nil)
	var ids []Identity
	for i, name := range []string{"shop.db", "acme/_odd/shop.db", "acme/_odd/deep/er.db"} {
		id := Identity{Cluster: testID.Cluster, Lineage: uint64(i), Database: strings.Repeat(string(rune('a'+i)), 32), Name: name}
		if _, err := a.Writer(ctx, id, WriterOptions{}); err != nil {
			t.Fatal(err)
		}
		ids = append(ids, id)
	}
	if list, err := a.Databases(ctx); err != nil || len(list) != len(ids) {
		t.Fatalf("got %v, %v", list, err)
	}
	path := func(id Identity) string { return filepath.Join(root, filepath.FromSlash(a.identityKey(id))) }
	for _, id := range ids {
		b, err := os.ReadFile(path(id))
		if err != nil {
			t.Fatal(err)
		}
		other, err := os.ReadFile(path(ids[(len(ids)-1+slices.Index(ids, id))%len(ids)]))
		if err != nil {
			t.Fatal(err)
		}
		for what, content := range map[string][]byte{
			"missing": nil, "swapped": other, "cut off": b[:len(b)-2], "of another cluster": bytes.Replace(b, []byte(id.Cluster), []byte("elsewhere"), 1),
		} {
			if err := os.Remove(path(id)); err != nil {
				t.Fatal(err)
			}
			if content != nil {
				if err := os.WriteFile(path(id), content, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			var at *ObjectError
			list, err := a.Databases(ctx)
			if !errors.As(err, &at) || at.Key != a.identityKey(id) || len(list) != len(ids)-1 || slices.Contains(list, id) {
				t.Errorf("%s is %s: got %v, %v", a.identityKey(id), what, list, err)
			}
			if err := os.WriteFile(path(id), b, 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
}
