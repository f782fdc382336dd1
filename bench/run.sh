#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Measures what a VM exit costs, on each engine that works here and beside /dev/kvm:
#
#     bench/run.sh [--compare OLD.json]
#
# Takes about a minute.  Prints the machine, the engines, and a table of medians, spreads and ratios; writes
# build/release/bench.json, which a later run can be compared with.

set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"

# shellcheck source=../cmake/packages.sh
source "$root/cmake/packages.sh"

compare=()
case ${1:-} in
'') ;;
--compare)
    [[ -r ${2:-} ]] || die "--compare needs the JSON file of an earlier run, for example build/release/bench.json"
    compare=(--compare "$2")
    ;;
*) die "unknown option '$1'; --compare OLD.json would work" ;;
esac

install_missing "${vmm_build_packages[@]}" libbenchmark-dev python3
say "==> building"
cmake --preset release -DVMM_BUILD_BENCH=ON >build/bench.cmake.log 2>&1 || {
    cat build/bench.cmake.log >&2
    die "cmake failed; its output is above"
}
ninja -C build/release vmm-bench >&2
say "==> measuring"
json=$root/build/release/bench.json
raw=$(mktemp)
trap 'rm -f "$raw"' EXIT
build/release/bin/vmm-bench --benchmark_repetitions=5 --benchmark_min_time=0.1 \
    --benchmark_enable_random_interleaving=true \
    --benchmark_out_format=json --benchmark_out="$raw" >/dev/null
python3 bench/report.py "$raw" "$json" "${compare[@]}"
