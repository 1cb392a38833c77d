#!/usr/bin/env bash
# Runs each fuzz target of the module for a while: fuzz.sh 3s
set -euo pipefail

# fuzz runs one target. When the time is up while a worker is busy, go's fuzzer can
# fail for that alone: it names no input then, and is run again.
fuzz() {
	for _ in 1 2 3; do
		if out=$(go test -run '^$' -fuzz "^$2\$" -fuzztime "$3" -fuzzminimizetime 1x "$1" 2>&1 </dev/null); then
			echo "fuzz $1 $2: $(grep 'execs:' <<<"$out" | tail -n 1)"
			return
		fi
		grep -q 'context deadline exceeded' <<<"$out" && ! grep -q 'Failing input' <<<"$out" || break
	done
	echo "$out"
	return 1
}

while IFS=: read -r file func; do
	fuzz "$(dirname "$file")" "${func#func }" "$1"
done < <(grep -rHoE '^func Fuzz[[:alnum:]_]+' --include='*_test.go' .)
