# Weft. Each target is a line or two; scripts live in .ci/.
BIN := target/release

.PHONY: build demo test bench soak vm lint static install install-build uninstall deps bench-deps

build: deps
	cargo build --release --locked --bins

demo: build
	$(BIN)/weft-lab demo $(if $(NODES),--nodes $(NODES)) $(if $(STORE),--store $(STORE))

test: build
	bash .ci/test

# The tunnel that can leave out its cipher is built apart: the shipped one cannot.
bench: build
	cargo build --release --locked --package netd-wireguard --bins --features bench --target-dir target/bench-cipher
	$(BIN)/weft-bench $(if $(ROW),--row $(ROW))

soak: build
	WEFT_SOAK=1 bash .ci/test

# Boots other kernels in emulation: WireGuard between them and ours, our BPF programs under their verifiers, services.
vm: build
	@bash .ci/deps vm
	sh tests/vm/run

lint: deps
	bash .ci/lint

static: deps
	bash .ci/static

# FROM=FOLDER takes programs that are built already; DESTDIR, PREFIX, START=1, PURGE=1: see manifests/README.md.
install: $(if $(FROM),,install-build)
	@bash manifests/install

install-build:
	@bash .ci/deps build
	bash .ci/static $(shell uname -m)

uninstall:
	@bash manifests/uninstall

deps:
	@bash .ci/deps

bench-deps: deps
	@bash .ci/deps bench
