#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Measures what a VM exit costs, on each engine that works here and beside /dev/kvm, and what it costs to find a
# memory slot or a device.  `bench/run.sh --help` says how.

set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"

# shellcheck source=../cmake/packages.sh
source "$root/cmake/packages.sh"

usage() {
    cat <<'END'
bench/run.sh [OPTION…]

  --compare OLD.json   shows beside each row what has changed since an earlier run
  --machine svm|vmx    measures exits inside a machine with hardware virtualization (tests/hardware.sh); what is
                       emulated there is slow in its own way: look at ratios only

Takes about two minutes (in a machine: some ten).  Prints the machine, the engines, and tables of medians, spreads
and ratios; writes build/release/bench.json, or bench-MACHINE.json, to be compared with later.
END
}

compare=()
machine=
while [[ $# -gt 0 ]]; do
    case $1 in
    --compare)
        [[ -r ${2:-} ]] || die "--compare needs the JSON file of an earlier run, for example build/release/bench.json"
        compare=(--compare "$2")
        shift
        ;;
    --machine)
        [[ ${2:-} == svm || ${2:-} == vmx ]] || die "--machine needs svm or vmx; see --help"
        machine=$2
        shift
        ;;
    --help | -h)
        usage
        exit 0
        ;;
    *) die "unknown option '$1'; see --help" ;;
    esac
    shift
done

install_missing "${vmm_build_packages[@]}" libbenchmark-dev python3
say "==> building"
mkdir -p build
cmake --preset release -DVMM_BUILD_BENCH=ON >build/bench.cmake.log 2>&1 || {
    cat build/bench.cmake.log >&2
    die "cmake failed; its output is above"
}
ninja -C build/release vmm-bench vmm-components-bench >&2
raw=$(mktemp -d)
trap 'rm -rf "$raw"' EXIT

if [[ -n $machine ]]; then
    modules="kvm_intel vmm_helper"
    [[ $machine == vmx ]] || modules="kvm_amd vmm_helper"
    say "==> measuring inside the $machine machine"
    # The file goes over a serial line: its end tells that all of it came.
    tests/hardware.sh "$machine" --modules "$modules" -- build/release/bin/vmm-bench --benchmark_repetitions=3 --benchmark_min_time=0.02 \
        --benchmark_filter=-thousand_vms \
        --benchmark_format=json '2>/tmp/engines && echo && sed "s/^/engines: /" /tmp/engines' |
        tee "$raw/output" | sed -un 's/^ *"run_name": "\([^"]*\)".*/    \1/p' | stdbuf -oL uniq >&2
    sed -n '/^{/,/^}/p' "$raw/output" >"$raw/exits.json"
    sed -n 's/^engines: \(engine .*\)/\1/p' "$raw/output"
    name="AMD EPYC with SVM, as QEMU's TCG has it"
    [[ $machine == svm ]] || name="Intel Skylake-X with VMX, as Bochs has it"
    python3 bench/report.py --exits "$raw/exits.json" --json "build/release/bench-$machine.json" \
        --machine "$name" "${compare[@]}"
    exit
fi

say "==> measuring exits"
build/release/bin/vmm-bench --benchmark_repetitions=5 --benchmark_min_time=0.1 \
    --benchmark_enable_random_interleaving=true \
    --benchmark_out_format=json --benchmark_out="$raw/exits.json" >/dev/null
say "==> measuring look-ups"
build/release/bin/vmm-components-bench --benchmark_repetitions=3 --benchmark_min_time=0.02 \
    --benchmark_enable_random_interleaving=true \
    --benchmark_out_format=json --benchmark_out="$raw/components.json" >/dev/null
python3 bench/report.py --exits "$raw/exits.json" --components "$raw/components.json" \
    --json build/release/bench.json "${compare[@]}"
