.PHONY: test quick lint bench docs

test:    # everything; five minutes on two cores
	pytest -n 2 --dist loadfile

quick:   # what a change breaks first
	pytest -q tests/test_import_graph.py tests/config tests/cli tests/evaluation tests/models/test_rcan.py

lint:
	ruff check .
	ruff format --check .
	mypy

bench:   # the whole step against the bare network, the field's loop and the machine's peak; wants a quiet machine
	pytest bench/bench_step.py -s

docs:    # the site, in site/
	mkdocs build --strict
