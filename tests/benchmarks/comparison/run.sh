#!/usr/bin/env bash
# AdaFisher by its four rules against nine other optimizers, on four tasks, at equal training seconds.
#
#     tests/benchmarks/comparison/run.sh TEXT [OPTION=VALUE ...]
#
# TEXT is a text file, such as tinyshakespeare. Two comparisons run side by side, with one thread each: an hour and
# a quarter on two cores that have nothing else to do. Started again, it goes on where it stopped. There is no weight
# decay: it means something else to each of them.
set -euo pipefail
text=$1
shift
cd "$(dirname "$0")/../../.."
export OMP_NUM_THREADS=1
python=${PYTHON:-python}
out=outputs/comparison
adafisher=adafisher,adafisher_calibrated,adafisher_paper,adafisher_released
others=adamw,sgd,adafactor,muon,kfac,foof,eva,shampoo,adahessian

grids() { # CONTENDER:LOWEST ...: five learning rates for each, half a decade apart
    for pair; do
        echo "tune.lr.${pair%:*}=log(${pair#*:},$(awk "BEGIN { print 100 * ${pair#*:} }"),5)"
    done
}

compare() { # NAME GRIDS OPTION=VALUE ...
    "$python" -m trainer.compare optimizer=$adafisher,$others optimizer.weight_decay=0 $(grids $2) \
        seed=0,1,2,3,4 budget_from=adafisher schedule.warmup=0.1 loop.max_epochs=null \
        'monitor.sinks=[jsonl,runlog]' checkpoint.keep_best=false checkpoint.keep_last=1 \
        compare.baseline=adafisher "${@:3}" "compare.dir=$out/$1" >"$out/$1.txt"
}

common="sgd:0.03 foof:0.01 shampoo:0.01 adafisher_paper:1e-3"
mkdir -p "$out"
{
    compare digits "$common adafisher:0.01 adafisher_calibrated:1e-3 adafisher_released:3e-5 \
        adamw:1e-3 adafactor:0.01 muon:0.01 kfac:0.01 eva:1e-3 adahessian:0.1" \
        data.holdout=0.2 loop.max_steps=400 loop.eval_every=40 "$@"
    compare fashion_mnist "$common adafisher:0.01 adafisher_calibrated:0.01 adafisher_released:3e-4 \
        adamw:0.01 adafactor:0.01 muon:0.01 kfac:0.1 eva:1e-3 adahessian:0.01" \
        experiment=fashion_mnist_cnn data.holdout=0.05 loop.max_steps=120 loop.eval_every=60 "$@"
} &
images=$!
low="$common adafisher:1e-3 adafisher_calibrated:1e-3 adafisher_released:3e-4 \
    adamw:1e-3 adafactor:1e-3 muon:1e-3 kfac:0.01 eva:0.01 adahessian:0.01"
compare text "$low" experiment=shakespeare_gpt "data.path=$text" data.holdout=0.05 \
    model.layers=2 model.width=64 model.heads=4 loop.max_steps=280 loop.eval_every=70 "$@"
compare autoencoder "$low" experiment=fashion_mnist_autoencoder data.holdout=0.05 \
    loop.max_steps=120 loop.eval_every=60 "$@"
wait $images
cat "$out"/*.txt
