#!/usr/bin/env bash
# One machine's share of a list of resolutions: MACHINE=0 MACHINES=2 bash docs/examples/share_out.sh 192 256 320 384
# Every machine calls it alike, with a number of its own from 0, and again after a crash; see docs/team.md.
set -euo pipefail
: "${MACHINE:?wanted the number of this machine, from 0}" "${MACHINES:?wanted how many machines there are}"

turn=0
for res in "$@"; do
  if [ $((turn % MACHINES)) -eq "$MACHINE" ]; then
    name="res$res"
    here=$(dvc exp list --name-only) # whole: a pipe that grep leaves early would count as a failure
    if grep --quiet --line-regexp --fixed-strings "$name" <<<"$here"; then
      dvc exp apply "$name" # run before, and perhaps not pushed
    else
      dvc exp run --name "$name" -S "res=$res"
    fi
    dvc push
    dvc exp push --no-cache origin "$name"
  fi
  turn=$((turn + 1))
done
