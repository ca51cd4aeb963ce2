#!/usr/bin/env bash
# Locks what main.in and dev.in ask for, with all that it needs in turn, for every system and for Python 3.11 and later:
#   python -m pip install uv && requirements/make.sh
# lock.txt has hashes, for `pip install --require-hashes`; requirements.txt and requirements-dev.txt in the folder above
# are the same pins without them, since pip takes no editable install (-e .) where hashes are required.
set -euo pipefail
cd "$(dirname "$0")"

lock() { uv pip compile --quiet --universal --python-version 3.11 --no-header --no-annotate --no-emit-index-url "$@"; }

lock --generate-hashes main.in dev.in --output-file lock.txt
lock main.in --constraint lock.txt --output-file main.txt
lock dev.in --constraint lock.txt --output-file dev.txt

made="# Made by requirements/make.sh from requirements/lock.txt: change requirements/*.in, not this file."
{ echo "$made"; echo "-e ."; cat main.txt; } > ../requirements.txt
{ echo "$made"; echo "-r requirements.txt"; grep -vxFf main.txt dev.txt; } > ../requirements-dev.txt
rm main.txt dev.txt
