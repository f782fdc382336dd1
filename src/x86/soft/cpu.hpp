// SPDX-License-Identifier: Apache-2.0

/// @file
/// A virtual CPU as the software engine runs it: the canonical state plus what the engine has
/// derived from it.  Owned by one thread while it runs; only what is atomic is touched by others.

#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "x86/counter.hpp"
#include "x86/cpu_state.hpp"
#include "x86/engine.hpp"
#include "x86/soft/fetch_tlb.hpp"
#include "x86/soft/jump_tables.hpp"
#include "x86/soft/op.hpp"

namespace vmm::x86::soft {

class BlockCache;
class SoftVm;
class Translator;

/// One page's translation.  Tags hold the page's linear address, or `Tlb::invalid_tag`; read and
/// write are apart because a page may have one only (dirty logging, code pages, ROM).
struct TlbEntry {
    static constexpr std::uint64_t invalid = ~std::uint64_t{0};

    std::uint64_t read_tag{invalid};
    std::uint64_t write_tag{invalid};
    std::uintptr_t addend{};  ///< Linear address + addend = host address.
    std::uintptr_t host{};    ///< Of the page's first byte.
};

/// Translations for one privilege context.
struct Tlb {
    static constexpr std::size_t entry_count = 4096;
    using Bitmap = std::array<std::uint64_t, entry_count / 64>;

    /// What an entry without translation holds: no page's address, nor near one that the entry
    /// could be for (translated code looks at the difference of address and tag).
    [[nodiscard]] static constexpr std::uint64_t invalid_tag(std::size_t index) noexcept
    {
        return index == entry_count - 1 ? 1 : TlbEntry::invalid;
    }

    constexpr Tlb() noexcept
    {
        entries.back().read_tag = invalid_tag(entry_count - 1);
        entries.back().write_tag = invalid_tag(entry_count - 1);
    }

    std::array<TlbEntry, entry_count> entries{};
    /// Of the page in the tables; an entry covers 4 KiB of it.
    std::array<std::uint8_t, entry_count> page_shifts{};
    Bitmap used{};               ///< Entries with a valid `read_tag`: flushes look at no others.
    std::uint64_t used_words{};  ///< Bit n is clear: word n of `used` is 0.
    Bitmap global{};             ///< Of the used ones.
    Bitmap large{};              ///< Of the used ones, parts of pages larger than 4 KiB.
};

/// `PhysicalMemory::page()` remembered, until the slots change.
struct PhysicalPageCache {
    static constexpr std::size_t entry_count = 256;
    static constexpr std::uint64_t invalid = ~std::uint64_t{0};
    struct Entry {
        std::uint64_t gfn{invalid};
        PhysicalMemory::Page page{};
    };
    std::array<Entry, entry_count> entries{};
};

/// Which of the TLBs an access goes through.
enum class TlbContext : std::uint8_t {
    Supervisor,             ///< CPL < 3; user pages refused where SMAP is on.
    SupervisorUserAllowed,  ///< CPL < 3 with EFLAGS.AC, SMAP lifted.
    User,                   ///< CPL 3.
};

struct Cpu;

/// Puts what a MOV has read from `data` into the register at `slot` (op.hpp).
using TakeLoaded = void (*)(Cpu& cpu, std::uint8_t slot, const std::byte* data) noexcept;

/// MMIO accesses of instructions that wait for the caller, and answers to those of the instruction
/// that is being executed again.
struct MmioReplay {
    struct Access {
        std::uint64_t gpa{};
        std::uint8_t size{};
        bool write{};
        std::array<std::byte, 8> data{};
    };
    static constexpr std::size_t capacity = 600;  // FXSAVE/XSAVE of a full area, 8 bytes an access.

    /// A MOV whose load waits: it is completed instead of executed again (memory_move.hpp).
    struct Moved {
        TakeLoaded take{};
        std::uint8_t slot{};
        std::uint8_t length{};  ///< Of the instruction.
    };

    std::vector<Access> done{};  ///< In program order; grows by one an exit.
    std::size_t next{};          ///< Of `done`, the one the re-execution meets next.
    Access pending{};            ///< The one the caller is answering.
    bool waiting{};              ///< `pending` is with the caller.
    const Op* owner{};           ///< The instruction that `done` belongs to (mmio.cpp).
    Moved moved{};               ///< `take` is set: `pending` completes this.

