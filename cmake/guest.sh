# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
#
# Sourced, after packages.sh and with $root set, by the scripts that boot Debian's kernel: fetches what guests are
# made of into build/guest.  Prints to standard error only.

guest=$root/build/guest

# fetch PACKAGE FOLDER: unpacks a package, which is not installed.
fetch() {
    local package=$1 folder=$2 options=(-q)
    [[ $EUID -ne 0 ]] || options+=(-o APT::Sandbox::User=root)
    say "==> fetching $package"
    rm -rf "$folder" "$folder.new"
    mkdir -p "$folder.new/deb"
    (cd "$folder.new/deb" && apt-get "${options[@]}" download "$package" >&2) ||
        die "apt-get could not download $package; is the network there, and is this Debian?"
    dpkg-deb -x "$folder.new"/deb/*.deb "$folder.new"
    rm -rf "$folder.new/deb"
    mv "$folder.new" "$folder"
}

# The package of the kernel that linux-image-cloud-amd64, which is empty, depends on.
kernel_package() {
    apt-cache depends linux-image-cloud-amd64 2>/dev/null |
        awk '$1 == "Depends:" && $2 ~ /^linux-image-[0-9].*-cloud-amd64/ { print $2; exit }'
}

# Sets $kernel.
find_kernel() {
    kernel=${VMM_KERNEL:-}
    [[ -z $kernel ]] || return 0
    if ! compgen -G "$guest/kernel/boot/vmlinuz-*" >/dev/null; then
        local package
        package=$(kernel_package)
        if [[ -z $package ]]; then
            apt_update
            package=$(kernel_package)
        fi
        [[ -n $package ]] || die "apt knows no linux-image-cloud-amd64; on another system than Debian, name a" \
            "kernel by VMM_KERNEL=/boot/vmlinuz-…"
        fetch "$package" "$guest/kernel"
    fi
    kernel=$(compgen -G "$guest/kernel/boot/vmlinuz-*" | head -n 1)
}

# Sets $busybox.
find_busybox() {
    busybox=$guest/busybox/bin/busybox
    if [[ ! -x $busybox ]]; then
        apt-cache show busybox-static >/dev/null 2>&1 || apt_update
        fetch busybox-static "$guest/busybox"
    fi
}

# Links each of busybox's names in the tree TREE, which has it in bin.
link_busybox() { # TREE
    local applet
    for applet in $("$busybox" --list-full); do
        [[ $applet == bin/busybox || ! -d $1/${applet%/*} ]] || ln -sf /bin/busybox "$1/$applet"
    done
}
