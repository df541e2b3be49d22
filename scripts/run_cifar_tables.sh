#!/usr/bin/env bash
# Trains and tests the runs behind the CIFAR tables, one after the other, then renders tables and figures. What is done
# is skipped, interrupted runs are resumed.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

usage() {
    cat <<'TEXT'
usage: run_cifar_tables.sh [--list] [--scale NAME] [--shard K/N] [--no-report] [FLAG ...]

  --list         print the runs, a line each: folder under results/cifar_classification, then train.py's options
  --scale NAME   table (default: scaled down, minutes a run on 2 cores) or paper (full scale, 10 seeds; wants a GPU)
  --shard K/N    only every N-th run, from the K-th on (default: 1/1, all of them)
  --no-report    leave out tables and figures
Other flags, such as --device, --threads or --data DIR, go to cifar_classification/train.py and test.py.
TEXT
}

fail() {
    echo "error: $1 (--help lists the options)" >&2
    exit 2
}

# One run a line, seed by seed, so that an unfinished table has all its rows.
table_runs() {
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
    echo cpu/cifar10_aca_seed0 --profile cpu --dataset cifar10 --seed 0
    for seed in 0 1 2; do
        further_runs table $seed
        own_settings table $seed
    done
}

paper_runs() {
    local seed dataset
    for seed in {0..9}; do
        for dataset in cifar10 cifar100; do
            echo paper/${dataset}_aca_seed$seed --profile paper --dataset $dataset --seed $seed
            echo paper/${dataset}_resnet_seed$seed --profile paper --dataset $dataset --model discrete --seed $seed
        done
    done
    echo paper/cifar10_euler_seed0 --profile paper --dataset cifar10 --method Euler --h 1 --seed 0
    echo paper-350/cifar10_aca_seed0 --profile paper-350 --dataset cifar10 --seed 0
    for seed in 0 1 2; do
        echo paper/cifar10_aca-own_seed$seed --profile paper --dataset cifar10 --seed $seed --lr 0.01
        own_settings paper $seed --lr 0.01
        for gradient in adjoint naive; do
            echo paper/cifar10_${gradient}_seed$seed --profile paper --dataset cifar10 --gradient $gradient --seed $seed
        done
        further_runs paper $seed
    done
}

# Gradient methods like for like, beside aca, adjoint and naive, and aca with --amp: scale, seed.
further_runs() {
    local line="--profile $1 --dataset cifar10 --seed $2"
    echo $1/cifar10_direct_seed$2 $line --gradient direct
    echo $1/cifar10_mali_seed$2 $line --gradient mali --method ALF
    for gradient in torchdiffeq torchdiffeq-adjoint; do
        echo $1/cifar10_${gradient}_seed$2 $line --gradient $gradient
    done
    echo $1/cifar10_aca-amp_seed$2 $line --amp
}

# The other methods with the solver, tolerance and batch that the paper gives to each: scale, seed, further options.
own_settings() {
    local line="--profile $1 --dataset cifar10 --seed $2 ${*:3}"
    echo $1/cifar10_adjoint-own_seed$2 $line --gradient adjoint --method Dopri5 --rtol 1e-5 --atol 1e-5
    echo $1/cifar10_naive-own_seed$2 $line --gradient naive --method Dopri5 --rtol 1e-5 --atol 1e-5 --batch-size 32
}

shard=1/1 list=no scale=table report=yes flags=()
while (($#)); do
    case $1 in
        --list) list=yes ;;
        --scale) scale=${2-} && shift ;;
        --shard) shard=${2-} && shift ;;
        --no-report) report=no ;;
        --help | -h) usage && exit ;;
        *) flags+=("$1") ;;
    esac
    shift || fail "the last option needs a value"
done
[[ $scale == table || $scale == paper ]] || fail "--scale $scale: accepted are table and paper"
[[ $shard =~ ^([1-9][0-9]*)/([1-9][0-9]*)$ ]] || fail "--shard $shard is not of the form K/N"
first=${BASH_REMATCH[1]} shards=${BASH_REMATCH[2]}
((first <= shards)) || fail "--shard $shard: K must not exceed N"
[[ $list == no ]] || { "${scale}_runs" && exit; }

# What the tables need of a trained model: predictions for the reliability of repeated runs, the supplement's solvers.
# The weights are not part of the record; where they are no longer there, what was tested stays.
tests() {
    local folder=$1 out=results/cifar_classification/$1
    if [[ $folder =~ cifar100?_(aca|resnet)_ && -f $out/checkpoint.pth.tar && ! -f $out/predictions.npz ]]; then
        .venv/bin/python cifar_classification/test.py --resume "$out/checkpoint.pth.tar" --predictions "${flags[@]}"
    fi
    if [[ $folder =~ ^(cpu|paper-350)/|_euler_ && -f $out/model_best.pth.tar ]]; then
        .venv/bin/python cifar_classification/test.py --resume "$out" --all-solvers --no-amp "${flags[@]}"
    fi
}

bash scripts/setup.sh
export THP_MEM_ALLOC_ENABLE=1 # large memory pages: PyTorch spends less time on page faults
mapfile -t lines < <("${scale}_runs")
failed=()
for ((i = first - 1; i < ${#lines[@]}; i += shards)); do
    read -ra words <<<"${lines[i]}"
    out=results/cifar_classification/${words[0]}
    if [[ ! -f $out/summary.json ]]; then
        code=0
        .venv/bin/python cifar_classification/train.py "${words[@]:1}" --out "$out" --resume auto "${flags[@]}" || code=$?
        ((code <= 1)) || exit "$code" # a run that diverged is a result; a mistake or an interruption ends them all
        ((code == 0)) || failed+=("${words[0]}")
    fi
    [[ ! -f $out/summary.json ]] || tests "${words[0]}"
done
((${#failed[@]} == 0)) || echo "ended early, see their records: ${failed[*]}" >&2
[[ $report == no ]] || .venv/bin/python cifar_classification/report.py
