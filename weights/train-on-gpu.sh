#!/usr/bin/env bash
# The bundled model within a given time, on a machine with an NVIDIA GPU:
#
#     OUT=some/folder weights/train-on-gpu.sh [SECONDS]
#
# It runs `minigpt train --preset toy`, with as many steps as the time allows: 80 steps are timed
# first. The best model so far is copied to OUT every ten seconds, and whole at the end.
set -u
budget=${1:-290}
: "${OUT:?say where the model goes: OUT=folder $0}"
python=${PYTHON:-python3}
work=${WORK:-$(mktemp -d)}
export PYTHONPATH=$PWD
mkdir -p "$OUT"
train() { "$python" -m minigpt train --preset toy --cache "$work/data" "$@"; }

keep() {  # each file appears whole or not at all in the run's folder, so a copy of it is whole
    for file in config.json model.safetensors vocab.json merges.txt train.toml log.jsonl; do
        test -e "$work/run/$file" && cp "$work/run/$file" "$OUT/.$file" && mv "$OUT/.$file" "$OUT/$file"
    done
    return 0
}

probe() { rm -rf "$work/probe"; train --out "$work/probe" --steps 80 --evaluate-windows 64 --save-every 1000000 "$@"; }
options=(${TRAIN_OPTIONS:-})
probe "${options[@]}" || { echo "again without compiling"; options+=(--no-compile); probe "${options[@]}"; } || exit 1
steps=$("$python" - "$work/probe/log.jsonl" $((budget - SECONDS - 20)) $((${BATCH:-512} * 256)) <<'PYTHON'
import json
import sys

rows = [row for row in map(json.loads, open(sys.argv[1])) if "tokens_per_second" in row]
since_start = {row["step"]: row["step"] / row["tokens_per_second"] for row in rows}
tokens_free = since_start[80] - since_start[40]  # steps / (tokens / s), for 40 steps
seconds = float(sys.argv[3]) * tokens_free / 40
print(f"{seconds * 1000:.1f} ms a step", file=sys.stderr)
print(max(100, int(int(sys.argv[2]) / (seconds * 1.06)) // 100 * 100))
PYTHON
)
echo "$SECONDS s so far; $steps steps in the rest of $budget s"
(while sleep 10; do keep; done) &
copying=$!
train --out "$work/run" --steps "$steps" "${options[@]}"
status=$?
kill "$copying"
keep
echo "done in $SECONDS s, status $status"
ls -l "$OUT"
exit "$status"
