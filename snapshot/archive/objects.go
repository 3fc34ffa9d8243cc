package archive

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"filippo.io/age"

	"github.com/uglyer/ha-sqlite/snapshot/store"
)

const (
	inMemory     = 1 << 20  // larger objects pass through a temporary file when they are encrypted
	maxMetadata  = 64 << 20 // of a manifest, a journal entry or an index, before it is allocated
	resumeTries  = 4        // of a body that breaks off
	encryptedExt = ".age"   // keeps litestream from taking ciphertext for LTX
)

// Keys encrypt and decrypt the objects of an archive. Nil keeps them as they
// are.
type Keys struct {
	recipients []age.Recipient
	identities []age.Identity
	set        string // names the recipients
}

// NewKeys makes keys of age recipients (age1…) and identities
// (AGE-SECRET-KEY-1…), one a line. Writing needs both, since the writer reads
// its manifest back; what is encrypted must be readable with the identities.
// Without recipients they are those of the identities. Two empty texts give nil.
func NewKeys(recipients, identities string) (*Keys, error) {
	fail := func(format string, args ...any) (*Keys, error) {
		return nil, fmt.Errorf("%w: %w", fmt.Errorf(format, args...), ErrKey)
	}
	if recipients == "" && identities == "" {
		return nil, nil
	}
	k := &Keys{}
	var err error
	if identities != "" {
		if k.identities, err = age.ParseIdentities(bytes.NewReader([]byte(identities))); err != nil {
			return fail("read identities: %v", err)
		}
	}
	if recipients != "" {
		if k.recipients, err = age.ParseRecipients(bytes.NewReader([]byte(recipients))); err != nil {
			return fail("read recipients: %v", err)
		}
	} else {
		for _, id := range k.identities {
			switch id := id.(type) {
			case *age.X25519Identity:
				k.recipients = append(k.recipients, id.Recipient())
			case *age.HybridIdentity:
				k.recipients = append(k.recipients, id.Recipient())
			default:
				return fail("an identity of type %T has no recipient: name the recipients", id)
			}
		}
	}
	if len(k.identities) == 0 {
		return fail("recipients without an identity: the archive could not be read back")
	}
	token, err := k.token("")
	if err != nil {
		return fail("%v", err)
	}
	if err := k.opens("", token, ""); err != nil {
		return fail("what is encrypted to the recipients cannot be read with the identities")
	}
	k.set = recipientSet(k.recipients)
	return k, nil
}

// objects is a store with encryption.
type objects struct {
	store store.Store
	keys  *Keys
	tmp   string // for temporary files
}

// ext is what the names of encrypted objects end with.
func (o *objects) ext() string {
	if o.keys == nil {
		return ""
	}
	return encryptedExt
}

// put stores an object and returns the size that it has in the store. An object
// with the same content that is there already is no error.
func (o *objects) put(ctx context.Context, key string, body io.ReaderAt, size int64, t time.Time) (int64, error) {
	body = moving{ctx: ctx, at: body}
	sealed, stored := body, size
	if o.keys != nil {
		f, n, done, err := o.seal(body, size)
		if err != nil {
			return 0, &ObjectError{key, err}
		}
		defer done()
		sealed, stored = moving{ctx: ctx, at: f}, n
	}
	err := o.store.Put(ctx, key, sealed, stored, t)
	if !errors.Is(err, store.ErrExists) {
		return stored, err
	}
	// The answer of an earlier try was lost, or another leader was here first.
	info, err := o.store.Stat(ctx, key)
	if err != nil {
		return 0, err
	}
	r, err := o.open(ctx, key)
	if err != nil {
		return 0, err
	}
	defer r.Close()
	if same, err := sameContent(r, io.NewSectionReader(body, 0, size)); err != nil {
		return 0, &ObjectError{key, err}
	} else if !same {
		return 0, &ObjectError{key, fmt.Errorf("it exists with another content: %w", ErrForeign)}
	}
	return info.Size, nil
}

