# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
#
# Sourced by tests/svm.sh and tests/vmx.sh, with $root set: what their machines need to boot Debian's kernel in a guest.
# Sets $work, a directory that goes at the end, with vmlinuz and guest-initrd in it.

# shellcheck source=../../cmake/packages.sh
source "$root/cmake/packages.sh"
# shellcheck source=../../cmake/guest.sh
source "$root/cmake/guest.sh"
# shellcheck source=../checks.sh
source "$root/tests/checks.sh"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
find_kernel
cp "$kernel" "$work/vmlinuz"

# A guest's initramfs, as examples/run.sh makes it for a command.
cat >"$work/take-initrd" <<END
#!/bin/bash
while [[ \$# -gt 0 ]]; do [[ \$1 != --initrd ]] || cp "\$2" "$work/guest-initrd"; shift; done
END
chmod +x "$work/take-initrd"
VMM_LINUX=$work/take-initrd "$root/examples/run.sh" -- 'nproc; uname -s' >/dev/null 2>&1

# linux ENGINE CPUS: a line for the machine's shell that boots that guest.
linux() {
    echo "/vmm/vmm-linux --engine $1 --cpus $2 --kernel /vmm/vmlinuz --initrd /vmm/guest-initrd --memory 200M" \
        "--no-reboot --append 'console=ttyS0,115200 quiet loglevel=1 panic=-1 vmm_mode=command'"
}