    /// The caller has filled `pending.data`: the instruction can be executed again.
    void answered()
    {
        if (waiting) {
            done.push_back(pending);
            waiting = false;
        }
        next = 0;
    }
    /// The instruction is complete, or has faulted.
    void finish() noexcept
    {
        done.clear();
        next = 0;
        waiting = false;
        moved.take = nullptr;
    }
};

/// Pages of linear memory that lead to MMIO: flushed whole, whatever the guest flushes.
struct MmioTlb {
    static constexpr std::size_t entry_count = 16;
    static constexpr std::uint64_t invalid = ~std::uint64_t{0};
    struct Entry {
        std::uint64_t tag{invalid};  ///< Linear address of the page, context and kind of access.
        std::uint64_t gpa{};         ///< Of the page.
    };
    std::array<Entry, entry_count> entries{};
    bool used{};
};

/// What translated code keeps in memory (emitter.hpp).
struct TranslatedState {
    std::uint64_t code_page{};  ///< Linear address of the page that is executed.
    /// YMM registers are in the host's: 0 no, 1 for SSE instructions, 2 for AVX ones too.
    std::uint32_t vectors{};
    std::array<std::uint64_t, 2> spare{};  ///< Within one instruction.
    static constexpr std::size_t window_count = 3;
    /// Linear address + this = host address, for what a block has looked up (emit_window.cpp).
    std::array<std::uint64_t, window_count> windows{};
    /// PAUSEs until the host's scheduler is asked who else might run: a spinning guest waits for
    /// another vCPU, which may have no host CPU.
    static constexpr std::int32_t pauses = 64;
    std::int32_t pauses_left{pauses};
    /// The host's stack where no guest call is noted, and below which none is (emit_branch.cpp).
    std::uint64_t notes{};
    std::uint64_t notes_end{};
};

/// Data of IN, OUT and their string forms on the way to or from the caller.
struct PortIo {
    std::array<std::byte, 4096> buffer{};
    std::uint16_t port{};
    std::uint8_t size{};
    std::uint32_t count{};  ///< Elements in `buffer` that the caller is to fill, or has filled.
    std::uint8_t length{};  ///< Of an IN, in bytes; 0 for INS, which is executed again instead.
    bool waiting{};         ///< The caller is filling `buffer`.
    bool answered{};        ///< The caller has: the instruction is executed again and takes it.
};

/// What has been done so often; see `EngineVcpu::counters()`.
struct Counters {
    Counter blocks{};        ///< Decoded.
    Counter translations{};  ///< Blocks that became host code.
    Counter chains{};        ///< Jumps between translations that were linked.
    Counter code_resets{};   ///< Code memory was full, and all of it dropped.
    Counter tlb_fills{};
    Counter tlb_flushes{};  ///< Of all pages, or all that are not global.
    Counter page_flushes{};
    Counter faults{};
    Counter run_loops{};  ///< Blocks that the run loop went on to.
};

/// Bits of `Cpu::requests`.
namespace request {
inline constexpr std::uint32_t exit = 1U << 0U;             ///< Return `Interrupted`.
inline constexpr std::uint32_t flush_tlb = 1U << 1U;        ///< Drop all translations.
inline constexpr std::uint32_t invalidate_code = 1U << 2U;  ///< Take `SoftVm`'s list of stale code.
inline constexpr std::uint32_t guard_code = 1U << 3U;  ///< Drop write translations of code pages.
inline constexpr std::uint32_t stop = 1U << 4U;        ///< Stay out while another is exclusive.
}  // namespace request

struct Cpu : CpuState {
    Cpu(SoftVm& soft_vm, VcpuHost& vcpu_host);
    ~Cpu();
    Cpu(const Cpu&) = delete;
    Cpu& operator=(const Cpu&) = delete;
    Cpu(Cpu&&) = delete;
    Cpu& operator=(Cpu&&) = delete;

    // --- Execution.
    /// The operation being executed; RIP of a fault is block RIP + its offset.
    const Op* current{};
    /// Arithmetic flags as `lahf; seto %al` leaves them in AX: AH = SF ZF 0 AF 0 PF 1 CF, AL = OF.
    /// RFLAGS in CpuState lacks them while the engine runs: use `flags()` and `set_flags()`.
    std::uint16_t arithmetic_flags{0x0200};
    /// Cached: CPL, code size and so on; `mode_changed()` recomputes them.
    std::uint8_t cpl{};
    CodeSize code_size{CodeSize::Bits16};
    /// The TLB for ordinary data accesses at the current CPL, EFLAGS.AC, CR4.SMAP.
    Tlb* tlb{};
    std::array<Tlb, 3> tlbs{};
    /// Set: alignment checks apply (CPL 3, CR0.AM, EFLAGS.AC).  Fast paths are off: TLBs are
    /// neither filled nor used.
    bool alignment_check{};
    /// Set: there are data breakpoints; pages they touch are kept out of the TLBs.
    bool data_breakpoints{};

    /// What a debugger outside of the guest wants.
    GuestDebug debugger{};
    /// The breakpoints in force: the debugger's, or else the guest's.
    [[nodiscard]] const std::array<std::uint64_t, 4>& breakpoint_addresses() const noexcept
    {
        return debugger.hardware_breakpoints ? debugger.db : dr;
    }
    [[nodiscard]] std::uint64_t breakpoint_control() const noexcept
    {
        return debugger.hardware_breakpoints ? debugger.dr7 : dr7;
    }

