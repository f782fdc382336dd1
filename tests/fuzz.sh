#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Builds the libFuzzer targets (preset fuzz: Clang, ASan, UBSan) and runs them, two at a time:
#
#     tests/fuzz.sh                        every target, 60 s each
#     tests/fuzz.sh guest state            only these
#     tests/fuzz.sh guest --seconds 3600   for an hour
#     tests/fuzz.sh --list                 names the targets
#
# A corpus grows in build/fuzz/corpus/TARGET from run to run.  An input that breaks something is left in
# build/fuzz/found/TARGET; put it into tests/fuzz/regressions/TARGET when it is fixed: builds without sanitizers replay it.
# Ends with "N passed, M failed"; exit status 0 if none failed.

set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"

# shellcheck source=../cmake/packages.sh
source "$root/cmake/packages.sh"

mapfile -t all < <(sed -nE '/Target targets\[\]/,/^\};/p' tests/fuzz/target.hpp | grep -oE '"[a-z_]+"' | tr -d '"')
seconds=60
targets=()
while [[ $# -gt 0 ]]; do
    case $1 in
    --seconds)
        [[ ${2:-} =~ ^[1-9][0-9]*$ ]] || die "--seconds needs a number of seconds"
        seconds=$2
        shift
        ;;
    --list)
        printf '%s\n' "${all[@]}"
        exit 0
        ;;
    *)
        [[ " ${all[*]} " == *" $1 "* ]] || die "no target '$1'; there are: ${all[*]}"
        targets+=("$1")
        ;;
    esac
    shift
done
[[ ${#targets[@]} -gt 0 ]] || targets=("${all[@]}")

install_missing "${vmm_build_packages[@]}" "${vmm_fuzz_packages[@]}"

build=$root/build/fuzz
mkdir -p "$build/logs" "$build/summary"
cmake --preset fuzz >"$build/logs/cmake.log" 2>&1 || {
    cat "$build/logs/cmake.log"
    die "cmake failed"
}
cmake --build --preset fuzz -j "$(nproc)"

# fuzz TARGET: its seeds and its old findings first, then new inputs for as long as asked.
fuzz() {
    local target=$1 corpus=$build/corpus/$1 found=$build/found/$1 seeds=$build/seeds/$1 log=$build/logs/$1.log
    local inputs=() status=0 executions
    rm -rf "$seeds"
    mkdir -p "$corpus" "$found" "$seeds"
    VMM_FUZZ_TARGET=$target VMM_FUZZ_SEEDS=$seeds "$build/bin/vmm_fuzz"
    inputs=("$corpus" "$seeds")
    [[ ! -d tests/fuzz/regressions/$target ]] || inputs+=("tests/fuzz/regressions/$target")
    VMM_FUZZ_TARGET=$target "$build/bin/vmm_fuzz" -max_total_time="$seconds" -timeout=20 -rss_limit_mb=2048 \
        -max_len=4096 -entropic=0 -print_final_stats=1 -artifact_prefix="$found/" "${inputs[@]}" >"$log" 2>&1 || status=$?
    executions=$(sed -nE 's/^stat::number_of_executed_units: +([0-9]+)$/\1/p' "$log")
    if [[ $status -eq 0 ]]; then
        echo "$target: ${executions:-?} inputs, clean" | tee "$build/summary/$target"
    else
        echo "$target: FAILED, see $log" | tee "$build/summary/$target"
        grep -E 'FUZZ_CHECK|runtime error|ERROR: |SUMMARY|Test unit written' "$log" | head -n 8 || true
    fi
}

rm -f "$build/summary"/*
for target in "${targets[@]}"; do
    while [[ $(jobs -rp | wc -l) -ge 2 ]]; do
        wait -n || true
    done
    fuzz "$target" &
done
wait

failed=0
for target in "${targets[@]}"; do
    grep -qs ' clean$' "$build/summary/$target" || failed=$((failed + 1))
done
echo "$((${#targets[@]} - failed)) passed, $failed failed"
[[ $failed -eq 0 ]]
