// SPDX-License-Identifier: Apache-2.0

/// @file
/// Where the operands of a native instruction are: guest registers as offsets into `CpuState`,
/// guest memory as host pointers; and whether the guest may use the unit at all.

#pragma once

#include <cstddef>
#include <cstdint>

#include "x86/soft/cpu.hpp"
#include "x86/soft/dispatch.hpp"
#include "x86/soft/fault.hpp"
#include "x86/soft/memory.hpp"
#include "x86/soft/native.hpp"

namespace vmm::x86::soft {

/// Offset of `CpuState::fpu` from `CpuState::gpr`.
[[nodiscard]] inline std::size_t fpu_offset() noexcept
{
    static const std::size_t offset = [] {
        const CpuState state;
        return static_cast<std::size_t>(reinterpret_cast<const std::byte*>(&state.fpu) -
                                        reinterpret_cast<const std::byte*>(state.gpr.data()));
    }();
    return offset;
}

[[nodiscard]] inline std::uint16_t general_offset(unsigned number) noexcept
{
    return static_cast<std::uint16_t>((number & 15U) * 8U);
}
[[nodiscard]] inline std::uint16_t vector_offset(unsigned number) noexcept
{
    return static_cast<std::uint16_t>(fpu_offset() + offsetof(FpuRegisters, ymm) +
                                      std::size_t{number & 15U} * 32U);
}
/// MM registers lie in the x87 image, where they are ST registers while TOP is 0.
[[nodiscard]] inline std::uint16_t mmx_offset(unsigned number) noexcept
{
    return static_cast<std::uint16_t>(fpu_offset() + offsetof(FpuRegisters, x87) + 32U +
                                      std::size_t{number & 7U} * 16U);
}

/// Four operands as they are packed into `Op::immediate`.
struct Operands {
    std::uint16_t reg{};
    std::uint16_t rm{};
    std::uint16_t vvvv{};
    std::uint16_t extra{};

