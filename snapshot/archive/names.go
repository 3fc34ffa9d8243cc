package archive

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/uglyer/ha-sqlite/snapshot/store"
)

// The layout of an archive. A part of a database's name that begins with an
// underscore gets another one in front, so nothing of ours meets a name.
//
//	_archive.json                         whose archive it is
//	_keys/<recipients>.age                the token of the marker for recipients that came later
//	_databases/<id>-<lineage>.json        the name of each database
//	<name>/_<id>-<lineage>/               a database, as litestream sees it:
//	    <level>/<min>-<max>.ltx           levels 0 to 3 and 9
//	    hasqlite/manifest/<seq>           the manifest after so many journal entries
//	    hasqlite/journal/<seq>            what has changed since
//	    hasqlite/packs/<min>-<max>        files of commits, one after the other
//	    hasqlite/commits/<min>-<max>      commits, of which the manifest has no more
//	    hasqlite/index/<level>-<min>-<max>-<checksum of the file>  where each of its pages is, and its checksum
const (
	markerKey    = "_archive.json"
	keysDir      = "_keys"
	databasesDir = "_databases"
	manifestDir  = "hasqlite/manifest"
	journalDir   = "hasqlite/journal"
	commitsDir   = "hasqlite/commits"
	packsDir     = "hasqlite/packs"
	indexDir     = "hasqlite/index"

	// SnapshotLevel is the level of files that hold every page.
	SnapshotLevel = 9
	// RangeLevel is that of files of several commits which are in packs. In the
	// store they are of level 0.
	RangeLevel = 4
	// TopLevel is the highest level that compaction makes of those below.
	TopLevel = 3
)

// Identity says which database an archive keeps, and whose.
type Identity struct {
	Cluster  string `json:"cluster"`
	Lineage  uint64 `json:"lineage"` // counts the recoveries of the cluster from one node
	Database string `json:"id"`      // 32 hex digits
	Name     string `json:"name"`
}

func (id Identity) check() error {
	switch {
	case id.Cluster == "":
		return errors.New("no cluster id")
	case len(id.Database) != 32 || strings.Trim(id.Database, "0123456789abcdef") != "":
		return fmt.Errorf("database id %q", id.Database)
	case len(id.Name) > maxName:
		return fmt.Errorf("a name of %d bytes", len(id.Name))
	}
	return store.CheckKey(escapeName(id.Name))
}

const maxName = 255

// dir is the directory of the database.
func (id Identity) dir() string {
	return store.Join(escapeName(id.Name), "_"+id.Database+"-"+strconv.FormatUint(id.Lineage, 10))
}

// escapeName makes a directory of a database's name.
func escapeName(name string) string {
	parts := strings.Split(name, "/")
	for i, p := range parts {
		if strings.HasPrefix(p, "_") {
			parts[i] = "_" + p
		}
	}
	return strings.Join(parts, "/")
}

// marker is the object that says whose an archive is.
type marker struct {
	Format     int    `json:"format"`
	Cluster    string `json:"cluster"`
	Encryption string `json:"encryption"`           // "none" or "age"
	Recipients string `json:"recipients,omitempty"` // names those that the token is encrypted to
	Token      []byte `json:"token,omitempty"`      // the cluster's id, encrypted: who cannot read it has another key
}

const format = 1

// Archive is the archive of a cluster.
type Archive struct {
	objects
	cluster string
	strays  strays
}

// Options of an archive.
type Options struct {
	Keys    *Keys
	TempDir string // for temporary files; "" is the system's
}

// Open opens an archive to read it.
func Open(ctx context.Context, s store.Store, o Options) (*Archive, error) {
	a := &Archive{objects: objects{store: s, keys: o.Keys, tmp: o.TempDir}}
	m, err := a.readMarker(ctx)
	if errors.Is(err, store.ErrNotFound) {
		return nil, fmt.Errorf("open archive %s: there is no archive, %s is missing: %w", s.URL(), markerKey, ErrNoDatabase)
	}
	if err != nil {
		return nil, fmt.Errorf("open archive %s: %w", s.URL(), err)
	}
	a.cluster = m.Cluster
	return a, nil
}

