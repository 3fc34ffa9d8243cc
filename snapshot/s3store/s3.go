package s3store

import (
	"bytes"
	"context"
	"crypto/md5"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path"
	"strings"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/aws/ratelimit"
	"github.com/aws/aws-sdk-go-v2/aws/retry"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	"github.com/aws/smithy-go"

	"github.com/uglyer/ha-sqlite/snapshot/store"
)

const (
	singlePut       = 32 << 20 // larger objects are sent in parts
	partSize        = 16 << 20
	maxParts        = 10_000
	maxAttempts     = 4
	responseTimeout = 30 * time.Second
	deleteAtOnce    = 8
	partsAtOnce     = 3 // of one object
	abortTime       = 10 * time.Second
)

// Store is a store.Store in S3.
type Store struct {
	opts   Options
	client *s3.Client
	part   int64
	single int64

	// Whether the store obeys If-None-Match where an object is put at once, and where it is completed of parts. Until
	// Detect knows it is asked to, and objects are looked for before, too.
	mu          sync.Mutex
	detected    bool
	whole, made condition
}

// condition is how the store keeps a Put from replacing an object.
type condition int

const (
	unknown     condition = iota // the store is asked to refuse, and may not
	conditional                  // the store refuses
	looked                       // the store does not, or not even knows the question: whoever puts looks before
)

// Open makes a client. It sends no request.
func Open(ctx context.Context, o Options) (*Store, error) {
	if err := o.check(); err != nil {
		return nil, err
	}
	var roots *x509.CertPool
	if o.CAFile != "" {
		pem, err := os.ReadFile(o.CAFile)
		if err != nil {
			return nil, fmt.Errorf("read certificates to trust: %w", err)
		}
		if roots, err = x509.SystemCertPool(); err != nil {
			roots = x509.NewCertPool()
		}
		if !roots.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("read certificates to trust: %s has none", o.CAFile)
		}
	}
	// A client of this kind, and no other, lets the chain add AWS_CA_BUNDLE.
	client := awshttp.NewBuildableClient().WithTransportOptions(func(t *http.Transport) {
		t.ResponseHeaderTimeout = responseTimeout
		t.MaxIdleConnsPerHost = 64
		if roots != nil {
			if t.TLSClientConfig == nil {
				t.TLSClientConfig = &tls.Config{MinVersion: tls.VersionTLS12}
			}
			t.TLSClientConfig.RootCAs = roots
		}
	})
	load := []func(*config.LoadOptions) error{
		config.WithHTTPClient(client),
		config.WithRetryer(func() aws.Retryer {
			return retry.NewStandard(func(r *retry.StandardOptions) {
				r.MaxAttempts = maxAttempts
				r.RateLimiter = ratelimit.None // a store that was down long must not be refused for it afterwards
				// A conflict is with another request at the same moment, also where it is with the removal of the last
				// object beside this one, in stores that keep objects in directories.
				r.Retryables = append(r.Retryables, retry.RetryableHTTPStatusCode{Codes: map[int]struct{}{http.StatusRequestTimeout: {}, http.StatusConflict: {}}})
			})
		}),
	}
	if o.Region != "" {
		load = append(load, config.WithRegion(o.Region))
	}
	if o.Profile != "" {
		load = append(load, config.WithSharedConfigProfile(o.Profile))
	}
	cfg, err := config.LoadDefaultConfig(ctx, load...)
	if err != nil {
		return nil, fmt.Errorf("configure S3 client: %w", err)
	}
	if cfg.Region == "" {
		cfg.Region = "us-east-1"
	}
	s := &Store{opts: o, part: partSize, single: singlePut}
	s.client = s3.NewFromConfig(cfg, func(so *s3.Options) {
		so.UsePathStyle = o.PathStyle
		if o.Endpoint != "" {
			so.BaseEndpoint = aws.String(o.Endpoint)
			// Many other stores refuse the trailers of the newer checksums; bodies
			// carry an MD5 there, which all of them compare.
			so.RequestChecksumCalculation = aws.RequestChecksumCalculationWhenRequired
			so.ResponseChecksumValidation = aws.ResponseChecksumValidationWhenRequired
		}
	})
	return s, nil
}

