#!/usr/bin/env bash
# Runs random programs around a solve against plain autograd over the same accepted steps: 20,000 in some 20 minutes on
# 2 cores. Exit code 1 if any differs.
#   --way NAME             what is compared instead: rows, events or compiled code with the plain way
#   --cases N --start N    the seeds N, N + 1, ...
#   --seed N               one of them, with a description
#   --jobs N               processes
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

bash scripts/setup.sh
exec .venv/bin/python -m tests.fuzz.run "$@"
