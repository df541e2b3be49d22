#!/usr/bin/env bash
# Trains one network on several GPUs, or CPU processes, of one machine or several: data parallel, through torchrun.
# --help lists the flags.
exec bash "$(dirname "${BASH_SOURCE[0]}")/launch.sh" cifar_classification:several "$@"
