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
    const std::size_t ring_size = vm.dirty_ring_size;
    auto fd = make_memfd("kvm-vcpu:" + std::to_string(id),
                         ring_size != 0 ? dirty_ring_offset + ring_size : run_area_size);
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
    std::optional<SharedPages> ring;
    if (ring_size != 0) {
        auto pages = SharedPages::map(*fd, dirty_ring_offset, ring_size);
        if (!pages) {
            return refused(pages.error());
        }
        ring.emplace(*std::move(pages));
        // SAFETY: page-aligned, zeroed by the kernel, and structs of integers.
        auto* const entries = reinterpret_cast<memory::DirtyGfn*>(ring->data());
        const auto set = vcpu->set_dirty_ring({entries, ring_size / sizeof(memory::DirtyGfn)});
        if (!set) {
            return refused(set.error());
        }
    }
    const bool has_ring = vm.offer_ring(*fd);
    auto file = std::make_shared<VcpuFile>(vm.shared_from_this(), *std::move(vcpu),
                                           *std::move(area), std::move(ring), has_ring);
    return install(*std::move(fd), std::move(file));
}

/// The dirty ring is shared, and nothing to execute.
long VcpuFile::may_map(std::size_t size, int protection, int flags, off_t offset) noexcept
{
    const std::size_t ring_end = dirty_ring_offset + vm_->dirty_ring_size;
    const auto first = static_cast<std::size_t>(offset);
    const std::size_t last = first + size - 1;
    const auto in_ring = [ring_end](std::size_t at) {
        return at >= dirty_ring_offset && at < ring_end;
    };
    const bool is_shared = (flags & MAP_TYPE) != MAP_PRIVATE;
    return (in_ring(first) || in_ring(last)) && ((protection & PROT_EXEC) != 0 || !is_shared)
               ? -EINVAL
               : 0;
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
