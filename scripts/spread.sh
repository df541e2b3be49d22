#!/usr/bin/env bash
# usage: spread.sh LAUNCHER [FLAG ...]
# Spreads the runs of a launcher that takes --device and --shard K/N over devices, one process on each, and lets it make
# its report at the end. Devices: $DEVICES, such as "cuda:0 cuda:1" or "cpu cpu" (default: every CUDA device, or two
# processes on the CPU).
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/help.sh"
cd "$(dirname "${BASH_SOURCE[0]}")/.."

launcher=${1:?give a launcher, such as scripts/run_cifar.sh} && shift
[[ " $* " == *" --help "* || " $* " == *" -h "* ]] && exec bash "$launcher" --help
bash scripts/setup.sh
find='import torch; print(*[f"cuda:{i}" for i in range(torch.cuda.device_count())] or ["cpu", "cpu"])'
read -ra devices <<<"${DEVICES:-$(.venv/bin/python -c "$find")}"
workers=()
trap 'kill -INT "${workers[@]}" 2>/dev/null || true' INT TERM
for i in "${!devices[@]}"; do
    bash "$launcher" "$@" --device "${devices[i]}" --shard $((i + 1))/${#devices[@]} --no-report &
    workers+=($!)
done
code=0
for worker in "${workers[@]}"; do wait "$worker" || code=$?; done
((code <= 1)) || exit $code # a run that failed is a result
exec bash "$launcher" "$@" # nothing is left to run: only the report