func sameContent(a, b io.Reader) (bool, error) {
	x, y := make([]byte, 64<<10), make([]byte, 64<<10)
	for {
		n, errA := io.ReadFull(a, x)
		m, errB := io.ReadFull(b, y)
		if !bytes.Equal(x[:n], y[:m]) {
			return false, nil
		}
		endA := errors.Is(errA, io.EOF) || errors.Is(errA, io.ErrUnexpectedEOF)
		endB := errors.Is(errB, io.EOF) || errors.Is(errB, io.ErrUnexpectedEOF)
		switch {
		case endA && endB:
			return true, nil
		case errA != nil && !endA:
			return false, errA
		case errB != nil && !endB:
			return false, errB
		case endA != endB:
			return false, nil
		}
	}
}

// seal encrypts a body. done removes what it is in.
func (o *objects) seal(body io.ReaderAt, size int64) (io.ReaderAt, int64, func(), error) {
	var buf bytes.Buffer
	var out io.Writer = &buf
	var f *os.File
	done := func() {}
	if size > inMemory {
		var err error
		if f, done, err = tempFile(o.tmp); err != nil {
			return nil, 0, nil, err
		}
		out = f
	}
	w, err := age.Encrypt(out, o.keys.recipients...)
	if err == nil {
		if _, err = io.Copy(w, io.NewSectionReader(body, 0, size)); err == nil {
			err = w.Close()
		}
	}
	if err != nil {
		done()
		return nil, 0, nil, fmt.Errorf("encrypt: %w", err)
	}
	if f == nil {
		return bytes.NewReader(buf.Bytes()), int64(buf.Len()), done, nil
	}
	n, err := f.Seek(0, io.SeekCurrent)
	if err != nil {
		done()
		return nil, 0, nil, err
	}
	return f, n, done, nil
}

// tempFile makes a file that goes away with its descriptor.
func tempFile(dir string) (*os.File, func(), error) {
	f, err := os.CreateTemp(dir, "hasqlite-archive-*")
	if err != nil {
		return nil, nil, fmt.Errorf("make temporary file: %w", err)
	}
	return f, func() {
		f.Close()
		_ = os.Remove(f.Name()) // it is in a directory for such files
	}, nil
}

// open reads a whole object, and goes on behind a connection that broke off.
func (o *objects) open(ctx context.Context, key string) (io.ReadCloser, error) {
	r := &resumed{ctx: ctx, store: o.store, key: key}
	if err := r.reopen(); err != nil {
		return nil, objectError(key, err)
	}
	if o.keys == nil {
		return r, nil
	}
	plain, err := age.Decrypt(r, o.keys.identities...)
	if err != nil {
		r.Close()
		return nil, objectError(key, keyError(err))
	}
	return &decrypted{plain, key, r}, nil
}

// keyError tells a wrong key from a damaged object, and both from a store that
// does not answer.
func keyError(err error) error {
	var named *ObjectError
	if errors.As(err, &named) {
		return err
	}
	var none *age.NoIdentityMatchError
	if errors.As(err, &none) {
		return fmt.Errorf("no identity given can decrypt it: wrong key, or its head is damaged: %w", ErrKey)
	}
	return fmt.Errorf("decrypt: %w: %w", err, ErrDamaged)
}

// objectError names the object and makes a missing one what it is.
func objectError(key string, err error) error {
	if errors.Is(err, store.ErrNotFound) {
		return &ObjectError{key, fmt.Errorf("%w: %w", err, ErrDamaged)}
	}
	return &ObjectError{key, err}
}

type decrypted struct {
	r   io.Reader
	key string
	c   io.Closer
}

// Read implements io.Reader.
func (d *decrypted) Read(p []byte) (int, error) {
	n, err := d.r.Read(p)
	var named *ObjectError
	if err != nil && err != io.EOF && !errors.As(err, &named) {
		err = damaged(d.key, "decrypt: %w", err)
	}
	return n, err
}

