#!/usr/bin/env bash
# Training on one GPU, measured within 8 minutes: is it right, how fast is it, where does the time go.
#
#     bash benchmarks/gpu.sh OUT            # one GPU
#     bash benchmarks/gpu.sh OUT trial      # the same calls with nano at 64 px, to try the script on a processor
#
# Needs Python 3.11 or later with requirements.txt's packages, of which dvc, dvclive, qai-hub and Qualcomm's compiler may
# be missing; no network and no data. OUT gets a CSV per subject and table.txt; a part that fails or takes too long says so,
# and the others go on.
set -uo pipefail
cd "$(dirname "$0")/.."
out=$(realpath -m "${1:?usage: bash benchmarks/gpu.sh OUT [trial]}")
mkdir -p "$out"
export PYTHONPATH="$PWD/src:$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
failed=0

part() { # seconds, then the command
  local seconds=$1
  shift
  echo "== $* (at most $seconds s)"
  timeout "$seconds" python3 -m "$@" || { echo "== FAILED with status $?: $*"; failed=1; }
}

if [ "${2:-}" = trial ]; then
  part 300 benchmarks.gpu checks "$out" --model nano --res 64 --pictures 2
  part 300 benchmarks.train --model nano --res 64 --pictures 2 --steps 2 --csv "$out/speeds.csv"
  part 300 benchmarks.gpu batches "$out" --model nano --res 64 --pictures 2 --most 4
  part 300 benchmarks.gpu profile "$out" --model nano --res 64 --pictures 2
else
  part 60 benchmarks.gpu checks "$out" --model focal_t --res 256
  part 40 benchmarks.gpu checks "$out" --model mobile --res 320
  part 50 benchmarks.train --model focal_t --res 256 --pictures 64 --workers 12 --compile --csv "$out/speeds.csv"
  part 90 benchmarks.train --model focal_t --res 590 --pictures 32 --workers 12 --compile --csv "$out/speeds.csv"
  part 50 benchmarks.train --model mobile --res 320 --pictures 64 --workers 12 --compile --csv "$out/speeds.csv"
  part 60 benchmarks.gpu batches "$out" --model focal_t --res 590 --pictures 16
  part 90 benchmarks.gpu profile "$out" --model focal_t --res 590 --pictures 32
  part 40 benchmarks.gpu profile "$out" --model mobile --res 320 --pictures 64
fi
python3 -m benchmarks.gpu table "$out" | tee "$out/table.txt"
exit "$failed"
