#!/usr/bin/env bash
# Trains NODE-18 with ACA on CIFAR-10 (quick profile, for 2 cores), tests it with two other solvers and
# draws its curves. Run it again to go on after an interruption.
#   --data DIR   where CIFAR-10 is (without it: $CIFAR_DATA, else downloaded, else scikit-learn's digits stand in)
#   --paper      the paper's full recipe
# Other arguments go to cifar_classification/train.py.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

profile=quick
arguments=()
for argument in "$@"; do
    case $argument in
        --paper) profile=paper ;;
        -h | --help) sed -n '2,/^set/s/^# //p' "${BASH_SOURCE[0]}" && exit ;;
        *) arguments+=("$argument") ;;
    esac
done

bash "$root/scripts/setup.sh"
python=$root/.venv/bin/python
room=$root/cifar_classification
export THP_MEM_ALLOC_ENABLE=1 # large memory pages: PyTorch spends less time on page faults
train=("$python" "$room/train.py" --profile "$profile" --resume auto ${arguments[@]+"${arguments[@]}"})
"${train[@]}"
run=$("${train[@]}" --print-folder 2>/dev/null)

machine=() # what testing shares with training
for ((i = 0; i < ${#arguments[@]}; i++)); do
    case ${arguments[i]} in
        --data | --device | --threads) machine+=("${arguments[@]:i:2}") ;;
        --data=* | --device=* | --threads=*) machine+=("${arguments[i]}") ;;
    esac
done
for solver in "--method RK23 --rtol 1e-3 --atol 1e-3" "--method Euler --h 0.2"; do
    # shellcheck disable=SC2086 # the solver's options are separate words
    "$python" "$room/test.py" --resume "$run" $solver ${machine[@]+"${machine[@]}"}
done
echo "curves: $("$python" "$room/plot.py" "$run")"
echo "record, tests, checkpoints: $run"
echo "live curves: $root/.venv/bin/tensorboard --logdir $run"
