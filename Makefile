# What a person types. `make demo` and `make test` work from a fresh clone on Debian 12.

ARCH ?= $(shell uname -m)
# A configured kernel or rootfs goes before ours.
export BOUVET_KERNEL ?= $(CURDIR)/images/output/vmlinux
export BOUVET_ROOTFS ?= $(CURDIR)/images/output/debian-devbox.ext4
# The server confines VMs better as root. A user who may not become root runs it without. Its configuration must get
# through sudo.
MAY_SUDO := $(filter sudo wheel admin,$(shell id -nG 2>/dev/null))$(shell sudo -n true 2>/dev/null && echo yes)
AS_ROOT := $(if $(filter 0,$(shell id -u)),,$(if $(MAY_SUDO),sudo \
	--preserve-env=$(shell env | sed -n 's/^\(BOUVET_[A-Z_]*\|RUST_LOG\)=.*/\1/p' | paste -sd,),BOUVET_KERNEL,BOUVET_ROOTFS,BOUVET_TRANSPORT))

# Where `make install` puts things. DESTDIR goes before all of them, for packages.
PREFIX ?= /usr/local
DESTDIR ?=
# The default of BOUVET_KERNEL and BOUVET_ROOTFS; below another prefix, where its executables look.
IMAGE_DIR ?= $(if $(filter /usr /usr/%,$(PREFIX)),/var/lib/bouvet,$(PREFIX)/share/bouvet)
BASH_DIR = $(PREFIX)/share/bash-completion/completions
ZSH_DIR = $(PREFIX)/share/zsh/site-functions
FISH_DIR = $(PREFIX)/share/fish/vendor_completions.d
# Where cargo was installed by this very run, or by rustup without a new login.
export PATH := $(PATH):$(HOME)/.cargo/bin

MEMORY_SIZES ?= 128,256,512,768,1024,4096

.PHONY: help demo install uninstall test memory run bench figures images kernel rootfs build check deps clean

help: ## Show this list
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 12

demo: deps build images ## Build everything, then use every tool once in a real VM
	@$(AS_ROOT) target/release/bouvet demo

install: ## Install binaries, images and completions that were made [PREFIX=/usr/local DESTDIR=]
	@scripts/install.sh "$(DESTDIR)" "$(PREFIX)/bin" "$(IMAGE_DIR)" "$(BASH_DIR)" "$(ZSH_DIR)" "$(FISH_DIR)"

uninstall: ## Remove what `make install` installed, but no data [PREFIX=/usr/local DESTDIR=]
	@scripts/install.sh --remove "$(DESTDIR)" "$(PREFIX)/bin" "$(IMAGE_DIR)" "$(BASH_DIR)" "$(ZSH_DIR)" "$(FISH_DIR)"

test: deps images ## Run all tests, and say how many ran and which were skipped
	@scripts/test.sh

memory: deps images ## Test sandboxes of every size at the limits of their memory
	@BOUVET_TEST_MEMORY_MIB=$(MEMORY_SIZES) cargo test -p bouvet-e2e --test memory -- --nocapture

run: deps build images ## Serve MCP on http://localhost:8080/mcp
	@BOUVET_TRANSPORT=http $(AS_ROOT) target/release/bouvet-mcp

bench: deps build images ## Measure, against targets and podman [BENCH="--only calls --repeat 5"]
	@$(AS_ROOT) target/release/bouvet bench $(BENCH)

figures: deps build images ## Measure everything, and put it into docs/performance.md
	@$(AS_ROOT) target/release/bouvet bench --only creation,rivals,calls,files,memory,alive,burst,soak \
		--concurrency 8 --markdown docs/performance.md --svg docs/performance.svg $(BENCH)
	@$(AS_ROOT) target/release/bouvet bench --only images --markdown docs/performance.md --block images
	@$(AS_ROOT) target/release/bouvet bench --only network --markdown docs/performance.md --block network

images: kernel rootfs ## Make what VMs boot from, unless it is there

kernel: ## Make images/output/vmlinux [ARCH=x86_64|aarch64]
	@images/kernel.sh $(ARCH)

rootfs: ## Make images/output/debian-devbox.ext4 [ARCH=x86_64|aarch64], or devbox-full.ext4 [BASE=full]
	@images/rootfs.sh $(ARCH)

build: ## Build the binaries into target/release
	@cargo build --release -p bouvet -p bouvet-mcp

check: ## Check format and lints
	@cargo fmt --all --check
	@rustfmt --check --edition 2024 crates/host/preload/clone_memory.rs
	@cargo clippy --workspace --all-targets --all-features -- -D warnings

deps: ## Install what is missing, through apt
	@scripts/deps.sh

clean: ## Remove what was built, but not the images
	@cargo clean
