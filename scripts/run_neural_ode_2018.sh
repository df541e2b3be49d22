#!/usr/bin/env bash
# usage: run_neural_ode_2018.sh [mnist|cnf|spirals] [FLAG ...]
# Trains and tests the runs of one of the Neural ODE paper's experiments, or of all, then writes tables and figures.
# --paper: the full settings; --help lists the flags.
set -euo pipefail
parts=(spirals cnf mnist)
if [[ ${1--} != -* ]]; then
    [[ " ${parts[*]} " == *" $1 "* ]] || { echo "error: $1 is none of: ${parts[*]}" >&2 && exit 2; }
    parts=("$1") && shift
fi
for part in "${parts[@]}"; do
    bash "$(dirname "${BASH_SOURCE[0]}")/launch.sh" "neural_ode_2018/$part" "$@"
done