    [[nodiscard]] std::uint64_t packed() const noexcept
    {
        return std::uint64_t{reg} | (std::uint64_t{rm} << 16U) | (std::uint64_t{vvvv} << 32U) |
               (std::uint64_t{extra} << 48U);
    }
    [[nodiscard, gnu::always_inline]] static Operands of(const Op& op) noexcept
    {
        return {static_cast<std::uint16_t>(op.immediate),
                static_cast<std::uint16_t>(op.immediate >> 16U),
                static_cast<std::uint16_t>(op.immediate >> 32U),
                static_cast<std::uint16_t>(op.immediate >> 48U)};
    }
};

/// The bytes of a guest register.
[[nodiscard, gnu::always_inline]] inline std::byte* register_at(Cpu& cpu,
                                                                std::uint16_t offset) noexcept
{
    // SAFETY: offsets come from the functions above, and lie within CpuState.
    return reinterpret_cast<std::byte*>(cpu.gpr.data()) + offset;
}

[[nodiscard, gnu::always_inline]] inline Thunk thunk_of(const Op& op) noexcept
{
    // SAFETY: selection stored a Thunk there.
    return reinterpret_cast<Thunk>(reinterpret_cast<std::uintptr_t>(op.aux));
}

/// Stores the thunk of `spec` in `op`; answers `handler`, or the one for want of memory.
[[nodiscard]] inline Handler with_thunk(Op& op, const ThunkSpec& spec, Handler handler)
{
    const Thunk thunk = thunk_for(spec);
    if (thunk == nullptr) {
        return &no_thunk;
    }
    op.aux = reinterpret_cast<const void*>(reinterpret_cast<std::uintptr_t>(thunk));
    return handler;
}

/// A handler of a function that does all the work: its locals are gone when the next handler is
/// jumped to (dispatch.hpp).  @pre `body` is not inlined.
template <void (*body)(Cpu&, const Op*)>
const Op* body_then_next(Cpu& cpu, const Op* op)
{
    body(cpu, op);
    return next(cpu, op);
}

/// The host address of `size` bytes at `linear` if the TLB has it, or null.  Never throws.
template <bool write>
[[nodiscard, gnu::always_inline]] inline std::byte* quick_pointer(Cpu& cpu,
                                                                  std::uint64_t linear,
                                                                  std::size_t size) noexcept
{
    const TlbEntry& entry = tlb_entry<std::byte>(cpu, linear);
    const std::uint64_t tag = write ? entry.write_tag : entry.read_tag;
    if (tag == ((linear + size - 1U) & ~std::uint64_t{0xfff})) [[likely]] {
        // SAFETY: the entry maps this page of guest memory (see `TlbEntry::addend`).
        return reinterpret_cast<std::byte*>(linear + entry.addend);
    }
    return nullptr;
}

/// Which exceptions say that the unit is off.
enum class Unit : std::uint8_t {
    General,  ///< None.
    Sse,      ///< CR0.EM, CR0.TS, CR4.OSFXSR.
    Avx,      ///< CR0.TS, CR4.OSXSAVE, XCR0.
};

namespace native_detail {
inline constexpr std::uint64_t cr0_em = 1U << 2U;
inline constexpr std::uint64_t cr0_ts = 1U << 3U;
inline constexpr std::uint64_t cr4_osfxsr = 1U << 9U;
inline constexpr std::uint64_t cr4_osxmmexcpt = 1U << 10U;
inline constexpr std::uint64_t cr4_osxsave = 1U << 18U;
}  // namespace native_detail

[[noreturn]] void raise_unit_off(const Cpu& cpu, Unit unit);

/// #UD or #NM where the unit is off.  SDM Vol. 2A "Exceptions by instruction class".
template <Unit unit>
[[gnu::always_inline]] inline void check_unit(const Cpu& cpu)
{
    using namespace native_detail;
    if constexpr (unit == Unit::Sse) {
        if (((cpu.cr0 & (cr0_em | cr0_ts)) | (~cpu.cr4 & cr4_osfxsr)) != 0) [[unlikely]] {
            raise_unit_off(cpu, unit);
        }
    } else if constexpr (unit == Unit::Avx) {
        if ((((cpu.cr0 & cr0_ts) | (~cpu.cr4 & cr4_osxsave)) | (~cpu.xcr0 & 6U)) != 0)
            [[unlikely]] {
            raise_unit_off(cpu, unit);
        }
    }
}

// --- MXCSR.
inline constexpr std::uint32_t mxcsr_flags = 0x3f;
inline constexpr std::uint32_t mxcsr_masks = 0x1f80;
inline constexpr std::uint32_t mxcsr_valid = 0xffff;  ///< What the guest finds in MXCSR_MASK.

/// For instructions that never raise #AC.  SDM Vol. 2A "Exception Type": VMASKMOV of type 6,
/// 11, 12.
class WithoutAlignmentCheck {
public:
    explicit WithoutAlignmentCheck(Cpu& cpu) noexcept : cpu_{cpu}, before_{cpu.alignment_check}
    {
        cpu.alignment_check = false;
    }
    ~WithoutAlignmentCheck() { cpu_.alignment_check = before_; }
    WithoutAlignmentCheck(const WithoutAlignmentCheck&) = delete;
    WithoutAlignmentCheck& operator=(const WithoutAlignmentCheck&) = delete;
    WithoutAlignmentCheck(WithoutAlignmentCheck&&) = delete;
    WithoutAlignmentCheck& operator=(WithoutAlignmentCheck&&) = delete;

private:
    Cpu& cpu_;
    bool before_;
};

[[nodiscard, gnu::always_inline]] inline std::uint32_t host_mxcsr() noexcept
{
    std::uint32_t value = 0;
    asm volatile("stmxcsr %0" : "=m"(value) : : "memory");
    return value;
}
/// @pre no reserved bits in `value`.
[[gnu::always_inline]] inline void set_host_mxcsr(std::uint32_t value) noexcept
{
    asm volatile("ldmxcsr %0" : : "m"(value) : "memory");
}

/// Has the guest's MXCSR in the host's.  @pre all its exceptions are masked.
[[gnu::always_inline]] inline void make_mxcsr_live(Cpu& cpu) noexcept
{
    if (!cpu.mxcsr_live) [[unlikely]] {
        cpu.host_mxcsr = host_mxcsr();
        set_host_mxcsr(cpu.fpu.mxcsr & mxcsr_valid);
        cpu.mxcsr_live = true;
    }
}

inline void release_mxcsr(Cpu& cpu) noexcept
{
    if (cpu.mxcsr_live) {
        cpu.fpu.mxcsr = host_mxcsr();
        set_host_mxcsr(cpu.host_mxcsr);
        cpu.mxcsr_live = false;
    }
}

}  // namespace vmm::x86::soft
