#!/usr/bin/env bash
# The benchmarks and the tests on a GPU, in eight minutes at most after the installation.
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
export PYTHONPATH=$PWD OMP_NUM_THREADS=1 PYTHONUNBUFFERED=1
nvidia-smi >"$out/machine.txt"

# A command in at most so many seconds; its output is kept, also if it takes longer.
within() {
    local seconds=$1 name=$2
    shift 2
    timeout -k 5 "$seconds" "$PYTHON" "$@" >"$out/$name.txt" 2>"$out/$name.log" || failed="$failed $name"
}

failed=
within 40 kernels benchmarks/gpu_kernels.py --out "$out/kernels.json"
within 190 speed benchmarks/speed.py --device cuda --more --repeats .3 --out "$out/speed.json"
# Plugins of another environment may change what a test sees.
within 240 tests -m pytest -v --tb short -p no:cacheprovider -p no:benchmark \
    -n "${WORKERS:-$(nproc)}" --device cuda
cat "$out/kernels.txt" "$out/speed.txt"
tail -n 30 "$out/tests.txt"
echo "failed:${failed:- nothing}"
[ -z "$failed" ]
