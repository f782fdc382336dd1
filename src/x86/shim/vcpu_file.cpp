// SPDX-License-Identifier: Apache-2.0

/// @file
/// Making vCPUs, and where their ioctls go.

#include "x86/shim/vcpu_file.hpp"

#include <cerrno>
#include <string>

#include <linux/kvm.h>
#include <sys/mman.h>

#include "x86/shim/library_scope.hpp"

namespace vmm::shim {

long create_vcpu(VmFile& vm, unsigned long id)
{
    const std::uint64_t end = vm.vcpu_id_end;
    if (id > 0xffff'ffffUL || (end != 0 && id >= end)) {
        return -EINVAL;
    }
    auto fd = make_memfd("kvm-vcpu:" + std::to_string(id), run_area_size);
    if (!fd) {
        return refused(fd.error());
    }
    auto area = RunArea::map(*fd);
    if (!area) {
        return refused(area.error());
    }
    auto vcpu = vm.vm().create_vcpu(static_cast<std::uint32_t>(id));
    if (!vcpu) {
        return refused(vcpu.error());
    }
    vm.has_vcpu = true;
    const bool has_ring = vm.offer_ring(*fd);
    auto file = std::make_shared<VcpuFile>(vm.shared_from_this(), *std::move(vcpu),
                                           *std::move(area), has_ring);
    return install(*std::move(fd), std::move(file));
}

void VcpuFile::mapped(void* at, std::size_t size, int protection, int flags, off_t offset) noexcept
{
    const UniqueFd& ring = vm_->ring_memfd();
    constexpr std::size_t ring_offset = 2 * shim_page_size;
    if (has_ring_ || !ring || offset != 0 || size <= ring_offset || (flags & MAP_SHARED) == 0) {
        return;
    }
    const LibraryScope inside;
    // On failure the client has a ring of its own that stays empty, and each write leaves.
    static_cast<void>(::mmap(static_cast<std::byte*>(at) + ring_offset, shim_page_size, protection,
                             MAP_SHARED | MAP_FIXED, ring.get(), ring_offset));
}

long VcpuFile::ioctl(unsigned request, unsigned long argument) noexcept
{
    static const auto& table = *new Table<VcpuFile>{
        "a vCPU",
        EINVAL,
        {vcpu_register_rows(), vcpu_fpu_rows(), vcpu_cpuid_rows(), vcpu_event_rows(),
         vcpu_apic_rows(), vcpu_misc_rows(), vcpu_debug_rows()}};
    if (!is_of_this_process()) {
        return -EIO;
    }
    const LibraryScope inside;
    if (request == KVM_RUN) {
        return argument == 0 ? run() : -EINVAL;
    }
    const std::lock_guard lock{mutex_};
    return table.call(*this, request, argument);
}

}  // namespace vmm::shim
