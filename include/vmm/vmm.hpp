// SPDX-License-Identifier: Apache-2.0

/// @file
/// Everything one needs to make a virtual machine and run it.  Read on in kvm.hpp, vm.hpp,
/// vcpu.hpp and exit.hpp, in that order.

#pragma once

#include "vmm/exit.hpp"
#include "vmm/kvm.hpp"
#include "vmm/result.hpp"
#include "vmm/statistics.hpp"
#include "vmm/vcpu.hpp"
#include "vmm/vm.hpp"
#include "vmm/vm_device.hpp"
#include "vmm/x86/quirk.hpp"
