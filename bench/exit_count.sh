#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Counts the instructions of a VM exit, on our own engine and on the kernel's KVM in the same machine (tests/hardware.sh):
#
#     bench/exit_count.sh svm|vmx      about a minute; vmx: some ten

set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"

# shellcheck source=../cmake/packages.sh
source "$root/cmake/packages.sh"

case ${1:-} in
svm) modules='kvm_amd vmm_helper' options=(--count --cpus 1) ;;
vmx) modules='kvm_intel vmm_helper' options=() ;;
*) die "usage: bench/exit_count.sh svm|vmx" ;;
esac
install_missing "${vmm_build_packages[@]}" libbenchmark-dev
mkdir -p build
cmake --preset release -DVMM_BUILD_BENCH=ON >build/bench.cmake.log 2>&1 || {
    cat build/bench.cmake.log >&2
    die "cmake failed; its output is above"
}
ninja -C build/release vmm-exit-count >&2
exec tests/hardware.sh "$1" --modules "$modules" "${options[@]}" -- build/release/bin/vmm-exit-count
