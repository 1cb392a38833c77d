#!/usr/bin/env bash
# Runs each fuzz target of the module for a while, as many at once as there are CPUs:
# fuzz.sh 3s
set -euo pipefail

# compile builds the tests of a package for fuzzing: compile ./idp
compile() { go test -c -fuzz . -o "$BINARIES/${1//\//,}" "$1"; }

# fuzz runs one target: fuzz ./idp FuzzX. When the time is up while a worker is busy,
# go's fuzzer can fail for that alone: it names no input then, and is run again.
fuzz() {
	for _ in 1 2 3; do
		if out=$(cd "$1" && "$BINARIES/${1//\//,}" -test.run '^$' -test.fuzz "^$2\$" -test.fuzztime "$TIME" -test.fuzzminimizetime 1x \
			-test.fuzzcachedir "$CACHE/$1" -test.parallel 1 2>&1 </dev/null); then
			echo "fuzz $1 $2: $(grep 'execs:' <<<"$out" | tail -n 1)"
			return
		fi
		grep -q 'context deadline exceeded' <<<"$out" && ! grep -q 'Failing input' <<<"$out" || break
	done
	echo "$out"
	return 1
}

TIME=$1 CACHE=$(go env GOCACHE)/fuzz/tabard BINARIES=$(mktemp -d)
trap 'rm -rf "$BINARIES"' EXIT
export TIME CACHE BINARIES
export -f compile fuzz
targets=$(grep -rHoE '^func Fuzz[[:alnum:]_]+' --include='*_test.go' . | sed -E 's,/[^/]*:func , ,')
cut -d ' ' -f 1 <<<"$targets" | sort -u | xargs -P "$(nproc)" -I{} bash -euo pipefail -c 'compile {}'
xargs -P "$(nproc)" -L 1 bash -euo pipefail -c 'fuzz "$@"' - <<<"$targets"
