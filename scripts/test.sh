#!/usr/bin/env bash
# Lint, types, structure and tests. `--all` adds the tests marked slow. Other arguments go to pytest.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

selection=(-m "not slow")
arguments=()
for argument in "$@"; do
    if [ "$argument" = --all ]; then selection=(); else arguments+=("$argument"); fi
done

./scripts/setup_env.sh
export PATH="$PWD/.venv/bin:$PATH"
# The tests are small: more threads than this only wait for each other, above all in tests of several processes.
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-2}"
export OMP_WAIT_POLICY="${OMP_WAIT_POLICY:-PASSIVE}"
export TOKENIZERS_PARALLELISM="${TOKENIZERS_PARALLELISM:-false}"
export PYRIGHT_PYTHON_IGNORE_WARNINGS=1

echo "== ruff"
ruff check .
ruff format --check .
echo "== pyright"
pyright --pythonpath .venv/bin/python
echo "== structure"
python scripts/check_structure.py
echo "== pytest"
exec python -m pytest ${selection[@]+"${selection[@]}"} ${arguments[@]+"${arguments[@]}"}
