package replicate

import (
	"errors"
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"
)

// MaxNameBytes is the length limit of a database name.
const MaxNameBytes = 255

// ErrInvalidName is returned for a database name that breaks a rule; the text
// says which. The caller hands it to the user.
var ErrInvalidName = errors.New("invalid database name")

// ValidateName reports why name cannot name a database, or nil. Names are
// case-sensitive and may have several segments ("acme/plan-7"). They never
// become paths of files, but they must mean one thing in a URL and a URI too.
func ValidateName(name string) error {
	refuse := func(why string) error {
		shown := name
		if len(shown) > 64 {
			shown = shown[:64] + "..."
		}
		return fmt.Errorf("validate database name %q: %s: %w", shown, why, ErrInvalidName)
	}
	switch {
	case name == "":
		return refuse("it is empty")
	case len(name) > MaxNameBytes:
		return refuse(fmt.Sprintf("it has %d bytes, at most %d are allowed", len(name), MaxNameBytes))
	case !utf8.ValidString(name):
		return refuse("it is not valid UTF-8")
	case name[0] == '/':
		return refuse("it is an absolute path")
	case name[0] == '\\' || len(name) >= 2 && name[1] == ':' && isLetter(name[0]):
		return refuse("it is an absolute path of Windows")
	case name[len(name)-1] == '/':
		return refuse("it ends with a slash")
	}
	for _, r := range name {
		if unicode.IsControl(r) {
			return refuse(fmt.Sprintf("it contains the control character %U", r))
		}
	}
	for segment := range strings.SplitSeq(name, "/") {
		switch segment {
		case "":
			return refuse("it has an empty segment")
		case ".":
			return refuse(`it has a "." segment`)
		case "..":
			return refuse(`it has a ".." segment`)
		}
		if len(segment) == MaxNameBytes && segment[0] == '_' {
			// In an archive in files it is a directory, with another underscore in front (snapshot/archive).
			return refuse(fmt.Sprintf("it begins with an underscore, so it may have %d bytes at most", MaxNameBytes-1))
		}
	}
	return nil
}

func isLetter(c byte) bool { return c|0x20 >= 'a' && c|0x20 <= 'z' }
