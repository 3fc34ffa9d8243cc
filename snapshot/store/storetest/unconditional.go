package storetest

import (
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
)

// What a server does with a request that has the header If-None-Match.
const (
	Obey   = 0
	Ignore = -1 // it does not look at the header; any other number is the status that it answers with
)

// Unconditional starts a server before g which does with conditional requests what answer says, and returns its endpoint.
func (g *Gateway) Unconditional(answer func(*http.Request) int) string {
	g.t.Helper()
	target, err := url.Parse(g.Endpoint)
	if err != nil {
		g.t.Fatal(err)
	}
	signer := v4.NewSigner(func(o *v4.SignerOptions) { o.DisableURIPathEscaping = true })
	credentials := aws.Credentials{AccessKeyID: AccessKey, SecretAccessKey: SecretKey}
	forward := &httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) {
		r.SetURL(target)
		if r.In.Header.Get("If-None-Match") == "" || answer(r.In) != Ignore {
			r.Out.Host = r.In.Host
			return
		}
		// The header is signed with the others.
		r.Out.Host = target.Host
		for _, name := range []string{"If-None-Match", "Authorization", "X-Forwarded-For"} {
			r.Out.Header.Del(name)
		}
		if err := signer.SignHTTP(r.Out.Context(), credentials, r.Out, r.Out.Header.Get("X-Amz-Content-Sha256"), "s3", "us-east-1", time.Now()); err != nil {
			g.t.Error(err)
		}
	}}
	ts := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("If-None-Match") != "" {
			if status := answer(r); status > Obey {
				w.WriteHeader(status)
				return
			}
		}
		forward.ServeHTTP(w, r)
	}))
	g.t.Cleanup(ts.Close)
	return ts.URL
}
