# make help says what there is.

PREFIX     ?= /usr
# Where the target's Python looks for packages; distributions set this.
PYTHONDIR  ?= $(shell /usr/bin/python3 -c 'import sysconfig as s; n = "deb_system" if "deb_system" in s.get_scheme_names() else s.get_default_scheme(); print(s.get_path("purelib", n, vars={"base": "$(PREFIX)"}))')
DRACUTDIR  ?= $(PREFIX)/lib/dracut/modules.d
UNITDIR    ?= $(PREFIX)/lib/systemd/system
KERNELDIR  ?= $(PREFIX)/lib/kernel/install.d
PRESETDIR  ?= $(PREFIX)/lib/systemd/system-preset
SYSCTLDIR  ?= $(PREFIX)/lib/sysctl.d
MANDIR     ?= $(PREFIX)/share/man
BASHDIR    ?= $(PREFIX)/share/bash-completion/completions
ZSHDIR     ?= $(PREFIX)/share/zsh/site-functions
FISHDIR    ?= $(PREFIX)/share/fish/vendor_completions.d

# The units outside of the initramfs.
SYSTEM_UNITS := $(addprefix secex-firstboot-,grow.service hosts.service hosts.timer image.service restart.service tidy.service update.path update.service)

# They spawn pvimg or genprotimg: libostree, and rdcore of CoreOS.
CALLERS := ostree-finalize-staged.service rpm-ostreed.service coreos-ignition-firstboot-complete.service

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
# So long after make began, a sample's next case has no turn any more, and 20 minutes later no test: a slow
# machine looks at fewer.
CHECK_MINUTES ?= 40
export CHECK_BEGAN := $(or $(CHECK_BEGAN),$(shell date +%s))
export CHECK_MINUTES

VERSION  := $(shell sed -n 's/^version = "\(.*\)"$$/\1/p' pyproject.toml)
# Where packages are built, and what of.
DEB      ?= build/deb
RPM      ?= build/rpm
PACKAGED := Makefile $(shell find *.* LICENSE secex_firstboot dracut systemd docs packaging -type f -not -path '*/__pycache__/*')
SOURCE   := tar --exclude-vcs --exclude=./build --exclude=__pycache__ --exclude='*.egg-info' --exclude='.*_cache' --exclude=.hypothesis -c .
DEB_TOOLS := dpkg-dev debhelper dh-python (Debian 12: debhelper from bookworm-backports)

.PHONY: help demo check check-long check-unit fuzz check-vm test-system completions soak lint lint-deb lint-rpm bench manual install deb rpm setup setup-python clean
help: ## Say what there is
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST) | expand -t 20

demo: setup ## Provision a guest from an SE-ready image, live, and prove what came of it (root, Debian 12+)
	$(VM) vm-tests/demo.py

check: setup ## The tests, unit and in guests; of the many cases a sample (CHECK_SEED draws it again) (root, Debian 12+)
	$(MAKE) --no-print-directory --jobs=2 --output-sync=target test-system check-unit fuzz
	$(MAKE) --no-print-directory check-vm

check-long: ## All tests, and all of their cases
	$(MAKE) --no-print-directory CHECKED=--long check

check-unit: setup-python lint ## The tests that run anywhere, as anybody; what a test lacks, it says
	$(PYTHON) -m pytest -q -n auto $(FUZZ:%=--ignore=%) tests

fuzz: setup-python ## Throw damaged configs and documents at the readers, FUZZ_SECONDS long
	FUZZ_SECONDS=$(FUZZ_SECONDS) $(PYTHON) -m pytest -q $(FUZZ)

check-vm: setup ## The tests that boot guests
	PYTHONUNBUFFERED=1 $(PYTHON) -m pytest --verbose --instafail --durations=20 $(GUESTS) $(CHECKED) vm-tests

test-system: setup ## Build the Debian system that the guests are made of, unless it is in the cache
	$(VM) -m harness.debian

completions: setup-python ## Make the shells' completions of the commands anew, into packaging/completions
	$(PYTHON) packaging/completions.py

soak: setup ## N power cuts of first boots, N of updates, at moments drawn from a seed (POWER_CUT_SEED finds them again)
	POWER_CUTS=$(N) $(PYTHON) -m pytest -q $(GUESTS) vm-tests/test_power_cut.py vm-tests/test_update_cut.py

