#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# The same guest code on the software engine, with and without its translator, on QEMU's TCG and on Unicorn, as far as
# those are installed: one table of how many times slower each is than the host's CPU, with geometric means.
# Integer loops, SSE and x87, AVX2 and FMA, bulk moves, code that rewrites itself.  No arguments.  Takes half a minute.
# What a Linux guest does (system calls, page faults, forks, a boot) is in linux.sh, exits are in run.sh.

set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=../cmake/packages.sh
source "$root/cmake/packages.sh"
[[ $# -eq 0 ]] || die "bench/engine.sh takes no arguments"

install_missing "${vmm_build_packages[@]}" libbenchmark-dev
mkdir -p "$root/build"
(cd "$root" && cmake --preset release -DVMM_BUILD_BENCH=ON >build/engine.cmake.log 2>&1) ||
    die "cmake failed; build/engine.cmake.log says why"
targets=(vmm-soft-bench)
! grep -q '^VMM_UNICORN:.*libunicorn' "$root/build/release/CMakeCache.txt" || targets+=(vmm-unicorn-bench)
cmake --build "$root/build/release" --target "${targets[@]}" >&2
bin=$root/build/release/bin
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

beside=()
if command -v qemu-system-x86_64 >/dev/null; then
    say "==> QEMU's TCG"
    "$bin/vmm-soft-bench" --rom "$work/rom"
    timeout 300 qemu-system-x86_64 -accel tcg -M pc -cpu max -m 128 -nodefaults -no-user-config -display none -no-reboot \
        -bios "$work/rom" -debugcon "file:$work/tcg" -device isa-debug-exit,iobase=0xf4 2>/dev/null || true
    beside+=(--beside "TCG=$work/tcg")
else
    say "qemu-system-x86_64 is not installed: no column for TCG"
fi
if [[ " ${targets[*]} " == *unicorn* ]]; then
    say "==> Unicorn"
    "$bin/vmm-unicorn-bench" >"$work/unicorn"
    beside+=(--beside "Unicorn=$work/unicorn")
else
    say "libunicorn-dev is not installed: no column for Unicorn"
fi
say "==> the software engine"
"$bin/vmm-soft-bench" "${beside[@]}"
