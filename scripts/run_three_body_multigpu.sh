#!/usr/bin/env bash
# Spreads the runs of run_three_body.sh, which takes the flags given here (--paper), over the devices in $DEVICES, such
# as "cuda:0 cuda:1" or "cpu cpu" (default: every CUDA device, or two processes on the CPU).
exec bash "$(dirname "${BASH_SOURCE[0]}")/spread.sh" scripts/run_three_body.sh "$@"
