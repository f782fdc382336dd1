// SPDX-License-Identifier: Apache-2.0

/// @file
/// Selectors, descriptors and the stacks that transfers push to: the tools of segmentation.cpp,
/// transfer.cpp, delivery.cpp and task.cpp.
///
/// SDM Vol. 3A "Segment Descriptors", "System Descriptor Types"; APM Vol. 2 "Descriptors".

#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>

#include "x86/soft/cpu.hpp"
#include "x86/soft/fault.hpp"
#include "x86/soft/memory.hpp"

namespace vmm::x86::soft {

/// Types of system descriptors.
namespace system_type {
inline constexpr unsigned tss16_available = 1;
inline constexpr unsigned ldt = 2;
inline constexpr unsigned tss16_busy = 3;
inline constexpr unsigned call_gate16 = 4;
inline constexpr unsigned task_gate = 5;
inline constexpr unsigned interrupt_gate16 = 6;
inline constexpr unsigned trap_gate16 = 7;
inline constexpr unsigned tss_available = 9;  ///< 32-bit; 64-bit in long mode.
inline constexpr unsigned tss_busy = 11;
inline constexpr unsigned call_gate = 12;
inline constexpr unsigned interrupt_gate = 14;
inline constexpr unsigned trap_gate = 15;
}  // namespace system_type

/// Bits of a segment's type.
namespace segment_type {
inline constexpr unsigned accessed = 1;
inline constexpr unsigned writable = 2;     ///< Data.
inline constexpr unsigned readable = 2;     ///< Code.
inline constexpr unsigned expand_down = 4;  ///< Data.
inline constexpr unsigned conforming = 4;   ///< Code.
inline constexpr unsigned code = 8;
}  // namespace segment_type

[[nodiscard]] constexpr unsigned rpl(std::uint16_t selector) noexcept
{
    return selector & 3U;
}
[[nodiscard]] constexpr bool is_null(std::uint16_t selector) noexcept
{
    return (selector & 0xfffcU) == 0U;
}
[[nodiscard]] constexpr bool is_local(std::uint16_t selector) noexcept
{
    return (selector & 4U) != 0U;
}
[[nodiscard]] constexpr std::uint16_t with_rpl(std::uint16_t selector, unsigned level) noexcept
{
    return static_cast<std::uint16_t>((selector & 0xfffcU) | level);
}
/// SDM Vol. 3A "Error Code": index and TI of the selector, and EXT.
[[nodiscard]] constexpr std::uint32_t selector_error(std::uint16_t selector,
                                                     std::uint32_t ext = 0) noexcept
{
    return (selector & 0xfffcU) | ext;
}

/// A descriptor as it lies in its table.
struct Descriptor {
    std::uint64_t low{};
    std::uint64_t high{};    ///< The second half of a 16-byte system descriptor.
    std::uint64_t linear{};  ///< Where it lies.

    [[nodiscard]] unsigned type() const noexcept { return (low >> 40U) & 0xfU; }
    [[nodiscard]] bool is_segment() const noexcept { return ((low >> 44U) & 1U) != 0U; }
    [[nodiscard]] unsigned dpl() const noexcept { return (low >> 45U) & 3U; }
    [[nodiscard]] bool present() const noexcept { return ((low >> 47U) & 1U) != 0U; }
    [[nodiscard]] bool avl() const noexcept { return ((low >> 52U) & 1U) != 0U; }
    [[nodiscard]] bool long_code() const noexcept { return ((low >> 53U) & 1U) != 0U; }
    [[nodiscard]] bool big() const noexcept { return ((low >> 54U) & 1U) != 0U; }
    [[nodiscard]] bool granular() const noexcept { return ((low >> 55U) & 1U) != 0U; }

    [[nodiscard]] bool is_code() const noexcept
    {
        return is_segment() && (type() & segment_type::code) != 0U;
    }
    [[nodiscard]] bool is_data() const noexcept { return is_segment() && !is_code(); }
    [[nodiscard]] bool is_conforming() const noexcept
    {
        return is_code() && (type() & segment_type::conforming) != 0U;
    }
    [[nodiscard]] bool is_writable_data() const noexcept
    {
        return is_data() && (type() & segment_type::writable) != 0U;
    }
    [[nodiscard]] bool is_readable() const noexcept
    {
        return is_data() || (is_code() && (type() & segment_type::readable) != 0U);
    }

