#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Boots Debian's kernel with 4 CPUs and a program that checks its own computations, clocks, timers, processes and memory
# (tests/endure/guest.c), while the VMM (tests/endure) changes slots and routes, reads the dirty log and compares it with
# what changed, and reads all state and writes it back, at random:
#
#     tests/endure.sh [SECONDS [PRESET [OPTION…]]]     60 seconds of the guest's time in preset release
#
# An OPTION is one of vmm-linux: --engine soft:stress, --cpus 2, …  VMM_ENDURE_SEED repeats what was done at random, as far as
# threads permit; VMM_ENDURE_DEEDS is a bit mask of what to do (Deed in tests/endure/disturber.hpp).
# Ends with a line "N passed, N failed"; exit status 0 if nothing was wrong.

set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=../cmake/packages.sh
source "$root/cmake/packages.sh"
# shellcheck source=../cmake/guest.sh
source "$root/cmake/guest.sh"
# shellcheck source=checks.sh
source "$root/tests/checks.sh"

seconds=${1:-60}
preset=${2:-release}
options=("${@:3}")
cpus=4
for ((i = 0; i < ${#options[@]}; i++)); do
    [[ ${options[i]} != --cpus ]] || cpus=${options[i + 1]}
done

install_missing "${vmm_build_packages[@]}" cpio
[[ -f $root/build/$preset/build.ninja ]] || (cd "$root" && cmake --preset "$preset" >/dev/null)
cmake --build "$root/build/$preset" --target vmm-endure >&2
mkdir -p "$guest"
find_kernel

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir "$work/tree"
mkdir "$work/tree/dev"
gcc -O2 -static -pthread -o "$work/tree/init" "$root/tests/endure/guest.c"
(cd "$work/tree" && find . | cpio --quiet -o -H newc -R 0:0) >"$work/initrd"
append="console=ttyS0,115200 quiet loglevel=4 panic=-1 vmm_seconds=$seconds vmm_cpus=$cpus $("$work/tree/init" --expect)"
status=0
timeout -k 10 $((seconds * 3 + 600)) "$root/build/$preset/bin/vmm-endure" --kernel "$kernel" --initrd "$work/initrd" \
    --append "$append" --cpus "$cpus" --memory 256M --engine soft --no-reboot "${options[@]}" </dev/null \
    >"$work/log" 2>&1 || status=$?
cat "$work/log"
problem=
[[ $status -eq 0 ]] || problem="exit status $status"
grep -q '^all is well' "$work/log" || problem+=" the guest did not come to its end"
# Another process of the guest may say so while the machine is on its way off.
! grep -q '^WRONG' "$work/log" || problem+=" $(grep -m1 '^WRONG' "$work/log")"
report "$seconds s of a disturbed guest with $cpus CPUs" "$problem"
finish
