# make build      the two commands, in bin/
# make extension  hasqlite.so for every language but Go
# make test       all tests, after installing what a Debian machine lacks for them
# make check      what a change has to pass: formatting, vet, staticcheck, tests with the
#                 race detector, the C code under the sanitizers, short fuzzing
# make bench      what is promised about speed, measured in one run, in some twenty minutes; RQLITED=binary
#                 compares with rqlite, BENCHARGS="-json FILE" writes the figures
# make fuzz       every fuzz target for FUZZTIME each
# make growth     what WALs grow to under readers that hold snapshots for HOLD
# make catchup    nodes that were away or are new, at full size
# make soak       200 rounds of faults on a cluster
# make powercut   CUTS power cuts of each role: leader, follower, follower that writes, all nodes; needs root
# make diskfull   FILLS rounds of full disks on a follower, the leader, all nodes (needs root), and failing syncs
# make many       ten thousand idle and a thousand active databases: start, memory, turns
# make large      a transaction of 1 GiB, its VACUUM, and kills in the middle of ones of 256 MiB
# make history    300 commits of 9 databases restored from every level, 1 GiB by us and by litestream, STORMS rounds of
#                 a store in trouble, 1 GiB rolled back by 1000 commits, and forked on XFS (needs root and xfsprogs), kills in
#                 the middle of imports, rollbacks and forks
# make endure     an hour of faults on a cluster with 200 databases; PLOT=file.svg keeps its memory and file handles

GO       ?= go
ifeq ($(origin CC),default)
CC := gcc
endif
FUZZTIME ?= 10s
ROUNDS   ?= 200
CUTS     ?= 50
STORMS   ?= 10
FILLS    ?= 10
HOLD     ?= 3m
HOURS    ?= 1h
PLOT     ?=
BENCHARGS ?=
VERSION  ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo devel)

