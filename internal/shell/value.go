package shell

import (
	"encoding/hex"
	"encoding/json"
	"math"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// text returns a value as SQLite's own shell prints it; null stands for NULL.
// Blobs are written as literals: their bytes could be anything.
func text(v any, null string) string {
	switch v := v.(type) {
	case nil:
		return null
	case int64:
		return strconv.FormatInt(v, 10)
	case float64:
		return realText(v)
	case []byte:
		return "x'" + hex.EncodeToString(v) + "'"
	case string:
		return v
	}
	return "?" // the driver has no other types once declared types are ignored
}

// realText writes a real with the fewest digits that read back as the same.
func realText(f float64) string {
	switch {
	case math.IsInf(f, 1):
		return "Inf"
	case math.IsInf(f, -1):
		return "-Inf"
	}
	s := strconv.FormatFloat(f, 'g', 15, 64)
	if back, err := strconv.ParseFloat(s, 64); err != nil || back != f {
		s = strconv.FormatFloat(f, 'g', 17, 64)
	}
	if !strings.ContainsAny(s, ".e") {
		s += ".0"
	}
	return s
}

// printable replaces what would break a table or reach the terminal as a
// command to it: control characters and bytes that are no UTF-8.
func printable(s string) string {
	ok := utf8.ValidString(s)
	for _, r := range s {
		if unicode.IsControl(r) {
			ok = false
		}
	}
	if ok {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); {
		r, n := utf8.DecodeRuneInString(s[i:])
		if r == utf8.RuneError && n == 1 || unicode.IsControl(r) {
			q := strconv.QuoteToASCII(s[i : i+n])
			b.WriteString(q[1 : len(q)-1])
		} else {
			b.WriteString(s[i : i+n])
		}
		i += n
	}
	return b.String()
}

// jsonText returns a value as JSON: numbers as numbers, NULL as null, blobs
// as the text of their literal.
func jsonText(v any) []byte {
	switch x := v.(type) {
	case float64:
		if math.IsInf(x, 0) {
			v = text(x, "")
		} else {
			return []byte(realText(x))
		}
	case []byte:
		v = text(x, "")
	}
	b, err := json.Marshal(v)
	if err != nil {
		return []byte("null") // no value of these types is refused
	}
	return b
}

// csvText quotes a field where a comma, quote, line end or blank at an edge
// would be misread.
func csvText(s string) string {
	if s != "" && !strings.ContainsAny(s, ",\"\r\n") && strings.TrimSpace(s) == s {
		return s
	}
	if s == "" {
		return ""
	}
	return `"` + strings.ReplaceAll(s, `"`, `""`) + `"`
}

// quoteName writes a name as an SQL identifier.
func quoteName(name string) string {
	return `"` + strings.ReplaceAll(name, `"`, `""`) + `"`
}

// quoteText writes s as an SQL string.
func quoteText(s string) string {
	return "'" + strings.ReplaceAll(s, "'", "''") + "'"
}
