#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Boots Debian's kernel by examples/run.sh and looks at what guests do, as a user would.
#
#     tests/guest.sh               every check
#     tests/guest.sh boots N       N boots in a row, with 1, 2 and 4 CPUs in turn
#
# Ends with a line "N passed, N failed"; exit status 0 if nothing failed.

set -u

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=checks.sh
source "$root/tests/checks.sh"
run=$root/examples/run.sh
seconds=${VMM_GUEST_SECONDS:-120} # The most one boot may take.
errors=$(mktemp)
trap 'rm -f "$errors"' EXIT

# expect NAME STATUS REGEX [OPTION…] -- COMMAND…: what the guest's command prints matches REGEX as a whole, and
# run.sh ends with STATUS.
expect() {
    local name=$1 status=$2 regex=$3 output got problem=
    shift 3
    output=$(timeout -k 5 "$seconds" "$run" "$@" 2>"$errors" </dev/null)
    got=$?
    [[ $got -eq $status ]] || problem="exit status $got, expected $status"
    [[ $output =~ ^($regex)$ ]] || problem+=" output '$output', expected '$regex'"
    report "$name" "$problem" "$errors"
}

expect_stdin() { # NAME STATUS REGEX INPUT
    local output got problem=
    output=$(timeout -k 5 "$seconds" "$run" 2>"$errors" <<<"$4")
    got=$?
    [[ $got -eq $2 ]] || problem="exit status $got, expected $2"
    [[ $output =~ ^($3)$ ]] || problem+=" output '$output', expected '$3'"
    report "$1" "$problem" "$errors"
}

boots() {
    local count=$1 i cpus
    for ((i = 1; i <= count; i++)); do
        case $((i % 3)) in 0) cpus=1 ;; 1) cpus=2 ;; *) cpus=4 ;; esac
        expect "boot $i of $count with $cpus CPUs" 0 "$cpus" --cpus "$cpus" -- nproc
    done
}

# counted NAME: the sum over the virtual CPUs of what the last boot has counted so.
counted() { awk -v name="$1" '$1 == name { sum += $2 } END { print sum + 0 }' "$errors"; }

# counts NAME PROBLEM: reports a check of numbers.
counts() { report "$1" "$2" "$errors"; }

# KVM's paravirtual features as Linux takes them up: its log, /proc, and what the library has counted.  Interrupts are ended and sent
# through the registers' page here, where each is an access that is counted.
paravirtual() {
    local cpus=$(($(nproc) * 2)) with sent count='sleep 2; echo $(grep -c . /proc/interrupts)' loop
    expect "Linux takes up KVM's clock, IPIs, TLB flushes and, if they are offered, spinlocks and yields" 0 '5' --cpus 2 --pv +7,+13 -- \
        'dmesg | grep -cE "kvm-clock: Using msrs|setup PV IPIs|pv remote TLB flush|PV spinlocks enabled|setup PV sched yield"'
    VMM_APPEND=nox2apic expect "a boot with silent EOI and IPIs by hypercall" 0 '[0-9]+' --cpus 2 --statistics -- "$count"
    with=$(counted device_mmio_write) sent=$(counted hypercalls)
    counts "IPIs are sent by hypercall" "$([[ $sent -gt 10 ]] || echo "$sent hypercalls")"
    VMM_APPEND=nox2apic expect "a boot without" 0 '[0-9]+' --cpus 2 --statistics --pv -6,-11 -- "$count"
    counts "without IPIs by hypercall there are none" "$([[ $(counted hypercalls) -eq 0 ]] || echo "$(counted hypercalls) hypercalls")"
    counts "silent EOI spares most writes to the local APIC" \
        "$([[ $((with * 2)) -lt $(counted device_mmio_write) ]] || echo "$with writes with, $(counted device_mmio_write) without")"
    loop="j=0; while [ \$j -lt $cpus ]; do (i=0; while [ \$i -lt 20000 ]; do i=\$((i + 1)); done) & j=\$((j + 1)); done; wait"
    expect "more CPUs than the host has are told that time was stolen from them" 0 'stolen' --cpus "$cpus" -- \
        "$loop; awk '/^cpu / { print (\$9 > 0 ? \"stolen\" : \"none of \" \$0) }' /proc/stat"
    expect "and not where that is not offered" 0 '0' --cpus "$cpus" --pv -5 -- "$loop; awk '/^cpu / { print \$9 }' /proc/stat"
}

checks() {
    expect "uname" 0 'Linux vmm 6\..*x86_64 GNU/Linux' -- uname -a
    expect "a status of 1" 1 '' -- false
    expect "a status of 37" 37 '' -- 'exit 37'
    local cpus
    for cpus in 1 2 4; do
        expect "$cpus CPUs" 0 "$cpus" --cpus "$cpus" -- nproc
    done
    expect "memory of the size asked for" 0 ok --memory 256M -- \
        'm=$(awk "/MemTotal/ {print \$2}" /proc/meminfo); [ $m -gt 190000 ] && [ $m -lt 262144 ] && echo ok'
    expect "dd and sha256sum" 0 '30e14955ebf1352266dc2ff8067e68104607e750abb9d3b36582b8af909fcb58  -' -- \
        'dd if=/dev/zero bs=1M count=1 2>/dev/null | sha256sum'
    expect "gzip there and back" 0 same -- \
        'head -c 300000 /dev/urandom >/tmp/a; gzip <"/tmp/a" | gunzip | cmp - /tmp/a && echo same'
    expect "a loop that forks" 0 300 --cpus 2 -- 'i=0; while [ $i -lt 300 ]; do /bin/true; i=$((i + 1)); done; echo $i'
    expect "sleep 2 takes its time by the guest's clock" 0 'ok' -- \
        'a=$(cut -d" " -f1 /proc/uptime | tr -d . | sed "s/^0*//"); sleep 2; b=$(cut -d" " -f1 /proc/uptime | tr -d . | sed "s/^0*//"); d=$((b - a)); [ $d -ge 190 ] && [ $d -le 600 ] && echo ok || echo $d'
    local now
    now=$(date +%Y-%m)
    expect "date" 0 "$now-.*" -- 'date -u +%Y-%m-%dT%H:%M:%S'
    expect "poweroff -f" 0 '' -- 'poweroff -f'
    expect "reboot" 0 '' -- 'reboot -f'
    expect "a panic" 125 '(.|\n)*Kernel panic(.|\n)*' -- 'echo c >/proc/sysrq-trigger'
    VMM_APPEND=reboot=t expect "a triple fault" 124 '' -- 'reboot -f'
    paravirtual
    expect_stdin "standard input" 5 $'one\ntwo' $'echo one\necho two\nexit 5'
}

# Builds and fetches what the first boot needs, which takes as long as it takes.
echo "==> building, and fetching the guest"
"$run" -- true </dev/null >/dev/null || echo "examples/run.sh -- true ended with status $?"

case ${1:-checks} in
boots) boots "${2:-50}" ;;
checks) checks ;;
*)
    echo "tests/guest.sh: '$1' is neither checks nor boots" >&2
    exit 2
    ;;
esac
finish
