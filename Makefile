.PHONY: test quick lint bench docs

test:    # everything
	pytest -n 2 --dist loadfile

quick:   # without what is marked slow
	pytest -n 2 --dist loadfile -m "not slow"

lint:
	ruff check .
	ruff format --check .
	mypy

bench:   # the whole step against the bare network, the field's loop and the machine's peak; wants a quiet machine
	pytest bench/bench_step.py -s

docs:    # the site, in site/
	mkdocs build --strict
