#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Builds KVM's own selftests of Linux 6.1 from Debian's linux-source-6.1 and runs them by vmm-kvm:
#
#     tests/selftests.sh           those that must pass, one after the other
#     tests/selftests.sh NAME…     only these
#     tests/selftests.sh --all     every one that builds; a scoreboard: passed, skipped, failed
#
# Ends with a line "N passed, N failed"; exit status 0 if nothing failed.

set -u

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=../cmake/packages.sh
source "$root/cmake/packages.sh"
# shellcheck source=checks.sh
source "$root/tests/checks.sh"

seconds=${VMM_SELFTEST_SECONDS:-180} # The most one of them may take.
program=${VMM_KVM:-$root/build/release/bin/vmm-kvm}
tree=$root/build/selftests
skipped=0

# A list that may only grow.
must_pass=(
    cpuid_test cr4_cpuid_sync_test debug_regs demand_paging_test dirty_log_perf_test dirty_log_test get_msr_index_features
    kvm_clock_test kvm_pv_test kvm_binary_stats_test kvm_create_max_vcpus kvm_page_table_test max_vcpuid_cap_test
    memslot_modification_stress_test platform_info_test set_boot_cpu_id set_sregs_test smm_test state_test sync_regs_test
    system_counter_offset_test tsc_msrs_test tsc_scaling_sync
    fix_hypercall_test monitor_mwait_test
    set_memory_region_test userspace_io_test userspace_msr_exit_test xapic_ipi_test xapic_state_test xss_msr_test
)

prepare() {
    install_missing "${vmm_build_packages[@]}" linux-source-6.1 xz-utils
    if [[ -z ${VMM_KVM:-} ]]; then
        say "==> building vmm-kvm"
        { cmake -S "$root" --preset release && ninja -C "$root/build/release" vmm-kvm; } >/dev/null || die "the build failed"
    fi
    [[ ! -x $tree/bin/dirty_log_test ]] || return 0 # The last that came to build.
    say "==> building the selftests (the first time takes minutes)"
    rm -rf "$tree"
    mkdir -p "$tree/source" "$tree/lib" "$tree/bin"
    tar -C "$tree/source" --strip-components=1 -xf /usr/src/linux-source-6.1.tar.xz linux-source-6.1/tools \
        linux-source-6.1/arch/x86/include || die "linux-source-6.1 could not be unpacked"
    build
}

# Against the headers of linux-libc-dev, which are those of the same kernel.
build() {
    local tools=$tree/source/tools file object name flags
    cd "$tools/testing/selftests/kvm" || die "there are no selftests in linux-source-6.1"
    # Debian's patch of one of them calls a macro by the name that it got later.
    flags=(-DTEST_ASSERT_EQ=ASSERT_EQ -w -O2 -g -std=gnu99 -fno-stack-protector -fno-PIE -no-pie -DCONFIG_64BIT -I"$tools/include"
        -I"$tools/arch/x86/include" -Iinclude -Iinclude/x86_64 -I.. -I"$tools/testing/selftests")
    for file in lib/*.c lib/x86_64/*.c lib/x86_64/*.S; do
        object=$tree/lib/${file//\//_}.o
        # A compiler must not make calls of memcpy() out of memcpy() itself.
        gcc "${flags[@]}" $([[ $file != *string_override* ]] || echo -fno-builtin) -c "$file" -o "$object" ||
            die "$file does not build"
    done
    for name in $(sed -nE 's/^TEST_GEN_PROGS(_EXTENDED)?_x86_64 \+?= *([^ ]*).*/\2/p' Makefile); do
        gcc "${flags[@]}" -I"$(dirname "$name")" "$name.c" "$tree"/lib/*.o -o "$tree/bin/${name##*/}" -ldl -lpthread -lrt \
            2>"$tree/${name##*/}.log" || say "    $name does not build: $(grep -m1 -E 'error|undefined' "$tree/${name##*/}.log")"
    done
    cd "$root" || exit 2
}

run() { # NAME
    local log=$tree/$1.log status
    timeout -k 2 "$seconds" "$program" --log error --engine soft -- "$tree/bin/$1" >"$log" 2>&1 </dev/null
    status=$?
    case $status in
    0) report "$1" '' ;;
    4) # kselftest's "skip".
        skipped=$((skipped + 1))
        echo "skip    $1: $(grep -av '^ *$' "$log" | tail -n 1)"
        ;;
    *) report "$1" "status $status: $(grep -av '^ *$' "$log" | tail -n 1)" ;;
    esac
}

names=("$@")
prepare
case ${1:-} in
'') names=("${must_pass[@]}") ;;
--all) mapfile -t names < <(cd "$tree/bin" && ls) ;;
esac
for name in "${names[@]}"; do
    run "$name"
done
[[ $skipped -eq 0 ]] || echo "$skipped skipped"
finish
