// SPDX-License-Identifier: Apache-2.0

/// @file
/// What string instructions share, those on ports too.

#pragma once

#include <algorithm>
#include <cstdint>

#include "x86/soft/integer.hpp"

namespace vmm::x86::soft {

/// RCX, RSI and RDI as a string instruction sees them: cut to the address size.
class StringOperands {
public:
    StringOperands(Cpu& cpu, const Op& op) noexcept
        : cpu_(cpu),
          op_(op),
          mask_(op.address_size == 8 ? ~std::uint64_t{0}
                                     : (op.address_size == 4 ? 0xffff'ffffU : 0xffffU))
    {
    }

    [[nodiscard]] std::uint64_t count() const noexcept { return cpu_.gpr[Rcx] & mask_; }
    [[nodiscard]] std::uint64_t source() const noexcept { return cpu_.gpr[Rsi] & mask_; }
    [[nodiscard]] std::uint64_t destination() const noexcept { return cpu_.gpr[Rdi] & mask_; }
    [[nodiscard]] bool backward() const noexcept { return (cpu_.rflags & (1U << 10U)) != 0; }

    void set_count(std::uint64_t value) noexcept { set(Rcx, value); }
    /// Moves RSI, RDI past `elements` of `size` bytes.
    void advance_source(std::uint64_t elements, std::size_t size) noexcept
    {
        set(Rsi, cpu_.gpr[Rsi] + distance(elements, size));
    }
    void advance_destination(std::uint64_t elements, std::size_t size) noexcept
    {
        set(Rdi, cpu_.gpr[Rdi] + distance(elements, size));
    }

    /// The linear address of `bytes` bytes at `offset`.  #GP, #SS.
    [[nodiscard]] std::uint64_t linear(SegmentIndex segment,
                                       std::uint64_t offset,
                                       std::size_t bytes,
                                       Access access) const
    {
        if (op_.address_kind == AddressKind::Segmented) {
            return segmented_address(cpu_, segment, offset, bytes, access);
        }
        if (op_.address_kind == AddressKind::Flat32) {
            return flat_address(cpu_, segment, offset, bytes, access);
        }
        return segment == Fs || segment == Gs ? offset + cpu_.seg[segment].base : offset;
    }

    /// How many of `elements` from `offset` upwards lie below the wrap of the address size and the
    /// segment's limit: at least one, which may then fault.
    [[nodiscard]] std::uint64_t upward(SegmentIndex segment,
                                       std::uint64_t offset,
                                       std::uint64_t elements,
                                       std::size_t size) const noexcept
    {
        std::uint64_t last = mask_;
        if (op_.address_kind == AddressKind::Segmented) {
            const Segment& descriptor = cpu_.seg[segment];
            const bool expand_down = (descriptor.type & 0xcU) == 4;
            last = expand_down ? offset : std::min<std::uint64_t>(last, descriptor.limit);
        }
        if (offset > last) {
            return 1;
        }
        const std::uint64_t room = (last - offset) / size + ((last - offset) % size == size - 1);
        return std::clamp<std::uint64_t>(room, 1, std::max<std::uint64_t>(elements, 1));
    }

    /// As `upward`, downwards from the element at `offset`, whose linear address is `linear`: those
    /// in its page; 0 where it must go one by one.
    [[nodiscard]] std::uint64_t downward(SegmentIndex segment,
                                         std::uint64_t offset,
                                         std::uint64_t linear,
                                         std::uint64_t elements,
                                         std::size_t size) const noexcept
    {
        const std::uint64_t in_page = linear & 0xfffU;
        const bool expand_down = (cpu_.seg[segment].type & 0xcU) == 4;
        if (in_page + size > 0x1000 ||
            (op_.address_kind == AddressKind::Segmented && expand_down)) {
            return 0;
        }
        return std::min({elements, in_page / size + 1, offset / size + 1});
    }

private:
    [[nodiscard]] std::uint64_t distance(std::uint64_t elements, std::size_t size) const noexcept
    {
        const std::uint64_t bytes = elements * size;
        return backward() ? std::uint64_t{0} - bytes : bytes;
    }
    void set(Gpr number, std::uint64_t value) noexcept
    {
        if (op_.address_size == 2) {
            cpu_.gpr[number] = (cpu_.gpr[number] & ~mask_) | (value & mask_);
        } else {
            cpu_.gpr[number] = value & mask_;
        }
    }

    Cpu& cpu_;
    const Op& op_;
    std::uint64_t mask_;
};

/// Whether a repeated instruction goes on with the next chunk without the run loop: not if it is
/// wanted, and not where each iteration ends with a debug trap.
[[nodiscard]] inline bool may_repeat(const Cpu& cpu) noexcept
{
    constexpr std::uint64_t trap_flag = 1U << 8U;
    return cpu.requests.load(std::memory_order_relaxed) == 0 && (cpu.rflags & trap_flag) == 0 &&
           cpu.pending_debug == 0;
}

/// Ends the block between two iterations.
inline const Op* leave_repeating(Cpu& cpu, const Op* op)
{
    // SDM Vol. 3B "Resume Flag": set in what an interrupt pushes here; the rest of the instruction
    // meets no breakpoint.
    cpu.rflags |= Rflags::RF.mask;
    return leave_to_same(cpu, op);
}

}  // namespace vmm::x86::soft
