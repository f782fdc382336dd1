// SPDX-License-Identifier: Apache-2.0

/// @file
/// VM ioctls: memory slots and the dirty log.

#include <cerrno>
#include <cstddef>
#include <vector>

#include <linux/kvm.h>

#include "x86/shim/lists.hpp"
#include "x86/shim/vm_file.hpp"

namespace vmm::shim {
namespace {

constexpr std::uint64_t bits_of_word = 64;

/// The number as ioctls give it: the address space in the upper half.
struct SlotId {
    std::uint32_t slot;
    std::uint16_t address_space;

    explicit SlotId(std::uint32_t number) noexcept
        : slot{number & 0xffffU},
          address_space{static_cast<std::uint16_t>(number >> 16U)}
    {
    }
};

long set_user_memory_region(VmFile& file, const kvm_userspace_memory_region& wanted)
{
    const SlotId id{wanted.slot};
    // The kernel's half of the address space is not the client's to give.
    constexpr std::uint64_t user_end = 0x0000'7fff'ffff'f000;
    if (wanted.memory_size != 0 && (wanted.userspace_addr > user_end ||
                                    wanted.memory_size > user_end - wanted.userspace_addr)) {
        return -EINVAL;
    }
    // SAFETY: the client says that its memory is there; the guest's accesses are what find out.
    auto* const host = reinterpret_cast<std::byte*>(wanted.userspace_addr);
    const long result =
        result_of(file.vm().set_user_memory_region({.slot = id.slot,
                                                    .address_space = id.address_space,
                                                    .flags = wanted.flags,
                                                    .guest_phys_addr = Gpa{wanted.guest_phys_addr},
                                                    .size_bytes = wanted.memory_size,
                                                    .host = host}));
    if (result == 0) {
        file.host_ranges().set(wanted.slot, wanted.userspace_addr, wanted.memory_size);
    }
    return result;
}

long get_dirty_log(VmFile& file, const kvm_dirty_log& wanted)
{
    const SlotId id{wanted.slot};
    auto log = file.dirty_log_is_manual ? file.vm().peek_dirty_log(id.slot, id.address_space)
                                        : file.vm().dirty_log(id.slot, id.address_space);
    if (!log) {
        return refused(log.error());
    }
    // SAFETY: the number only.
    const UserAddress to{reinterpret_cast<unsigned long>(wanted.dirty_bitmap)};
    return copy_list_out(to, *log) ? 0 : -EFAULT;
}

long clear_dirty_log(VmFile& file, const kvm_clear_dirty_log& wanted)
{
    const SlotId id{wanted.slot};
    std::vector<std::uint64_t> bitmap;
    // SAFETY: the number only.
    const UserAddress from{reinterpret_cast<unsigned long>(wanted.dirty_bitmap)};
    const std::uint64_t words = (wanted.num_pages + bits_of_word - 1) / bits_of_word;
    if (!copy_list_in(bitmap, from, static_cast<std::uint32_t>(words))) {
        return -EFAULT;
    }
    return result_of(file.vm().clear_dirty_log(id.slot, wanted.first_page, wanted.num_pages, bitmap,
                                               id.address_space));
}

long reset_dirty_rings(VmFile& file, unsigned long /*argument*/)
{
    const auto freed = file.vm().reset_dirty_rings();
    return freed ? static_cast<long>(*freed) : refused(freed.error());
}

constexpr Row<VmFile> rows[] = {
    {KVM_SET_USER_MEMORY_REGION, "KVM_SET_USER_MEMORY_REGION", reads<set_user_memory_region>},
    {KVM_GET_DIRTY_LOG, "KVM_GET_DIRTY_LOG", reads<get_dirty_log>},
    {KVM_CLEAR_DIRTY_LOG, "KVM_CLEAR_DIRTY_LOG", reads<clear_dirty_log>},
    {KVM_RESET_DIRTY_RINGS, "KVM_RESET_DIRTY_RINGS", reset_dirty_rings},
};

}  // namespace

std::span<const Row<VmFile>> vm_memory_rows() noexcept
{
    return rows;
}

}  // namespace vmm::shim
