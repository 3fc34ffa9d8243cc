package exit

import (
	"errors"
	"fmt"
	"testing"

	"github.com/spf13/cobra"

	"github.com/uglyer/ha-sqlite/internal/api"
)

func TestCode(t *testing.T) {
	for _, tt := range []struct {
		err  error
		want int
	}{
		{nil, 0},
		{errors.New("odd"), 1},
		{Usagef("no %s", "x"), 2},
		{api.ErrInvalid, 2},
		{Args(cobra.NoArgs)(&cobra.Command{}, []string{"x"}), 2},
		{Args(cobra.NoArgs)(&cobra.Command{}, nil), 0},
		{fmt.Errorf("info: %w", api.ErrNotFound), 3},
		{api.ErrUnreachable, 4},
		{api.ErrNoLeader, 4},
		{api.ErrUnavailable, 4},
		{With(Differs, errors.New("d")), 5},
		{fmt.Errorf("wrapped: %w", With(Differs, errors.New("d"))), 5},
		{api.ErrExists, 6},
		{api.ErrInUse, 6},
		{api.ErrTimeout, 7},
		{With(Differs, nil), 0},
	} {
		if got := Code(tt.err); got != tt.want {
			t.Errorf("%v: got %d, want %d", tt.err, got, tt.want)
		}
	}
	if err := With(Usage, api.ErrExists); !errors.Is(err, api.ErrExists) || err.Error() != api.ErrExists.Error() {
		t.Errorf("With hides the error: %v", err)
	}
}
