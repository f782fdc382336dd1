#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# The vmx engine and its helper in a machine with VMX (tests/hardware.sh), with the programs of build/PRESET:
#
#     tests/vmx.sh [PRESET]    dev; takes a quarter of an hour or more
#
# Bochs takes minutes to boot, so all checks share one machine; then another one has kvm_intel beside it.  Its CPU says that it
# has 3.5 GHz while an instruction is a tick of its TSC, so each second that a test sleeps takes it minutes.
# VMM_HELPER_CALLS and VMM_HELPER_KILLS say how long the bad callers go on.  Ends with a line "N passed, N failed"; exit
# status 0 if nothing failed.

set -u

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=hardware/checks.sh
source "$root/tests/hardware/checks.sh"
bin=$root/build/${1:-dev}/bin
seconds=${VMM_GUEST_SECONDS:-3000} # The most one machine may take.

# machine MODULES LINE FILE…: the output of the shell's LINE is in $work/output.
machine() {
    local modules=$1 files=()
    printf '%s\n' "$2" >"$work/line"
    shift 2
    for file in "$@"; do files+=(--file "$file"); done
    "$root/tests/hardware.sh" vmx --modules "$modules" --console "$work/console" --timeout "$seconds" \
        --file "$work/line" "${files[@]}" -- sh /vmm/line >"$work/output" 2>"$work/errors"
    status=$?
    report "the machine with $modules comes to its end, and its kernel has no complaint" \
        "$([[ $status -eq 0 ]] || echo "exit status $status")" "$work/output" "$work/errors" "$work/console"
}

# check NAME REGEX: what the machine has said matches.
check() {
    report "$1" "$(grep -qE "$2" "$work/output" || echo "no '$2' in its output")" "$work/output"
}

machine vmm_helper "/vmm/vmm-info
/vmm/vmm-hello
/vmm/vmm_core_tests --gtest_brief=1 '--gtest_filter=Engines/*vmx' && echo the engine suite: good
export VMM_HELPER_CALLS=${VMM_HELPER_CALLS:-2000} VMM_HELPER_KILLS=${VMM_HELPER_KILLS:-5}
/vmm/vmm_helper_tests --gtest_brief=1 && echo the helper: good
$(linux vmx 1)
rmmod vmm_helper && echo unloaded" \
    "$bin"/{vmm-info,vmm-hello,vmm-linux,vmm_core_tests,vmm_helper_tests} "$work/vmlinuz" "$work/guest-initrd"
check "vmm-info says that vmx is usable" '^vmx +usable'
check "vmm-hello" '^Hello'
check "the engine suite" '^the engine suite: good'
check "the helper's calls and bad callers" '^the helper: good'
check "Debian's kernel" '^Linux'
check "the module goes" '^unloaded'

machine 'kvm_intel vmm_helper' "$(linux kvm 1) >/tmp/kvm & $(linux vmx 1) >/tmp/vmx
wait
echo kvm \$(cat /tmp/kvm) vmx \$(cat /tmp/vmx)" "$bin/vmm-linux" "$work/vmlinuz" "$work/guest-initrd"
check "Debian's kernel, and another one on kvm_intel" '^kvm 1 Linux vmx 1 Linux'
finish
