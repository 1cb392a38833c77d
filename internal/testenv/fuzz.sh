#!/usr/bin/env bash
# Runs each fuzz target of the module for a while: fuzz.sh 5s
set -euo pipefail
while IFS=: read -r file func; do
	name=${func#func }
	pkg=$(dirname "$file")
	out=$(go test -run '^$' -fuzz "^$name\$" -fuzztime "$1" -fuzzminimizetime 1x "$pkg" 2>&1 </dev/null) || { echo "$out"; exit 1; }
	echo "fuzz $pkg $name: $(grep 'execs:' <<<"$out" | tail -n 1)"
done < <(grep -rHoE '^func Fuzz[[:alnum:]_]+' --include='*_test.go' .)
