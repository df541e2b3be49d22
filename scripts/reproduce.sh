#!/usr/bin/env bash
# Runs every experiment at its quick profile (within an hour on 2 cores), then writes tables, figures and results/README.md.
#   --only NAME                one stage          --profile cpu|paper    larger runs
#   --again                    also what has passed before
# Run it again to go on after an interruption. What a machine lacks (mujoco, CIFAR) is skipped. Exit code 1: a stage failed.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/help.sh"
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash scripts/setup.sh
exec .venv/bin/python -m harness.reproduce "$@"
