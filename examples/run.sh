#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Boots Debian's kernel to a busybox shell on this library.  `examples/run.sh --help` says how.
#
# The guest gets its orders by its initramfs.  The first part of that (build/guest/initramfs.cpio, made once)
# holds busybox, examples/guest/init and examples/guest/debug-exit; a second, small cpio archive is appended
# at each run with the command or the shell's standard input, so that neither is bent by quoting, by the limit of the
# kernel's command line or by a terminal's special characters.  The kernel's command line says which of
# them init is to take (vmm_mode).  The exit status comes back by a write to the debug-exit port, 0xf4.

set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

# shellcheck source=../cmake/packages.sh
source "$root/cmake/packages.sh"
# shellcheck source=../cmake/guest.sh
source "$root/cmake/guest.sh"

usage() {
    cat <<'END'
examples/run.sh [OPTION…]                an interactive shell in the guest; Ctrl-C goes to the guest
examples/run.sh [OPTION…] -- COMMAND…    runs COMMAND in the guest and ends with its exit status
examples/run.sh [OPTION…] <SCRIPT        feeds standard input, read to its end, to the guest's shell

  --cpus N         number of virtual CPUs
  --memory SIZE    the guest's memory, e.g. 512M or 2G
  --engine E       auto, soft, …: what runs the guest (build/release/bin/vmm-info lists them)
  --statistics, --pv +BIT,-BIT…    as vmm-linux --help says

A COMMAND of one word is a line for the guest's shell ("cd /tmp; ls"); several words are a program and its arguments.
Standard output carries what the guest's command prints, its errors too: there is one serial line.
Standard error carries all else.

Environment: VMM_LINUX (a program to take for build/release/bin/vmm-linux: nothing is built),
VMM_KERNEL (a kernel to take for Debian's), VMM_APPEND (more for the kernel's command line).
END
}

options=()
command=()
mode=''
while [[ $# -gt 0 ]]; do
    case $1 in
    --cpus | --memory | --engine | --pv)
        [[ $# -ge 2 ]] || die "$1 needs a value; see --help"
        options+=("$1" "$2")
        shift 2
        ;;
    --cpus=* | --memory=* | --engine=* | --pv=*)
        options+=("${1%%=*}" "${1#*=}")
        shift
        ;;
    --statistics)
        options+=("$1")
        shift
        ;;
    --help | -h)
        usage
        exit 0
        ;;
    --)
        shift
        [[ $# -gt 0 ]] || die "no command after '--'; see --help"
        command=("$@")
        mode='command'
        break
        ;;
    *) die "unknown option '$1'; a command for the guest goes after '--', see --help" ;;
    esac
done
if [[ -z $mode ]]; then
    if [[ -t 0 ]]; then mode=shell; else mode=stdin; fi
fi

[[ $(uname -m) == x86_64 ]] || die "the library runs x86-64 guests on x86-64 hosts; this is $(uname -m)"

# ---- The program ----------------------------------------------------------------------------------------

build_program() {
    install_missing "${vmm_build_packages[@]}"
    local log=$root/build/release.log
    mkdir -p "$root/build"
    if [[ ! -f $root/build/release/build.ninja ]]; then
        say "==> configuring build/release"
        (cd "$root" && cmake --preset release) >"$log" 2>&1 || {
            cat "$log" >&2
            die "cmake failed; its output is above and in build/release.log"
        }
    fi
    local targets=(vmm-linux vmm-hello vmm-info)
    # A dry run tells whether there is anything to say, or to wait for.
    if ! ninja -C "$root/build/release" -n "${targets[@]}" 2>/dev/null | grep -q 'no work to do'; then
        say "==> building build/release/bin (the first time takes minutes)"
        ninja -C "$root/build/release" "${targets[@]}" >&2 || die "the build failed; its output is above"
    fi
}

# ---- The guest ------------------------------------------------------------------------------------------

make_initramfs() {
    local init=$root/examples/guest
    initramfs=$guest/initramfs.cpio
    find_busybox
    if [[ -f $initramfs && -z $(find "$init" "$busybox" "$root/examples/run.sh" "$root/cmake/guest.sh" -newer "$initramfs") ]]; then
        return
    fi
    install_missing cpio g++
    say "==> making build/guest/initramfs.cpio"
    local tree=$guest/initramfs
    rm -rf "$tree"
    mkdir -p "$tree"/{bin,sbin,usr/bin,usr/sbin,dev,etc,proc,root,run,sys,tmp,vmm}
    install -m 755 "$busybox" "$tree/bin/busybox"
    install -m 755 "$init/init" "$tree/init"
    install -m 644 "$init/profile" "$tree/etc/profile"
    echo 'root:x:0:0:root:/root:/bin/sh' >"$tree/etc/passwd"
    echo 'root:x:0:' >"$tree/etc/group"
    link_busybox "$tree"
    gcc -static -nostdlib -o "$tree/sbin/debug-exit" "$init/debug-exit.S"
    (cd "$tree" && find . | LC_ALL=C sort | cpio --quiet -o -H newc -R 0:0) >"$initramfs.new"
    mv "$initramfs.new" "$initramfs"
}

# A word that a shell reads as itself.
quoted() {
    printf "'%s' " "${1//\'/\'\\\'\'}"
}

# Appends this run's part: /vmm/command or /vmm/stdin.
make_initrd() {
    local part=$work/part
    mkdir -p "$part/vmm"
    case $mode in
    command)
        if [[ ${#command[@]} -eq 1 ]]; then
            printf '%s\n' "${command[0]}" >"$part/vmm/command"
        else
            { for word in "${command[@]}"; do quoted "$word"; done; echo; } >"$part/vmm/command"
        fi
        ;;
    stdin)
        # On the line of the script's first: its errors keep their line numbers.
        { printf '. /etc/profile; '; cat; echo; } >"$part/vmm/stdin"
        ;;
    esac
    cp "$initramfs" "$work/initrd"
    (cd "$part" && find vmm -type f | cpio --quiet -o -H newc -R 0:0) >>"$work/initrd"
}

if [[ -n ${VMM_LINUX:-} ]]; then
    program=$VMM_LINUX
else
    build_program
    program=$root/build/release/bin/vmm-linux
fi
mkdir -p "$guest"
find_kernel
make_initramfs

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
make_initrd

# Level 1 keeps the kernel silent and lets a panic be seen; a panic resets the machine, which ends it.
append="console=ttyS0,115200 quiet loglevel=1 panic=-1 vmm_mode=$mode"
if [[ $mode == shell ]]; then
    size=$(stty size 2>/dev/null || true)
    append+=" vmm_term=${TERM:-vt100}"
    [[ -z $size ]] || append+=" vmm_rows=${size% *} vmm_columns=${size#* }"
    say "==> booting ${kernel##*/}; 'poweroff' or the end of the shell ends it"
fi
[[ -z ${VMM_APPEND:-} ]] || append+=" $VMM_APPEND"

status=0
if [[ $mode == shell ]]; then
    "$program" --kernel "$kernel" --initrd "$work/initrd" --append "$append" "${options[@]}" || status=$?
else
    "$program" --kernel "$kernel" --initrd "$work/initrd" --append "$append" "${options[@]}" \
        --no-reboot </dev/null || status=$?
fi
exit "$status"
