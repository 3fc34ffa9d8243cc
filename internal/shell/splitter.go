package shell

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"
)

// phase is how far a statement has come, as much of it as decides where it
// ends: a semicolon ends every statement but CREATE TRIGGER, whose last words
// are "; END;". It is the rule of https://sqlite.org/c3ref/complete.html.
type phase uint8

const (
	phaseStart      phase = iota // nothing but blanks and comments yet
	phaseExplain                 // after EXPLAIN: CREATE may follow
	phaseCreate                  // after CREATE [TEMP]: TRIGGER may follow
	phaseOther                   // ends at the next semicolon
	phaseTrigger                 // within CREATE TRIGGER
	phaseTriggerEnd              // after a semicolon in it: END may follow
	phaseTriggerFin              // after that END: a semicolon ends the trigger
)

// lexeme is what the scanner stands in.
type lexeme byte

const (
	inCode         lexeme = 0
	inLineComment  lexeme = '-'
	inBlockComment lexeme = '*'
	// The quotes stand for themselves: ' " ` and ] for [.
)

// splitter cuts text into statements. Text comes in pieces, cut anywhere.
type splitter struct {
	text  []byte
	pos   int // text before it was scanned
	state phase
	lex   lexeme
}

// add appends text.
func (s *splitter) add(text string) { s.text = append(s.text, text...) }

// next returns the next complete statement with its semicolon; ok is false
// when there is none yet. Empty statements are left out.
func (s *splitter) next() (statement string, ok bool) {
	for s.pos < len(s.text) {
		if s.step(false) {
			statement, empty := string(s.text[:s.pos]), s.state == phaseStart
			s.text = s.text[s.pos:]
			s.pos, s.state = 0, phaseStart
			if !empty {
				return strings.TrimSpace(statement), true
			}
			continue
		}
		if s.stalled() {
			break
		}
	}
	return "", false
}

// rest takes out what is left, which has no end: a last statement without a
// semicolon, or an unfinished one. ok is false when nothing is there but
// blanks and comments.
func (s *splitter) rest() (statement string, ok bool) {
	if statement, ok := s.next(); ok {
		return statement, true
	}
	for s.pos < len(s.text) {
		s.step(true)
	}
	statement, ok = strings.TrimSpace(string(s.text)), s.state != phaseStart
	*s = splitter{}
	return statement, ok
}

// pending says that a statement has begun.
func (s *splitter) pending() bool {
	if s.state != phaseStart || s.lex != inCode {
		return true
	}
	return strings.TrimSpace(string(s.text[s.pos:])) != ""
}

// reset drops everything.
func (s *splitter) reset() { *s = splitter{} }

// stalled says that what is left may be the front of a longer token.
func (s *splitter) stalled() bool {
	left := s.text[s.pos:]
	if len(left) == 0 {
		return false
	}
	if s.lex != inCode {
		return len(left) < 2
	}
	if c := left[0]; c == '-' || c == '/' {
		return len(left) == 1
	}
	return isWord(left[0]) && wordLen(left) == len(left)
}

// step scans one token, or the inside of one as far as it goes. It returns
// true after a semicolon that ends a statement. final says that no more text
// follows.
func (s *splitter) step(final bool) bool {
	if !final && s.stalled() {
		return false
	}
	left := s.text[s.pos:]
	c := left[0]
	two := len(left) > 1
	switch s.lex {
	case inLineComment:
		s.pos++
		if c == '\n' {
			s.lex = inCode
		}
		return false
	case inBlockComment:
		s.pos++
		if c == '*' && two && left[1] == '/' {
			s.pos++
			s.lex = inCode
		}
		return false
	case inCode:
	default:
		s.pos++
		if c == byte(s.lex) {
			if c != ']' && two && left[1] == c {
				s.pos++ // a doubled quote is one of the text
			} else {
				s.lex = inCode
			}
		}
		return false
	}
	switch {
	case c == ' ' || c == '\t' || c == '\n' || c == '\r' || c == '\f':
		s.pos++
	case c == '-' && two && left[1] == '-':
		s.pos, s.lex = s.pos+2, inLineComment
	case c == '/' && two && left[1] == '*':
		s.pos, s.lex = s.pos+2, inBlockComment
	case c == ';':
		s.pos++
		switch s.state {
		case phaseTrigger, phaseTriggerEnd:
			s.state = phaseTriggerEnd
		default:
			return true
		}
	case c == '\'' || c == '"' || c == '`':
		s.pos, s.lex = s.pos+1, lexeme(c)
		s.token("")
	case c == '[':
		s.pos, s.lex = s.pos+1, ']'
		s.token("")
	case isWord(c):
		n := wordLen(left)
		s.pos += n
		s.token(strings.ToUpper(string(left[:min(n, 10)])))
	default:
		s.pos++
		s.token("")
	}
	return false
}

// token moves the phase on by a word in capitals, or by anything else.
func (s *splitter) token(word string) {
	switch s.state {
	case phaseStart:
		switch word {
		case "EXPLAIN":
			s.state = phaseExplain
		case "CREATE":
			s.state = phaseCreate
		default:
			s.state = phaseOther
		}
	case phaseExplain:
		switch word {
		case "QUERY", "PLAN":
		case "CREATE":
			s.state = phaseCreate
		default:
			s.state = phaseOther
		}
	case phaseCreate:
		switch word {
		case "TEMP", "TEMPORARY":
		case "TRIGGER":
			s.state = phaseTrigger
		default:
			s.state = phaseOther
		}
	case phaseTriggerEnd:
		s.state = phaseTrigger
		if word == "END" {
			s.state = phaseTriggerFin
		}
	case phaseTriggerFin:
		s.state = phaseTrigger
	}
}

func isWord(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '_' || c == '$' || c >= 0x80
}

func wordLen(b []byte) int {
	for i, c := range b {
		if !isWord(c) {
			return i
		}
	}
	return len(b)
}

// Statements calls f with each statement of a script, and the line on which it ends.
func Statements(r io.Reader, f func(statement string, line int) error) error {
	var sp splitter
	line := 1
	drain := func() error {
		for {
			text := sp.text
			statement, ok := sp.next()
			line += bytes.Count(text[:len(text)-len(sp.text)], newline)
			if !ok {
				return nil
			}
			if err := f(statement, line); err != nil {
				return err
			}
		}
	}
	buf := make([]byte, 64<<10)
	for {
		n, err := r.Read(buf)
		sp.add(string(buf[:n]))
		if derr := drain(); derr != nil {
			return derr
		}
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return fmt.Errorf("read script: %w", err)
		}
	}
	statement, ok := sp.rest()
	if !ok {
		return nil
	}
	return f(statement, line)
}

var newline = []byte("\n")
