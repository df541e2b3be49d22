#!/usr/bin/env bash
# Sets up the environment and runs the tests; arguments go to pytest (-m "slow or not slow" includes the slow ones).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash scripts/setup.sh
exec .venv/bin/python -m pytest "$@"
