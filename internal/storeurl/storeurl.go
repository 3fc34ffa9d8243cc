// Package storeurl opens the store that a URL names.
//
// Owns: the list of schemes.
// Imports: snapshot/store, snapshot/s3store.
// Invariant: a URL that is not understood in every part is refused.
package storeurl

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"path/filepath"
	"strings"

	"github.com/uglyer/ha-sqlite/snapshot/s3store"
	"github.com/uglyer/ha-sqlite/snapshot/store"
)

// ErrInvalid is returned for a URL that names no store.
var ErrInvalid = errors.New("invalid archive URL")

// Open opens the store that a URL names: file:///path, a path, or s3://bucket/prefix
// with the parameters of s3store.ParseURL. It sends no request.
func Open(ctx context.Context, text string) (store.Store, error) {
	fail := func(why string) (store.Store, error) {
		return nil, fmt.Errorf("open archive %q: %s: %w", text, why, ErrInvalid)
	}
	switch {
	case text == "":
		return fail("it is empty")
	case strings.HasPrefix(text, "s3:"):
		o, err := s3store.ParseURL(text)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", err, ErrInvalid)
		}
		s, err := s3store.Open(ctx, o)
		if err != nil {
			return nil, err
		}
		return s, nil
	case strings.HasPrefix(text, "file:"):
		u, err := url.Parse(text)
		switch {
		case err != nil:
			return fail(err.Error())
		case u.Host != "":
			return fail("host " + u.Host + "; write file:///path")
		case u.RawQuery != "" || u.Fragment != "" || u.Opaque != "" || !filepath.IsAbs(filepath.FromSlash(u.Path)):
			return fail("write file:///path")
		}
		return openDir(filepath.FromSlash(u.Path))
	case strings.Contains(text, "://"):
		return fail("known schemes are file and s3")
	}
	return openDir(text)
}

func openDir(path string) (store.Store, error) {
	d, err := store.OpenDir(path)
	if err != nil {
		return nil, err
	}
	return d, nil
}
