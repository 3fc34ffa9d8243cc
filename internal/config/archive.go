package config

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/uglyer/ha-sqlite/internal/node"
)

// setArchive takes a URL; the node reads it.
func setArchive(c *Config, v string) error {
	if strings.ContainsRune(v, 0) {
		return errors.New("a URL cannot hold a zero byte")
	}
	if v != node.NoArchive && !strings.HasPrefix(v, "file:///") && !strings.HasPrefix(v, "s3://") {
		return errors.New("want file:///path, s3://bucket/prefix or none")
	}
	c.Node.Archive = v
	return nil
}

// setLevels reads three durations that do not get shorter.
func setLevels(field func(*Config) *[3]time.Duration) func(*Config, string) error {
	return func(c *Config, v string) error {
		parts := strings.Split(v, ",")
		var levels [3]time.Duration
		if len(parts) != len(levels) {
			return errors.New("want three durations, such as 30s,5m,1h")
		}
		for i, part := range parts {
			d, err := time.ParseDuration(strings.TrimSpace(part))
			if err != nil || d <= 0 {
				return fmt.Errorf("level %d: want a duration above zero, such as 30s, 5m or 1h", i+1)
			}
			if i > 0 && d < levels[i-1] {
				return fmt.Errorf("level %d has less than level %d", i+1, i)
			}
			levels[i] = d
		}
		*field(c) = levels
		return nil
	}
}

// checkArchive judges the options of the archive against each other.
func checkArchive(n node.Config) error {
	switch {
	case n.ArchiveRecipients != "" && n.ArchiveKey == "":
		return errors.New("archive-recipients is set but not archive-key: the node has to read back what it writes")
	case n.Archive == node.NoArchive && n.ArchiveKey != "":
		return errors.New("archive-key is set and archive is none: nothing would be encrypted")
	case n.ArchiveKeep[0] < n.ArchiveWindow:
		return fmt.Errorf("archive-keep: level 1 is kept for %v, less than single commits (archive-window %v)", n.ArchiveKeep[0], n.ArchiveWindow)
	}
	return nil
}
