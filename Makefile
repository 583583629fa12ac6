# make help says what there is.
PREFIX     ?= /usr
# Where the target's Python looks for packages; distributions set this.
PYTHONDIR  ?= $(shell /usr/bin/python3 -c 'import sysconfig as s; n = "deb_system" if "deb_system" in s.get_scheme_names() else s.get_default_scheme(); print(s.get_path("purelib", n, vars={"base": "$(PREFIX)"}))')
UNITDIR    ?= $(PREFIX)/lib/systemd/system
DRACUTDIR  ?= $(PREFIX)/lib/dracut/modules.d
MANDIR     ?= $(PREFIX)/share/man

.PHONY: install
install: ## Install package, dracut module and units below DESTDIR
	cd secex_firstboot && find . -name '*.py' | while read -r file; do \
	    install -D -m 644 "$$file" "$(DESTDIR)$(PYTHONDIR)/secex_firstboot/$$file" || exit 1; done
	install -d "$(DESTDIR)$(PREFIX)/bin"
	printf '%s\n' '#!/usr/bin/python3 -I' 'from secex_firstboot.cli import main' 'raise SystemExit(main())' \
	    > "$(DESTDIR)$(PREFIX)/bin/secex-firstboot"
	chmod 755 "$(DESTDIR)$(PREFIX)/bin/secex-firstboot"
	install -D -m 755 -t "$(DESTDIR)$(DRACUTDIR)/50secex-firstboot" dracut/module-setup.sh
	install -D -m 644 -t "$(DESTDIR)$(DRACUTDIR)/50secex-firstboot" dracut/trace-imports.py
	install -D -m 644 -t "$(DESTDIR)$(UNITDIR)" systemd/secex-firstboot*.service
	install -D -m 644 systemd/ignition-fetch.conf "$(DESTDIR)$(UNITDIR)/ignition-fetch.service.d/50-secex-firstboot.conf"
