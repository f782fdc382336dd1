#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Runs programs that were written for /dev/kvm by vmm-kvm: Debian's QEMU with -accel kvm boots Debian's kernel.
#
#     tests/shim.sh                every check
#
# Ends with a line "N passed, N failed"; exit status 0 if nothing failed.

set -u

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=../cmake/packages.sh
source "$root/cmake/packages.sh"
# shellcheck source=../cmake/guest.sh
source "$root/cmake/guest.sh"
# shellcheck source=checks.sh
source "$root/tests/checks.sh"

seconds=${VMM_GUEST_SECONDS:-120} # The most one boot may take.
program=${VMM_KVM:-$root/build/release/bin/vmm-kvm}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

prepare() {
    install_missing "${vmm_build_packages[@]}" cpio gdb kmod ovmf qemu-system-x86
    if [[ -z ${VMM_KVM:-} ]]; then
        say "==> building vmm-kvm"
        cmake -S "$root" --preset release >"$work/log" 2>&1 &&
            ninja -C "$root/build/release" vmm-kvm >>"$work/log" 2>&1 || die "the build failed: $(tail -n 20 "$work/log")"
    fi
    mkdir -p "$guest"
    find_kernel
    find_busybox
    mkdir -p "$work"/tree/{bin,sbin,usr/bin,usr/sbin,proc,sys}
    cp "$busybox" "$work/tree/bin/busybox"
    link_busybox "$work/tree"
    cat >"$work/tree/init" <<'END'
#!/bin/sh
mount -t proc proc /proc
mount -t sysfs sysfs /sys
echo "user space on $(nproc) CPUs, $(cat /sys/devices/system/clocksource/clocksource0/current_clocksource)"
poweroff -f
END
    chmod +x "$work/tree/init"
    pack
}

# What is in the tree becomes the guest's initramfs.
pack() {
    (cd "$work/tree" && find . | LC_ALL=C sort | cpio --quiet -o -H newc -R 0:0) >"$work/initrd"
}

# boot NAME REGEX QEMU-OPTION…: the guest's console has a line that matches, and QEMU ends by itself.
boot() {
    local name=$1 regex=$2 status problem=
    shift 2
    timeout -k 5 "$seconds" "$program" --engine soft -- qemu-system-x86_64 -accel kvm -m 512M -nodefaults -no-reboot \
        -display none -serial stdio -kernel "$kernel" -initrd "$work/initrd" \
        -append 'console=ttyS0 panic=-1' "$@" >"$work/console" 2>"$work/errors" </dev/null
    status=$?
    [[ $status -eq 0 ]] || problem="exit status $status"
    grep -aq 'user space on' "$work/console" || problem+=' no user space'
    grep -aqE "$regex" "$work/console" || problem+=" no line like '$regex'"
    grep -aq '^vmm-kvm:' "$work/errors" && problem+=" $(grep -am1 '^vmm-kvm:' "$work/errors")"
    report "$name" "$problem" "$work/console" "$work/errors"
}

prepare
for machine in microvm pc q35; do
    for cpus in 1 2; do
        boot "qemu -M $machine -smp $cpus" "user space on $cpus CPUs, kvm-clock" \
            -M "$machine,kernel-irqchip=on" -smp "$cpus"
    done
    boot "qemu -M $machine,kernel-irqchip=off" 'user space on 1 CPUs, kvm-clock' -M "$machine,kernel-irqchip=off"
done
boot 'qemu -M microvm, split irqchip by itself' 'user space on 2 CPUs, kvm-clock' -M microvm -smp 2
boot 'qemu -M q35,kernel-irqchip=split' 'user space on 2 CPUs, kvm-clock' -M q35,kernel-irqchip=split -smp 2
boot 'qemu -M q35 -cpu host -smp 4' 'user space on 4 CPUs, kvm-clock' -M q35,kernel-irqchip=on -cpu host -smp 4
cp /usr/share/OVMF/OVMF_VARS.fd "$work/vars"
boot 'qemu -M q35 with OVMF' 'efi: EFI v' -M q35,kernel-irqchip=on,smm=off \
    -drive if=pflash,format=raw,readonly=on,file=/usr/share/OVMF/OVMF_CODE.fd \
    -drive if=pflash,format=raw,file="$work/vars"

# The kernel's entry to 32-bit code is cld; cli; ...; call, with a stack in the zero page.
cat >"$work/gdb" <<END
set confirm off
target remote $work/gdb.socket
hbreak *0x100000
continue
stepi
break *0x100002
continue
printf "stopped at %#x\n", \$pc
delete
watch *(int *)(\$rsi + 0x1e4)
continue
printf "the call pushed %#x\n", *(int *)(\$rsi + 0x1e4)
delete
detach
END
(
    for ((i = 0; i < 100; ++i)); do [[ -S $work/gdb.socket ]] && break || sleep 0.1; done
    timeout "$seconds" gdb -nx -batch -x "$work/gdb" >"$work/gdb.log" 2>&1
) &
boot 'qemu -M q35 -S, with a debugger' 'user space on 1 CPUs' -M q35 -S -gdb "unix:$work/gdb.socket,server=on,wait=off"
wait
report 'what the debugger saw' "$(grep -q '^stopped at 0x100002' "$work/gdb.log" && grep -q '^the call pushed 0x1000' "$work/gdb.log" ||
    echo 'no breakpoints and no watchpoint')" "$work/gdb.log"

# virtio: half of a disk is copied to its other half, and a file comes over the network.
version=${kernel##*/vmlinuz-}
depmod -b "$guest/kernel" "$version"
for module in virtio_pci virtio_blk virtio_net; do
    modprobe -d "$guest/kernel" -S "$version" --show-depends "$module" || die "Debian's kernel has no module '$module'"
done | while read -r _ path _; do
    [[ -f $work/tree/${path##*/} ]] || echo "insmod /${path##*/}" >>"$work/tree/modules"
    cp "$path" "$work/tree/"
done
cat >"$work/tree/init" <<'END'
#!/bin/sh
mount -t proc proc /proc
mount -t devtmpfs dev /dev
sh /modules
ip addr add 10.0.2.15/24 dev eth0
ip link set eth0 up
dd if=/dev/vda of=/dev/vda bs=1M count=16 seek=16 conv=fsync 2>/dev/null
tftp -g -r file -l /file 10.0.2.2
echo "user space on $(nproc) CPUs, received $(sha256sum </file)"
poweroff -f
END
pack
head -c 16M /dev/urandom >"$work/disk"
truncate -s 32M "$work/disk"
mkdir "$work/tftp"
head -c 2M /dev/urandom >"$work/tftp/file"
boot 'qemu -M q35 with virtio-blk and virtio-net' "received $(sha256sum <"$work/tftp/file" | cut -d' ' -f1)" \
    -M q35 -smp 2 -drive "file=$work/disk,if=virtio,format=raw,cache=writeback" \
    -netdev "user,id=net,tftp=$work/tftp" -device virtio-net-pci,netdev=net,romfile=
report 'the disk that it wrote' "$(cmp -n 16M "$work/disk" <(tail -c 16M "$work/disk") 2>&1)"
finish
