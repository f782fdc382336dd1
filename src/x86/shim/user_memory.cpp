// SPDX-License-Identifier: Apache-2.0

#include "x86/shim/user_memory.hpp"

#include <cstdint>

// One instruction that may fault, and where to go on if it does: RCX then holds what is left.
// NOLINTBEGIN(hicpp-no-assembler)
asm(R"(
    .text
    .p2align 4
    .hidden vmm_shim_copy
    .globl vmm_shim_copy
    .type vmm_shim_copy, @function
vmm_shim_copy:
    mov %rdx, %rcx
    .hidden vmm_shim_copy_may_fault
    .globl vmm_shim_copy_may_fault
vmm_shim_copy_may_fault:
    rep movsb
    .hidden vmm_shim_copy_end
    .globl vmm_shim_copy_end
vmm_shim_copy_end:
    mov %rcx, %rax
    ret
    .size vmm_shim_copy, . - vmm_shim_copy
)");
// NOLINTEND(hicpp-no-assembler)

extern "C" {
/// @return the bytes that were not copied.
std::size_t vmm_shim_copy(void* to, const void* from, std::size_t size) noexcept;
extern const char vmm_shim_copy_may_fault[];
extern const char vmm_shim_copy_end[];
}

namespace vmm::shim {
namespace {

/// A kernel takes no address of its own half for a user's.
constexpr unsigned long user_end = 0x0000'7fff'ffff'f000;

bool is_user(UserAddress address, std::size_t size) noexcept
{
    return size <= user_end && address.value() <= user_end - size;
}

}  // namespace

bool copy_in(void* to, UserAddress from, std::size_t size) noexcept
{
    // SAFETY: a fault of the copy is fixed up.
    return is_user(from, size) &&
           vmm_shim_copy(to, reinterpret_cast<const void*>(from.value()), size) == 0;
}

bool copy_out(UserAddress to, const void* from, std::size_t size) noexcept
{
    // SAFETY: a fault of the copy is fixed up.
    return is_user(to, size) && vmm_shim_copy(reinterpret_cast<void*>(to.value()), from, size) == 0;
}

bool fix_up_fault(ucontext_t& context) noexcept
{
    greg_t& rip = context.uc_mcontext.gregs[REG_RIP];
    if (rip != static_cast<greg_t>(reinterpret_cast<std::uintptr_t>(&vmm_shim_copy_may_fault[0]))) {
        return false;
    }
    rip = static_cast<greg_t>(reinterpret_cast<std::uintptr_t>(&vmm_shim_copy_end[0]));
    return true;
}

}  // namespace vmm::shim
