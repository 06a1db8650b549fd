# Weft. Each target is a line or two; scripts live in .ci/.
BIN := target/release

.PHONY: build demo test bench soak lint deps bench-deps

build: deps
	cargo build --release --locked --bins

demo: build
	$(BIN)/weft-lab demo

test: build
	bash .ci/test

bench: build
	$(BIN)/weft-bench $(if $(ROW),--row $(ROW))

soak: build
	WEFT_SOAK=1 bash .ci/test

lint: deps
	bash .ci/lint

deps:
	@bash .ci/deps

bench-deps: deps
	@bash .ci/deps bench
