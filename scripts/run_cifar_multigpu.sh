#!/usr/bin/env bash
# Trains one network on several GPUs, or CPU processes, of one machine or several: data parallel, through torchrun.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

usage() {
    cat <<'TEXT'
usage: run_cifar_multigpu.sh [--processes N] [--restarts N] [--nodes N --endpoint HOST:PORT] [FLAG ...]

  --processes N         on this machine (default: one for each GPU, or 2 on the CPU)
  --restarts N          how often to start all processes again from the last checkpoint when one dies (default: 3)
  --nodes N             machines that take part, or MIN:MAX (default: 1); run this same command on each of them
  --endpoint HOST:PORT  where they meet: one of them, with a free port
Other flags go to cifar_classification/train.py: --batch-size counts the images of all processes together, --error-norm
and --batch-norm say what depends on a process's own images. The run folder (--out) and the data have to lie on a disk
that all machines see. A run that was interrupted goes on when the command is given again.
TEXT
}

fail() {
    echo "error: $1 (--help lists the options)" >&2
    exit 2
}

processes='' restarts=3 nodes=1 endpoint='' flags=(--resume auto)
while (($#)); do
    case $1 in
        --processes) processes=${2-} && shift ;;
        --restarts) restarts=${2-} && shift ;;
        --nodes) nodes=${2-} && shift ;;
        --endpoint) endpoint=${2-} && shift ;;
        --help | -h) usage && exit ;;
        *) flags+=("$1") ;;
    esac
    shift || fail "the last option needs a value"
done
[[ -z $processes || $processes =~ ^[1-9][0-9]*$ ]] || fail "--processes $processes is not a whole number of at least 1"
[[ $restarts =~ ^[0-9]+$ ]] || fail "--restarts $restarts is not a whole number of at least 0"
[[ $nodes =~ ^[1-9][0-9]*(:[1-9][0-9]*)?$ ]] || fail "--nodes $nodes is neither N nor MIN:MAX"
meeting=(--standalone)
if [[ $nodes != 1 ]]; then
    [[ $endpoint =~ ^.+:[0-9]+$ ]] || fail "--nodes needs --endpoint HOST:PORT"
    meeting=(--nnodes "$nodes" --rdzv-backend c10d --rdzv-endpoint "$endpoint" --rdzv-id cifar)
fi

bash scripts/setup.sh
.venv/bin/python cifar_classification/train.py "${flags[@]}" --print-folder # a mistake in the flags ends here, in a line
[[ -n $processes ]] || processes=$(.venv/bin/python -c 'import torch; print(torch.cuda.device_count() or 2)')
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} # as torchrun would set it, without its warning
exec .venv/bin/python -m torch.distributed.run "${meeting[@]}" --nproc-per-node "$processes" --max-restarts "$restarts" \
    cifar_classification/train.py "${flags[@]}"
