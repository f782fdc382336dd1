# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
#
# Sourced by examples/run.sh and tests/run.sh: installs Debian packages that are missing, and says so.
# Prints to standard error only.

say() {
    printf '%s\n' "$*" >&2
}

die() {
    say "${0##*/}: $*"
    exit 2
}

# What the library needs to be built, with its tests and examples.
# shellcheck disable=SC2034
vmm_build_packages=(
    ccache cmake g++ ninja-build pkg-config
    libboost-dev libfmt-dev libspdlog-dev libxbyak-dev libzydis-dev
    libgmock-dev libgtest-dev
)

# What preset fuzz needs beside: libFuzzer.
# shellcheck disable=SC2034
vmm_fuzz_packages=(clang libclang-rt-14-dev)

as_root() {
    if [[ $EUID -eq 0 ]]; then
        "$@"
    elif command -v sudo >/dev/null; then
        sudo "$@"
    else
        die "'$*' needs root and there is no sudo: run it as root, then this again"
    fi
}

# apt_update: fetches the package lists, once a run.
apt_update() {
    if [[ -z ${vmm_apt_updated:-} ]]; then
        say "==> apt-get update"
        as_root env DEBIAN_FRONTEND=noninteractive apt-get update -q >&2
        vmm_apt_updated=1
    fi
}

# install_missing PACKAGE…: installs those that are not there.
install_missing() {
    local package missing=()
    for package in "$@"; do
        if [[ $(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null) != installed ]]; then
            missing+=("$package")
        fi
    done
    if [[ ${#missing[@]} -eq 0 ]]; then
        return
    fi
    say "==> installing ${missing[*]}"
    apt_update
    as_root env DEBIAN_FRONTEND=noninteractive \
        apt-get install -q -y --no-install-recommends "${missing[@]}" >&2
}

if ! command -v apt-get >/dev/null || ! command -v dpkg-query >/dev/null; then
    die "apt-get and dpkg are needed: this script is for Debian 12 and what descends from it; elsewhere," \
        "build with cmake (README.md, \"Building\")"
fi
