package store

import (
	"fmt"
	"strings"
)

// CheckKey reports, as ErrInvalid, a key that is not "kind/rest" or is longer than
// MaxKey. Every back end calls it, so that all refuse the same.
func CheckKey(key string) error {
	kind, rest, _ := strings.Cut(key, "/")
	switch {
	case kind == "" || rest == "":
		return fmt.Errorf("key %.80q is not kind/rest: %w", key, ErrInvalid)
	case len(key) > MaxKey:
		return fmt.Errorf("key %.80q… has more than %d bytes: %w", key, MaxKey, ErrInvalid)
	}
	return nil
}

// CheckLimit reports, as ErrInvalid, a limit of List outside of 1..MaxList.
func CheckLimit(limit int) error {
	if limit < 1 || limit > MaxList {
		return fmt.Errorf("limit %d is not in 1..%d: %w", limit, MaxList, ErrInvalid)
	}
	return nil
}

// CheckTxn reports what no back end takes: a bad key or a key twice (ErrInvalid),
// or more than MaxOps or MaxBytes (ErrTooLarge).
func CheckTxn(conds []Cond, ops []Op) error {
	if len(conds) > MaxOps || len(ops) > MaxOps {
		return fmt.Errorf("%d conditions and %d changes, %d are allowed: %w", len(conds), len(ops), MaxOps, ErrTooLarge)
	}
	bytes := 0
	seen := make(map[string]struct{}, max(len(conds), len(ops)))
	for _, c := range conds {
		if err := checkOnce(seen, c.Key); err != nil {
			return err
		}
		bytes += len(c.Key)
	}
	clear(seen)
	for _, op := range ops {
		if err := checkOnce(seen, op.Key); err != nil {
			return err
		}
		bytes += len(op.Key) + len(op.Value)
	}
	if bytes > MaxBytes {
		return fmt.Errorf("%d bytes, %d are allowed: %w", bytes, MaxBytes, ErrTooLarge)
	}
	return nil
}

func checkOnce(seen map[string]struct{}, key string) error {
	if err := CheckKey(key); err != nil {
		return err
	}
	if _, twice := seen[key]; twice {
		return fmt.Errorf("key %.80q occurs twice: %w", key, ErrInvalid)
	}
	seen[key] = struct{}{}
	return nil
}
