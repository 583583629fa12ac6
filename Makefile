# make help says what there is.

PREFIX     ?= /usr
# Where the target's Python looks for packages; distributions set this.
PYTHONDIR  ?= $(shell /usr/bin/python3 -c 'import sysconfig as s; n = "deb_system" if "deb_system" in s.get_scheme_names() else s.get_default_scheme(); print(s.get_path("purelib", n, vars={"base": "$(PREFIX)"}))')
DRACUTDIR  ?= $(PREFIX)/lib/dracut/modules.d
MANDIR     ?= $(PREFIX)/share/man

VENV   := build/venv
PYTHON := $(VENV)/bin/python
VM     := PYTHONPATH=vm-tests $(PYTHON)

.PHONY: help demo check check-unit check-vm lint bench install setup clean
help: ## Say what there is
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST) | expand -t 20

demo: setup ## Provision a guest from an SE-ready image, live, and prove what came of it (root, Debian 12+)
	$(VM) vm-tests/demo.py

check: check-unit check-vm ## All tests, unit and in guests (root, Debian 12+)

check-unit: setup lint ## The tests that run anywhere, in a minute
	$(PYTHON) -m pytest -q tests

check-vm: setup ## The tests that boot guests
	$(PYTHON) -m pytest -q -n 2 --dist loadfile vm-tests

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
	printf '%s\n' '#!/usr/bin/python3 -I' 'from secex_firstboot.cli import main' 'raise SystemExit(main())' \
	    > "$(DESTDIR)$(PREFIX)/bin/secex-firstboot"
	chmod 755 "$(DESTDIR)$(PREFIX)/bin/secex-firstboot"
	install -D -m 755 -t "$(DESTDIR)$(DRACUTDIR)/50secex-firstboot" dracut/module-setup.sh
	install -D -m 644 -t "$(DESTDIR)$(DRACUTDIR)/50secex-firstboot" dracut/trace-imports.py
	install -D -m 644 -t "$(DESTDIR)$(DRACUTDIR)/50secex-firstboot" \
	    systemd/secex-firstboot*.service systemd/sysroot-boot.mount systemd/*.conf
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
