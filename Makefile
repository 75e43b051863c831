# Two commands do all the set-up on a machine with Python >= 3.10, a C++ compiler and make:
#   make demo      train the small SE network, fused and plain
#   make test      every test that this machine can run
# make gpu-check needs no set-up: it runs with what $(PYTHON) has.
# PYTHON=python3.12 chooses the Python of .venv, ARGS="..." goes to the program that runs.

PYTHON ?= python3
ARGS ?=
PARTS ?=
VENV := .venv
RUN := $(VENV)/bin/python
CXX_FILES = $(shell find csrc tests -name '*.h' -o -name '*.hpp' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh')

.DEFAULT_GOAL := help
.PHONY: help demo test audit sanitize host-path bench cpu-results readme gpu-check lint format build compile-check compiled sass wheel release-check two-torch clean

help:
	@echo "make demo           train the small SE network, fused and plain, and compare"
	@echo "make test           run the tests"
	@echo "make audit          the bytes that each CUDA kernel moves, counted without a GPU"
	@echo "make sanitize       the CUDA kernels under AddressSanitizer, without a GPU"
	@echo "make host-path      tests marked gpu on pretend GPUs, host code broken, the GPU check rehearsed"
	@echo "make bench          time the layer against plain PyTorch"
	@echo "make cpu-results    all benchmarks on this CPU, into benchmarks/results (takes long)"
	@echo "make readme         pictures and README figures from the newest results"
	@echo "make gpu-check      all that needs a GPU, no network; PARTS=\"build test ...\", ARGS=--dry-run"
	@echo "make lint           ruff, mypy, clang-format; 'make format' repairs what can be repaired"
	@echo "make build          compile in place (what the targets above do first)"
	@echo "make compile-check  compile every kernel for every architecture: no spills, no stack"
	@echo "make compiled       compile like that and write docs/maintainers/compiled.md: registers, accesses, size"
	@echo "make sass           disassemble the CUDA kernels into build/sass"
	@echo "make wheel          a wheel in dist/ for every Linux with glibc"
	@echo "make release-check  what a release still needs"
	@echo "make two-torch      the wheel built with torch 2.11 passes the CPU tests on torch 2.13"
	@echo "make clean          remove what was built; .venv stays"

# ---- the environment: made once, made again when the pins change

$(VENV)/.installed: constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or newer is needed, %s is %s; try make PYTHON=python3.12" % (sys.executable, sys.version.split()[0]))'
	@$(RUN) -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	$(RUN) -m pip install --disable-pip-version-check -r constraints.txt
	@touch $@

build: $(VENV)/.installed
	@$(RUN) setup.py -q build_ext --inplace

$(VENV)/.editable: pyproject.toml | build
	$(RUN) -m pip install --disable-pip-version-check -q --no-deps --no-build-isolation -e .
	@touch $@

ready: build $(VENV)/.editable
.PHONY: ready

# ---- what one does with it

demo: ready
	$(RUN) examples/train.py $(ARGS)

test: ready
	$(RUN) -m pytest $(ARGS)

audit: ready
	$(RUN) -m tests.simt.audit $(ARGS)

sanitize: ready
	$(RUN) -m tests.simt.sanitize

# Not among them: what takes minutes, and what the stand-in cannot do (a graph of torch's kernels,
# triton's machine code).
HOST_PATH := $(addprefix tests/test_,autocast.py block.py compile.py determinism.py ecosystem.py \
  errors.py layers.py layout.py nonfinite.py op.py residual.py residual_autograd.py)
HOST_PATH_NOT := workloads or 2_to_the or two_to_the or derivatives or large_results or one_gradient \
  or inductor or cuda_graph
host-path: ready
	STANDIN_OPEN=1 STANDIN_MEGABYTES=4096 $(RUN) -m tests.standin.run python -m pytest -q -p tests.standin.via_cpu \
	  -m gpu -k "not ($(HOST_PATH_NOT))" $(HOST_PATH) $(ARGS)
	$(RUN) -m pytest -q -m "mutants or rehearsal"

bench: ready
	$(RUN) -m benchmarks.op $(ARGS)

CPU_RESULTS := benchmarks/results/cpu-$(shell date +%Y%m%d)
# what is wrong is said and left out, the rest is measured all the same
cpu-results: export GLIBC_TUNABLES = glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=34359738368
cpu-results: ready
	-$(RUN) -m benchmarks.op --device cpu --providers fused plain compile copy --results $(CPU_RESULTS) $(ARGS)
	-$(RUN) -m benchmarks.model --device cpu --batch 8 --layout nhwc --results $(CPU_RESULTS)
	-$(RUN) -m benchmarks.scaling --device cpu --max-mb 128 --results $(CPU_RESULTS) $(ARGS)
	-env -u GLIBC_TUNABLES $(RUN) -m benchmarks.op --device cpu --results $(CPU_RESULTS)/system $(ARGS)
	-env -u GLIBC_TUNABLES $(RUN) -m benchmarks.op --device cpu --max-mb 0.05 --providers fused plain \
	  --direction forward both --results $(CPU_RESULTS)/one_image
	-env -u GLIBC_TUNABLES $(RUN) -m benchmarks.truth --device cpu --results $(CPU_RESULTS)

readme: ready
	$(RUN) -m benchmarks.plot
	$(RUN) -m benchmarks.readme

gpu-check:
	$(PYTHON) -m benchmarks.gpu_check $(if $(PARTS),--parts $(PARTS)) $(ARGS)

lint: ready
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy
	$(VENV)/bin/clang-format --dry-run -Werror $(CXX_FILES)

format: $(VENV)/.installed
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .
	$(VENV)/bin/clang-format -i $(CXX_FILES)

compile-check compiled: export SEBLOCK_WITH_CUDA = 1
compile-check compiled: export TORCH_CUDA_ARCH_LIST =
compile-check: ready
	$(RUN) -m build_tools.report
	$(RUN) -m pytest tests/test_compiled_code.py

compiled: ready
	$(RUN) -m build_tools.compiled

sass: ready
	@mkdir -p build/sass
	@for object in build/*/objects/cuda_*.o; do \
	  $(VENV)/lib/python*/site-packages/triton/backends/nvidia/bin/cuobjdump -sass $$object \
	    >build/sass/$$(basename $$object .o).sass; done
	@ls -l build/sass

wheel: ready
	@rm -rf dist
	$(RUN) -m pip wheel --disable-pip-version-check --no-deps --no-build-isolation -w build/wheel .
	PATH="$(VENV)/bin:$$PATH" $(VENV)/bin/auditwheel repair --exclude 'libtorch*.so' --exclude 'libc10*.so' -w dist build/wheel/*.whl
	@rm -rf build/wheel

release-check: wheel
	$(RUN) -m build_tools.release_check dist/*.whl

two-torch: wheel
	.ci/two_torch

clean:
	rm -rf build dist *.egg-info seblock_cuda/*.so .pytest_cache .mypy_cache .ruff_cache .hypothesis
