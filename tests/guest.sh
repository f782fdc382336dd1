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
        'a=$(cut -d" " -f1 /proc/uptime | tr -d .); sleep 2; b=$(cut -d" " -f1 /proc/uptime | tr -d .); d=$((b - a)); [ $d -ge 190 ] && [ $d -le 600 ] && echo ok || echo $d'
    local now
    now=$(date +%Y-%m)
    expect "date" 0 "$now-.*" -- 'date -u +%Y-%m-%dT%H:%M:%S'
    expect "poweroff -f" 0 '' -- 'poweroff -f'
    expect "reboot" 0 '' -- 'reboot -f'
    expect "a panic" 125 '(.|\n)*Kernel panic(.|\n)*' -- 'echo c >/proc/sysrq-trigger'
    VMM_APPEND=reboot=t expect "a triple fault" 124 '' -- 'reboot -f'
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
