#!/usr/bin/env bash
# The tests and the speed benchmark on a GPU, in eight minutes at most after the installation.
#
#     benchmarks/gpu.sh results                   # in the environment of `make`
#     PYTHON=python3 benchmarks/gpu.sh results    # in another one, which has what `make test` installs
set -uo pipefail
cd "$(dirname "$0")/.."
out=$(realpath -m "${1:-results}")
mkdir -p "$out"
if [ -z "${PYTHON:-}" ]; then
    make .venv/.installed || exit
    PYTHON=.venv/bin/python
fi
export PYTHONPATH=$PWD OMP_NUM_THREADS=1
nvidia-smi >"$out/machine.txt"
timeout -s INT -k 10 210 "$PYTHON" -m pytest -p no:cacheprovider -n "${WORKERS:-8}" --device cuda \
    >"$out/tests.txt" 2>&1
tests=$?
timeout -s INT -k 10 260 "$PYTHON" benchmarks/speed.py --device cuda --more --repeats .5 \
    --out "$out/speed.json" >"$out/speed.md" 2>"$out/speed.log"
speed=$?
tail -n 30 "$out/tests.txt"
cat "$out/speed.md"
[ $tests = 0 ] && [ $speed = 0 ]
