#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# What an ioctl costs a client of vmm-kvm: preloaded, linked statically (by stubs, and by SIGSYS alone), beside one
# that the kernel answers, and what KVM_RUN adds to the library's own run().  CPU time of the client's thread; five
# rounds in turn, of which the medians are printed.  No arguments.  Takes about a minute.

set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=../cmake/packages.sh
source "$root/cmake/packages.sh"
[[ $# -eq 0 ]] || die "bench/ioctl.sh takes no arguments"

vmm_kvm=${VMM_KVM:-$root/build/release/bin/vmm-kvm}
if [[ -z ${VMM_KVM:-} ]]; then
    install_missing "${vmm_build_packages[@]}" libbenchmark-dev
    say "==> building"
    mkdir -p "$root/build"
    (cd "$root" && cmake --preset release -DVMM_BUILD_BENCH=ON >build/ioctl.cmake.log 2>&1 &&
        ninja -C build/release vmm-kvm vmm-bench >&2) ||
        die "the build failed; build/ioctl.cmake.log may say why"
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
gcc -O2 -o "$work/dynamic" "$root/bench/ioctl_client.c"
gcc -O2 -static -o "$work/static" "$root/bench/ioctl_client.c"

say "==> measuring"
run=("$vmm_kvm" --engine soft --)
for _ in 1 2 3 4 5; do
    "${vmm_kvm%-kvm}-bench" --benchmark_filter='^soft/pio_out$' --benchmark_format=csv 2>/dev/null |
        sed -n 's/^"soft\/pio_out",[^,]*,[^,]*,\([^,]*\),.*/library run \1/p'
    "$work/static" 2>/dev/null | sed -n 's/^other /kernel other /p'
    "${run[@]}" "$work/dynamic" | sed 's/^/preloaded /'
    "${run[@]}" "$work/static" | sed 's/^/stub /'
    VMM_KVM_PATCH=0 "${run[@]}" "$work/static" | sed 's/^/sigsys /'
done >"$work/all"

sort -k1,2 -k3n "$work/all" | awk '
    { key = $1 " " $2; count[key]++; value[key, count[key]] = $3 }
    END {
        for (key in count) median[key] = value[key, int((count[key] + 1) / 2)]
        name["other"] = "an ioctl of another file (kernel alone: " median["kernel other"] " ns)"
        name["version"] = "KVM_GET_API_VERSION"
        name["extension"] = "KVM_CHECK_EXTENSION"
        name["get_regs"] = "KVM_GET_REGS"
        name["set_regs"] = "KVM_SET_REGS"
        name["get_sregs"] = "KVM_GET_SREGS"
        name["run"] = "KVM_RUN to a port exit, OUT"
        rows = split("other version extension get_regs set_regs get_sregs run", row)
        print "| ns, medians | preloaded | static, by a stub | static, by SIGSYS | stub : preloaded |"
        print "|---|---|---|---|---|"
        for (i = 1; i <= rows; i++) {
            r = row[i]
            printf "| %s | %.0f | %.0f | %.0f | %.1f |\n", name[r], median["preloaded " r], median["stub " r], median["sigsys " r],
                   median["stub " r] / median["preloaded " r]
        }
        printf "\nThe library'"'"'s own run() to that exit: %.0f ns.  Preloaded, KVM_RUN adds %.0f ns.\n", median["library run"],
               median["preloaded run"] - median["library run"]
    }'