// Claim opens the archive for the writers of a cluster, and makes it where
// there is none. An archive of another cluster, or one that is not encrypted as
// the keys say, is refused.
func Claim(ctx context.Context, s store.Store, cluster string, o Options) (*Archive, error) {
	fail := func(err error) (*Archive, error) { return nil, fmt.Errorf("open archive %s: %w", s.URL(), err) }
	a := &Archive{objects: objects{store: s, keys: o.Keys, tmp: o.TempDir}, cluster: cluster}
	m, err := a.readMarker(ctx)
	missing := errors.Is(err, store.ErrNotFound)
	if err != nil && !missing {
		return fail(err)
	}
	if !missing && m.Cluster != cluster {
		return fail(foreign(m.Cluster, cluster))
	}
	if err := s.Detect(ctx); err != nil {
		return fail(err)
	}
	if missing {
		if m, err = a.makeMarker(ctx); err != nil {
			return fail(err)
		}
		if m.Cluster != cluster {
			return fail(foreign(m.Cluster, cluster))
		}
	}
	if err := a.admit(ctx, m); err != nil {
		return fail(err)
	}
	return a, nil
}

func foreign(is, want string) error {
	return fmt.Errorf("it is that of cluster %s, this is %s: %w", is, want, ErrForeign)
}

// makeMarker makes the marker of an archive that has none, and returns the one that is there then.
func (a *Archive) makeMarker(ctx context.Context) (marker, error) {
	m := marker{Format: format, Cluster: a.cluster, Encryption: "none"}
	if a.keys != nil {
		m.Encryption, m.Recipients = "age", a.keys.set
		var err error
		if m.Token, err = a.keys.token(a.cluster); err != nil {
			return m, err
		}
	}
	b, err := json.Marshal(m)
	if err == nil {
		err = a.store.Put(ctx, markerKey, bytes.NewReader(b), int64(len(b)), time.Time{})
	}
	if err != nil && !errors.Is(err, store.ErrExists) {
		return m, err
	}
	return a.readMarker(ctx)
}

// readMarker reads whose the archive is and refuses keys that do not fit.
func (a *Archive) readMarker(ctx context.Context) (marker, error) {
	plain := objects{store: a.store}
	b, err := plain.get(ctx, markerKey)
	if err != nil {
		return marker{}, err
	}
	m, err := parseMarker(b)
	if err != nil {
		return marker{}, err
	}
	switch {
	case m.Encryption == "age" && a.keys == nil:
		return marker{}, fmt.Errorf("the archive is encrypted, and no identity was given: %w", ErrKey)
	case m.Encryption == "none" && a.keys != nil:
		return marker{}, fmt.Errorf("a key was given, and the archive is not encrypted: choose another place for an encrypted one: %w", ErrKey)
	case m.Encryption == "age":
		return m, a.fits(ctx, m)
	}
	return m, nil
}

func parseMarker(b []byte) (marker, error) {
	var m marker
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&m); err != nil {
		return marker{}, damaged(markerKey, "%v", err)
	}
	switch {
	case m.Format != format:
		return marker{}, &ObjectError{markerKey, fmt.Errorf("format %d, this program knows %d", m.Format, format)}
	case m.Cluster == "":
		return marker{}, damaged(markerKey, "it names no cluster")
	case m.Encryption != "age" && m.Encryption != "none":
		return marker{}, fmt.Errorf("the archive is encrypted in a way that this program does not know, %q: %w", m.Encryption, ErrKey)
	case (m.Encryption == "age") != (len(m.Token) > 0):
		return marker{}, damaged(markerKey, "it has encryption %q and a token of %d bytes", m.Encryption, len(m.Token))
	}
	return m, nil
}

// Store returns what the archive is kept in.
func (a *Archive) Store() store.Store { return a.store }

// Cluster returns the id of the cluster whose archive it is.
func (a *Archive) Cluster() string { return a.cluster }

// Databases lists all databases of the archive: those that are announced. One that is there and is not, which would be
// left out without a word, is damage; finding it takes a listing for each directory of names. With an error the others
// are returned nevertheless.
func (a *Archive) Databases(ctx context.Context) ([]Identity, error) {
	list, err := a.announced(ctx)
	known := map[string]bool{}
	for _, id := range list {
		known[id.dir()] = true
	}
	return list, errors.Join(err, a.unannounced(ctx, "", known))
}

