#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Builds, loads and unloads the helper module, which the engines svm and vmx need.  `examples/helper.sh --help` says how.

set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

# shellcheck source=../cmake/packages.sh
source "$root/cmake/packages.sh"
# shellcheck source=../cmake/helper.sh
source "$root/cmake/helper.sh"

usage() {
    cat <<'END'
examples/helper.sh [check|build|load|unload] [--group GROUP] [--kernel VERSION]

  check    says what stands in the way, and changes nothing
  build    builds build/helper/VERSION/vmm_helper.ko, installing the kernel's headers if need be
  load     (the default) builds it, loads it, and gives GROUP access to /dev/vmm
  unload   unloads it; fails while a VM lives

  --group GROUP     who may use /dev/vmm (kvm, if there is such a group; else root alone)
  --kernel VERSION  for build: the kernel to build for (the one that runs)
END
}

action=load
group=
version=$(uname -r)
while [[ $# -gt 0 ]]; do
    case $1 in
    check | build | load | unload) action=$1 ;;
    --group) group=${2:?--group needs a name} && shift ;;
    --kernel) version=${2:?--kernel needs a version} && shift ;;
    --help | -h)
        usage
        exit 0
        ;;
    *) die "unknown argument '$1'; see --help" ;;
    esac
    shift
done

# obstacles: one a line, none if the module can be loaded.
obstacles() {
    local flags secure
    flags=$(grep -m 1 '^flags' /proc/cpuinfo || true)
    case " $flags " in
    *' svm '*) [[ " $flags " == *' npt '* ]] || echo "the CPU has SVM without nested paging" ;;
    *' vmx '*)
        # As the kernel lists them: none of them means none in the CPU.
        for each in ept vpid unrestricted_guest; do
            grep -qE "^vmx flags.* $each( |\$)" /proc/cpuinfo || echo "the CPU's VMX has no $each"
        done
        ;;
    *) echo "the CPU shows neither SVM nor VMX: no such hardware, hidden by a hypervisor, or disabled by the firmware" ;;
    esac
    if [[ ! -d /lib/modules/$version/build ]] && ! apt-cache show "linux-headers-$version" >/dev/null 2>&1; then
        echo "there are no headers of the kernel $version, neither in /lib/modules nor known to apt as linux-headers-$version"
    fi
    secure=$(cat /sys/kernel/security/lockdown 2>/dev/null || true)
    if [[ -n $secure && $secure != *'[none]'* ]]; then
        echo "the kernel is locked down (secure boot): the module must be signed with a key that it trusts (mokutil)"
    fi
    case $version in
    [0-5].* | 6.0.*) echo "the kernel $version is older than 6.1" ;;
    esac
}

check() {
    local found
    found=$(obstacles)
    [[ -z $found ]] || die "the helper module cannot be used here:"$'\n'"$(sed 's/^/  - /' <<<"$found")"
}

case $action in
check)
    check
    echo "nothing stands in the way"
    ;;
build)
    build_helper "$version"
    echo "$helper"
    ;;
load)
    check
    [[ $version == "$(uname -r)" ]] || die "--kernel is for build: only the running kernel can load a module"
    build_helper "$version"
    [[ ! -d /sys/module/vmm_helper ]] || as_root rmmod vmm_helper || die "a VM lives: end it first"
    as_root insmod "$helper" || die "the kernel does not take the module; dmesg says why"
    if [[ -z $group ]] && getent group kvm >/dev/null; then
        group=kvm
    fi
    [[ -z $group ]] || as_root chgrp "$group" /dev/vmm
    ls -l /dev/vmm
    ;;
unload) as_root rmmod vmm_helper ;;
esac