lint: setup-python ## Format, rules, types, shell
	$(VENV)/bin/ruff format --check --quiet .
	$(VENV)/bin/ruff check --quiet .
	$(VENV)/bin/mypy
	@command -v shellcheck > /dev/null || { echo "make lint: shellcheck is not installed, nothing looks at the shell scripts"; exit 0; }; \
	shellcheck dracut/*.sh vm-tests/*.sh vm-tests/dracut/*.sh .ci/run
	@$(MAKE) --no-print-directory --silent lint-deb lint-rpm

# The bug that an upload to Debian closes is there only for an upload.
lint-deb:
	command -v lintian > /dev/null || { echo "make lint: lintian is not installed, nothing looks at the deb"; exit 0; }; \
	$(MAKE) deb && lintian --allow-root --fail-on=error,warning --suppress-tags=initial-upload-closes-no-bugs $(DEB)/*.changes

lint-rpm:
	command -v rpmlint > /dev/null || { echo "make lint: rpmlint is not installed, nothing looks at the rpm"; exit 0; }; \
	$(MAKE) rpm && rpmlint --config=packaging/rpm/rpmlint.toml packaging/rpm/*.spec $(RPM)/*.rpm > $(RPM)/rpmlint || { cat $(RPM)/rpmlint; exit 1; }

manual: setup-python ## Write into the manual pages what they have from code and troubleshooting.md
	$(PYTHON) docs/manual.py

bench: setup ## Measure: builds, and in guests first boots, later boots, updates (ONLY=--build, ONLY=--later)
	$(VM) vm-tests/bench.py $(ONLY)

# Both packages are made of what this installs; which has what: packaging/deb/*.install, %files of the spec.
install: ## Install package, dracut module and units below DESTDIR
	python3 packaging/install.py "$(DESTDIR)$(PYTHONDIR)" "$(DESTDIR)$(PREFIX)/bin" "$(DESTDIR)$(PREFIX)/lib/secex-firstboot/bin"
	install -D -m 755 -t "$(DESTDIR)$(DRACUTDIR)/50secex-firstboot" dracut/*.sh
	install -D -m 644 dracut/secex-firstboot.conf "$(DESTDIR)$(PREFIX)/lib/dracut/dracut.conf.d/50-secex-firstboot.conf"
	install -D -m 755 dracut/check-volume.sh "$(DESTDIR)$(PREFIX)/lib/secex-firstboot/check-volume"
	install -D -m 644 -t "$(DESTDIR)$(DRACUTDIR)/50secex-firstboot" dracut/trace-imports.py dracut/no-local-login.ign
	install -D -m 644 -t "$(DESTDIR)$(DRACUTDIR)/50secex-firstboot" \
	    $(filter-out %.preset %/our-path.conf $(SYSTEM_UNITS:%=systemd/%),$(wildcard systemd/*))
	install -D -m 644 -t "$(DESTDIR)$(UNITDIR)" $(SYSTEM_UNITS:%=systemd/%)
	for unit in $(CALLERS); do \
	    install -D -m 644 systemd/our-path.conf "$(DESTDIR)$(UNITDIR)/$$unit.d/50-secex-firstboot.conf" || exit 1; done
	install -D -m 755 packaging/kernel-install "$(DESTDIR)$(KERNELDIR)/95-secex-firstboot.install"
	install -D -m 644 systemd/secex-firstboot.preset "$(DESTDIR)$(PRESETDIR)/80-secex-firstboot.preset"
	install -D -m 644 systemd/secex-firstboot.sysctl "$(DESTDIR)$(SYSCTLDIR)/90-secex-firstboot.conf"
	for page in docs/*.[1-8]; do \
	    install -D -m 644 -t "$(DESTDIR)$(MANDIR)/man$${page##*.}" "$$page" || exit 1; done
	install -D -m 644 -t "$(DESTDIR)$(PREFIX)/share/secex-firstboot" docs/*.schema.json
	install -D -m 644 -t "$(DESTDIR)$(BASHDIR)" packaging/completions/bash/*
	install -D -m 644 -t "$(DESTDIR)$(ZSHDIR)" packaging/completions/zsh/*
	install -D -m 644 -t "$(DESTDIR)$(FISHDIR)" packaging/completions/fish/*

deb: $(DEB)/done ## Build the packages secex-firstboot and secex-tools for Debian, into build/deb

$(DEB)/done: $(PACKAGED)
	@dpkg-checkbuilddeps -I packaging/deb/control || { echo "make deb: apt-get install $(DEB_TOOLS)" >&2; exit 1; }
	rm -rf $(DEB)/source $(DEB)/secex-*
	mkdir -p $(DEB)/source
	$(SOURCE) | tar -x -C $(DEB)/source
	cp -r packaging/deb $(DEB)/source/debian
	cd $(DEB)/source && dpkg-buildpackage --build=binary --no-check-builddeps --no-sign > ../log 2>&1 || { cat ../log; exit 1; }
	touch $@

rpm: $(RPM)/done ## Build the same for Fedora, into build/rpm (RPM_PYTHONDIR= its Python's site-packages, from elsewhere)

$(RPM)/done: $(PACKAGED)
	@command -v rpmbuild > /dev/null || { echo "make rpm: apt-get install rpm (Fedora: dnf install rpm-build)" >&2; exit 1; }
	rm -rf $(RPM)/source $(RPM)/work $(RPM)/*.rpm
	mkdir -p $(RPM)/source
	$(SOURCE) --transform 's,^\.,secex-firstboot-$(VERSION),' -z > $(RPM)/source/secex-firstboot-$(VERSION).tar.gz
	rpmbuild -bb --quiet $(if $(wildcard /etc/debian_version),--nodeps --load=packaging/rpm/macros.debian) \
	    --define '_topdir $(abspath $(RPM))/work' --define '_sourcedir $(abspath $(RPM))/source' \
	    --define '_rpmdir $(abspath $(RPM))' --define '_build_name_fmt %%{NAME}-%%{VERSION}-%%{RELEASE}.%%{ARCH}.rpm' \
	    $(if $(RPM_PYTHONDIR),--define 'python3_sitelib $(RPM_PYTHONDIR)') \
	    packaging/rpm/secex-firstboot.spec > $(RPM)/log 2>&1 || { cat $(RPM)/log; exit 1; }
	touch $@

# For what boots guests or builds systems.
setup:
	@vm-tests/setup.sh
	@$(MAKE) --no-print-directory setup-python

setup-python: $(VENV)/ready

$(VENV)/ready: pyproject.toml
	python3 -m venv $(VENV)
	$(PYTHON) -m pip install --quiet --disable-pip-version-check --editable '.[test]'
	touch $@

clean: ## Remove what was built here; the cache of built systems stays
	rm -rf build
