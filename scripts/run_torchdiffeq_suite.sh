#!/usr/bin/env bash
# Runs torchdiffeq's own tests with torch_ACA in its place: scripts/run_torchdiffeq_suite.sh PATH (a checkout of 0.2.5).
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/help.sh"
path=$(realpath "${1:?give the path of a checkout of torchdiffeq}")
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash scripts/setup.sh
PYTHONPATH=. exec .venv/bin/python -W ignore scripts/torchdiffeq_suite.py "$path"
