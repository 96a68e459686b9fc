# What a newcomer runs. Each target is a short script or a cargo command: nothing is hidden here.

PREFIX ?= /usr/local
# rustup's directory is not on the PATH of a shell without its profile.
export PATH := $(PATH):$(HOME)/.cargo/bin

.DEFAULT_GOAL := help
.PHONY: help setup build quickstart test lint bench bench-disk bench-firecracker bench-network install clean

help: ## show this list
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST) | expand -t 18
	@echo
	@echo "Downloads and guest kernels are kept in $${COWSLIP_CACHE:-$${XDG_CACHE_HOME:-~/.cache}/cowslip}."

setup: ## install what is missing to build and run (asks for root only then)
	@scripts/setup

build: setup ## build the command line and the guest agent, optimised
	cargo build --release
	@install -m 0755 "$$(scripts/build-agent)" "$${CARGO_TARGET_DIR:-target}/release/cowslip-agent"

quickstart: build ## run the main job on real guests: import, run, checkpoint, fork
	@scripts/quickstart

test: ## run every test, the ones on real guests included
	@scripts/setup --guest-kernel
	@scripts/test

lint: setup ## check formatting, lints and layers
	@scripts/lint

bench: build ## measure against plain QEMU and mke2fs, side by side
	@environment=$$(scripts/test-assets rootfs debian-kernel guest-kernel) && . "$$environment" && cargo run --release --package cowslip-benches

bench-disk: setup ## measure disks on device-mapper against commands and bare devices, in the test VM
	@environment=$$(scripts/test-assets) && . "$$environment" && scripts/bench-disk

bench-firecracker: setup ## measure sandboxes in Firecracker against its bare calls, in the test VM
	@environment=$$(scripts/test-assets) && . "$$environment" && scripts/bench-firecracker

bench-network: ## measure sandboxes' networks against ip, nft and bare taps, in namespaces (as root)
	@scripts/setup --benches
	@environment=$$(scripts/test-assets rootfs guest-kernel) && . "$$environment" && scripts/bench-network

install: build ## install to PREFIX (default /usr/local), under DESTDIR if it is set
	install -D -m 0755 "$${CARGO_TARGET_DIR:-target}/release/cowslip" "$(DESTDIR)$(PREFIX)/bin/cowslip"
	install -D -m 0755 "$${CARGO_TARGET_DIR:-target}/release/cowslip-agent" "$(DESTDIR)$(PREFIX)/lib/cowslip/cowslip-agent"

clean: ## remove what was built (the cache stays)
	cargo clean