// Detect implements store.Store: it asks whether If-None-Match: * is obeyed, by
// an object that is put at once and by one that is made of parts, since there
// are stores that obey the one and not the other. It writes and removes one
// object, and does so until it has an answer.
func (s *Store) Detect(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.detected {
		return nil
	}
	var b [8]byte
	_, _ = rand.Read(b[:]) // documented never to fail
	key := store.Join("_probe", hex.EncodeToString(b[:]))
	full, err := s.key(key)
	if err != nil {
		return err
	}
	body := strings.NewReader("hasqlite")
	put := func(how condition) error { return s.putWhole(ctx, full, body, body.Size(), nil, how) }
	complete := func(how condition) error { return s.putParts(ctx, full, body, body.Size(), nil, how) }
	first := put(conditional)
	if refused(first) {
		first = put(looked)
	}
	var whole, made condition
	if err = first; err == nil {
		if whole, err = obeys(put); err == nil {
			made, err = obeys(complete)
		}
	}
	if err != nil {
		return fmt.Errorf("probe %s: %w", s.URL(), err)
	}
	if err := s.Delete(ctx, key); err != nil {
		return fmt.Errorf("remove the probe: %w", err)
	}
	s.whole, s.made, s.detected = whole, made, true
	return nil
}

// obeys puts an object that is there already.
func obeys(put func(condition) error) (condition, error) {
	switch err := put(conditional); {
	case err == nil, refused(err):
		return looked, nil
	case errors.Is(err, store.ErrExists):
		return conditional, nil
	default:
		return unknown, err
	}
}

// refused says that the store does not know what it was asked.
func refused(err error) bool {
	return isStatus(err, http.StatusNotImplemented) || isStatus(err, http.StatusBadRequest)
}

// URL implements store.Store.
func (s *Store) URL() string { return s.opts.URL() }

// LevelDir implements store.Store.
func (s *Store) LevelDir(level int) string { return fmt.Sprintf("%04x", level) }

// Conditional implements store.Store. It is false until Detect has found it out.
func (s *Store) Conditional() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.whole == conditional && s.made == conditional
}

func (s *Store) key(key string) (*string, error) {
	if err := store.CheckKey(key); err != nil {
		return nil, err
	}
	full := store.Join(s.opts.Prefix, key)
	if len(full) > 1024 {
		return nil, fmt.Errorf("key %q is longer than 1024 bytes with its prefix: %w", key, store.ErrInvalidKey)
	}
	return &full, nil
}

// class makes errors of the protocol those of the interface.
func class(err error) error {
	switch {
	case isStatus(err, http.StatusNotFound) && !isCode(err, "NoSuchBucket"):
		return fmt.Errorf("%w: %w", store.ErrNotFound, err)
	case isStatus(err, http.StatusPreconditionFailed):
		return fmt.Errorf("%w: %w", store.ErrExists, err)
	}
	return err
}

func isStatus(err error, status int) bool {
	var r *awshttp.ResponseError
	return errors.As(err, &r) && r.HTTPStatusCode() == status
}

func isCode(err error, code string) bool {
	var a smithy.APIError
	return errors.As(err, &a) && a.ErrorCode() == code
}

// ifAbsent is the condition of a write.
func (c condition) ifAbsent() *string {
	if c == looked {
		return nil
	}
	return aws.String("*")
}

// Put implements store.Store.
func (s *Store) Put(ctx context.Context, key string, body io.ReaderAt, size int64, t time.Time) error {
	if err := s.put(ctx, key, body, size, t); err != nil {
		return fmt.Errorf("put %s into %s: %w", key, s.URL(), err)
	}
	return nil
}

func (s *Store) put(ctx context.Context, key string, body io.ReaderAt, size int64, t time.Time) error {
	full, err := s.key(key)
	if err != nil {
		return err
	}
	parts := size > s.single
	s.mu.Lock()
	how := s.whole
	if parts {
		how = s.made
	}
	s.mu.Unlock()
	if how != conditional {
		if _, err := s.Stat(ctx, key); err == nil {
			return store.ErrExists
		} else if !errors.Is(err, store.ErrNotFound) {
			return err
		}
	}
	var metadata map[string]string
	if !t.IsZero() {
		metadata = map[string]string{store.LevelTimeKey: t.UTC().Format(time.RFC3339Nano)}
	}
	if parts {
		return s.putParts(ctx, full, body, size, metadata, how)
	}
	return s.putWhole(ctx, full, body, size, metadata, how)
}

// putWhole sends an object in one request.
func (s *Store) putWhole(ctx context.Context, key *string, body io.ReaderAt, size int64, metadata map[string]string, how condition) error {
	sse, kms := s.sse()
	sum, err := digest(body, 0, size)
	if err != nil {
		return err
	}
	_, err = s.client.PutObject(ctx, &s3.PutObjectInput{
		Bucket: &s.opts.Bucket, Key: key, Body: io.NewSectionReader(body, 0, size), ContentLength: &size, ContentMD5: s.md5(sum),
		ContentType: aws.String("application/octet-stream"), Metadata: metadata, IfNoneMatch: how.ifAbsent(),
		ServerSideEncryption: sse, SSEKMSKeyId: kms,
	})
	return class(err)
}

