# Weft. Each target is a line or two; scripts live in .ci/.
BIN := target/release

.PHONY: build demo test bench soak lint static install install-build uninstall deps bench-deps

build: deps
	cargo build --release --locked --bins

demo: build
	$(BIN)/weft-lab demo $(if $(NODES),--nodes $(NODES)) $(if $(STORE),--store $(STORE))

test: build
	bash .ci/test

bench: build
	$(BIN)/weft-bench $(if $(ROW),--row $(ROW))

soak: build
	WEFT_SOAK=1 bash .ci/test

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
