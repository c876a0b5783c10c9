#!/usr/bin/env bash
# Fuzzes every target of fuzz/ for SECONDS each (60), under atheris: `pip install rare-trt[fuzz]`.
# What is found interesting is kept in .fuzz/TARGET, and the next run goes on from there; the small
# corpus that tests replay is tests/corpus/TARGET. A defect stops the run and is left in .fuzz.
# Further arguments are libFuzzer's, as -seed=1.
set -euo pipefail
cd "$(dirname "$0")/.."
seconds=${1:-60}
for file in fuzz/*.py; do
  target=$(basename "$file" .py)
  mkdir -p ".fuzz/$target"
  echo "fuzzing $target for $seconds s"
  PYTHONPATH=. "${PYTHON:-python}" "$file" ".fuzz/$target" "tests/corpus/$target" \
    -max_total_time="$seconds" -max_len=4096 -timeout=10 -rss_limit_mb=2048 \
    -artifact_prefix=".fuzz/$target-" -print_final_stats=1 "${@:2}"
done