EXTENSION ?= hasqlite.so
SHIM      := $(filter-out vfs/live.c,$(wildcard vfs/*.c))
LDFLAGS   := -X github.com/uglyer/ha-sqlite/internal/buildinfo.version=$(VERSION)

# Tests that start clusters of processes run one package at a time: they
# measure time, and two clusters on one small machine disturb each other.
CLUSTER_TESTS = ./test/...
OTHER_TESTS   = $$($(GO) list ./... | grep -v /ha-sqlite/test/)

.PHONY: all build extension install-deps test lint tidy check race asan fuzz bench growth many large soak powercut diskfull endure catchup history clean

all: build extension

build:
	$(GO) build -ldflags '$(LDFLAGS)' -o bin/ ./cmd/...

extension: $(EXTENSION)

$(EXTENSION): $(SHIM) $(wildcard vfs/*.h)
	$(CC) -O2 -fPIC -shared -fvisibility=hidden -DHASQLITE_EXT -Wall -Wextra -Werror $(SHIM) -o $@

install-deps:
	@.ci/install

test: install-deps
	$(GO) test -count=1 -timeout 10m $(OTHER_TESTS)
	$(GO) test -count=1 -timeout 15m -p 1 $(CLUSTER_TESTS)
	cd test/gorm && $(GO) test -count=1 -timeout 10m ./...

# staticcheck is pinned by tools/go.mod, which keeps its dependencies out of ours.
build/staticcheck: tools/go.mod tools/go.sum
	cd tools && $(GO) build -o ../build/staticcheck honnef.co/go/tools/cmd/staticcheck

lint: build/staticcheck
	@unformatted=$$(gofmt -l $$(git ls-files '*.go')); test -z "$$unformatted" || { echo "not formatted: $$unformatted"; exit 1; }
	$(GO) vet ./...
	build/staticcheck ./...
	cd test/gorm && $(GO) vet ./... && ../../build/staticcheck ./...

tidy:
	$(GO) mod tidy -diff
	cd tools && $(GO) mod tidy -diff
	cd tools/litestream && $(GO) mod tidy -diff
	cd test/gorm && $(GO) mod tidy -diff

race: install-deps
	$(GO) test -race -count=1 -timeout 20m $(OTHER_TESTS)
	HASQLITE_TEST_RACE=1 $(GO) test -race -count=1 -timeout 40m -p 1 $(CLUSTER_TESTS)

# The C code in the process of the Go tests, under both sanitizers.
asan: install-deps
	CGO_CFLAGS='-g -O1 -fsanitize=undefined -fno-sanitize-recover=undefined' CGO_LDFLAGS=-fsanitize=undefined \
		$(GO) test -asan -count=1 -timeout 30m ./vfs/...

check: lint tidy race asan fuzz

fuzz:
	@set -e; for pkg in $$($(GO) list ./...); do \
		for target in $$($(GO) test -list '^Fuzz' $$pkg | grep '^Fuzz' || true); do \
			echo "$$pkg $$target"; \
			$(GO) test -run '^$$' -fuzz "^$$target\$$" -fuzztime $(FUZZTIME) $$pkg; \
		done; \
	done

bench: install-deps
	$(GO) run ./internal/bench $(BENCHARGS)

growth: install-deps
	$(GO) test -count=1 -timeout 2h -v ./test/growth -hold $(HOLD) -load $(HOLD)

# Nodes that were away: the sizes that are promised.
catchup: install-deps
	$(GO) test -count=1 -timeout 2h -v ./test/catchup -transactions 100000 -databases 1000 -megabytes 2048 -patience 20m
	$(GO) test -count=1 -timeout 30m -v -run TestKilledAtEachStepOfACatchUp ./internal/node -steps

soak: install-deps
	$(GO) test -count=1 -timeout 6h -v -run TestClusterKeepsItsWord ./test/fault -rounds $(ROUNDS)

powercut: install-deps
	$(GO) test -count=1 -timeout 4h -v -run TestPowerCut ./test/fault -cuts $(CUTS)

diskfull: install-deps
	$(GO) test -count=1 -timeout 4h -v -run 'TestDiskFull|TestFailedSync' ./test/fault -fills $(FILLS) -all-syncs

endure: install-deps
	$(GO) test -count=1 -timeout 12h -v -run TestSoak ./test/fault -soak $(HOURS) -soak-databases 200 -soak-fault-every 20s $(if $(PLOT),-soak-plot $(abspath $(PLOT)))

many: install-deps
	$(GO) test -count=1 -timeout 60m -v ./test/many -databases 10000 -nodes 1 -run Idle
	$(GO) test -count=1 -timeout 60m -v ./test/many -databases 10000 -nodes 3 -run Idle
	$(GO) test -count=1 -timeout 60m -v ./test/many -active 1000 -writers 32 -run Active

large: install-deps
	$(GO) test -count=1 -timeout 30m -v -run 'TestLargeTransaction$$' ./test/large -size 1024
	$(GO) test -count=1 -timeout 30m -v -run Killed ./test/large -size 256

history: install-deps
	$(GO) test -count=1 -timeout 2h -v -run TestEveryTransaction ./snapshot/archive -commits 300
	$(GO) test -count=1 -timeout 1h -v -run TestStoreInTrouble ./test/archive -storms $(STORMS)
	$(GO) test -count=1 -timeout 1h -v ./test/archive -every -large-pages 262144 -large-commits 10000
	$(GO) test -count=1 -timeout 2h -v -run TestRollbackUnderReadersAndAWriter ./internal/node -rollback-megabytes 1024 -rollback-commits 1000
	$(GO) test -count=1 -timeout 1h -v -run TestKilledAtEachStepOfAFork ./internal/node -steps
	$(GO) test -count=1 -timeout 1h -v ./test/history -fork-megabytes 1024 -fork-disk xfs -kill-rounds 10
	$(GO) test -count=1 -timeout 1h -v -run OneRow ./test/archive -query-megabytes 1024 -query-commits 5000

clean:
	rm -rf bin build hasqlite.so
	$(GO) clean -testcache
