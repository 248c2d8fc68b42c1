#!/usr/bin/env bash
# AdaFisher by its four rules against nine other optimizers, on four tasks, at equal training seconds.
#
#     tests/benchmarks/comparison/run.sh TEXT [OPTION=VALUE ...]
#
# TEXT is a text file, such as tinyshakespeare. Two comparisons run side by side, with one thread each: an hour on
# two cores that have nothing else to do. Started again, it goes on where it stopped. Every contender tunes its rate
# over five values, half a decade apart. There is no weight decay: it means something else to each of them.
set -euo pipefail
text=$1
shift
cd "$(dirname "$0")/../../.."
export OMP_NUM_THREADS=1
python=${PYTHON:-python}
out=outputs/comparison
adafisher=adafisher,adafisher_calibrated,adafisher_paper,adafisher_released
others=adamw,sgd,adafactor,muon,kfac,foof,eva,shampoo,adahessian

compare() { # NAME OPTION=VALUE ...
    "$python" -m trainer.compare optimizer=$adafisher,$others optimizer.weight_decay=0 \
        seed=0,1,2,3,4 budget_from=adafisher schedule.warmup=0.1 loop.max_epochs=null \
        'tune.lr=log(1e-3,0.1,5)' 'tune.lr.adafisher_released=log(3e-4,0.03,5)' 'tune.lr.sgd=log(0.03,3,5)' \
        'tune.lr.kfac=log(0.01,1,5)' 'tune.lr.foof=log(0.01,1,5)' 'tune.lr.eva=log(0.01,1,5)' \
        'tune.lr.shampoo=log(0.01,1,5)' 'tune.lr.adahessian=log(0.01,1,5)' \
        'monitor.sinks=[jsonl,runlog]' checkpoint.keep_best=false checkpoint.keep_last=1 \
        "${@:2}" "compare.dir=$out/$1" >"$out/$1.txt"
}

mkdir -p "$out"
{
    compare digits data.holdout=0.2 loop.max_steps=400 loop.eval_every=40 "$@"
    compare fashion_mnist experiment=fashion_mnist_cnn data.holdout=0.05 loop.max_steps=120 loop.eval_every=60 "$@"
    compare autoencoder experiment=fashion_mnist_autoencoder data.holdout=0.05 loop.max_steps=120 loop.eval_every=60 "$@"
} &
images=$!
compare text experiment=shakespeare_gpt "data.path=$text" data.holdout=0.05 \
    model.layers=2 model.width=64 model.heads=4 loop.max_steps=280 loop.eval_every=70 "$@"
wait $images
cat "$out"/*.txt
