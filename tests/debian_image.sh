#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Installs Debian into a disk image and boots it in Debian's QEMU through SeaBIOS and GRUB to a login, by vmm-kvm and by
# QEMU's own TCG in turn, and says how the two compare:
#
#     tests/debian_image.sh               three boots of each
#     tests/debian_image.sh --boots N     N of each
#
# The image is made once, in build/debian-image; root only.  Ends with "N passed, N failed".

set -u

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=../cmake/packages.sh
source "$root/cmake/packages.sh"
# shellcheck source=checks.sh
source "$root/tests/checks.sh"

boots=3
if [[ ${1:-} == --boots && ${2:-} =~ ^[0-9]+$ ]]; then
    boots=$2
elif [[ $# -ne 0 ]]; then
    die "usage: tests/debian_image.sh [--boots N]"
fi
seconds=${VMM_GUEST_SECONDS:-300} # The most one boot may take.
program=${VMM_KVM:-$root/build/release/bin/vmm-kvm}
tree=$root/build/debian-image
image=$tree/disk.raw
password=vmm
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

[[ $EUID -eq 0 ]] || die "debootstrap needs root; run it by sudo"
install_missing "${vmm_build_packages[@]}" debootstrap e2fsprogs fdisk grub-pc-bin qemu-system-x86 time

# GRUB's first sector and the image of its core, as grub-bios-setup(8) would place them: the core's own first sector
# says that the rest follows.
install_grub() { # ROOT
    local modules=/usr/lib/grub/i386-pc
    mkdir -p "$1/boot/grub/i386-pc"
    cp "$modules"/*.mod "$modules"/*.lst "$1/boot/grub/i386-pc/"
    cat >"$1/boot/grub/grub.cfg" <<'END'
serial --unit=0 --speed=115200
terminal_input serial
terminal_output serial
set timeout=0
menuentry Debian {
    linux /vmlinuz root=/dev/vda1 rw console=ttyS0 net.ifnames=0
    initrd /initrd.img
}
END
    grub-mkimage -O i386-pc -p '(hd0,msdos1)/boot/grub' -o "$work/core.img" biosdisk part_msdos ext2 normal serial ||
        die "grub-mkimage failed"
    dd if="$modules/boot.img" of="$image" bs=440 count=1 conv=notrunc status=none
    dd if="$work/core.img" of="$image" bs=512 seek=1 conv=notrunc status=none
}

make_image() {
    local files=$tree/root
    rm -rf "$tree"
    mkdir -p "$tree"
    say "==> debootstrap (some minutes)"
    debootstrap --variant=minbase --include=linux-image-amd64,systemd-sysv,udev,dbus bookworm "$files" \
        >"$tree/debootstrap.log" 2>&1 || die "debootstrap failed: $(tail -n 3 "$tree/debootstrap.log")"
    echo "root:$password" | chroot "$files" chpasswd
    echo vmm >"$files/etc/hostname"
    echo '/dev/vda1 / ext4 defaults 0 1' >"$files/etc/fstab"
    rm -rf "$files"/var/cache/apt/archives/*.deb
    say "==> making the image"
    truncate -s 2G "$image"
    echo 'start=2048, type=83, bootable' | sfdisk -q "$image" || die "sfdisk failed"
    install_grub "$files"
    mke2fs -q -t ext4 -d "$files" -E offset=$((2048 * 512)) "$image" $((2 * 1024 * 1024 - 1024 - 1024)) ||
        die "mke2fs failed"
    rm -rf "$files"
}

# boot HOW COMMAND…: to the login, and by a shell to the end.  Sets $elapsed and $cpu, in seconds.
boot() {
    local how=$1 status problem='' copy=$work/disk.raw
    shift
    cp --sparse=always "$image" "$copy"
    mkfifo "$work/in"
    exec 3<>"$work/in"
    command time -f '%e %U %S' -o "$work/time" timeout -k 5 "$seconds" "$@" -M q35 -smp 2 -m 512M -nodefaults -no-reboot \
        -display none -serial stdio -drive "file=$copy,if=virtio,format=raw" <&3 >"$work/console" 2>"$work/errors" &
    local running=$!
    if await 'vmm login:' "$running"; then
        echo root >&3
        await 'Password:' "$running" && echo "$password" >&3
        # shellcheck disable=SC2016
        await '# $' "$running" && echo 'echo "shell on $(nproc) CPUs"; systemctl poweroff' >&3
    fi
    wait "$running"
    status=$?
    exec 3>&-
    rm -f "$work/in"
    [[ $status -eq 0 ]] || problem="exit status $status"
    grep -aq 'shell on 2 CPUs' "$work/console" || problem+=' no shell on 2 CPUs'
    read -r elapsed user system < <(tail -n 1 "$work/time") # Before it a failure is told.
    cpu=$(awk "BEGIN { print $user + $system }")
    report "$how: a login after SeaBIOS and GRUB, and off again in $elapsed s, of CPU $cpu s" "$problem" \
        "$work/console" "$work/errors"
}

# Until the console shows it, or the machine is gone.
await() { # TEXT PROCESS
    until grep -aqE "$1" <(tail -c 400 "$work/console" 2>/dev/null); do
        kill -0 "$2" 2>/dev/null || return 1
        sleep 0.05
    done
}

median() { # FILE
    sort -n "$1" | awk '{ all[NR] = $1 } END { print all[int((NR + 1) / 2)] }'
}

say "==> building vmm-kvm"
[[ -n ${VMM_KVM:-} ]] ||
    { cmake -S "$root" --preset release && ninja -C "$root/build/release" vmm-kvm; } >/dev/null || die "the build failed"
[[ -s $image ]] || make_image
for ((i = 0; i < boots; ++i)); do
    boot "vmm-kvm --engine soft" "$program" --engine soft -- qemu-system-x86_64 -accel kvm -cpu host
    echo "$elapsed" >>"$work/soft.elapsed"
    echo "$cpu" >>"$work/soft.cpu"
    boot "qemu -accel tcg" qemu-system-x86_64 -accel tcg
    echo "$elapsed" >>"$work/tcg.elapsed"
    echo "$cpu" >>"$work/tcg.cpu"
done
for what in elapsed cpu; do
    ours=$(median "$work/soft.$what")
    theirs=$(median "$work/tcg.$what")
    echo "median $what: $ours s by vmm-kvm, $theirs s by TCG, TCG takes $(awk "BEGIN { printf \"%.2f\", $theirs / $ours }") times as long"
done
finish
