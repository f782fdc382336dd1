// SPDX-License-Identifier: Apache-2.0

/// @file
/// vCPU ioctls: x87, SSE and AVX state, XCR0.

#include <cerrno>

#include <linux/kvm.h>

#include "x86/shim/convert.hpp"
#include "x86/shim/vcpu_file.hpp"

namespace vmm::shim {
namespace {

// KVM's structure ends with an array of no size, which C++ has not; these 4,096 bytes are its rest.
constexpr unsigned get_xsave_request = _IOR(KVMIO, 0xa4, x86::Xsave);
constexpr unsigned set_xsave_request = _IOW(KVMIO, 0xa5, x86::Xsave);
constexpr unsigned get_xsave2_request = _IOR(KVMIO, 0xcf, x86::Xsave);

long get_fpu(VcpuFile& file, kvm_fpu& out)
{
    out = to_kvm(file.vcpu().fpu());
    return 0;
}

long set_fpu(VcpuFile& file, const kvm_fpu& fpu)
{
    file.vcpu().set_fpu(from_kvm(fpu));
    return 0;
}

long get_xsave(VcpuFile& file, x86::Xsave& out)
{
    out = file.vcpu().xsave();
    return 0;
}

long set_xsave(VcpuFile& file, const x86::Xsave& xsave)
{
    return result_of(file.vcpu().set_xsave(xsave));
}

long get_xcrs(VcpuFile& file, kvm_xcrs& out)
{
    out.nr_xcrs = 1;
    out.xcrs[0].xcr = 0;
    out.xcrs[0].value = file.vcpu().xcr0();
    return 0;
}

long set_xcrs(VcpuFile& file, const kvm_xcrs& wanted)
{
    if (wanted.nr_xcrs > KVM_MAX_XCRS || wanted.flags != 0) {
        return -EINVAL;
    }
    for (unsigned i = 0; i < wanted.nr_xcrs; ++i) {
        if (wanted.xcrs[i].xcr == 0) {
            return result_of(file.vcpu().set_xcr0(wanted.xcrs[i].value));
        }
    }
    return 0;
}

constexpr Row<VcpuFile> rows[] = {
    {KVM_GET_FPU, "KVM_GET_FPU", writes<get_fpu>},
    {KVM_SET_FPU, "KVM_SET_FPU", reads<set_fpu>},
    {get_xsave_request, "KVM_GET_XSAVE", writes<get_xsave>},
    {get_xsave2_request, "KVM_GET_XSAVE2", writes<get_xsave>},
    {set_xsave_request, "KVM_SET_XSAVE", reads<set_xsave>},
    {KVM_GET_XCRS, "KVM_GET_XCRS", writes<get_xcrs>},
    {KVM_SET_XCRS, "KVM_SET_XCRS", reads<set_xcrs>},
};

}  // namespace

std::span<const Row<VcpuFile>> vcpu_fpu_rows() noexcept
{
    return rows;
}

}  // namespace vmm::shim
