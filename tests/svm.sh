#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# The svm engine and its helper in a machine with SVM (tests/hardware.sh), with the programs of build/PRESET:
#
#     tests/svm.sh [PRESET [CHECK]]    dev; with CHECK, those whose name has it; takes some ten minutes
#     tests/svm.sh PRESET quick        one machine, what .ci/run has of it; some two minutes
#
# VMM_HELPER_CALLS and VMM_HELPER_KILLS say how long the bad callers go on.  Ends with a line "N passed, N failed"; exit
# status 0 if nothing failed.

set -u

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=hardware/checks.sh
source "$root/tests/hardware/checks.sh"
bin=$root/build/${1:-dev}/bin
wanted=${2:-}
seconds=${VMM_GUEST_SECONDS:-600} # The most one machine may take.

# machine NAME MODULES REGEX FILE… -- LINE: the output of the shell's LINE in a machine matches REGEX, and its kernel
# had nothing to complain of.
machine() {
    local name=$1 modules=$2 regex=$3 files=() output status problem=
    shift 3
    [[ $name == *"$wanted"* ]] || return 0
    while [[ $1 != -- ]]; do
        files+=(--file "$1")
        shift
    done
    printf '%s\n' "$2" >"$work/line"
    output=$("$root/tests/hardware.sh" svm --modules "$modules" --memory 2048 --console "$work/console" \
        --timeout "$seconds" --file "$work/line" "${files[@]}" -- sh /vmm/line 2>"$work/errors")
    status=$?
    printf '%s\n' "$output" >"$work/output"
    [[ $status -eq 0 ]] || problem="exit status $status"
    grep -qE "$regex" "$work/output" || problem+=" no '$regex' in its output"
    report "$name" "$problem" "$work/output" "$work/errors" "$work/console"
}

if [[ $wanted == quick ]]; then
    wanted=
    machine "vmm-info, vmm-hello, the engine suite, the helper's calls and bad callers, Debian's kernel" vmm_helper \
        '^all of it' "$bin"/{vmm-info,vmm-hello,vmm-linux,vmm_core_tests,vmm_helper_tests} "$work/vmlinuz" "$work/guest-initrd" -- \
        "/vmm/vmm-info | grep -E '^svm +usable' && /vmm/vmm-hello | grep Hello || exit 1
/vmm/vmm_core_tests --gtest_brief=1 '--gtest_filter=Engines/*svm' || exit 1
VMM_HELPER_CALLS=${VMM_HELPER_CALLS:-2000} VMM_HELPER_KILLS=${VMM_HELPER_KILLS:-3} /vmm/vmm_helper_tests --gtest_brief=1 || exit 1
[ \"\$(echo \$($(linux svm 2)))\" = '2 Linux' ] && rmmod vmm_helper && echo all of it"
    finish
    exit
fi

guest=("$bin/vmm-linux" "$work/vmlinuz" "$work/guest-initrd")

machine "vmm-info says that svm is usable" vmm_helper '^svm +usable' "$bin/vmm-info" -- /vmm/vmm-info
machine "vmm-hello" vmm_helper 'Hello' "$bin/vmm-hello" -- /vmm/vmm-hello
machine "the engine suite" vmm_helper 'PASSED' "$bin/vmm_core_tests" -- \
    "/vmm/vmm_core_tests --gtest_brief=1 '--gtest_filter=Engines/*svm'"
machine "the engine suite beside kvm_amd" 'kvm_amd vmm_helper' 'PASSED' "$bin/vmm_core_tests" -- \
    "/vmm/vmm_core_tests --gtest_brief=1 '--gtest_filter=Engines/*svm'"
machine "the engine suite on kvm_amd" kvm_amd 'PASSED' "$bin/vmm_core_tests" -- \
    "/vmm/vmm_core_tests --gtest_brief=1 '--gtest_filter=Engines/*kvm'"
machine "the engine suite on kvm_amd with the kernel's irqchip" kvm_amd 'PASSED' "$bin/vmm_core_tests" -- \
    "/vmm/vmm_core_tests --gtest_brief=1 '--gtest_filter=Engines/*kernel_irqchip'"
# The same of the kernel's KVM itself, and of the engines below the shim.
for engine in kernel kvm svm; do
    machine "KVM's ABI: what is expected of $engine" 'kvm_amd vmm_helper' 'PASSED' "$bin/vmm_shim_tests" "$root/KVM.md" -- \
        "VMM_KVM_ENGINE=$engine VMM_KVM_TABLE=/vmm/KVM.md /vmm/vmm_shim_tests --gtest_brief=1"
done
machine "the helper's calls and bad callers" vmm_helper 'PASSED' "$bin/vmm_helper_tests" -- \
    "VMM_HELPER_CALLS=${VMM_HELPER_CALLS:-20000} VMM_HELPER_KILLS=${VMM_HELPER_KILLS:-20} /vmm/vmm_helper_tests"
machine "a module with a VM stays; CPUs go and come under a guest" vmm_helper '^stays 2 Linux unloaded' \
    "${guest[@]}" -- "$(linux svm 2) >/tmp/out &
vm=\$!
until [ \$(cat /sys/module/vmm_helper/refcnt) -gt 0 ]; do kill -0 \$vm || exit 1; done
for i in 1 2 3 4 5; do
    rmmod vmm_helper 2>/dev/null && echo gone
    echo 0 >/sys/devices/system/cpu/cpu1/online
    echo 1 >/sys/devices/system/cpu/cpu1/online
    sleep 1
done
wait \$vm && echo stays \$(cat /tmp/out) \$(rmmod vmm_helper && echo unloaded)"
# The guest on kvm_amd says so where it writes its exit status: QEMU 7.2 refuses user mode's OUT where the TSS is marked busy.
for cpus in 1 2; do
    machine "Debian's kernel with $cpus CPUs" vmm_helper "^$cpus\$" "${guest[@]}" -- "$(linux svm "$cpus")"
    machine "Debian's kernel with $cpus CPUs on kvm_amd with its irqchip" kvm_amd "^$cpus\$" "${guest[@]}" -- \
        "$(linux 'kvm --irqchip kernel' "$cpus") | grep -v 'Segmentation fault'"
    machine "Debian's kernel with $cpus CPUs, and another one on kvm_amd" 'kvm_amd vmm_helper' \
        "^kvm 1 Linux( Segmentation fault)? svm $cpus Linux" \
        "${guest[@]}" -- "$(linux kvm 1) >/tmp/kvm & $(linux svm "$cpus") >/tmp/svm; wait; echo kvm \$(cat /tmp/kvm) svm \$(cat /tmp/svm)"
done
finish
