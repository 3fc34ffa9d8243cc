package config

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/uglyer/ha-sqlite/internal/node"
)

// quotaSeparator stands between quotas in one text: commas are taken.
const quotaSeparator = ";"

// separators are those of options that are lists and not separated by commas. Their flags can be repeated.
var separators = map[string]string{"quota": quotaSeparator}

// setQuotas reads quotas, in the order in which they are tried.
func setQuotas(c *Config, v string) error {
	var quotas []node.Quota
	for text := range strings.SplitSeq(v, quotaSeparator) {
		q, err := parseQuota(strings.TrimSpace(text))
		if err != nil {
			return fmt.Errorf("quota %q: %w", text, err)
		}
		for _, former := range quotas {
			if former.Pattern == q.Pattern {
				return fmt.Errorf("quota %q: the pattern %q was given before, and the first that matches counts", text, q.Pattern)
			}
		}
		quotas = append(quotas, q)
	}
	c.Node.Quotas = quotas
	return nil
}

// parseQuota reads PATTERN:LIMIT=VALUE,...
func parseQuota(text string) (q node.Quota, err error) {
	at := strings.LastIndexByte(text, ':') // names may hold colons
	if at <= 0 {
		return q, errors.New("want PATTERN:LIMIT=VALUE,..., such as acme/*:databases=100,size=2GiB")
	}
	q.Pattern = text[:at]
	seen := map[string]bool{}
	for part := range strings.SplitSeq(text[at+1:], ",") {
		key, value, found := strings.Cut(strings.TrimSpace(part), "=")
		if !found || value == "" {
			return q, fmt.Errorf("%q: want LIMIT=VALUE", part)
		}
		if seen[key] {
			return q, fmt.Errorf("%s is given twice", key)
		}
		seen[key] = true
		switch key {
		case "databases":
			if q.Databases, err = strconv.Atoi(value); err == nil && q.Databases < 1 || err != nil {
				return q, fmt.Errorf("databases=%s: want a whole number of at least 1", value)
			}
		case "size":
			q.Size, err = quotaBytes(value)
		case "transaction":
			q.Transaction, err = quotaBytes(value)
		default:
			return q, fmt.Errorf("there is no limit %q: want databases, size or transaction", key)
		}
		if err != nil {
			return q, fmt.Errorf("%s=%s: %w", key, value, err)
		}
	}
	return q, nil
}

// quotaBytes reads a limit in bytes. No database and hardly a transaction has less than one page of the largest size.
func quotaBytes(value string) (int64, error) {
	n, err := parseSize(value)
	if err == nil && n < 64<<10 {
		err = fmt.Errorf("want at least %s", formatSize(64<<10))
	}
	return n, err
}
