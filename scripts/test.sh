#!/usr/bin/env bash
# Sets up the environment and runs the tests; arguments go to pytest (-m "slow or not slow" includes the slow ones). Where
# pytest-xdist is installed, there is a process of one thread for each core, at most 8; -n 0 runs all tests in one process.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash scripts/setup.sh

processes=()
if .venv/bin/python -c 'import xdist' 2>/dev/null; then
    processes=(--numprocesses auto --maxprocesses 8 --dist worksteal)
    export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
fi
exec .venv/bin/python -m pytest ${processes[@]+"${processes[@]}"} "$@"