func (s *Store) sse() (types.ServerSideEncryption, *string) {
	if s.opts.KMSKeyID != "" {
		return types.ServerSideEncryption(s.opts.SSE), &s.opts.KMSKeyID
	}
	return types.ServerSideEncryption(s.opts.SSE), nil
}

// digest reads a part of a body, of which nothing may be missing.
func digest(body io.ReaderAt, offset, size int64) (string, error) {
	h := md5.New()
	n, err := io.Copy(h, io.NewSectionReader(body, offset, size))
	if err == nil && n != size {
		err = fmt.Errorf("%d bytes of %d: %w", n, size, io.ErrUnexpectedEOF)
	}
	return base64.StdEncoding.EncodeToString(h.Sum(nil)), err
}

// md5 is the checksum for stores of which the newer ones are not known to work.
func (s *Store) md5(sum string) *string {
	if s.opts.Endpoint == "" {
		return nil // the client sends a CRC32
	}
	return &sum
}

// putParts sends a large object in parts, which become the object at the end.
func (s *Store) putParts(ctx context.Context, key *string, body io.ReaderAt, size int64, metadata map[string]string, how condition) (err error) {
	sse, kms := s.sse()
	create := &s3.CreateMultipartUploadInput{
		Bucket: &s.opts.Bucket, Key: key, Metadata: metadata, ContentType: aws.String("application/octet-stream"),
		ServerSideEncryption: sse, SSEKMSKeyId: kms,
	}
	crc := s.opts.Endpoint == ""
	if crc {
		create.ChecksumAlgorithm = types.ChecksumAlgorithmCrc32
	}
	up, err := s.client.CreateMultipartUpload(ctx, create)
	if err != nil {
		return class(err)
	}
	defer func() {
		if err != nil {
			// Parts of an upload that is neither completed nor aborted cost money.
			late, cancel := context.WithTimeout(context.WithoutCancel(ctx), abortTime)
			defer cancel()
			if _, abort := s.client.AbortMultipartUpload(late, &s3.AbortMultipartUploadInput{Bucket: &s.opts.Bucket, Key: key, UploadId: up.UploadId}); abort != nil {
				err = errors.Join(err, fmt.Errorf("abort upload %s: %w", aws.ToString(up.UploadId), abort))
			}
		}
	}()
	part := s.part
	for part*maxParts < size {
		part *= 2
	}
	parts := make([]types.CompletedPart, (size+part-1)/part)
	errs := make([]error, len(parts))
	var wg sync.WaitGroup
	slots := make(chan struct{}, partsAtOnce)
	sending, cancel := context.WithCancel(ctx)
	defer cancel()
	for i := range parts {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			at := int64(i) * part
			parts[i], errs[i] = s.putPart(sending, key, up.UploadId, int32(i+1), io.NewSectionReader(body, at, min(part, size-at)), crc)
			if errs[i] != nil {
				cancel()
			}
		})
	}
	wg.Wait()
	for _, err := range errs {
		if err != nil && !errors.Is(err, context.Canceled) {
			return err
		}
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	_, err = s.client.CompleteMultipartUpload(ctx, &s3.CompleteMultipartUploadInput{
		Bucket: &s.opts.Bucket, Key: key, UploadId: up.UploadId, MultipartUpload: &types.CompletedMultipartUpload{Parts: parts}, IfNoneMatch: how.ifAbsent(),
	})
	return class(err)
}

// putPart sends one part.
func (s *Store) putPart(ctx context.Context, key, upload *string, number int32, body *io.SectionReader, crc bool) (types.CompletedPart, error) {
	if err := ctx.Err(); err != nil {
		return types.CompletedPart{}, err
	}
	n := body.Size()
	sum, err := digest(body, 0, n)
	if err != nil {
		return types.CompletedPart{}, err
	}
	in := &s3.UploadPartInput{
		Bucket: &s.opts.Bucket, Key: key, UploadId: upload, PartNumber: &number, ContentLength: &n, ContentMD5: s.md5(sum), Body: body,
	}
	if crc {
		in.ChecksumAlgorithm = types.ChecksumAlgorithmCrc32
	}
	out, err := s.client.UploadPart(ctx, in)
	if err != nil {
		return types.CompletedPart{}, err
	}
	return types.CompletedPart{ETag: out.ETag, PartNumber: &number, ChecksumCRC32: out.ChecksumCRC32}, nil
}

