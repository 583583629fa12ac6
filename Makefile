# make help says what there is.

PREFIX     ?= /usr
# Where the target's Python looks for packages; distributions set this.
PYTHONDIR  ?= $(shell /usr/bin/python3 -c 'import sysconfig as s; n = "deb_system" if "deb_system" in s.get_scheme_names() else s.get_default_scheme(); print(s.get_path("purelib", n, vars={"base": "$(PREFIX)"}))')
DRACUTDIR  ?= $(PREFIX)/lib/dracut/modules.d
UNITDIR    ?= $(PREFIX)/lib/systemd/system
SYSCTLDIR  ?= $(PREFIX)/lib/sysctl.d
MANDIR     ?= $(PREFIX)/share/man

# The units outside of the initramfs.
SYSTEM_UNITS := secex-firstboot-grow.service secex-firstboot-tidy.service

VENV   := build/venv
PYTHON := $(VENV)/bin/python
FUZZ_SECONDS ?= 60
FUZZ   := tests/fuzz/test_readers.py tests/fuzz/test_openpgp.py
N      ?= 20
VM     := PYTHONPATH=vm-tests $(PYTHON)
# Two guests at a time; which tests stay together, and in what order they start: vm-tests/conftest.py.
GUESTS := -n 2 --no-loadscope-reorder

# What is given to the tests that boot guests.
CHECKED :=

.PHONY: help demo check check-long check-unit fuzz check-vm test-system soak lint bench install setup clean
help: ## Say what there is
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST) | expand -t 20

demo: setup ## Provision a guest from an SE-ready image, live, and prove what came of it (root, Debian 12+)
	$(VM) vm-tests/demo.py

check: setup ## The tests, unit and in guests; of the many cases a sample (CHECK_SEED draws it again) (root, Debian 12+)
	$(MAKE) --no-print-directory --jobs=2 --output-sync=target test-system check-unit fuzz
	$(MAKE) --no-print-directory check-vm

check-long: ## All tests, and all of their cases
	$(MAKE) --no-print-directory CHECKED=--long check

check-unit: setup lint ## The tests that run anywhere
	$(PYTHON) -m pytest -q $(FUZZ:%=--ignore=%) tests

fuzz: setup ## Throw damaged configs and documents at the readers, FUZZ_SECONDS long
	FUZZ_SECONDS=$(FUZZ_SECONDS) $(PYTHON) -m pytest -q $(FUZZ)

check-vm: setup ## The tests that boot guests
	$(PYTHON) -m pytest --verbose --instafail --durations=20 $(GUESTS) $(CHECKED) vm-tests

test-system: setup ## Build the Debian system that the guests are made of, unless it is in the cache
	$(VM) -m harness.debian

soak: setup ## N power cuts at moments drawn from a seed (POWER_CUT_SEED finds them again)
	POWER_CUTS=$(N) $(PYTHON) -m pytest -q $(GUESTS) vm-tests/test_power_cut.py

lint: setup
	$(VENV)/bin/ruff format --check --quiet .
	$(VENV)/bin/ruff check --quiet .
	$(VENV)/bin/mypy
	shellcheck dracut/*.sh vm-tests/*.sh vm-tests/dracut/*.sh .ci/run

bench: setup ## Measure, in a guest, copying and building sdboot
	$(VM) vm-tests/bench.py

install: ## Install package, dracut module and units below DESTDIR
	cd secex_firstboot && find . -name '*.py' | while read -r file; do \
	    install -D -m 644 "$$file" "$(DESTDIR)$(PYTHONDIR)/secex_firstboot/$$file" || exit 1; done
	install -d "$(DESTDIR)$(PREFIX)/bin"
	printf '%s\n' '#!/usr/bin/python3 -I' 'from secex_firstboot.cli.firstboot import main' 'raise SystemExit(main())' \
	    > "$(DESTDIR)$(PREFIX)/bin/secex-firstboot"
	chmod 755 "$(DESTDIR)$(PREFIX)/bin/secex-firstboot"
	install -D -m 755 -t "$(DESTDIR)$(DRACUTDIR)/50secex-firstboot" dracut/*.sh
	install -D -m 755 dracut/check-volume.sh "$(DESTDIR)$(PREFIX)/lib/secex-firstboot/check-volume"
	install -D -m 644 -t "$(DESTDIR)$(DRACUTDIR)/50secex-firstboot" dracut/trace-imports.py dracut/no-local-login.ign
	install -D -m 644 -t "$(DESTDIR)$(DRACUTDIR)/50secex-firstboot" \
	    $(filter-out $(SYSTEM_UNITS:%=systemd/%),$(wildcard systemd/*))
	install -D -m 644 -t "$(DESTDIR)$(UNITDIR)" $(SYSTEM_UNITS:%=systemd/%)
	install -d "$(DESTDIR)$(UNITDIR)/multi-user.target.wants"
	ln -sfn -t "$(DESTDIR)$(UNITDIR)/multi-user.target.wants" $(SYSTEM_UNITS:%=../%)
	install -D -m 644 systemd/secex-firstboot.sysctl "$(DESTDIR)$(SYSCTLDIR)/90-secex-firstboot.conf"
	install -D -m 644 -t "$(DESTDIR)$(MANDIR)/man8" docs/secex-firstboot.8

setup: $(VENV)/ready
	@vm-tests/setup.sh

$(VENV)/ready: pyproject.toml
	vm-tests/setup.sh
	python3 -m venv $(VENV)
	$(PYTHON) -m pip install --quiet --disable-pip-version-check --editable '.[test]'
	touch $@

clean: ## Remove what was built here; the cache of built systems stays
	rm -rf build
