// Package buildinfo says which version of the program runs.
//
// Owns: the version. Imports: the standard library only.
// Invariant: the text is never empty and has no spaces.
package buildinfo

import "runtime/debug"

// version is set by the linker in a release:
// -ldflags "-X github.com/uglyer/ha-sqlite/internal/buildinfo.version=v1.2.3".
var version string

// Version returns the version of the program: that of a release, else the
// module's, else the commit it was built from, else "devel".
func Version() string {
	if version != "" {
		return version
	}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "devel"
	}
	if v := info.Main.Version; v != "" && v != "(devel)" {
		return v
	}
	revision, modified := "", ""
	for _, s := range info.Settings {
		switch {
		case s.Key == "vcs.revision" && len(s.Value) >= 12:
			revision = "-" + s.Value[:12]
		case s.Key == "vcs.modified" && s.Value == "true":
			modified = "-modified"
		}
	}
	return "devel" + revision + modified
}
