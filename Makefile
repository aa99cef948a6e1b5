# Everything sets itself up: `make demo` and `make test` need Python 3.11+ and make, nothing else.
# On a machine whose package index gives a CUDA build of torch that you do not want (or the other way round), choose the
# index yourself: make test PIP_ARGS="--extra-index-url URL". PYTHON names another interpreter, VENV another folder.
PYTHON ?= python3
VENV ?= .venv
PIP_ARGS ?=
BIN := $(VENV)/bin
DEMO ?= demo
PAPER ?= paper
PYTEST_ARGS ?= --numprocesses auto --dist loadgroup
# Python writes the bytecode of a module when it first imports it; pip would take a minute to write that of all modules.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test test-all lint types unit bench paper-mini paper-full page docs check-wheel clean

# It has an environment of its own, with torch, matplotlib and scikit-learn, and takes that of `make test` where there is one.
demo:
	@PYTHON="$(PYTHON)" PIP_ARGS="$(PIP_ARGS)" bash examples/demo.sh "$(DEMO)" "$(if $(wildcard $(VENV)/.installed),$(VENV),$(VENV)-demo)"

test: lint types unit

# The slow tests too: trainings that must learn, and kills by the dozen.
test-all:
	$(MAKE) test PYTEST_ARGS="$(PYTEST_ARGS) -m 'slow or not slow'"

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.installed
	$(BIN)/mypy
	$(BIN)/mypy --strict tests/downstream/uses_prepkit.py

# prepkit stands alone, so its tests run in a copy without netspace; those of netspace run here.
unit: $(VENV)/.installed
	bash tests/check_standalone.sh "$(abspath $(BIN))/python" $(PYTEST_ARGS)
	$(BIN)/python -m pytest $(PYTEST_ARGS) tests/test_docs.py tests/test_gallery.py tests/netspace tests/test_layering.py

bench: $(VENV)/.installed
	$(BIN)/python -m pytest benchmarks -s --benchmark-columns=median,iqr,rounds

# The paper in miniature, on data that needs no download: zoos, spaces, experiments and one report; go on by the same command.
paper-mini: $(VENV)/.installed
	$(BIN)/netspace paper $(PAPER)-mini

# The same with three seeds and the ablations.
paper-full: $(VENV)/.installed
	$(BIN)/netspace paper $(PAPER)-full --full

# The script and the style of the page of `prepkit zoo view`: ours, Tabulator and ECharts, put together by esbuild.
page: prepkit/browsing/built/page.js

prepkit/browsing/built/page.js: $(wildcard frontend/*.json frontend/src/*)
	@command -v npm > /dev/null || { echo "npm is missing; install Node.js 20 or newer, which brings it." >&2; exit 1; }
	npm --prefix frontend ci --no-audit --no-fund --fetch-retries=1 --loglevel=error
	npm --prefix frontend run --silent build

# The site of docs/ in site/, where no page may name what is not there. Its blocks of code are run by tests/test_docs.py.
docs: $(VENV)/.installed
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet

# The wheel as a user gets it: built of the sdist, installed in an empty environment outside the clone, used there.
# Where npm is missing, the page is left out, and not checked.
check-wheel: $(VENV)/.installed
	$(MAKE) page || echo "The wheel is built without the page of zoo view."
	rm -rf dist
	$(BIN)/python -m build --quiet --outdir dist .
	PYTHON="$(PYTHON)" PIP_ARGS="$(PIP_ARGS)" bash tests/check_wheel.sh dist/*.whl "$(abspath $(BIN))"

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "prepkit needs Python 3.11 or newer; make PYTHON=...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --no-compile --upgrade 'pip>=25.1'
	$(BIN)/python -m pip install --quiet --no-compile $(PIP_ARGS) --constraint constraints.txt --editable '.[all]' --group dev
	touch $@

clean:
	rm -rf $(VENV) $(VENV)-demo site frontend/node_modules prepkit/browsing/built $(DEMO) $(PAPER)-mini $(PAPER)-full build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks
