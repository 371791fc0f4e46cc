#!/usr/bin/env bash
# Everything that needs a GPU, in one command:
#
#     bash benchmarks/gpu.sh OUT [DATA_DIR [PART...]]
#
# Tests and gradient checks on the GPU; a comparison with PyTorch, if it is installed, and with the GPU's peak; then the
# specification's 100 epochs and their probe. Each part has a time limit, sixteen minutes in all, and if one fails, the
# others still run. If a command may not run that long, name parts: "tests gradients step" first, then "train probe".
# Tables are printed; logs go to OUT.
# "REHEARSE=1 bash benchmarks/gpu.sh OUT" runs each part small, on a CPU.
set -u
out=${1:?"usage: bash benchmarks/gpu.sh OUT [DATA_DIR [PART...]]"}
data=${2:-data}
wanted=" ${*:3} "
for name in "${@:3}"; do
    [[ " machine versions tests gradients step train probe " == *" $name "* ]] || { echo "gpu.sh: no part '$name'" >&2; exit 2; }
done
python=${PYTHON:-python3}
cd "$(dirname "$0")/.." && mkdir -p "$out" || exit 2
out=$(cd "$out" && pwd)
failed=0
start="--preset cifar10"
[ -d "$out/cifar10" ] && start=--resume # go on with a run that was cut off

part() { # part NAME SECONDS COMMAND...: run the command, log it, show the log's end
    local name=$1 limit=$2
    shift 2
    [[ $wanted =~ ^\ *$ || $wanted == *" $name "* ]] || return 0
    echo "== $name"
    local started=$SECONDS
    timeout "$limit" "$@" >"$out/$name.log" 2>&1
    local status=$?
    tail -n "${LINES_SHOWN:-15}" "$out/$name.log"
    echo "-- $name: exit status $status, $((SECONDS - started)) s"
    [ $status -eq 0 ] || failed=$((failed + 1))
    return $status
}

if [ "${REHEARSE:-}" ]; then
    part tests 200 "$python" -m pytest -q tests/cuda/test_device.py tests/cuda/test_kernels.py
    part gradients 60 "$python" -m minijepa.gradcheck
    part step 300 "$python" benchmarks/step.py --rehearse --rounds 1 --limit 240
    part train 100 "$python" train.py --preset smoke --device cpu --dataset shapes --run-dir "$out/run" --epochs 1 --set warmup_epochs=0
    part probe 100 "$python" probe.py "$out/run" --device cpu
else
    "$python" -c 'from minijepa.cli import exit_status; from minijepa.backend import resolve_device as r; exit(exit_status("gpu.sh", lambda: r("cuda") and 0))' || exit 2
    part machine 15 nvidia-smi
    part versions 15 "$python" -c 'import cupy; cupy.show_config()'
    part tests 150 "$python" -m pytest -q tests/cuda/test_device.py tests/cuda/test_kernels.py -k card
    part gradients 50 "$python" -m minijepa.gradcheck --device cuda attention layer_norm gelu linear rows l2_loss
    part step 340 "$python" benchmarks/step.py --device cuda --rounds 5 --limit 65
    part train 240 "$python" train.py $start --device cuda --data-dir "$data" --run-dir "$out/cifar10" &&
        part probe 150 "$python" probe.py "$out/cifar10" --device cuda --data-dir "$data"
fi
echo "== $failed parts failed; logs are in $out"
[ "$failed" -eq 0 ]
