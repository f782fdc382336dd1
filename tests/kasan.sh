#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# The svm engine's helper in a kernel with KASAN and lockdep, built from Debian's linux-source-6.1 into build/kasan:
#
#     tests/kasan.sh [PRESET]      dev; the kernel takes ten minutes or more to build, once
#
# Runs tests/svm.sh's checks of the helper in it.  Ends with a line "N passed, N failed"; exit status 0 if nothing failed.

set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=../cmake/packages.sh
source "$root/cmake/packages.sh"

folder=$root/build/kasan
tree=$folder/linux-source-6.1
install_missing linux-source-6.1 flex bison bc libelf-dev xz-utils
mkdir -p "$folder"
[[ -d $tree ]] || tar -C "$folder" -xf /usr/src/linux-source-6.1.tar.xz
if [[ ! -f $folder/modules/done || $root/tests/hardware/kasan.config -nt $folder/modules/done ]]; then
    say "==> building the kernel; $folder/log has it all"
    {
        make -C "$tree" tinyconfig
        (cd "$tree" && scripts/kconfig/merge_config.sh -m .config "$root/tests/hardware/kasan.config")
        make -C "$tree" olddefconfig
        make -C "$tree" -j "$(nproc)" bzImage modules
        make -C "$tree" INSTALL_MOD_PATH="$folder/modules" modules_install
    } >"$folder/log" 2>&1 || die "the kernel does not build"
    touch "$folder/modules/done"
fi
export VMM_KERNEL_TREE=$tree VMM_KERNEL_MODULES=$folder/modules
exec "$root/tests/svm.sh" "${1:-dev}" "bad callers"
