#!/usr/bin/env bash
# What needs a GPU: the tests of the kernels, the benchmarks and their targets, the sanitizers.
#
#   cuda/on_gpu.sh [FOLDER [STEP ...]]
#
# Logs, tables and figures go into FOLDER (runs/gpu); PYTHON names the interpreter. Each step has a time limit and its own
# log, and a failure does not keep the next from running. What is worth most comes first, so that a machine that is lent
# for some minutes does as much as it can; or name the steps.
set -u
cd "$(dirname "$0")/.."
folder=${1:-runs/gpu}
shift $(($# > 0))
steps=(tests kmatrix featurizer materialised memcheck racecheck synccheck)
for name in "$@"; do
  if [[ " ${steps[*]} " != *" $name "* ]]; then
    echo "there is no step $name: choose among ${steps[*]}" >&2
    exit 2
  fi
done
chosen=" ${*:-${steps[*]}} "
python=${PYTHON:-python3}
mkdir -p "$folder"
failed=0

step() { # NAME SECONDS COMMAND...
  local name=$1 limit=$2 start=$SECONDS status
  shift 2
  [[ "$chosen" == *" $name "* ]] || return
  timeout --kill-after=10 "$limit" "$@" >"$folder/$name.log" 2>&1
  status=$?
  case $status in
    0) verdict=passed ;;
    124 | 137) verdict="not done after $limit s" ;;
    *) verdict="failed ($status): see $folder/$name.log" ;;
  esac
  [ "$status" -eq 0 ] || failed=1
  printf '%-14s %5d s  %s\n' "$name" $((SECONDS - start)) "$verdict" | tee -a "$folder/summary.txt"
}

: >"$folder/summary.txt"
if ! "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
  echo "$python sees no GPU: install a torch with CUDA, or name another interpreter in PYTHON" >&2
  exit 1
fi
if ! "$python" -c 'import sys, torch; from kaleido_audio import ops
print(torch.cuda.get_device_name(), torch.__version__, torch.ops.kaleido_audio.cuda_architectures())
sys.exit(ops.backend(torch.empty(1, device="cuda")) != "cuda")' >>"$folder/summary.txt"; then
  echo "there are no CUDA kernels for this GPU in kaleido_audio: build them with make cuda" >&2
  exit 1
fi

export PYTHONUNBUFFERED=1
step tests 240 "$python" -m pytest -q --durations=15 tests/cuda/test_gpu.py
step kmatrix 120 "$python" -m benchmarks.kmatrix --device cuda --cases targets --out "$folder/kmatrix"
step featurizer 90 "$python" -m benchmarks.featurizer --device cuda --cases targets --out "$folder/featurizer"
step materialised 120 "$python" -m benchmarks.materialised --device cuda --out "$folder/materialised"
for tool in memcheck racecheck synccheck; do
  step "$tool" 180 compute-sanitizer --tool "$tool" --error-exitcode 9 \
    "$python" -m pytest -q -p no:cacheprovider tests/cuda/test_gpu.py -k "9 or graph or long or odd"
done
exit "$failed"