    /// In bytes, granularity applied.
    [[nodiscard]] std::uint32_t limit() const noexcept
    {
        const auto raw = static_cast<std::uint32_t>((low & 0xffffU) | ((low >> 32U) & 0xf'0000U));
        return granular() ? (raw << 12U) | 0xfffU : raw;
    }
    /// With the upper half, which is 0 for all but 16-byte descriptors.
    [[nodiscard]] std::uint64_t base() const noexcept
    {
        return ((low >> 16U) & 0xff'ffffU) | ((low >> 32U) & 0xff00'0000U) | (high << 32U);
    }

    // A gate.
    [[nodiscard]] std::uint16_t gate_selector() const noexcept
    {
        return static_cast<std::uint16_t>(low >> 16U);
    }
    /// 16-bit gates have a 16-bit offset.
    [[nodiscard]] std::uint64_t gate_offset() const noexcept
    {
        const std::uint64_t offset = low & 0xffffU;
        return type() < 8U ? offset : offset | ((low >> 32U) & 0xffff'0000U) | (high << 32U);
    }
    [[nodiscard]] unsigned gate_parameters() const noexcept { return (low >> 32U) & 0x1fU; }
    [[nodiscard]] unsigned gate_ist() const noexcept { return (low >> 32U) & 7U; }
};

/// The hidden part of a segment register loaded from `descriptor`.
[[nodiscard]] Segment make_segment(const Descriptor& descriptor, std::uint16_t selector) noexcept;
/// A segment register holding a null selector.  SS keeps CPL in its DPL.
[[nodiscard]] Segment null_segment(std::uint16_t selector, unsigned dpl = 0) noexcept;
/// A segment of virtual-8086 mode.
[[nodiscard]] Segment virtual_8086_segment(std::uint16_t selector) noexcept;
/// CS of real mode after a far transfer: limit and attributes stay, but it may be written.
[[nodiscard]] Segment real_mode_code(const Segment& now, std::uint16_t selector) noexcept;

/// Null where the descriptor lies beyond its table (or there is no LDT).  @pre Not a null selector.
[[nodiscard]] std::optional<Descriptor> find_descriptor(Cpu& cpu, std::uint16_t selector);
/// Raises `vector` with the selector and `ext` where there is none.
[[nodiscard]] Descriptor read_descriptor(Cpu& cpu,
                                         std::uint16_t selector,
                                         Vector vector,
                                         std::uint32_t ext = 0);
/// Reads the second half of a 16-byte descriptor; raises `vector` where it is beyond the table or
/// its type field is not 0.
void read_upper_half(Cpu& cpu,
                     Descriptor& descriptor,
                     std::uint16_t selector,
                     Vector vector,
                     std::uint32_t ext = 0);
/// Sets type bits of a descriptor in its table, atomically: the accessed bit.
void set_type_bits(Cpu& cpu, Descriptor& descriptor, unsigned bits);
/// Sets or clears the busy bit of a TSS descriptor.
void set_busy(Cpu& cpu, const Descriptor& descriptor, bool busy);

/// Sets the accessed bit in memory and yields what goes into CS, with RPL = `level`.
[[nodiscard]] Segment load_code_segment(Cpu& cpu,
                                        Descriptor& descriptor,
                                        std::uint16_t selector,
                                        unsigned level);
/// The checks of SS for privilege `level`, which is in the selector too: raises `vector` with the
/// selector (not present: #SS), sets the accessed bit.  The selector is not null.
[[nodiscard]] Segment load_stack_segment(Cpu& cpu,
                                         std::uint16_t selector,
                                         unsigned level,
                                         Vector vector,
                                         std::uint32_t ext = 0);

/// CS of RET and IRET: the checks that both make.  The level returned to is the selector's RPL.
[[nodiscard]] Descriptor read_return_code(Cpu& cpu, std::uint16_t selector);
/// SS of a return to `code`, whose selector's RPL is the level returned to.
[[nodiscard]] Segment load_return_stack(Cpu& cpu, std::uint16_t selector, const Segment& code);

/// Bits 63:47 alike.  (Linear addresses have 48 bits: LA57 is not offered.)
[[nodiscard]] constexpr bool is_canonical48(std::uint64_t address) noexcept
{
    const auto top = static_cast<std::int64_t>(address) >> 47U;
    return top == 0 || top == -1;
}

/// Whether `code` runs 64-bit code.
[[nodiscard]] inline bool is_code64(const Cpu& cpu, const Segment& code) noexcept
{
    return cpu.long_mode() && code.l != 0U;
}

/// `Cpu::mode_changed()` after a transfer, which changes CS, SS and flags but no control or debug
/// register: the short way where long mode makes it short.
inline void privilege_changed(Cpu& cpu) noexcept
{
    if (!cpu.long_mode() || (cpu.rflags & Rflags::AC.mask) != 0U) [[unlikely]] {
        cpu.mode_changed();
        return;
    }
    const Segment& code = cpu.seg[Cs];
    cpu.cpl = cpu.seg[Ss].dpl & 3U;
    if (code.l != 0U) [[likely]] {
        cpu.code_size = CodeSize::Bits64;
    } else {
        cpu.code_size = code.db != 0U ? CodeSize::Bits32 : CodeSize::Bits16;
    }
    cpu.alignment_check = false;
    cpu.tlb = &cpu.tlbs[static_cast<std::size_t>(cpu.cpl == 3U ? TlbContext::User
                                                               : TlbContext::Supervisor)];
}

/// #GP(ext) where the guest cannot continue at `rip` in `code`.
inline void check_target(const Cpu& cpu,
                         const Segment& code,
                         std::uint64_t rip,
                         std::uint32_t ext = 0)
{
    if (is_code64(cpu, code) ? !is_canonical48(rip) : rip > code.limit) {
        raise(Vector::GP, ext);
    }
}

/// System tables lie where the linear address is cut to 32 bits, or not.
[[nodiscard]] inline std::uint64_t table_address(const Cpu& cpu, std::uint64_t address) noexcept
{
    return cpu.long_mode() ? address : address & 0xffff'ffffU;
}

/// A value in a system table.
template <typename T>
[[nodiscard, gnu::always_inline]] inline T load_system(Cpu& cpu, std::uint64_t linear)
{
    const Tlb& tlb = cpu.tlbs[static_cast<std::size_t>(TlbContext::Supervisor)];
    const TlbEntry& entry = tlb.entries[(linear >> 12U) % Tlb::entry_count];
    if (entry.read_tag == ((linear + sizeof(T) - 1U) & ~std::uint64_t{0xfff})) [[likely]] {
        // SAFETY: the entry maps this page of guest memory (see `TlbEntry::addend`).
        return load_host<T>(reinterpret_cast<const std::byte*>(linear + entry.addend));
    }
    T value{};
    read_system(cpu, linear, &value, sizeof(T));
    return value;
}

/// A stack that a transfer pushes to before it commits.  All of it is checked against the limit
/// first, then written; the register is the caller's to set from `pointer()`.
class FrameWriter {
public:
    /// @param error The error code of #SS where the frame does not fit.
    FrameWriter(Cpu& cpu,
                const Segment& stack,
                std::uint64_t pointer,
                unsigned privilege,
                bool is_64,
                std::uint32_t error) noexcept
        : cpu_(cpu),
          stack_(stack),
          pointer_(pointer),
          privilege_(privilege),
          error_(error),
          is_64_(is_64)
    {
    }

    /// All values of a frame have the same size.
    void push(std::uint64_t value) noexcept { values_[count_++] = value; }
    void write(unsigned value_size);

    /// The stack pointer behind what was written; the bits that the stack does not use are kept.
    [[nodiscard]] std::uint64_t pointer() const noexcept { return pointer_; }

private:
    static constexpr std::size_t capacity = 40;  // SS, SP, 31 parameters, CS, IP.

    [[nodiscard]] std::uint64_t below(std::uint64_t by) const noexcept;
    void check_room(unsigned value_size) const;

    Cpu& cpu_;
    const Segment& stack_;
    std::uint64_t pointer_;
    unsigned privilege_;
    std::uint32_t error_;
    bool is_64_;
    std::size_t count_{};
    std::array<std::uint64_t, capacity> values_;  // The first count_ are set.
};

/// A stack that a return pops from before it commits.
class FrameReader {
public:
    explicit FrameReader(Cpu& cpu) noexcept : cpu_(cpu), pointer_(cpu.gpr[Rsp]) {}

    [[nodiscard]] std::uint64_t pop(unsigned value_size);
    /// A selector, which has as much room as other values: processors read two bytes of it.
    [[nodiscard]] std::uint16_t pop_selector(unsigned value_size);
    void skip(std::uint64_t bytes) noexcept { pointer_ = advanced(bytes); }
    [[nodiscard]] std::uint64_t pointer() const noexcept { return pointer_; }

private:
    [[nodiscard]] std::uint64_t advanced(std::uint64_t by) const noexcept;

    Cpu& cpu_;
    std::uint64_t pointer_;
};

/// `pointer` put into a stack pointer that held `old`: a 16-bit stack leaves the upper bits alone.
[[nodiscard]] constexpr std::uint64_t merged_stack_pointer(std::uint64_t old,
                                                           std::uint64_t pointer,
                                                           bool is_64,
                                                           const Segment& stack) noexcept
{
    if (is_64) {
        return pointer;
    }
    return stack.db != 0U ? pointer & 0xffff'ffffU
                          : (old & ~std::uint64_t{0xffff}) | (pointer & 0xffffU);
}

/// ES, DS, FS and GS lose what `level` may not use.  SDM Vol. 2B "RET": return to outer privilege
/// level.
void drop_inner_segments(Cpu& cpu, unsigned level) noexcept;

/// Where the current TSS holds the stack of `level`: SS:ESP.  #TS with TR's selector where the TSS
/// ends before it.
struct StackPointer {
    std::uint16_t selector{};
    std::uint64_t pointer{};
};
[[nodiscard]] StackPointer task_stack(Cpu& cpu, unsigned level, std::uint32_t ext);
/// The same in long mode: RSP`level`, or with `ist` not 0 that entry of the IST.
[[nodiscard]] std::uint64_t task_stack64(Cpu& cpu, unsigned level, unsigned ist, std::uint32_t ext);

/// Thrown where a task switch has passed the point of no return: the fault belongs to the new
/// task, whose state the vCPU holds.
struct TaskFault {
    Fault fault;
};

}  // namespace vmm::x86::soft
