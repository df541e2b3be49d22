#!/usr/bin/env bash
# Spreads the runs of run_latent_ode.sh, which takes the flags given here (--table, --paper, --data), over the devices
# in $DEVICES, such as "cuda:0 cuda:1" or "cpu cpu" (default: every CUDA device, or two processes on the CPU).
exec bash "$(dirname "${BASH_SOURCE[0]}")/spread.sh" scripts/run_latent_ode.sh "$@"
