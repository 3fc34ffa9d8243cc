//go:build !linux

package localcluster

func waitStopped(int) {}
