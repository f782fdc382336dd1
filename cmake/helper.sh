# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
#
# Sourced, after packages.sh and with $root set, by the scripts that build the helper module.  Prints to standard error
# only.

# build_helper VERSION: builds the helper for the kernel VERSION, in a copy of its sources, and sets $helper.  sparse looks at
# it where it is installed.
build_helper() {
    local version=$1 folder=$root/build/helper/$1 headers=${VMM_KERNEL_TREE:-/lib/modules/$1/build}
    [[ -d $headers ]] || install_missing "linux-headers-$version"
    [[ -d $headers ]] || die "there are no headers of kernel $version in $headers"
    install_missing make gcc
    mkdir -p "$folder"
    cp -u "$root"/src/x86/helper/{Kbuild,*.[chS]} "$folder/"
    local sparse=0
    ! command -v sparse >/dev/null || sparse=1
    if ! make -C "$headers" "M=$folder" W=1 "C=$sparse" modules >"$folder/log" 2>&1; then
        tail -n 20 "$folder/log" >&2
        die "the helper module does not build for kernel $version; $folder/log has it all"
    fi
    ! grep -E 'warning:' "$folder/log" >&2 || die "the helper module builds with warnings"
    # shellcheck disable=SC2034
    helper=$folder/vmm_helper.ko
}
