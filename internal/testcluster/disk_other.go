//go:build !linux

package testcluster

import (
	"errors"
	"os"
	"testing"
)

// Disk is a file system in a file, which only Linux has for tests.
type Disk struct{ Dir string }

var errNoDisk = errors.New("file systems of their own are for Linux")

// NewDisk gives an error.
func NewDisk(testing.TB, string, string, int64) (*Disk, error) { return nil, errNoDisk }

// Mount gives an error.
func (*Disk) Mount() error { return errNoDisk }

// Unmount gives an error.
func (*Disk) Unmount() error { return errNoDisk }

// Cut gives an error.
func (*Disk) Cut() error { return errNoDisk }

// Fill gives an error.
func (*Disk) Fill(int64) (string, error) { return "", errNoDisk }

// Allocate gives an error.
func Allocate(*os.File, int64) error { return errNoDisk }
