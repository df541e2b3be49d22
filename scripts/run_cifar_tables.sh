#!/usr/bin/env bash
# Trains the runs behind the CIFAR tables, one after the other. Runs that are done are skipped, interrupted ones resumed.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

usage() {
    cat <<'TEXT'
usage: run_cifar_tables.sh [--list] [--shard K/N] [FLAG ...]

  --list         print the runs, a line each: folder under results/cifar_classification, then train.py's options
  --shard K/N    only every N-th run, from the K-th on (default: 1/1, all of them)
Other flags, such as --device, --threads or --data DIR, go to cifar_classification/train.py.
TEXT
}

fail() {
    echo "error: $1 (--help lists the options)" >&2
    exit 2
}

# One run a line, seed by seed, so that an unfinished table has all its rows.
runs() {
    local seed
    for seed in 0 1 2; do
        echo table/cifar10_aca_seed$seed --profile table --dataset cifar10 --seed $seed
        echo table/cifar10_resnet_seed$seed --profile table --dataset cifar10 --model discrete --seed $seed
        for gradient in adjoint naive; do
            echo table/cifar10_${gradient}_seed$seed --profile table --dataset cifar10 --gradient $gradient --seed $seed
        done
    done
    echo cpu/cifar10_euler_seed0 --profile cpu --dataset cifar10 --method Euler --seed 0
    for seed in 0 1 2; do
        echo table/cifar100_aca_seed$seed --profile table --dataset cifar100 --seed $seed
        echo table/cifar100_resnet_seed$seed --profile table --dataset cifar100 --model discrete --seed $seed
    done
}

shard=1/1 list=no flags=()
while (($#)); do
    case $1 in
        --list) list=yes ;;
        --shard) shard=${2-} && shift ;;
        --help | -h) usage && exit ;;
        *) flags+=("$1") ;;
    esac
    shift || fail "the last option needs a value"
done
[[ $shard =~ ^([1-9][0-9]*)/([1-9][0-9]*)$ ]] || fail "--shard $shard is not of the form K/N"
first=${BASH_REMATCH[1]} shards=${BASH_REMATCH[2]}
((first <= shards)) || fail "--shard $shard: K must not exceed N"
[[ $list == no ]] || { runs && exit; }

bash scripts/setup.sh
export THP_MEM_ALLOC_ENABLE=1 # large memory pages: PyTorch spends less time on page faults
mapfile -t lines < <(runs)
failed=()
for ((i = first - 1; i < ${#lines[@]}; i += shards)); do
    read -ra words <<<"${lines[i]}"
    out=results/cifar_classification/${words[0]}
    [[ -f $out/summary.json ]] && continue
    code=0
    .venv/bin/python cifar_classification/train.py "${words[@]:1}" --out "$out" --resume auto "${flags[@]}" || code=$?
    ((code <= 1)) || exit "$code" # a run that diverged is a result; a mistake or an interruption ends them all
    ((code == 0)) || failed+=("${words[0]}")
done
((${#failed[@]} == 0)) || echo "ended early, see their records: ${failed[*]}" >&2
