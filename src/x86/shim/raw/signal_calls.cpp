// SPDX-License-Identifier: Apache-2.0

/// @file
/// System calls about signals.

#include <cerrno>

#include "x86/shim/raw/actions.hpp"
#include "x86/shim/raw/call.hpp"
#include "x86/shim/raw/stub.hpp"

namespace vmm::shim::raw {

Outcome do_rt_sigaction(Call& call) noexcept
{
    if (call.argument(3) != sizeof(KernelSet)) {
        return -EINVAL;
    }
    return change_kernel_action(call.number_argument(0), call.address(1), call.address(2));
}

Outcome do_rt_sigprocmask(Call& call) noexcept
{
    if (call.argument(3) != sizeof(KernelSet)) {
        return -EINVAL;
    }
    return change_kernel_mask(call.thread(), call.context(), call.number_argument(0),
                              call.address(1), call.address(2));
}

Outcome do_rt_sigreturn(Call& call) noexcept
{
    // The client's frame in the place of ours.
    const UserAddress frame{call.stack()};
    constexpr std::size_t mask_offset = offsetof(ucontext_t, uc_sigmask);
    KernelSet mask{};
    if (copy_in(mask, frame + mask_offset) && (mask & never_blocked) != 0) {
        mask &= ~never_blocked;
        static_cast<void>(copy_out(frame + mask_offset, mask));
    }
    stack_t alternate{};
    std::uint64_t stack = 0;
    constexpr std::size_t stack_offset =
        offsetof(ucontext_t, uc_mcontext) + offsetof(mcontext_t, gregs) + REG_RSP * sizeof(greg_t);
    if (copy_in(alternate, frame + offsetof(ucontext_t, uc_stack)) &&
        copy_in(stack, frame + stack_offset)) {
        choose_way(call.thread(), alternate, stack);
    } else {
        avoid_stubs(call.thread());
    }
    // SAFETY: the kernel looks at it, and nobody else; where there is nothing, that ends the client
    // as it would have without us.
    call.resume_at(*reinterpret_cast<ucontext_t*>(frame.value()));
    return 0;
}

Outcome do_sigaltstack(Call& call) noexcept
{
    avoid_stubs(call.thread());
    return pass_on;
}

Outcome do_wait_with_mask(Call& call, std::size_t mask, std::size_t size) noexcept
{
    KernelSet& passed = call.thread().passed_set;
    if (call.argument(mask) == 0 || call.argument(size) != sizeof passed ||
        !copy_in(passed, call.address(mask))) {
        return pass_on;  // The kernel knows the errno.
    }
    passed &= ~never_blocked;
    call.replace(mask, reinterpret_cast<std::uint64_t>(&passed));
    return pass_on;
}

Outcome do_pselect6(Call& call) noexcept
{
    // The last argument points at the mask's address and size.
    auto& argument = call.thread().passed_set_argument;
    KernelSet& passed = call.thread().passed_set;
    if (call.argument(5) == 0 || !copy_in(argument, call.address(5)) || argument[0] == 0 ||
        argument[1] != sizeof passed || !copy_in(passed, UserAddress{argument[0]})) {
        return pass_on;
    }
    passed &= ~never_blocked;
    argument[0] = reinterpret_cast<std::uint64_t>(&passed);
    call.replace(5, reinterpret_cast<std::uint64_t>(argument.data()));
    return pass_on;
}

}  // namespace vmm::shim::raw
