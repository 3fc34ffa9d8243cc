package s3store

import (
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"strings"
)

// ErrInvalidURL is returned by ParseURL for a URL that names no place in S3, or
// has a parameter that is not known: none is ever ignored.
var ErrInvalidURL = errors.New("invalid S3 URL")

// Options say where the objects are and how to reach them. Credentials come
// from the usual chain: environment, shared files, web identity, instance.
type Options struct {
	Bucket    string
	Prefix    string // of all keys, without slashes at its ends; never empty
	Endpoint  string // "" is AWS
	Region    string // "" is that of the chain, or us-east-1
	PathStyle bool   // bucket in the path instead of the host name
	SSE       string // "", "AES256" or "aws:kms"
	KMSKeyID  string // for aws:kms; "" is the account's default
	CAFile    string // PEM file of certificates to trust besides the system's
	Profile   string // of the shared configuration files
}

// ParseURL reads
//
//	s3://bucket/prefix?endpoint=https://host:port&region=r&path-style=true&sse=aws:kms&kms-key-id=k&ca=/ca.pem&profile=p
//
// An endpoint turns path style on unless the URL says path-style=false.
func ParseURL(text string) (Options, error) {
	fail := func(format string, args ...any) (Options, error) {
		return Options{}, fmt.Errorf("parse archive URL: %w: %w", fmt.Errorf(format, args...), ErrInvalidURL)
	}
	u, err := url.Parse(text)
	switch {
	case err != nil:
		return fail("%v", err)
	case u.Scheme != "s3":
		return fail("scheme %q, want s3", u.Scheme)
	case u.User != nil:
		return fail("credentials do not belong into the URL: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")
	case u.Host == "":
		return fail("no bucket")
	case u.Fragment != "":
		return fail("%q behind #", u.Fragment)
	}
	q, err := url.ParseQuery(u.RawQuery)
	if err != nil {
		return fail("%v", err)
	}
	known := []string{"endpoint", "region", "path-style", "sse", "kms-key-id", "ca", "profile"}
	for name, values := range q {
		if !slices.Contains(known, name) {
			return fail("unknown parameter %q; known are %s", name, strings.Join(known, ", "))
		}
		if len(values) != 1 || values[0] == "" {
			return fail("parameter %q needs one value", name)
		}
	}
	o := Options{
		Bucket: u.Host, Prefix: strings.Trim(u.Path, "/"), Endpoint: q.Get("endpoint"), Region: q.Get("region"),
		SSE: q.Get("sse"), KMSKeyID: q.Get("kms-key-id"), CAFile: q.Get("ca"), Profile: q.Get("profile"),
	}
	o.PathStyle = o.Endpoint != ""
	if v := q.Get("path-style"); v != "" {
		if o.PathStyle, err = strconv.ParseBool(v); err != nil {
			return fail("path-style=%s, want true or false", v)
		}
	}
	return o, o.check()
}

func (o Options) check() error {
	fail := func(format string, args ...any) error {
		return fmt.Errorf("archive in S3: %w: %w", fmt.Errorf(format, args...), ErrInvalidURL)
	}
	switch {
	case o.Bucket == "":
		return fail("no bucket")
	case o.Prefix == "":
		// litestream turns an empty prefix into one that starts with a dot.
		return fail("no prefix: name a directory in the bucket, as in s3://%s/hasqlite", o.Bucket)
	case strings.Contains(o.Prefix, "//"):
		return fail("prefix %q has an empty part", o.Prefix)
	case o.SSE != "" && o.SSE != "AES256" && o.SSE != "aws:kms":
		return fail("server-side encryption %q, want AES256 or aws:kms", o.SSE)
	case o.KMSKeyID != "" && o.SSE != "aws:kms":
		return fail("kms-key-id needs sse=aws:kms")
	}
	if o.Endpoint != "" {
		e, err := url.Parse(o.Endpoint)
		if err != nil || (e.Scheme != "http" && e.Scheme != "https") || e.Host == "" || e.RawQuery != "" || e.User != nil {
			return fail("endpoint %q, want http://host:port or https://host:port", o.Endpoint)
		}
	}
	return nil
}

// URL is the URL that gives these options.
func (o Options) URL() string {
	q := url.Values{}
	for _, p := range [][2]string{{"endpoint", o.Endpoint}, {"region", o.Region}, {"sse", o.SSE}, {"kms-key-id", o.KMSKeyID}, {"ca", o.CAFile}, {"profile", o.Profile}} {
		if p[1] != "" {
			q.Set(p[0], p[1])
		}
	}
	if o.PathStyle != (o.Endpoint != "") {
		q.Set("path-style", strconv.FormatBool(o.PathStyle))
	}
	return (&url.URL{Scheme: "s3", Host: o.Bucket, Path: "/" + o.Prefix, RawQuery: q.Encode()}).String()
}