    FetchTlb fetch_tlb{};
    MmioTlb mmio_tlb{};
    PhysicalPageCache page_cache{};
    /// PAE paging's PDPTE registers; `load_pdptes()` (memory.hpp) sets them.
    std::array<std::uint64_t, 4> pdptes{};
    /// What `mode_changed()` saw last: TLBs hold nothing from before a change of these.
    std::array<std::uint64_t, 3> paging_key{};
    std::array<std::uint64_t, 5> breakpoint_key{};

    /// The instruction took TF away before it could trap (INT n, SYSCALL with TF in FMASK): no
    /// single-step trap behind it.  The run loop clears it.
    bool no_step_trap{};

    Counters counters{};
    Chain chain{};
    JumpTables jumps{chain};
    TranslatedState translated{};
    MmioReplay mmio{};
    PortIo port_io{};
    EngineExit exit{};
    MsrAnswer msr_answer{};  ///< Of the caller, to an MSR exit.
    bool exit_pending{};     ///< A handler filled `exit`: the run loop returns it.
    /// A MOV ended in a page fault, which the run loop delivers: cheaper than an exception.
    struct PageFault {
        bool pending{};
        std::uint32_t error_code{};
        std::uint64_t linear{};
    };
    PageFault page_fault{};

    /// The x87 state is live in the host's FPU (native.cpp); `fpu_release()` writes it back.
    bool x87_live{};
    /// MXCSR is in the host's, too: the flags in `fpu.mxcsr` are stale, the other bits are not.
    bool mxcsr_live{};
    std::uint32_t host_mxcsr{};        ///< While `mxcsr_live`: the host's own.
    std::uint8_t x87_pointer_rules{};  ///< See x87.hpp; from CPUID, set on loading.

    // --- Surroundings.
    SoftVm& vm;
    VcpuHost& host;
    std::unique_ptr<Translator> translator;  ///< Null: the interpreter does it all.
    std::unique_ptr<BlockCache> blocks;

    // --- Touched by other threads.
    std::atomic<std::uint32_t> requests{};
    std::atomic<bool> in_guest{};

    [[nodiscard]] std::uint64_t block_rip() const noexcept { return gpr[17]; }
    /// RIP of the instruction being executed.
    [[nodiscard]] std::uint64_t instruction_rip() const noexcept
    {
        return ip_mask(gpr[17] + current->offset);
    }
    /// RIP of the instruction after `op`.
    [[nodiscard]] std::uint64_t next_rip(const Op& op) const noexcept
    {
        return ip_mask(gpr[17] + op.next_offset());
    }
    /// IP wraps at 16 bits in 16-bit code, at 32 bits in 32-bit code.
    [[nodiscard]] std::uint64_t ip_mask(std::uint64_t ip) const noexcept
    {
        switch (code_size) {
        case CodeSize::Bits16:
            return ip & 0xffff'ffffU;  // IP beyond 64 KiB is caught by the limit.
        case CodeSize::Bits32: return ip & 0xffff'ffffU;
        case CodeSize::Bits64: break;
        }
        return ip;
    }

    static constexpr std::uint64_t arithmetic_mask = 0x8d5;  // OF SF ZF AF PF CF.

    /// The whole RFLAGS.
    [[nodiscard]] std::uint64_t flags() const noexcept
    {
        return (rflags & ~arithmetic_mask) | ((arithmetic_flags >> 8U) & 0xd5U) |
               ((arithmetic_flags & 1U) << 11U);
    }
    /// Sets the arithmetic flags only.
    void set_arithmetic_flags(std::uint64_t value) noexcept
    {
        arithmetic_flags =
            static_cast<std::uint16_t>((((value & 0xd5U) | 2U) << 8U) | ((value >> 11U) & 1U));
    }
    /// Sets all of RFLAGS, unchecked; the caller has applied its instruction's rules.  Follow by
    /// `mode_changed()` where AC, VM, TF or the like may have changed.
    void set_flags(std::uint64_t value) noexcept
    {
        rflags = (value & ~arithmetic_mask) | 2U;
        set_arithmetic_flags(value);
    }

    [[nodiscard]] bool long_mode() const noexcept { return (efer & (1U << 10U)) != 0U; }
    [[nodiscard]] bool protected_mode() const noexcept { return (cr0 & 1U) != 0U; }
    [[nodiscard]] bool virtual_8086() const noexcept { return (rflags & (1U << 17U)) != 0U; }
    [[nodiscard]] bool code_64() const noexcept { return code_size == CodeSize::Bits64; }

    /// Recomputes what is cached from CS, SS, CR0, CR4, EFER, RFLAGS and DR7.  Call after any
    /// change to them.
    void mode_changed() noexcept;
    /// The core changed any of the state: recomputes and drops all that is derived from it.
    void state_changed() noexcept;
    /// The same where it may have changed anything but whether the guest is in system-management
    /// mode.  The vCPU is in the guest.
    void translations_changed() noexcept;
};

}  // namespace vmm::x86::soft
