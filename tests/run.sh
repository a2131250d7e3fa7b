#!/usr/bin/env bash
# What `make test` runs, in the order in which failures are cheapest to read.
set -euo pipefail
cd "$(dirname "$0")/.."
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false MPLBACKEND=agg

echo "== notebooks and modules agree"
before=$(mktemp) && after=$(mktemp)
snapshot() { find nbs reward_kit -name '*.ipynb' -o -name '*.py' | sort | xargs sha256sum; }
snapshot > "$before"; nbdev_export; nbdev_clean; snapshot > "$after"
diff "$before" "$after" || { echo "nbdev_export or nbdev_clean changed the files above: commit what they write"; exit 1; }

echo "== ruff";      ruff check .
echo "== notebooks"; OMP_NUM_THREADS=1 nbdev_test --n_workers 2 --timing --skip_folder_re '^([_.]|tutorials$)'
echo "== pytest";    OMP_NUM_THREADS=1 python -m pytest --numprocesses auto --maxprocesses 4 --dist worksteal