// Get implements store.Store.
func (s *Store) Get(ctx context.Context, key string, offset, length int64) (io.ReadCloser, error) {
	fail := func(err error) (io.ReadCloser, error) {
		return nil, fmt.Errorf("get %s from %s: %w", key, s.URL(), err)
	}
	full, err := s.key(key)
	if err != nil {
		return fail(err)
	}
	if length == 0 {
		return io.NopCloser(bytes.NewReader(nil)), nil
	}
	in := &s3.GetObjectInput{Bucket: &s.opts.Bucket, Key: full}
	switch {
	case offset == 0 && length < 0:
	case length < 0:
		in.Range = aws.String(fmt.Sprintf("bytes=%d-", offset))
	default:
		in.Range = aws.String(fmt.Sprintf("bytes=%d-%d", offset, offset+length-1))
	}
	out, err := s.client.GetObject(ctx, in)
	if err != nil {
		return fail(class(err))
	}
	got := aws.ToInt64(out.ContentLength)
	if length >= 0 && got != length {
		out.Body.Close()
		return fail(fmt.Errorf("%d bytes of %d from %d: %w", got, length, offset, io.ErrUnexpectedEOF))
	}
	return out.Body, nil
}

// Stat implements store.Store.
func (s *Store) Stat(ctx context.Context, key string) (store.Info, error) {
	full, err := s.key(key)
	if err == nil {
		var out *s3.HeadObjectOutput
		if out, err = s.client.HeadObject(ctx, &s3.HeadObjectInput{Bucket: &s.opts.Bucket, Key: full}); err == nil {
			info := store.Info{Key: key, Size: aws.ToInt64(out.ContentLength)}
			for name, v := range out.Metadata {
				if !strings.EqualFold(name, store.LevelTimeKey) {
					continue
				}
				if info.Time, err = time.Parse(time.RFC3339Nano, v); err != nil {
					return store.Info{}, fmt.Errorf("describe %s in %s: commit time: %w", key, s.URL(), err)
				}
			}
			return info, nil
		}
	}
	return store.Info{}, fmt.Errorf("describe %s in %s: %w", key, s.URL(), class(err))
}

// listing runs through the objects and the directories directly in dir.
func (s *Store) listing(ctx context.Context, dir, after string, object func(types.Object) error, prefix func(string)) error {
	start := s.opts.Prefix
	if dir != "" {
		full, err := s.key(dir)
		if err != nil {
			return err
		}
		start = *full
	}
	start += "/"
	in := &s3.ListObjectsV2Input{Bucket: &s.opts.Bucket, Prefix: &start, Delimiter: aws.String("/")}
	if after != "" {
		in.StartAfter = aws.String(start + after)
	}
	for p := s3.NewListObjectsV2Paginator(s.client, in); p.HasMorePages(); {
		page, err := p.NextPage(ctx)
		if err != nil {
			return err
		}
		for _, c := range page.CommonPrefixes {
			prefix(path.Base(aws.ToString(c.Prefix)))
		}
		for _, o := range page.Contents {
			if err := object(o); err != nil {
				return err
			}
		}
	}
	return nil
}

// List implements store.Store.
func (s *Store) List(ctx context.Context, dir, after string, f func(store.Info) error) error {
	err := s.listing(ctx, dir, after, func(o types.Object) error {
		key := strings.TrimPrefix(aws.ToString(o.Key), s.opts.Prefix+"/")
		if strings.HasSuffix(key, "/") {
			return nil // what some tools make for an empty directory
		}
		return f(store.Info{Key: key, Size: aws.ToInt64(o.Size)})
	}, func(string) {})
	if err != nil {
		return fmt.Errorf("list %s in %s: %w", dir, s.URL(), err)
	}
	return nil
}

// Dirs implements store.Store.
func (s *Store) Dirs(ctx context.Context, dir string) ([]string, error) {
	var names []string
	err := s.listing(ctx, dir, "", func(types.Object) error { return nil }, func(name string) { names = append(names, name) })
	if err != nil {
		return nil, fmt.Errorf("list %s in %s: %w", dir, s.URL(), err)
	}
	return names, nil
}

// Delete implements store.Store. Objects are deleted one by one: the request
// for many needs a checksum of its own on each kind of store, and costs the same.
func (s *Store) Delete(ctx context.Context, keys ...string) error {
	var wg sync.WaitGroup
	slots := make(chan struct{}, deleteAtOnce)
	errs := make([]error, len(keys))
	for i, key := range keys {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			full, err := s.key(key)
			if err == nil {
				_, err = s.client.DeleteObject(ctx, &s3.DeleteObjectInput{Bucket: &s.opts.Bucket, Key: full})
				err = class(err)
			}
			if err != nil && !errors.Is(err, store.ErrNotFound) {
				errs[i] = fmt.Errorf("delete %s from %s: %w", key, s.URL(), err)
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}
