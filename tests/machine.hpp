// SPDX-License-Identifier: Apache-2.0

/// @file
/// What is known of the machine that the tests run in.

#pragma once

#include <cpuid.h>

namespace vmm::test {

/// A machine of QEMU's TCG: tests/hardware.sh svm.  Its SVM hands a guest's #BP and many of its #DB
/// to the guest, whatever is intercepted, so no KVM in it can debug a guest.
inline bool is_tcg_machine()
{
    constexpr unsigned hypervisor = 0x4000'0000;
    constexpr unsigned tcgt = 0x5447'4354;
    unsigned eax = 0;
    unsigned ebx = 0;
    unsigned ecx = 0;
    unsigned edx = 0;
    __cpuid(hypervisor, eax, ebx, ecx, edx);
    return ebx == tcgt;
}

}  // namespace vmm::test