// Close implements io.Closer.
func (d *decrypted) Close() error { return d.c.Close() }

// resumed reads an object and asks for the rest where the connection breaks.
type resumed struct {
	ctx   context.Context
	store store.Store
	key   string
	at    int64
	tries int
	body  io.ReadCloser
}

func (r *resumed) reopen() error {
	body, err := r.store.Get(r.ctx, r.key, r.at, -1)
	if err != nil {
		return err
	}
	r.body = body
	return nil
}

// Read implements io.Reader.
func (r *resumed) Read(p []byte) (int, error) {
	for {
		n, err := r.body.Read(p)
		r.at += int64(n)
		progressed(r.ctx)
		if n > 0 || err == nil || err == io.EOF {
			if err != nil && err != io.EOF {
				err = nil // the next call sees it again, or goes on
			}
			return n, err
		}
		if r.tries++; r.tries > resumeTries || r.ctx.Err() != nil {
			return 0, objectError(r.key, err)
		}
		r.body.Close()
		if again := r.reopen(); again != nil {
			r.body = io.NopCloser(bytes.NewReader(nil))
			return 0, objectError(r.key, errors.Join(err, again))
		}
	}
}

// Close implements io.Closer.
func (r *resumed) Close() error { return r.body.Close() }

// get returns a whole small object.
func (o *objects) get(ctx context.Context, key string) ([]byte, error) {
	r, err := o.open(ctx, key)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	b, err := io.ReadAll(io.LimitReader(r, maxMetadata+1))
	if err != nil {
		return nil, fileError(key, err)
	}
	if len(b) > maxMetadata {
		return nil, damaged(key, "it is larger than %d bytes", maxMetadata)
	}
	return b, nil
}

// ranges reads parts of an object that has so many bytes in the store, and
// returns how many it has decrypted.
func (o *objects) ranges(ctx context.Context, key string, stored int64) (io.ReaderAt, int64, error) {
	at := &rangeReader{ctx: ctx, store: o.store, key: key, size: stored}
	if o.keys == nil {
		return at, stored, nil
	}
	plain, size, err := age.DecryptReaderAt(at, stored, o.keys.identities...)
	if err != nil {
		return nil, 0, objectError(key, keyError(err))
	}
	return &decryptedAt{plain, key}, size, nil
}

// decryptedAt names the object where it does not decrypt.
type decryptedAt struct {
	r   io.ReaderAt
	key string
}

// ReadAt implements io.ReaderAt.
func (d *decryptedAt) ReadAt(p []byte, off int64) (int, error) {
	n, err := d.r.ReadAt(p, off)
	var named *ObjectError
	if err != nil && err != io.EOF && !errors.As(err, &named) {
		err = damaged(d.key, "decrypt: %w", err)
	}
	return n, err
}

// rangeReader is a request for each ReadAt.
type rangeReader struct {
	ctx   context.Context
	store store.Store
	key   string
	size  int64
}

// ReadAt implements io.ReaderAt.
func (r *rangeReader) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 || off >= r.size {
		return 0, io.EOF
	}
	want := p[:min(int64(len(p)), r.size-off)]
	body, err := r.store.Get(r.ctx, r.key, off, int64(len(want)))
	if err != nil {
		return 0, r.fail(err)
	}
	defer body.Close()
	n, err := io.ReadFull(body, want)
	progressed(r.ctx)
	if err != nil {
		return n, r.fail(err)
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// fail tells an object that has lost its end from a store that fails.
func (r *rangeReader) fail(err error) error {
	if info, statErr := r.store.Stat(r.ctx, r.key); statErr == nil && info.Size != r.size {
		return damaged(r.key, "it has %d bytes, the manifest lists %d: %w", info.Size, r.size, err)
	}
	return objectError(r.key, err)
}
