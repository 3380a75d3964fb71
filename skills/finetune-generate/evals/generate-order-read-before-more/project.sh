# The project of this case; `python tests/evals.py` makes it.
cp -R "$(dirname "$0")/../../../../.cache/evals/generate/." .
