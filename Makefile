# make demo       the main job: corpus, training, comparison table, pictures
# make test       ruff and mypy, `wheel`, `test-wheel` and `smoke`
# make wheel      dist/*.whl, with the native kernels
# make test-wheel all tests, on the wheel
# make smoke      a few tests of the wheel on another torch, and of installing without a compiler
# make cuda       the CUDA kernels in the checkout: wants nvcc and no GPU; the wheel has them where there is nvcc
# make gpu        on a machine with a GPU: the kernels' tests there, benchmarks and sanitizers; logs in runs/gpu
# make sanitize   the tests of the operators under AddressSanitizer and UndefinedBehaviorSanitizer
# make test-wide  the same tests of the 512-bit kernels, on a processor that need not have AVX-512
# make check-arm64  the kernels against the definition, cross-compiled and emulated
# make profile    the time of every pass of the kernels
# make setup      for work on the code: .venv with an editable install and the kernels in the checkout
# All set up what they need in .venv (smoke: .venv-smoke), from Python 3.10 to 3.12, a C++ compiler and pip.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# The last release of torchaudio imports only beside the torch release it was built with.
TORCH := torch==2.11.0 torchaudio==2.11.0
DEMO_JOBS ?= 2
# Processes, each with one thread.
TEST_JOBS ?= 2

# Another torch than in .venv, and no more beside it than the package asks for.
SMOKE_VENV := .venv-smoke
SMOKE := "torch==2.13.0" "setuptools>=77" pytest

