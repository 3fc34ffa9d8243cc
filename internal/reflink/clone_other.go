//go:build !linux

package reflink

func clone(string, string) error { return ErrUnsupported }
