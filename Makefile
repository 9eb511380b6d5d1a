# One verb a job; each only calls xtask, so that it is the same by hand and in CI.
XTASK := cargo run --quiet --package xtask --

.PHONY: help setup test test-rdma lint fmt sim bench bench-rdma demo man

help:    ## list the verbs
	@$(XTASK) --help

setup:   ## install what is missing: Debian packages, cargo-deny
	@$(XTASK) setup

test:    ## setup, build, lint, every test: what CI runs
	@$(XTASK) test

test-rdma: ## the tests in virtual machines alone: RDMA verbs (Soft-RoCE), cgroup v2
	@$(XTASK) test-rdma

lint:    ## rustfmt, clippy with warnings denied, cargo-deny
	@$(XTASK) lint

fmt:     ## format all code
	@$(XTASK) fmt

sim:     ## simulate faults in release: make sim SEEDS=100000, make sim SEED=17
	@$(XTASK) sim $(if $(SEEDS),--seeds $(SEEDS)) $(if $(SEED),--seed $(SEED))

bench:   ## run the benchmarks: make bench, make bench ASK="hot_call vacate", make bench QUICK=1, make bench ASK=endurance CALLS=100000000
	@$(XTASK) bench $(ASK) $(if $(QUICK),--quick) $(if $(CALLS),--calls $(CALLS))

bench-rdma: ## the benchmark of RDMA, on this machine's device or else in a virtual machine: make bench-rdma QUICK=1
	@$(XTASK) bench-rdma $(if $(QUICK),--quick)

demo:    ## the main job on a private Slurm; its figures go to target/demo/summary.json
	@$(XTASK) demo

man:     ## write man pages, completions and the configuration's reference page
	@$(XTASK) man
