# Everything a person runs. `make test` is all of it, on a fresh machine too.
SHELL       := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.NOTPARALLEL:

VERSION  ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
# The longest begin first, so that no CPU is idle at the end.
PACKAGES ?= ./internal/e2e ./directory ./internal/store/etcd ./...
# Packages tested at once: each may run an apiserver, so not too many.
P        ?= $(shell n=$$(nproc 2>/dev/null || echo 2); echo $$((n < 4 ? n : 4)))
TIMEOUT  ?= 20m
FUZZTIME ?= 3s
# Flags of `tabard demo`, e.g. DEMO=--no-cluster.
DEMO     ?=
# Name and platforms of `make image`.
IMAGE     ?= localhost/tabard:dev
PLATFORMS ?= linux/amd64,linux/arm64
# File that the counts of `make check` are also written to.
SUMMARY  ?=
PARTS    := go run ./internal/testenv/cmd/parts

.PHONY: help demo build plugins image test deps tools lint check fuzz soak bench clean

help: ## show this
	@awk -F ':.*## ' '/^[a-z]+:.*## /{printf "make %-7s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: ## sign-in page, sample directory and a real cluster on this machine; only Go is needed
	@command -v go >/dev/null || { echo "demo: the go command is not in PATH: install Go 1.26 or newer from https://go.dev/dl" >&2; exit 1; }
	@echo "demo: building tabard and kubectl-tabard, which takes a minute or two the first time"
	@$(MAKE) --no-print-directory build
	@./bin/tabard demo $(DEMO)

build: ## static binaries in ./bin
	CGO_ENABLED=0 go build -trimpath -ldflags "-s -w -X main.version=$(VERSION)" -o bin/ ./cmd/...

plugins: ## kubectl-tabard for Linux, macOS and Windows in ./bin
	for os in linux darwin windows; do for arch in amd64 arm64; do \
		GOOS=$$os GOARCH=$$arch CGO_ENABLED=0 go build -trimpath -ldflags "-s -w -X main.version=$(VERSION)" \
			-o bin/kubectl-tabard-$$os-$$arch$$(test $$os != windows || echo .exe) ./cmd/kubectl-tabard; done; done

image: ## container image in bin/tabard.oci.tar, IMAGE=localhost/tabard:dev; no engine needed
	@SOURCE_DATE_EPOCH=$${SOURCE_DATE_EPOCH:-$$(git log -1 --format=%ct 2>/dev/null || echo 0)} go run ./deploy/image -o bin/tabard.oci.tar -name "$(IMAGE)" -version "$(VERSION)" -platforms "$(PLATFORMS)"

test: deps tools lint build check fuzz ## everything below but soak and bench; installs what it needs where it may

deps: ## install the Debian packages that tests need, as root
	@internal/testenv/install.sh

tools: ## build kube-apiserver, kubectl, etcd, kubelogin, Helm, k9s and staticcheck into a cache outside the checkout
	@$(PARTS)

lint: ## gofmt, go vet, staticcheck, import arrows and the other rules of the house
	@unformatted=$$(gofmt -l .); if [ -n "$$unformatted" ]; then echo "run gofmt -w on:" $$unformatted; exit 1; fi
	go vet ./...
	for os in darwin windows; do GOOS=$$os CGO_ENABLED=0 go vet ./cmd/kubectl-tabard ./internal/api; done
	"$$($(PARTS) -q staticcheck)" ./...
	go test -count=1 ./internal/lint

# What tests draw at random they draw alike each time: what was green stays green. A soak
# draws anew.
check: export RAPID_SEED ?= 20261122
check: ## all tests with the race detector, PACKAGES=./... TIMEOUT=20m P=2
	go run ./internal/testenv/cmd/tally -summary "$(SUMMARY)" -- -race -count=1 -timeout $(TIMEOUT) -p $(P) $(PACKAGES)

fuzz: ## each fuzz target for FUZZTIME=3s
	@internal/testenv/fuzz.sh $(FUZZTIME)

soak: ## all tests ten times over, 500 kills and 1,000 logins a fault each time, minutes of rotation, refreshes and informers, long fuzzing: hours
	TABARD_SOAK_KILLS=500 TABARD_SOAK_LOGINS=1000 go test -race -count=10 -timeout 4h -p $(P) $(PACKAGES)
	TABARD_SOAK_ROTATION=10m TABARD_SOAK_REFRESH=5m TABARD_SOAK_PROXY=10m go test -race -count=1 -timeout 1h -run '^(TestRotation|TestRacingRefreshes|TestProxyInformers)$$' ./internal/e2e
	@internal/testenv/fuzz.sh 5m

bench: ## all benchmarks
	go test -run '^$$' -bench . -benchmem -p 1 $(PACKAGES)

clean: ## remove ./bin; what `make tools` built stays in the cache
	rm -rf bin
