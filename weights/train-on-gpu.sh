#!/usr/bin/env bash
# The bundled model, made on a machine with an NVIDIA GPU in three minutes, and measured:
#
#     OUT=some/folder weights/train-on-gpu.sh
#
# It runs `minigpt train --preset toy`. The best model so far is copied to OUT every ten seconds,
# whole, for a machine that may be taken away; at the end come described.md and train.log.
set -u
: "${OUT:?say where the model goes: OUT=folder $0}"
python=${PYTHON:-python3}
work=${WORK:-$(mktemp -d)}
export PYTHONPATH=$PWD
mkdir -p "$OUT"

keep() {  # each file appears whole or not at all in the run's folder, so a copy of it is whole
    for file in config.json model.safetensors vocab.json merges.txt train.toml log.jsonl; do
        test -e "$work/run/$file" && cp "$work/run/$file" "$OUT/.$file" && mv "$OUT/.$file" "$OUT/$file"
    done
    cp "$work/train.log" "$OUT/train.log"
}

(while sleep 10; do keep; done) &
copying=$!
"$python" -m minigpt train --preset toy --cache "$work/data" --out "$work/run" "$@" 2>&1 |
    tee "$work/train.log"
status=${PIPESTATUS[0]}
kill "$copying"
keep
echo "trained in $SECONDS s, status $status"
test "$status" = 0 || exit "$status"
"$python" weights/describe.py --model "$OUT" --device cuda --print | tee "$OUT/described.md"
echo "measured after $SECONDS s"