// unannounced gives an error for a database below a directory that is not known.
func (a *Archive) unannounced(ctx context.Context, dir string, known map[string]bool) error {
	names, err := a.store.Dirs(ctx, dir)
	if err != nil {
		return err
	}
	for _, name := range names {
		at := store.Join(dir, name)
		switch {
		case known[at] || at == databasesDir || at == keysDir:
		case !strings.HasPrefix(name, "_") || strings.HasPrefix(name, "__"):
			if err := a.unannounced(ctx, at, known); err != nil {
				return err
			}
		default:
			// Whoever makes a database announces it before it has a manifest; it may have been made just now.
			manifest := ""
			if err := a.store.List(ctx, store.Join(at, manifestDir), "", func(i store.Info) error { manifest = i.Key; return nil }); err != nil {
				return err
			}
			key := store.Join(databasesDir, strings.TrimPrefix(name, "_")+".json"+a.ext())
			if _, err := a.store.Stat(ctx, key); errors.Is(err, store.ErrNotFound) && manifest != "" {
				return damaged(key, "it is missing, and %s is there", manifest)
			} else if err != nil && !errors.Is(err, store.ErrNotFound) {
				return err
			}
		}
	}
	return nil
}

func (a *Archive) announced(ctx context.Context) ([]Identity, error) {
	var keys []string
	if err := a.store.List(ctx, databasesDir, "", func(i store.Info) error {
		keys = append(keys, i.Key)
		return nil
	}); err != nil {
		return nil, err
	}
	var list []Identity
	var errs []error
	for _, key := range keys {
		b, err := a.get(ctx, key)
		var id Identity
		if err == nil {
			id, err = a.identity(key, b)
		}
		if err != nil {
			errs = append(errs, err)
			continue
		}
		list = append(list, id)
	}
	return list, errors.Join(errs...)
}

// identity reads the object that announces a database, which is of this archive and under the key that is made of it:
// one in the place of another would hide that.
func (a *Archive) identity(key string, b []byte) (Identity, error) {
	var id Identity
	if err := json.Unmarshal(b, &id); err != nil {
		return id, damaged(key, "%v", err)
	}
	if err := id.check(); err != nil {
		return id, damaged(key, "%v", err)
	}
	if id.Cluster != a.cluster || a.identityKey(id) != key {
		return id, damaged(key, "it is of database %s of lineage %d of cluster %s", id.Database, id.Lineage, id.Cluster)
	}
	return id, nil
}

func (a *Archive) identityKey(id Identity) string {
	return store.Join(databasesDir, id.Database+"-"+strconv.FormatUint(id.Lineage, 10)+".json"+a.ext())
}

// Find returns the databases that had the name: more than one where it was
// deleted and made again, or the cluster was recovered from one node.
func (a *Archive) Find(ctx context.Context, name string) ([]Identity, error) {
	probe := Identity{Cluster: a.cluster, Name: name, Database: strings.Repeat("0", 32)}
	if err := probe.check(); err != nil {
		return nil, fmt.Errorf("find database %q: %w", name, err)
	}
	dirs, err := a.store.Dirs(ctx, escapeName(name))
	if err != nil {
		return nil, err
	}
	var list []Identity
	for _, d := range dirs {
		db, lineage, ok := strings.Cut(strings.TrimPrefix(d, "_"), "-")
		if !strings.HasPrefix(d, "_") || strings.HasPrefix(d, "__") || !ok {
			continue
		}
		n, err := strconv.ParseUint(lineage, 10, 64)
		id := Identity{Cluster: a.cluster, Lineage: n, Database: db, Name: name}
		if err != nil || id.check() != nil {
			continue
		}
		list = append(list, id)
	}
	if len(list) == 0 {
		return nil, fmt.Errorf("find database %q in %s: %w", name, a.store.URL(), ErrNoDatabase)
	}
	return list, nil
}

// announce writes the name of a database where Databases looks for it.
func (a *Archive) announce(ctx context.Context, id Identity) error {
	b, err := json.Marshal(id)
	if err != nil {
		return fmt.Errorf("encode identity: %w", err)
	}
	_, err = a.put(ctx, a.identityKey(id), bytes.NewReader(b), int64(len(b)), time.Time{})
	return err
}

// Encrypted reports whether the objects are.
func (a *Archive) Encrypted() bool { return a.keys != nil }
