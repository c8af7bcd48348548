# setup · demo · test · test-all · bench · bench-gpu · sanitize · docs · check: the only commands to remember. pip's own settings (index, proxy, wheels) are honoured.
PYTHON ?= python3
BIN := .venv/bin
PYTEST := $(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist worksteal
MODEL := smollm2-135m-instruct-q4_1
GPU ?= gpu
NATIVE := CMakeLists.txt $(wildcard tqbench/kernels/*/*.[ch]pp)

.PHONY: setup demo test test-all bench bench-gpu sanitize docs check

setup: .venv/.installed

# torch first, so that its pinned version decides before anything else asks for a range.
.venv/.installed: pyproject.toml constraints.txt $(NATIVE)
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[dev]"
	@touch $@

demo: setup
	$(BIN)/tqbench models fetch $(MODEL)
	$(BIN)/tqbench run suites/quickstart.yaml

test: setup
	$(BIN)/tqbench models fetch $(MODEL)
	$(PYTEST)

test-all: setup
	$(BIN)/tqbench models fetch $(MODEL)
	$(PYTEST) -m "slow or not slow"

# Attention at decoding: 2 threads or as many as there are, in a few minutes; a quiet machine, or the rounds are marked.
bench: setup
	$(BIN)/tqbench bench attend -o results/reference/bench-cpu

# On a machine with an NVIDIA GPU: first that the Triton kernels are right on it, then how fast they are, alone and end to end. Runs from
# the sources, uninstalled and without a network; `plan` says at once that a GPU or a package is missing (pydantic, zstandard and the like
# are small wheels); pytest needs pytest-xdist. Warnings are no errors, because versions there are not those of constraints.txt. Ten minutes
# at most, because no step may take longer than it says. By estimate: the tests have some 350 kernels, which take a second or two each to
# compile, in eight processes; tuning stores each find at once; a benchmark is compiling and some seconds of rounds, each form checked
# before it is timed; of the suite 18 cells take about 10 s each behind 15 s of loading and 10 s of prefill. No figure without the tests: if
# they fail or are cut off, nothing follows (a second call finds their kernels compiled). A later step that is cut off or fails keeps what
# it has found, takes nothing from the others, and fails the whole in the end.
CUT := timeout --signal INT --kill-after 10
ON_GPU = $(PYTHON) -m pytest -q -x -p no:cacheprovider -W default --numprocesses 8 --dist worksteal
SERVED := turbo4- or turbo3- or q8_0- or fp8_e4m3- or kivi4-
bench-gpu:
	$(PYTHON) -m tqbench plan suites/gpu.yaml
	$(CUT) 145 $(ON_GPU) tests/kernels/test_triton.py tests/kernels/test_kvtc_triton.py
	$(CUT) 55 $(ON_GPU) tests/backends/test_stretch.py tests/conformance/test_kernels.py -k "gpu or (triton and ($(SERVED)))"
	status=0; \
	$(CUT) 45 $(PYTHON) -m tqbench kernels tune --budget 30s || status=1; \
	for op in attend encode ablation "kvtc --schemes kvtc_lite_4x,kvtc_lite_8x --rounds 5"; do \
	$(CUT) 32 $(PYTHON) -m tqbench bench $$op --device cuda -o results/reference/bench-$(GPU)/$${op%% *} || status=1; done; \
	$(CUT) 205 $(PYTHON) -m tqbench run suites/gpu.yaml -o results/reference/bench-$(GPU) || status=1; \
	exit $$status

# The kernels' tests with the address and undefined-behaviour sanitizers, in a library beside the installed one.
sanitize: setup
	cmake -S . -B build/sanitize -DTQBENCH_SANITIZE=ON
	cmake --build build/sanitize
	LD_PRELOAD="$$(c++ -print-file-name=libasan.so) $$(c++ -print-file-name=libubsan.so)" ASAN_OPTIONS=detect_leaks=0 \
	TQBENCH_NATIVE=build/sanitize/libtqbench_native.so $(BIN)/python -m pytest -q tests/kernels

# What documents show is made from the code and from committed records; tests fail where it is stale.
docs: setup
	$(BIN)/tqbench schemes --markdown > docs/schemes.md
	$(BIN)/tqbench report results/reference/quickstart-cpu --page reports/sample --into README.md
	$(BIN)/tqbench report results/reference/long_ctx_small-cpu --page reports/sample/long_ctx_small

check: setup
	$(BIN)/python -m pytest tests/architecture
