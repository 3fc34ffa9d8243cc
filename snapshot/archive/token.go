package archive

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"filippo.io/age"

	"github.com/uglyer/ha-sqlite/snapshot/store"
)

// recipientSet names recipients, whatever their order.
func recipientSet(list []age.Recipient) string {
	var names []string
	for _, r := range list {
		names = append(names, fmt.Sprint(r))
	}
	slices.Sort(names)
	h := sha256.Sum256([]byte(strings.Join(slices.Compact(names), "\n")))
	return hex.EncodeToString(h[:8])
}

// token encrypts a text that only who fits the recipients can read.
func (k *Keys) token(text string) ([]byte, error) {
	var sealed bytes.Buffer
	w, err := age.Encrypt(&sealed, k.recipients...)
	if err == nil {
		if _, err = io.WriteString(w, text); err == nil {
			err = w.Close()
		}
	}
	if err != nil {
		return nil, fmt.Errorf("encrypt: %w", err)
	}
	return sealed.Bytes(), nil
}

// opens compares what a token says; an error that wraps ErrKey says that it is for other keys.
func (k *Keys) opens(key string, token []byte, text string) error {
	r, err := age.Decrypt(bytes.NewReader(token), k.identities...)
	if err != nil {
		return objectError(key, keyError(err))
	}
	b, err := io.ReadAll(io.LimitReader(r, int64(len(text))+1))
	if err != nil {
		return damaged(key, "decrypt: %w", err)
	}
	if string(b) != text {
		return damaged(key, "its token is of cluster %q", b)
	}
	return nil
}

// fits refuses keys that can read neither the token of the marker nor that of recipients that were added later.
func (a *Archive) fits(ctx context.Context, m marker) error {
	err := a.keys.opens(markerKey, m.Token, m.Cluster)
	if !errors.Is(err, ErrKey) {
		return err
	}
	var keys []string
	if err := a.store.List(ctx, keysDir, "", func(i store.Info) error {
		keys = append(keys, i.Key)
		return nil
	}); err != nil {
		return err
	}
	plain := objects{store: a.store}
	for _, key := range keys {
		b, err := plain.get(ctx, key)
		if err != nil {
			return err
		}
		if err := a.keys.opens(key, b, m.Cluster); !errors.Is(err, ErrKey) {
			return err
		}
	}
	return fmt.Errorf("the key does not fit, it is that of another archive: %w", err)
}

// admit leaves a token for the recipients of a writer, where the marker has none for them: what is encrypted from now on
// is for them.
func (a *Archive) admit(ctx context.Context, m marker) error {
	if a.keys == nil || a.keys.set == m.Recipients {
		return nil
	}
	token, err := a.keys.token(a.cluster)
	if err != nil {
		return err
	}
	key := store.Join(keysDir, a.keys.set+encryptedExt)
	if _, err := a.store.Stat(ctx, key); err == nil || !errors.Is(err, store.ErrNotFound) {
		return err
	}
	if err := a.store.Put(ctx, key, bytes.NewReader(token), int64(len(token)), time.Time{}); !errors.Is(err, store.ErrExists) {
		return err
	}
	return nil
}
