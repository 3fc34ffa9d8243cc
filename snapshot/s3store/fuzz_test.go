package s3store

import "testing"

// FuzzParseURL: what a URL is read as has a URL that is read as the same.
func FuzzParseURL(f *testing.F) {
	for _, text := range []string{
		"s3://bucket/prefix", "s3://b/a/b?endpoint=https://host:9000&region=r&path-style=false&sse=aws:kms&kms-key-id=k&ca=/ca.pem&profile=p",
		"s3://b/p?sse=AES256", "s3://user:secret@b/p", "s3://b", "s3://b//p", "s3://b/%2e%2e/x", "http://b/p", "s3://b/p?endpoint=x&endpoint=y",
	} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		o, err := ParseURL(text)
		if err != nil {
			return
		}
		if again, err := ParseURL(o.URL()); err != nil || again != o {
			t.Errorf("%q is %+v, written as %q %+v, %v", text, o, o.URL(), again, err)
		}
	})
}
