#!/usr/bin/env bash
# Every test that needs a GPU, and every row of the tables in docs that is measured on one. On one GPU, within 40 minutes.
#
#     tests/benchmarks/gpu.sh
#     tests/benchmarks/gpu.sh tests gpt2       # these parts alone, where there are only minutes
#     DEVICE=cpu tests/benchmarks/gpu.sh       # tries the script itself: no tests, one round, small batches
#
# Each part also writes NAME.txt into outputs/gpu, or into $OUT. One that fails leaves the others alone; then the script
# fails in the end.
set -uo pipefail
cd "$(dirname "$0")/../.."
python=${PYTHON:-python}
device=${DEVICE:-cuda}
out=${OUT:-outputs/gpu}
chosen=("$@")
known=()
failed=()
mkdir -p "$out"

part() { # NAME COMMAND...
    known+=("$1")
    [ ${#chosen[@]} = 0 ] || [[ " ${chosen[*]} " = *" $1 "* ]] || return 0
    echo "== ${*:2}"
    "${@:2}" 2>&1 | tee "$out/$1.txt" || failed+=("$1")
}

costs() { # NAME NETWORK BATCH AGAINST OPTIMIZER...
    part "$1" "$python" tests/benchmarks/costs.py --device "$device" --rounds "$rounds" --networks "$2" \
        --batch "$(batch "$3")" --against "$4" --optimizers "${@:5}"
}

first_order=(sgd muon adafisher adafisher_calibrated)
if [ "$device" = cuda ]; then
    rounds=15
    batch() { echo "$1"; }
    part tests make test-gpu PYTHON="$python"
    part optimizer "$python" tests/benchmarks/optimizer.py --device cuda --rounds "$rounds"
    costs gpt2 'GPT-2, 124 M, bf16' 16 adamw "${first_order[@]}"
    costs resnet50 'ResNet-50, bf16' 256 adamw "${first_order[@]}"
    costs resnet18 'ResNet-18 (CIFAR)' 512 sgd adamw "${first_order[@]:1}" adafisher_released kfac shampoo
else
    rounds=1
    batch() { echo 2; }
    part optimizer "$python" tests/benchmarks/optimizer.py --device cpu --rounds 1 --batch 2 --rows state
fi
costs autoencoder autoencoder 256 adamw "${first_order[@]}"
costs gpt 'GPT, 4 layers of 128' 64 adamw "${first_order[@]}" kfac shampoo

for name in "${chosen[@]}"; do
    [[ " ${known[*]} " = *" $name "* ]] || failed+=("$name (known: ${known[*]})")
done
[ ${#failed[@]} = 0 ] || { echo "failed: ${failed[*]}"; exit 1; }
