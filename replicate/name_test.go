package replicate

import (
	"errors"
	"strings"
	"testing"
)

func TestNamesThatAreAllowed(t *testing.T) {
	for _, name := range []string{
		"shop.db", "acme/plan-7", "acme/shop.db", "a", "Größe", "日本/語", "with space", "...", "a..b", ".hidden",
		"CON", "trailing.", "a\\b", "ab:c", "%2e%2e", strings.Repeat("x", 255), "_" + strings.Repeat("x", 253), "_a/" + strings.Repeat("x", 252),
	} {
		if err := ValidateName(name); err != nil {
			t.Errorf("%q: %v", name, err)
		}
	}
}

func TestNamesThatAreRefused(t *testing.T) {
	for _, test := range []struct{ why, name string }{
		{"empty", ""},
		{"it has 256 bytes", strings.Repeat("x", 256)},
		{"an underscore, so it may have 254 bytes", "_" + strings.Repeat("x", 254)},
		{"absolute path", "/etc/passwd"},
		{"absolute path of Windows", `\\host\share`},
		{"absolute path of Windows", `c:\x`},
		{"absolute path of Windows", "C:x"},
		{`".." segment`, ".."},
		{`".." segment`, "../x"},
		{`".." segment`, "a/../b"},
		{`".." segment`, "a/.."},
		{`"." segment`, "."},
		{`"." segment`, "./x"},
		{`"." segment`, "a/./b"},
		{"empty segment", "a//b"},
		{"ends with a slash", "a/"},
		{"absolute path", "/"},
		{"control character U+0000", "a\x00b"},
		{"control character U+000A", "a\nb"},
		{"control character U+007F", "a\x7f"},
		{"control character U+0085", "a\u0085b"},
		{"not valid UTF-8", "a\xffb"},
	} {
		t.Run(test.why, func(t *testing.T) {
			err := ValidateName(test.name)
			if !errors.Is(err, ErrInvalidName) {
				t.Fatalf("%q: got %v, want %v", test.name, err, ErrInvalidName)
			}
			if !strings.Contains(err.Error(), test.why) {
				t.Fatalf("%q: %q does not say %q", test.name, err, test.why)
			}
		})
	}
}
