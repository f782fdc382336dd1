#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Runs a program in a machine with hardware virtualization, on a machine that has none.
# `tests/hardware.sh --help` says how.
#
# The machine is an emulated one (AMD SVM by QEMU's TCG, Intel VMX by Bochs) with Debian's kernel and an initramfs made
# for the run: busybox, tests/hardware/init, the kernel modules, the program with the libraries that it is linked to.
# The first serial line is the kernel's console, the second carries what the program prints, and its status.

set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

# shellcheck source=../cmake/packages.sh
source "$root/cmake/packages.sh"
# shellcheck source=../cmake/guest.sh
source "$root/cmake/guest.sh"
# shellcheck source=../cmake/helper.sh
source "$root/cmake/helper.sh"

usage() {
    cat <<'END'
tests/hardware.sh svm|vmx [OPTION…] -- COMMAND…

  svm                an AMD CPU with SVM, by QEMU; user space is there in some 5 to 20 seconds
  vmx                an Intel CPU with VMX, by Bochs; takes some minutes
  --cpus N           number of CPUs of an svm machine that programs run on (2); a vmx machine has one
  --memory SIZE      its memory, in MiB (1024)
  --modules LIST     kernel modules to load, with what they need (kvm_amd or kvm_intel; '' for none);
                     vmm_helper is the helper of this tree, built for the machine's kernel
  --file FILE        a file to have in the machine, below /vmm; a program with its libraries.  Repeatable.
  --console FILE     where the kernel's console goes (discarded)
  --count            an instruction is a tick of the TSC in the svm machine (as it is in the vmx machine): slower
  --timeout SECONDS  the most it may take (svm 600, vmx 3600)

VMM_KERNEL_TREE and VMM_KERNEL_MODULES in the environment name a built kernel tree and where its modules are installed (tests/kasan.sh).

COMMAND is a line for the machine's shell.  Its first word, if it is a program here, is taken along like a --file.
Its output is this script's, its exit status too; 125 if the machine came to no end, 124 if the machine's kernel
complained in its log, which is shown.
END
}

machine=${1:-}
case $machine in
svm) modules=kvm_amd seconds=600 ;;
vmx) modules=kvm_intel seconds=3600 ;;
--help | -h)
    usage
    exit 0
    ;;
*) die "the machine is svm or vmx, not '$machine'; see --help" ;;
esac
shift
cpus=2
memory=1024
files=()
console=/dev/null
threads=(-accel tcg,thread=multi)
while [[ $# -gt 0 && $1 != -- ]]; do
    if [[ $1 == --count ]]; then
        threads=(-accel tcg -icount shift=0,sleep=off)
        shift
        continue
    fi
    [[ $# -ge 2 ]] || die "$1 is no option with a value; see --help"
    case $1 in
    --cpus) cpus=$2 ;;
    --memory) memory=$2 ;;
    --modules) modules=$2 ;;
    --file) files+=("$2") ;;
    --console) console=$2 ;;
    --timeout) seconds=$2 ;;
    *) die "unknown option '$1'; see --help" ;;
    esac
    shift 2
