#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Boots Debian's kernel on the software engine, with and without its translator, and, where qemu-system-x86_64 is
# installed, on QEMU's TCG, one after the other; prints one table: CPU seconds of a boot to the end of a program, and
# what that program (bench/linux_guest.c) has measured.  No arguments.  Takes about a minute.

set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=../cmake/packages.sh
source "$root/cmake/packages.sh"
# shellcheck source=../cmake/guest.sh
source "$root/cmake/guest.sh"
[[ $# -eq 0 ]] || die "bench/linux.sh takes no arguments"

# Builds what is missing, and makes the initramfs.
"$root/examples/run.sh" -- true
find_kernel
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$work"/part/{vmm,bin}
gcc -O2 -static -o "$work/part/bin/linux-guest" "$root/bench/linux_guest.c"
echo linux-guest >"$work/part/vmm/command"
cp "$guest/initramfs.cpio" "$work/initrd"
(cd "$work/part" && find vmm bin -type f | cpio --quiet -o -H newc -R 0:0) >>"$work/initrd"
append="console=ttyS0,115200 quiet loglevel=1 panic=-1 vmm_mode=command"

# measure NAME COMMAND…: into $work/NAME, as the guest prints it, with a line boot_cpu.
measure() {
    local name=$1
    shift
    TIMEFORMAT='%U %S'
    { time timeout 300 "$@" </dev/null 2>/dev/null | tr -d '\r' | grep -E '^[a-z_]+ [0-9]+$' >"$work/$name"; } 2>"$work/time" || true
    if [[ ! -s $work/$name ]]; then
        say "$name: the guest came to no end"
        return
    fi
    awk '{ printf "boot_cpu %.0f\n", ($1 + $2) * 1e9 }' "$work/time" >>"$work/$name"
}

linux=("${VMM_LINUX:-$root/build/release/bin/vmm-linux}" --kernel "$kernel" --initrd "$work/initrd" --append "$append" --no-reboot)
names=(translator interpreter)
measure translator "${linux[@]}" --engine soft:translator
measure interpreter "${linux[@]}" --engine soft:interpreter
if command -v qemu-system-x86_64 >/dev/null; then
    names+=(tcg)
    measure tcg qemu-system-x86_64 -accel tcg -M pc -cpu max -m 512 -nodefaults -no-user-config -display none \
        -serial stdio -no-reboot -device isa-debug-exit,iobase=0xf4 -kernel "$kernel" -initrd "$work/initrd" \
        -append "$append"
else
    say "qemu-system-x86_64 is not installed: no column for TCG"
fi
cd "$work"
awk -v names="${names[*]}" '
    function text(ns) {
        return ns == "" ? "-" : ns < 1e3 ? ns " ns" : ns < 1e6 ? sprintf("%.3g us", ns / 1e3) : ns < 1e9 ? sprintf("%.3g ms", ns / 1e6) : sprintf("%.3g s", ns / 1e9)
    }
    !($1 in seen) { seen[$1] = 1; order[++rows] = $1 }
    { value[$1, FILENAME] = $2 }
    END {
        count = split(names, name, " ")
        printf "| %-22s |", ""
        for (i = 1; i <= count; ++i) printf " %-11s |", name[i]
        printf " translator : tcg |\n|---|---|---|---|---|\n"
        for (r = 1; r <= rows; ++r) {
            printf "| %-22s |", order[r]
            for (i = 1; i <= count; ++i) printf " %-11s |", text(value[order[r], name[i]])
            other = value[order[r], "tcg"]
            printf " %-16s |\n", other == "" ? "-" : sprintf("%.2f", value[order[r], "translator"] / other)
        }
    }' "${names[@]}"
