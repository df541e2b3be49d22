#!/usr/bin/env bash
# usage: launch.sh EXPERIMENT[:LIST] [FLAG ...]
# What the launchers run_*.sh share: sets up the environment, then trains and tests a list of runs (harness/launch.py).
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/help.sh"
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash scripts/setup.sh
exec .venv/bin/python -m harness.launch "$@"