CPU_SOURCES := $(wildcard cpu/*.cpp cpu/*.h) cpu/build.py
CUDA_SOURCES := $(wildcard cuda/*.cu cuda/*.cuh cuda/*.h) cuda/build.py cpu/build.py cpu/tensors.h
LIBRARY := kaleido_audio/ops/kaleido_audio_cpu.so
CUDA_LIBRARY := kaleido_audio/ops/kaleido_audio_cuda.so
# What the assembler says of each kernel: registers and spills.
PTXAS_REPORT := build/ptxas.txt
WHEEL := dist/.built
WHEEL_SOURCES := setup.py pyproject.toml MANIFEST.in README.md LICENSE $(shell find kaleido_audio -name '*.py' -o -name '*.csv')
SANITIZED := build/sanitize/kaleido_audio_cpu.so
WIDE := build/wide/kaleido_audio_cpu.so
SANITIZERS := -fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer -g -O1 \
  -DKALEIDO_ONLY_BASELINE -march=native

.PHONY: setup cuda gpu demo test test-wheel smoke wheel sanitize test-wide check-arm64 profile lint clean

setup: $(VENV)/.ready $(LIBRARY)

# The kernels are left to the rule below, which knows when they have changed and does not hide a warning.
$(VENV)/.ready: pyproject.toml setup.py
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 10) <= v <= (3, 12) else \
	  "kaleido_audio: expected Python 3.10 to 3.12, got %d.%d; set PYTHON, e.g. make demo PYTHON=python3.11" % v)'
	$(PYTHON) -m venv $(VENV)
	@echo "Installing PyTorch: about 3 GB the first time, without output for some minutes"
	$(BIN)/pip install --quiet --disable-pip-version-check $(TORCH)
	KALEIDO_NATIVE=0 $(BIN)/pip install --quiet --disable-pip-version-check --editable ".[recipes,test]" $(TORCH)
	@touch $@

# Without a compiler there is no library, a warning says so, and the rest goes on.
$(LIBRARY): $(CPU_SOURCES) $(VENV)/.ready
	$(BIN)/python cpu/build.py --output $@

cuda: $(CUDA_LIBRARY)

$(CUDA_LIBRARY): $(CUDA_SOURCES) $(LIBRARY)
	@echo "Compiling the CUDA kernels: about 7 minutes on two cores, without output"
	KALEIDO_CUDA=1 KALEIDO_PTXAS_REPORT="$(CURDIR)/$(PTXAS_REPORT)" $(BIN)/python cuda/build.py --output $@

gpu: $(CUDA_LIBRARY)
	PYTHON="$(CURDIR)/$(BIN)/python" cuda/on_gpu.sh runs/gpu

demo: setup
	$(BIN)/python -m recipes.timit prepare synthetic --out data/synthetic --keep
	$(BIN)/python -m recipes.timit compare --data data/synthetic --out demo --seeds 0 --jobs $(DEMO_JOBS)

lint: $(VENV)/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint test-wheel smoke

wheel: $(WHEEL)

# What setuptools left in build/ would find its way into the wheel, whether or not it is still in the checkout.
$(WHEEL): $(CPU_SOURCES) $(CUDA_SOURCES) $(WHEEL_SOURCES) $(VENV)/.ready
	rm -rf dist build/lib* build/bdist* $(PTXAS_REPORT)
	@echo "Building the wheel: a minute, and 7 minutes more where there is nvcc, without output"
	KALEIDO_NATIVE=1 KALEIDO_PTXAS_REPORT="$(CURDIR)/$(PTXAS_REPORT)" $(BIN)/pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir dist .
	@touch $@

# In a copy of the checkout whose package is the wheel's: every import, doctest and subprocess gets that one.
test-wheel: $(WHEEL)
	rm -rf build/checkout && mkdir -p build/checkout
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --target build/checkout dist/*.whl
	cp -r cpu cuda tests recipes benchmarks examples docs README.md Makefile pyproject.toml build/checkout
	cd build/checkout && OMP_NUM_THREADS=1 KALEIDO_PTXAS_REPORT="$(CURDIR)/$(PTXAS_REPORT)" \
	  "$(CURDIR)/$(BIN)/python" -m pytest -n $(TEST_JOBS) --dist loadfile

$(SMOKE_VENV)/.ready: pyproject.toml Makefile
	$(PYTHON) -m venv $(SMOKE_VENV)
	@echo "Installing another PyTorch: 200 MB or 3 GB, by what pip finds"
	$(SMOKE_VENV)/bin/pip install --quiet --disable-pip-version-check $(SMOKE)
	@touch $@

smoke: $(WHEEL) $(SMOKE_VENV)/.ready
	$(SMOKE_VENV)/bin/pip uninstall --quiet --yes kaleido_audio
	$(SMOKE_VENV)/bin/pip install --quiet --disable-pip-version-check dist/*.whl
	$(SMOKE_VENV)/bin/pytest tests/packaging

$(SANITIZED): $(CPU_SOURCES) $(VENV)/.ready
	KALEIDO_NATIVE=1 CXX="$(CXX)" KALEIDO_CXXFLAGS="$(SANITIZERS)" $(BIN)/python cpu/build.py --output $@

# Their libraries have to be loaded before Python's own. Python and torch keep memory until they end, which is no leak.
# Left out is what runs Python and torch rather than the kernels.
sanitize: $(SANITIZED)
	env LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libubsan.so)" \
	  ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 \
	  KALEIDO_CPU_LIBRARY="$(CURDIR)/$(SANITIZED)" $(BIN)/python -m pytest tests/ops/test_native.py \
  -k "not opcheck and not compile and not export and not transforms and not 2_to_the_31"

# Vectors twice as long as the processor's: compilers split them, and the arithmetic and the index maps stay the same.
$(WIDE): $(CPU_SOURCES) $(VENV)/.ready
	KALEIDO_NATIVE=1 KALEIDO_CXXFLAGS="-DKALEIDO_ONLY_BASELINE -DKALEIDO_VECTOR_BYTES=64 -march=x86-64-v3 -O2 -Wno-psabi" \
	  $(BIN)/python cpu/build.py --output $@

test-wide: $(WIDE)
	KALEIDO_CPU_LIBRARY="$(CURDIR)/$(WIDE)" $(BIN)/python -m pytest tests/ops

check-arm64: tests/cpu/check_kernels.cpp $(CPU_SOURCES)
	mkdir -p build
	aarch64-linux-gnu-g++ -std=c++17 -O2 -Wall -Wextra -Werror -Wno-psabi -static -DKALEIDO_ISA=baseline \
	  -DKALEIDO_ONLY_BASELINE cpu/kernels.cpp $< -o build/check_kernels_arm64
	qemu-aarch64-static build/check_kernels_arm64

# Time of every pass of the kernels, for this processor.
profile: benchmarks/passes.cpp $(CPU_SOURCES)
	mkdir -p build
	$(CXX) -std=c++17 -O3 -march=native -mprefer-vector-width=512 -fno-math-errno -fno-trapping-math \
	  -DKALEIDO_ISA=native_isa $< -o build/passes
	build/passes

clean:
	rm -rf $(VENV) $(SMOKE_VENV) $(LIBRARY) $(CUDA_LIBRARY) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
