#!/usr/bin/env bash
# Spreads the runs of run_three_body.sh, which takes the flags given here (--paper), over devices; one process on each.
# Devices: $DEVICES, such as "cuda:0 cuda:1" or "cpu cpu" (default: every CUDA device, or two processes on the CPU).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

bash scripts/setup.sh
find='import torch; print(*[f"cuda:{i}" for i in range(torch.cuda.device_count())] or ["cpu", "cpu"])'
read -ra devices <<<"${DEVICES:-$(.venv/bin/python -c "$find")}"
workers=()
trap 'kill -INT "${workers[@]}" 2>/dev/null || true' INT TERM
for i in "${!devices[@]}"; do
    bash scripts/run_three_body.sh "$@" --device "${devices[i]}" --shard $((i + 1))/${#devices[@]} --no-report &
    workers+=($!)
done
code=0
for worker in "${workers[@]}"; do wait "$worker" || code=$?; done
((code == 0)) || exit $code
.venv/bin/python -m three_body.report
.venv/bin/python -m three_body.plot
