package config

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// sizeUnits are the suffixes of a size, largest first.
var sizeUnits = []struct {
	name  string
	bytes int64
}{{"GiB", 1 << 30}, {"MiB", 1 << 20}, {"KiB", 1 << 10}}

// setSize reads a number of bytes of at least least, with KiB, MiB or GiB behind it if it is one of those.
func setSize(field func(*Config) *int64, least int64) func(*Config, string) error {
	return func(c *Config, v string) error {
		n, err := parseSize(v)
		if err != nil {
			return err
		}
		if n < least {
			return fmt.Errorf("want at least %s", formatSize(least))
		}
		*field(c) = n
		return nil
	}
}

func parseSize(v string) (int64, error) {
	digits, unit := v, int64(1)
	for _, u := range sizeUnits {
		if d, ok := strings.CutSuffix(v, u.name); ok {
			digits, unit = strings.TrimSpace(d), u.bytes
			break
		}
	}
	n, err := strconv.ParseInt(digits, 10, 64)
	if err != nil || n < 0 || n > (1<<62)/unit {
		return 0, errors.New("want a number of bytes, such as 512MiB or 2GiB")
	}
	return n * unit, nil
}

func formatSize(n int64) string {
	for _, u := range sizeUnits {
		if n >= u.bytes && n%u.bytes == 0 {
			return strconv.FormatInt(n/u.bytes, 10) + u.name
		}
	}
	return strconv.FormatInt(n, 10)
}
