#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Installs what is missing, then configures, builds and tests every preset:
#
#     tests/run.sh                 dev asan tsan, tests/guest.sh, tests/shim.sh, tests/selftests.sh, a part of tests/svm.sh,
#                                  tests/endure.sh for 30 s, and tests/fuzz.sh for 30 s a target
#     tests/run.sh dev asan        only these presets
#
# Ends with one line for each preset and ctest's line over all of them; exit status 0 if every test passed.

set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"

# shellcheck source=../cmake/packages.sh
source "$root/cmake/packages.sh"

presets=("$@")
[[ ${#presets[@]} -gt 0 ]] || presets=(dev asan tsan)
for preset in "${presets[@]}"; do
    case $preset in
    dev | clang | asan | tsan | release) ;;
    *) die "unknown preset '$preset'; dev, clang, asan, tsan and release would work" ;;
    esac
done

packages=("${vmm_build_packages[@]}" cpio busybox-static)
[[ ! " ${presets[*]} " =~ " clang "|" asan " ]] || packages+=(clang)
install_missing "${packages[@]}"

jobs=$(nproc)
logs=$root/build/test-logs
mkdir -p "$logs"
summary=()
total=0
failed=0
broken=0

# The numbers of ctest's closing line, "N% tests passed, F tests failed out of T".
count_tests() {
    sed -nE 's/^[0-9]+% tests passed, ([0-9]+) tests? failed out of ([0-9]+)$/\1 \2/p' "$1" | tail -n 1
}

run_preset() {
    local preset=$1 log=$logs/$1.log counts line
    echo "==> $preset: configure"
    if ! cmake --preset "$preset" >"$logs/$preset.cmake.log" 2>&1; then
        cat "$logs/$preset.cmake.log"
        summary+=("$preset: cmake failed")
        broken=1
        return
    fi
    echo "==> $preset: build"
    if ! cmake --build --preset "$preset" -j "$jobs"; then
        summary+=("$preset: the build failed")
        broken=1
        return
    fi
    echo "==> $preset: test"
    ctest --preset "$preset" -j "$jobs" 2>&1 | tee "$log" || true
    counts=$(count_tests "$log")
    if [[ -z $counts ]]; then
        summary+=("$preset: ctest ran no test")
        broken=1
        return
    fi
    line=$(grep -E '^[0-9]+% tests passed' "$log" | tail -n 1)
    summary+=("$preset: $line")
    [[ ${counts% *} -eq 0 ]] || summary+=("$(what_failed "$log")")
    failed=$((failed + ${counts% *}))
    total=$((total + ${counts#* }))
}

# The tests of ctest's log that failed, and what the first of them had to say: a long log may be cut in its middle.
what_failed() {
    sed -n '/^The following tests FAILED:/,/^Errors while/p' "$1" | grep -E '^[[:space:]]+[0-9]+ - ' | grep -v '(Skipped)$' || true
    grep -E -m 4 -A 12 ': Failure$|ERROR: AddressSanitizer|WARNING: ThreadSanitizer|runtime error:' "$1" | head -n 60 || true
}

run_script() { # NAME [ARGUMENT…]
    local name=$1 log=$logs/$1.log line passed_now failed_now
    shift
    echo "==> $name"
    "$root/tests/$name" "$@" | tee "$log" || true
    line=$(grep -E '^[0-9]+ passed, [0-9]+ failed$' "$log" || true)
    if [[ -z $line ]]; then
        summary+=("$name: came to no end")
        broken=1
        return
    fi
    summary+=("$name: $line")
    read -r passed_now _ failed_now _ <<<"$line"
    [[ $failed_now -eq 0 ]] || summary+=("$(grep -A 5 'FAILED' "$log" || true)")
    failed=$((failed + failed_now))
    total=$((total + passed_now + failed_now))
}

started=$SECONDS
for preset in "${presets[@]}"; do
    run_preset "$preset"
done

# The scripts beside this one, which end with "N passed, N failed"; parts of the whole only.
if [[ $# -eq 0 ]]; then
    run_script guest.sh
    run_script shim.sh
    run_script selftests.sh
    run_script svm.sh dev quick
    run_script endure.sh 30
    run_script fuzz.sh --seconds "${VMM_FUZZ_SECONDS:-30}"
fi

echo
echo "In $(((SECONDS - started) / 60)) min $(((SECONDS - started) % 60)) s:"
printf '  %s\n' "${summary[@]}"
passed_percent=0
if [[ $total -gt 0 ]]; then
    passed_percent=$((100 * (total - failed) / total))
fi
echo "$passed_percent% tests passed, $failed tests failed out of $total"
[[ $broken -eq 0 && $failed -eq 0 && $total -gt 0 ]]