done
[[ $# -ge 2 ]] || die "no command after '--'; see --help"
shift
command=("$@")
if [[ -f ${command[0]} ]]; then
    files+=("${command[0]}")
    command[0]=/vmm/${command[0]##*/}
fi

packages=(cpio kmod busybox-static)
case $machine in
svm) packages+=(qemu-system-x86) ;;
vmx) packages+=(bochs bochs-term bochsbios vgabios isolinux syslinux-common genisoimage bsdutils) ;;
esac
install_missing "${packages[@]}"
[[ -z ${VMM_KERNEL:-} ]] || die "VMM_KERNEL has no modules beside it: unset it"
find_kernel
find_busybox
modules_root=$guest/kernel
version=${kernel##*/vmlinuz-}
if [[ -n ${VMM_KERNEL_TREE:-} ]]; then
    kernel=$VMM_KERNEL_TREE/arch/x86/boot/bzImage
    version=$(<"$VMM_KERNEL_TREE/include/config/kernel.release")
    modules_root=$VMM_KERNEL_MODULES
fi

work=$(mktemp -d)
child=
# end PROCESS: with all that it started; Bochs heeds nothing less.
end() {
    local each
    for each in $(pgrep -P "$1"); do end "$each"; done
    kill -KILL "$1" 2>/dev/null || true
}
cleanup() {
    [[ -z $child ]] || end "$child"
    rm -rf "$work"
}
trap cleanup EXIT
trap 'exit 130' INT TERM

# ---- The initramfs --------------------------------------------------------------------------------------

tree=$work/tree
mkdir -p "$tree"/{bin,sbin,usr/bin,usr/sbin,dev,etc,proc,root,run,sys,tmp,vmm,lib,lib64}
install -m 755 "$busybox" "$tree/bin/busybox"
link_busybox "$tree"
install -m 755 "$root/tests/hardware/init" "$tree/init"
echo 'root:x:0:0:root:/root:/bin/sh' >"$tree/etc/passwd"

# add_file FILE: into /vmm; what it is linked to goes where the loader finds it.
add_file() {
    [[ -r $1 ]] || die "cannot read '$1'"
    cp -L "$1" "$tree/vmm/${1##*/}"
    local library
    for library in $(ldd "$1" 2>/dev/null | grep -oE '/[^ ]+' || true); do
        mkdir -p "$tree/${library%/*}"
        cp -Lu "$library" "$tree/$library"
    done
}
for file in "${files[@]}"; do
    add_file "$file"
done

depmod -b "$modules_root" "$version"
: >"$tree/vmm/modules"
for module in $modules; do
    if [[ $module == vmm_helper ]]; then
        build_helper "$version"
        cp "$helper" "$tree/vmm/"
        # Bochs needs to be told to leave a guest with IF = 0 (vmx.c), QEMU to leave one behind an interrupt (svm.c).
        case $machine in
        svm) echo "/vmm/vmm_helper.ko leave_behind_interrupt=${VMM_LEAVE_BEHIND_INTERRUPT:-1}" ;;
        vmx) echo "/vmm/vmm_helper.ko guest_ticks=200000" ;;
        esac >>"$tree/vmm/modules"
        continue
    fi
    modprobe -d "$modules_root" -S "$version" --show-depends "$module" >"$work/depends" ||
        die "Debian's kernel $version has no module '$module'"
    while read -r _ path _; do
        [[ -f $tree/vmm/${path##*/} ]] || echo "/vmm/${path##*/}" >>"$tree/vmm/modules"
        cp "$path" "$tree/vmm/"
    done <"$work/depends"
done
printf '%s\n' "${command[*]}" >"$tree/vmm/command"
(cd "$tree" && find . | LC_ALL=C sort | cpio --quiet -o -H newc -R 0:0) | gzip -1 >"$work/initrd"

# ---- The machine ----------------------------------------------------------------------------------------

# Bochs shows each blink of the cursor on a terminal of its own that nobody reads, and stops for good when that is full.
append="console=ttyS0,115200 loglevel=4 panic=-1 nokaslr vt.global_cursor_default=0"
output=$work/output
: >"$output"

# QEMU 7.2: whoever executes FXRSTOR, XRSTOR or FRSTOR also reads, changes and writes a word of the first CPU's, and not atomically. In
# that word are GIF and whether nested paging is on: where the first CPU enters or leaves a guest meanwhile, it goes on without, or in spite
# of, either. So nobody enters guests there; one thread for all CPUs (--count, or a single one) has nobody to come between.
run_svm() {
    if [[ ${threads[*]} == *thread=multi* && $cpus -gt 1 ]]; then
        cpus=$((cpus + 1))
        append+=' isolcpus=0'
    fi
    timeout "$seconds" qemu-system-x86_64 "${threads[@]}" -cpu EPYC,+svm,+npt -m "$memory" -smp "$cpus" \
        -kernel "$kernel" -initrd "$work/initrd" -append "$append" -nodefaults -display none -no-reboot \
        -serial "file:$console" -serial "file:$output" </dev/null 2>"$work/qemu.log" # Mostly what TCG does without.
}

run_vmx() {
    local iso=$work/iso
    mkdir -p "$iso"
    cp /usr/lib/ISOLINUX/isolinux.bin /usr/lib/syslinux/modules/bios/ldlinux.c32 "$iso"
    cp "$kernel" "$iso/vmlinuz"
    cp "$work/initrd" "$iso/initrd"
    printf 'DEFAULT linux\nLABEL linux\n KERNEL vmlinuz\n APPEND initrd=initrd %s\n' "$append" >"$iso/isolinux.cfg"
    genisoimage -quiet -o "$work/boot.iso" -b isolinux.bin -c boot.cat -no-emul-boot -boot-load-size 4 \
        -boot-info-table "$iso"
    cat >"$work/bochsrc" <<END
plugin_ctrl: serial=true
cpu: model=corei7_skylake_x, count=1, ips=100000000, reset_on_triple_fault=0
memory: guest=$memory, host=$memory
romimage: file=/usr/share/bochs/BIOS-bochs-latest
vgaromimage: file=/usr/share/bochs/VGABIOS-lgpl-latest
ata0-master: type=cdrom, path=$work/boot.iso, status=inserted
boot: cdrom
display_library: term
com1: enabled=1, mode=file, dev=$console
com2: enabled=1, mode=file, dev=$output
clock: sync=none
sound: driver=dummy
speaker: enabled=0
log: $work/bochs.log
error: action=ignore
panic: action=fatal
END
    echo c >"$work/bochs.rc"
    # Its display needs a terminal.
    TERM=xterm timeout -s KILL "$seconds" script -qefc "bochs -q -f $work/bochsrc -rc $work/bochs.rc" /dev/null \
        </dev/null >/dev/null 2>&1
}

"run_$machine" &
child=$!
# What the program prints, as it comes; the carriage returns are the line's, not its.
tail -n +1 -f --pid="$child" -s 0.2 "$output" | stdbuf -oL tr -d '\r' | while IFS= read -r line; do
    case $line in
    *'vmm-status: '*)
        # Behind what the program's last line is, if that has no end.
        printf '%s' "${line%vmm-status: *}"
        echo "${line##*vmm-status: }" >"$work/status"
        ;;
    *) printf '%s\n' "$line" ;;
    esac
done
wait "$child" || true
child=
if [[ ! -s $work/status ]]; then
    grep -hvs "TCG doesn't support requested feature" "$work"/*.log | tail -n 5 >&2 || true
    say "${0##*/}: the $machine machine came to no end in $seconds s; --console FILE shows what its kernel says"
    exit 125
fi
exit "$(<"$work/status")"
