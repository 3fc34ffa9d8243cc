//go:build !linux

package localcluster

import "os/exec"

// spawn starts cmd. Only Linux can tie its life to ours.
func spawn(cmd *exec.Cmd) error { return cmd.Start() }
