# make run         mount a 1 GiB RAM disk over mem.img, in the foreground
# make test        install what the tests need and run them; test-long also runs the campaigns of minutes
# make test-guest  run the tests in virtual machines
# make lint types  style and types
# make docs site   fill the generated parts of the manual; make a site of it, build/site
# make dist deb rpm  wheel and source distribution, Debian and RPM package: in dist/
# make test-packages  make them, install and use them in clean systems
# make bench       measure, and write the table of the README
# make clean       remove what was made
# On Debian, root gets what is missing installed; others are told which packages to ask for.

PYTHON ?= /usr/bin/python3
VENV := .venv
BIN := $(VENV)/bin
CONSTRAINTS := $(CURDIR)/constraints.txt
PYTEST := $(BIN)/python -m pytest

RUN_PACKAGES := python3-venv python3-dev gcc libc6-dev pkg-config libfuse3-dev fuse3
TEST_PACKAGES := acl aria2 busybox-static cpio cryptsetup-bin e2fsprogs fdisk file fio fish gdisk iproute2 jq \
	kmod libnbd-bin lsof man-db mandoc nbd-client nbd-server nbdkit nginx-light procps python3-libnbd qemu-system-x86 \
	qemu-utils socat strace tmux transmission-cli util-linux xfsprogs xz-utils zsh zstd
BENCH_PACKAGES := httpdirfs qemu-block-extra
DEB_PACKAGING := build-essential debhelper dpkg-dev mmdebstrap python3-pip
PACKAGING := $(DEB_PACKAGING) buildah lintian pipx rpm rpmlint

.PHONY: run test test-long test-guest test-packages venv lint types bench docs site share dist wheels deb rpm clean \
	need-run-packages need-test-packages need-deb-packaging need-packaging

run: need-run-packages $(BIN)/.run
	@echo "A RAM disk of 1 GiB is the file mem.img, until Ctrl-C or 'nbdfs umount mem.img'. In another terminal, try:"
	@echo "    ls -l mem.img && dd if=/dev/urandom of=mem.img bs=1M count=100 conv=notrunc && du -h mem.img"
	@echo "    mkfs.ext4 mem.img && mount -o loop mem.img /mnt"
	@$(BIN)/nbdfs mount -v memory:1G mem.img

test: need-run-packages need-test-packages $(BIN)/.dev
	$(PYTEST)

test-long: need-run-packages need-test-packages $(BIN)/.dev
	$(PYTEST) -m "not guest and not packages"

test-guest: need-test-packages deb
	$(PYTEST) -m guest

venv: need-run-packages $(BIN)/.dev

lint: venv
	$(BIN)/ruff check
	$(BIN)/ruff format --check

# The drivers are installed as nbdfs.backends; a type checker sees them there only in a tree laid out like that.
types: venv
	mkdir -p build/types/nbdfs
	find build/types -xtype l -delete
	ln -sfn -t build/types/nbdfs $(CURDIR)/nbdfs/* $(CURDIR)/backends
	cd build/types && $(CURDIR)/$(BIN)/mypy --config-file $(CURDIR)/pyproject.toml nbdfs

bench: need-run-packages need-test-packages $(BIN)/.dev
	@packaging/need-packages $(BENCH_PACKAGES)
	$(BIN)/python benchmarks/run

docs: $(BIN)/.dev
	$(BIN)/python docs/generate.py

site: docs
	$(BIN)/mkdocs build --strict --quiet

# Manual pages and completions, which a wheel carries too: packaging/share is the /usr/share of a package.
share: $(BIN)/.dev
	rm -rf packaging/share
	$(BIN)/python packaging/manual.py packaging/share/man
	$(BIN)/python packaging/completion.py packaging/share

dist: share
	rm -rf dist
	PIP_CONSTRAINT=$(CONSTRAINTS) $(BIN)/python -m build --quiet

# What nbdfs runs on, for packages that bring it along.
wheels: dist
	rm -rf build/wheels
	$(BIN)/python -m pip wheel -q -c $(CONSTRAINTS) --build-constraint $(CONSTRAINTS) -w build/wheels "$$(echo dist/*.whl)[all]"

# Install the packages of dist/, in a system made for that.
test-packages: need-test-packages need-packaging deb rpm
	$(PYTEST) -m packages

deb: need-deb-packaging wheels
	packaging/build-deb dist/*.tar.gz build/wheels dist

rpm: need-packaging wheels
	packaging/build-rpm dist/*.tar.gz build/wheels dist

clean:
	rm -rf build dist packaging/share *.egg-info $(VENV) .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

need-run-packages:
	@packaging/need-packages $(RUN_PACKAGES)

need-test-packages:
	@packaging/need-packages $(TEST_PACKAGES)

need-deb-packaging:
	@packaging/need-packages $(DEB_PACKAGING)

need-packaging:
	@packaging/need-packages $(PACKAGING)

# pip itself is pinned too: with it, the constraints also hold for what builds pyfuse3.
$(BIN)/pip: | need-run-packages
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -c $(CONSTRAINTS) --upgrade pip

INSTALL = $(BIN)/python -m pip install -q -c $(CONSTRAINTS) --build-constraint $(CONSTRAINTS)
# pip does this for what it copies, but not for a tree that is used where it is.
COMPILE = $(BIN)/python -m compileall -q nbdfs backends

$(BIN)/.run: setup.cfg pyproject.toml constraints.txt | $(BIN)/pip
	$(INSTALL) -e .
	$(COMPILE)
	@touch $@

$(BIN)/.dev: setup.cfg pyproject.toml constraints.txt | $(BIN)/pip
	$(INSTALL) -e '.[all,test,lint,docs,dist]'
	$(COMPILE)
	@touch $@ $(BIN)/.run
