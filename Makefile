# SPDX-License-Identifier: GPL-2.0
# For people. What kbuild reads is Kbuild, next to this file.

# Which kernel of tools/setup/config, unless KDIR= names a tree: base, debug or prod. Of
# another architecture or page size it has that in front of its name, without what is usual.
CONFIG ?= base
ARCH ?=
PAGES ?=
arch = $(basename $(notdir $(or $(shell grep -lx MACHINE=$(1) tools/setup/arch/*.env),$(1))))
KERNEL_WORDS := $(filter-out $(call arch,$(shell uname -m)),$(call arch,$(ARCH))) \
	$(filter-out 4k,$(PAGES)) $(filter-out base,$(CONFIG))
KERNEL_NAME := $(or $(shell echo $(KERNEL_WORDS) | tr ' ' -),base)
OUT := $(CURDIR)/out/modules-$(if $(KDIR),custom,$(KERNEL_NAME))

# kbuild reads no Kconfig outside its own tree, so the symbols go on its command
# line. All are built, unless chosen otherwise: make modules CONFIG_PAGEKIT_PIN=n
SYMBOLS := $(shell sed -n 's/^config //p' Kconfig)
BOOLS := $(shell sed -n '/^config /{s///;h;}; /^\tbool /{x;p;}' Kconfig)
$(foreach s,$(SYMBOLS),$(eval CONFIG_$s ?= $(if $(filter $s,$(BOOLS)),y,m)))

# What modinfo shows of each module. src/Cargo.toml has it; CHANGELOG.md says what changed.
VERSION := $(shell sed -n 's/^version = "\(.*\)"/\1/p' src/Cargo.toml)
VERSION_FLAGS := -include $(CURDIR)/src/version.h -DPAGEKIT_VERSION=$(VERSION)

# What is written in Python, once there is one
PYTHON := tools/setup/setup.sh python && PAGEKIT_BEGUN=1 python3

.PHONY: help
help: ## list the targets
	@sed -n 's/^### /\n/p; s/^\([a-z_-]*\):.*## /  make \1\t/p' Makefile | expand -t 23
	@printf '\nSay on the command line\n'
	@echo '  KDIR=<tree>          a kernel tree of yours, built with Rust, instead of a fetched one'
	@echo '  KVER=<x.y>           the series of the kernel that is fetched'
	@echo '  ARCH=<name>          the architecture of the kernel that is fetched: $(sort $(basename $(notdir $(wildcard tools/setup/arch/*.env))))'
	@echo '  PAGES=<4k|16k|64k>   the page size of an arm64 kernel'
	@echo '  PAGEKIT_CACHE=<dir>  where downloads and builds are kept'

### Use it

.PHONY: doctor
doctor: ## say what is installed, what is missing and how to get it
	@tools/setup/setup.sh doctor $(KERNEL_NAME)

.PHONY: setup
setup: ## get all that the other targets need (they do it themselves, too)
	@tools/setup/setup.sh kernel $(KERNEL_NAME)

.PHONY: update
update: ## the same, with the newest patch level of the kernel series
	@PAGEKIT_UPDATE=1 tools/setup/setup.sh kernel $(KERNEL_NAME)

.PHONY: modules
modules: ## build the modules into out/ [KDIR= | CONFIG=base|debug|prod ARCH= PAGES=]
	@tools/setup/setup.sh modules $(KERNEL_NAME) >/dev/null
	@mkdir -p $(OUT)
	+@env=$$(tools/setup/setup.sh env $(KERNEL_NAME)) && eval "$$env" && \
	printf '%s\n' "KDIR=$$KDIR" "ARCH=$$ARCH" "LLVM=$$LLVM" >$(OUT)/kernel.env && \
	if [ "$$LEFT_OUT" ]; then echo "modules: this kernel can't have these, see make doctor: $$LEFT_OUT" >&2; fi && \
	$(MAKE) --no-print-directory -C "$$KDIR" ARCH="$$ARCH" M=$(CURDIR) MO=$(OUT) $${LLVM:+LLVM=$$LLVM} \
		BITFLAGS="$$BITFLAGS" "CFLAGS_.module-common.o=$(VERSION_FLAGS)" \
		$(foreach s,$(SYMBOLS),CONFIG_$s=$(CONFIG_$s)) $$LEFT_OUT modules
	@# What was built before and is no more would be loaded, too.
	@cd $(OUT) && for ko in *.ko; do grep -qx "$${ko%.ko}.o" modules.order || rm -f "$$ko"; done

.PHONY: modules_install
modules_install: ## install built helpers, and what drivers need [SAMPLES="udmabuf ..." | INSTALL_MOD_PATH=]
	+@src/install.sh $(OUT) $(SAMPLES)

.PHONY: demo
demo: ## share a real file through the sample driver in a VM [FILE=path]
	@$(PYTHON) -m tools.demo $${FILE:+"$$FILE"}

.PHONY: new-driver
new-driver: ## create a driver of your own, outside of here [NAME= | DIR=../NAME KIND=gem]
	@tools/setup/setup.sh modules $(KERNEL_NAME) >/dev/null
	@env=$$(tools/setup/setup.sh env $(KERNEL_NAME)) && eval "$$env" && export KDIR ARCH LLVM && \
	WORDS='$(strip $(foreach w,KDIR KVER ARCH PAGES,$(if $($w),$w=$($w))))' samples/new-driver.sh "$$NAME" "$${DIR:-../$$NAME}" "$${KIND:-template}"

.PHONY: try-driver
try-driver: ## build such a driver, load it in a VM and share a buffer [DIR=]
	@$(PYTHON) -m tools.driver "$$DIR"

.PHONY: rustdoc htmldocs rust-analyzer
rustdoc: ## make the helpers' interfaces HTML, with links into the kernel's
	@$(PYTHON) -m tools.docs rustdoc
htmldocs: ## make Documentation/ HTML
	@$(PYTHON) -m tools.docs htmldocs
rust-analyzer: ## write rust-project.json, for editors
	@$(PYTHON) -m tools.docs rust-analyzer

.PHONY: clean
clean: ## remove what was built here (the cache stays)
	rm -rf out

### Test it

.PHONY: test
test: ## run the tests, or some suites and cases [ONLY="pin udmabuf.fork" [KERNEL=debug] | PARTS=host]
	@$(and $(ONLY),$(PARTS),$(error give ONLY= or PARTS=, not both))
	@$(if $(ONLY),,$(and $(KERNEL),$(error KERNEL= is for ONLY=; for all of a kernel: make test-full PARTS=$(KERNEL))))
	@$(PYTHON) -m tools.test $(if $(ONLY),only $(if $(KERNEL),--kernel $(KERNEL)) "$$ONLY",test $(PARTS))

.PHONY: test-full
test-full: ## run all on the debug kernel too, but for what has passed before [PARTS="debug:races all ..."]
	@$(and $(ONLY)$(KERNEL),$(error ONLY= and KERNEL= are for make test; here it is PARTS="debug:races all ..."))
	@$(PYTHON) -m tools.test full $(PARTS)

.PHONY: soak
soak: ## have threads race for long on the debug kernel [SECONDS=60]
	@$(PYTHON) -m tools.test soak $(SECONDS)

.PHONY: fuzz
fuzz: ## do random things to all devices, on the debug kernel [MINUTES=n SEED=s KERNEL=base]
	@$(PYTHON) -m tools.fuzz $(if $(KERNEL),--kernel $(KERNEL)) $(if $(MINUTES),--minutes $(MINUTES)) $(if $(SEED),--seed $(SEED))

.PHONY: matrix
matrix: ## share buffers of each exporter with each importer, and show when pages are pinned
	@$(PYTHON) -m tools.matrix

.PHONY: clients
clients: ## run Mesa and libcamera on mainline's devices and on ours, side by side
	@$(PYTHON) -m tools.clients

.PHONY: convert
convert: ## convert drivers of the kernel tree, and test them before and after [DRIVER=name BUGS=1]
	@$(PYTHON) -m tools.convert $(if $(BUGS),--bugs) $(DRIVER)

.PHONY: check
check: ## check format, lints, documents, and what the modules link to and call
	@$(PYTHON) -m tools.check

### Measure it

.PHONY: bench
bench: ## measure the helpers and their peers in a VM [CASE="name ..."]
	@$(PYTHON) -m tools.bench $(CASE)

.PHONY: size
size: ## compare drivers that link the helpers with those that have copies
	@$(PYTHON) -m tools.size

.PHONY: coverage
coverage: ## show which lines of src/ and samples/ the tests reach [PARTS="part ..."]
	@$(PYTHON) -m tools.coverage $(PARTS)

.PHONY: mutate
mutate: ## break each line of src/ that checks or releases, and see that tests fail [FILE=src/...]
	@$(PYTHON) -m tools.mutate $(FILE)

### Put it in a kernel tree

.PHONY: intree
intree: ## place it in a kernel tree, or take it out again KDIR= [UNDO=1 [FORCE=1]]
	@$(PYTHON) -m tools.intree $(if $(UNDO),undo,place) $(if $(FORCE),--force)

.PHONY: patches
patches: ## write what make intree does as a series of patches [KDIR=]
	@$(PYTHON) -m tools.intree patches

.PHONY: test-intree
test-intree: ## build and test kernels with it in their tree
	@$(PYTHON) -m tools.intree.test
