// SPDX-License-Identifier: Apache-2.0

#include <algorithm>
#include <array>
#include <cstring>
#include <span>

#include <fmt/format.h>

#include "oracle/judge.hpp"
#include "x86/cpu_state.hpp"

namespace vmm::oracle {

namespace {

constexpr std::uint16_t stack_fault = 12;
constexpr std::uint16_t general_protection = 13;
constexpr std::uint16_t page_fault = 14;
constexpr std::uint16_t alignment_check = 17;
constexpr std::uint16_t simd_exception = 19;
constexpr std::uint64_t zero_flag = 0x40;
constexpr std::array<const char*, 16> names{"rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi",
                                            "r8",  "r9",  "r10", "r11", "r12", "r13", "r14", "r15"};
constexpr std::array<const char*, 6> segment_names{"es", "cs", "ss", "ds", "fs", "gs"};

std::string ending_name(std::uint16_t ending)
{
    switch (ending) {
    case ReachedExit: return "the end";
    case SystemCall: return "a system call";
    case TimedOut: return "no end in time";
    case Died: return "the end of the process";
    default: return fmt::format("vector {}", ending);
    }
}

class Comparison {
public:
    Comparison(const Case& each,
               const Outcome& native,
               const Outcome& engine,
               const Verdict& verdict)
        : case_{each},
          native_{native},
          engine_{engine},
          verdict_{verdict}
    {
    }

    std::string text()
    {
        if (may_fault()) {
            return {};
        }
        if (native_.ending != engine_.ending) {
            if (is_in_another_order() || is_beyond_limit()) {
                return {};
            }
            text_ = fmt::format("host: {}, engine: {}\n", described(native_), described(engine_));
            return text_;
        }
        if (native_.ending == TimedOut || native_.ending == SystemCall) {
            return {};
        }
        exception();
        registers();
        if (!(verdict_.partial_fpu && is_exception(native_))) {
            vectors();
            x87();
        }
        if (!(verdict_.partial_stores && is_exception(native_))) {
            memory();
        }
        return text_;
    }

private:
    static std::string described(const Outcome& outcome)
    {
        return fmt::format("{} at {:#x}, error code {:#x}, address {:#x}",
                           ending_name(outcome.ending), outcome.out.rip, outcome.error_code,
                           outcome.address);
    }

    void expect(const std::string& name, std::uint64_t native, std::uint64_t engine)
    {
        if (native != engine) {
            text_ += fmt::format("{}: host {:#x}, engine {:#x}\n", name, native, engine);
        }
    }

    [[nodiscard]] static bool is_exception(const Outcome& outcome) { return outcome.ending < 256; }
    /// Faults of segmentation, paging and alignment.
    [[nodiscard]] static bool is_access_fault(const Outcome& outcome)
    {
        return outcome.ending == stack_fault || outcome.ending == general_protection ||
               outcome.ending == page_fault || outcome.ending == alignment_check;
    }

    /// SDM Vol. 3A "Priority Among Concurrent Events": faults on executing an instruction are of
    /// one class, in which the order is the processor's affair.
    [[nodiscard]] bool is_in_another_order() const
    {
        const bool one_is_alignment =
            (native_.ending == alignment_check) != (engine_.ending == alignment_check);
        if (verdict_.is_amd && is_undefined_or_too_long()) {
            return true;
        }
        // F16C and others with VEX check the alignment on AMD's CPUs.
        if (verdict_.is_amd && native_.ending == alignment_check) {
            return true;
        }
        if (verdict_.mxcsr_before_store && native_.ending == simd_exception) {
            return is_access_fault(engine_);
        }
        if (verdict_.is_amd &&
            (is_fetch_of_undefined(native_, engine_) || is_fetch_of_undefined(engine_, native_))) {
            return true;
        }
        // With a base that is no canonical address AMD's CPUs look at the sum in parts.
        const bool has_base = verdict_.is_amd && (case_.in.fs_base | case_.in.gs_base) != 0;
        return is_access_fault(native_) && is_access_fault(engine_) &&
               (verdict_.any_fault || one_is_alignment || has_base);
    }

    /// #UD, or #GP for more than 15 bytes, where what AMD's CPUs count is another length.
    [[nodiscard]] bool is_undefined_or_too_long() const
    {
        constexpr std::uint16_t invalid_opcode = 6;
        constexpr std::size_t nearly_too_long = 11;
        const auto either = [](const Outcome& outcome) {
            return outcome.ending == invalid_opcode ||
                   (outcome.ending == general_protection && outcome.error_code == 0);
        };
        return !case_.is_sequence && case_.code_size >= nearly_too_long && either(native_) &&
               either(engine_) && native_.out.rip == engine_.out.rip;
    }

    /// No instruction, of which not all bytes can be fetched: which is seen first.
    [[nodiscard]] static bool is_fetch_of_undefined(const Outcome& undefined, const Outcome& fetch)
    {
        constexpr std::uint16_t invalid_opcode = 6;
        constexpr std::uint32_t by_fetch = 0x10;
        return undefined.ending == invalid_opcode && fetch.ending == page_fault &&
               (fetch.error_code & by_fetch) != 0;
    }

    /// SDM Vol. 3A "Limit Checking": with an effective limit of FFFFFFFFh, accesses that wrap round
    /// may or may not fault.
    [[nodiscard]] bool is_beyond_limit() const
    {
        const bool by_limit = engine_.ending == stack_fault || engine_.ending == general_protection;
        const auto wraps = [](std::uint64_t address) {
            return address >= 0xffff'fc00 || address < 0x400;
        };
        const bool host_by_limit = verdict_.is_amd && native_.ending == stack_fault &&
                                   engine_.ending == page_fault && wraps(engine_.address);
        return case_.is_32 &&
               (host_by_limit || (by_limit && engine_.error_code == 0 &&
                                  native_.ending == page_fault && wraps(native_.address)));
    }

    [[nodiscard]] bool may_fault() const
    {
        return verdict_.may_fault && is_access_fault(native_) &&
               (case_.is_sequence || native_.out.rip == linear_of(case_.code_offset)) &&
               native_.out.rip != engine_.out.rip;
    }

    void exception()
    {
        std::uint32_t native = native_.error_code;
        std::uint32_t engine = engine_.error_code;
        if (native_.ending == page_fault && native_.address >= 0x7fff'ffff'f000) {
            // Linux tells user code of addresses that are not its own always that they are present.
            native |= 1U;
            engine |= 1U;
        }
        if (verdict_.address_slack > 0) {
            native |= 1U;  // Of pages that differ.
            engine |= 1U;
        }
        if (!verdict_.any_fault) {
            expect("error code", native, engine);
        }
        std::uint64_t distance = native_.address - engine_.address;
        if (case_.is_32) {
            distance &= 0xffff'ffffU;
            distance = std::min(distance, 0x1'0000'0000 - distance);
        } else {
            distance = std::min(distance, 0 - distance);
        }
        if (distance > verdict_.address_slack) {
            expect("address", native_.address, engine_.address);
        }
        expect("rip", native_.out.rip, engine_.out.rip);
    }

    /// Null selectors lose their RPL when the kernel returns to user code, SDM Vol. 2A "IRET".
    [[nodiscard]] static std::uint16_t visible(std::uint16_t selector)
    {
        return selector <= 3 ? 0 : selector;
    }

    void registers()
    {
        const State& native = native_.out;
        const State& engine = engine_.out;
        const bool wide =
            !case_.is_32 && !engine_.in_32 && engine.selector[x86::Cs] != user_code_32;
        if (verdict_.partial_loads && is_exception(native_)) {
            expect("rsp", native.gpr[x86::Rsp], engine.gpr[x86::Rsp]);
            return;
        }
        const bool is_early = is_exception(native_) || (case_.in.gpr[x86::Rcx] & 0xffff'ffffU) == 0;
        for (std::size_t number = 0; number < (wide ? 16U : 8U); ++number) {
            if (((verdict_.undefined_registers >> number) & 1U) != 0) {
                continue;
            }
            // After BSF and BSR with ZF set.
            if (((verdict_.undefined_registers >> (number + 16)) & 1U) != 0 &&
                (native.rflags & zero_flag) != 0) {
                continue;
            }
            // 32-bit code leaves the upper halves undefined.
            const bool is_counter = number == x86::Rcx || number == x86::Rsi || number == x86::Rdi;
            const bool narrow = !wide || (verdict_.narrow_counters && is_counter && is_early);
            const std::uint64_t mask = narrow ? 0xffff'ffffU : ~std::uint64_t{0};
            expect(names.at(number), native.gpr.at(number) & mask, engine.gpr.at(number) & mask);
        }
        // AMD's CPUs do not set RF in the image that a trap between iterations has.
        constexpr std::uint64_t resume = 0x10000;
        const std::uint64_t defined =
            ~(verdict_.undefined_flags | (verdict_.is_amd && verdict_.repeats ? resume : 0U));
        expect("rflags", native.rflags & defined, engine.rflags & defined);
        for (std::size_t number = 0; number < segment_names.size(); ++number) {
            const bool is_kept = number == x86::Cs || number == x86::Ss;
            if (!is_kept || native_.ending != ReachedExit) {
                expect(segment_names.at(number), visible(native.selector.at(number)),
                       visible(engine.selector.at(number)));
            }
        }
        expect("fs base", native.fs_base, engine.fs_base);
        expect("gs base", native.gs_base, engine.gs_base);
    }

    /// PE, where overflow or underflow is unmasked and raised #XM: whether the result would be
    /// inexact if exponents had no bounds, which the engine does not find out.
    [[nodiscard]] std::uint32_t inexact_of_scaled() const
    {
        constexpr std::uint32_t range = 0x18;  // OE, UE.
        constexpr std::uint32_t precision = 0x20;
        const std::uint32_t unmasked = ~(native_.out.mxcsr >> 7U) & native_.out.mxcsr & range;
        return native_.ending == simd_exception && unmasked != 0 ? precision : 0;
    }

    void vectors()
    {
        const bool partial = verdict_.several_steps && native_.ending == simd_exception;
        if (!(verdict_.mxcsr_before_store && is_exception(native_)) && !partial) {
            const std::uint32_t mask = ~inexact_of_scaled();
            expect("mxcsr", native_.out.mxcsr & mask, engine_.out.mxcsr & mask);
        }
        if (verdict_.gathers && is_exception(native_)) {
            return;
        }
        for (std::size_t number = 0; number < 16; ++number) {
            for (std::size_t at = 0; at < 4; ++at) {
                std::uint64_t native = 0;
                std::uint64_t engine = 0;
                std::memcpy(&native, native_.out.ymm.at(number).data() + 8 * at, 8);
                std::memcpy(&engine, engine_.out.ymm.at(number).data() + 8 * at, 8);
                if (native != engine) {
                    expect(fmt::format("ymm{}[{}]", number, at), native, engine);
                }
            }
        }
    }

    template <typename T>
    void x87_field(const std::string& name, std::size_t offset)
    {
        T native{};
        T engine{};
        std::memcpy(&native, native_.out.x87.data() + offset, sizeof(T));
        std::memcpy(&engine, engine_.out.x87.data() + offset, sizeof(T));
        if (native != engine) {
            expect(name, native, engine);
        }
    }

    /// Of addresses that are not canonical processors keep as many bits as they have: 48 or 57.
    void x87_pointer(const std::string& name, std::size_t offset)
    {
        std::uint64_t native{};
        std::uint64_t engine{};
        std::memcpy(&native, native_.out.x87.data() + offset, 8);
        std::memcpy(&engine, engine_.out.x87.data() + offset, 8);
        std::uint64_t mask = 0xffff'ffff'ffff;
        if (verdict_.is_amd && (native >> 32U) == 0) {
            mask = 0xffff'ffff;  // What XSAVE64 stores has no selectors.
        }
        expect(name, native & mask, engine & mask);
    }

    /// The registers without regard to TOP.
    void registers_by_number()
    {
        const auto top = [](const Outcome& outcome) { return (outcome.out.x87[3] >> 3U) & 7U; };
        for (unsigned number = 0; number < 8; ++number) {
            const std::uint8_t* const native =
                native_.out.x87.data() + 32 + 16 * ((number - top(native_)) & 7U);
            const std::uint8_t* const engine =
                engine_.out.x87.data() + 32 + 16 * ((number - top(engine_)) & 7U);
            if (std::memcmp(native, engine, 10) != 0) {
                text_ += fmt::format("r{} differs\n", number);
            }
        }
    }

    void x87()
    {
        if (native_.out.x87 == engine_.out.x87) {
            return;
        }
        x87_field<std::uint16_t>("fcw", 0);
        if (verdict_.mmx_transition && is_exception(native_)) {
            registers_by_number();
            return;
        }
        x87_field<std::uint16_t>("fsw", 2);
        x87_field<std::uint8_t>("ftw", 4);
        x87_field<std::uint16_t>("fop", 6);
        x87_pointer("fip", 8);
        x87_pointer("fdp", 16);
        for (std::size_t number = 0; number < 8; ++number) {
            x87_field<std::uint64_t>(fmt::format("st{} significand", number), 32 + 16 * number);
            x87_field<std::uint16_t>(fmt::format("st{} exponent", number), 40 + 16 * number);
        }
    }

    void memory()
    {
        const auto count = [](const Outcome& outcome) {
            return std::min<std::size_t>(outcome.changes_count, outcome.changes.size());
        };
        const std::span native{native_.changes.data(), count(native_)};
        const std::span engine{engine_.changes.data(), count(engine_)};
        if (native_.changes_count == engine_.changes_count &&
            std::equal(native.begin(), native.end(), engine.begin(), engine.end())) {
            return;
        }
        const auto list = [&](const char* name, std::span<const Change> changes) {
            text_ += fmt::format("memory, {}:", name);
            std::size_t left = 6;
            for (const Change& each : changes) {
                if (left-- == 0) {
                    text_ += " ...";
                    break;
                }
                text_ += fmt::format(" [{:#x}]={:#018x}", linear_of(each.offset), each.value);
            }
            text_ += '\n';
        };
        if (verdict_.partial_push && (verdict_.is_amd || is_partial_push(native, engine))) {
            return;
        }
        if (verdict_.is_amd && are_alike(native, engine)) {
            return;
        }
        list("host", native);
        list("engine", engine);
    }

    /// But for MXCSR_MASK, where AMD's CPUs have misaligned SSE (bit 17), which is not offered.
    static bool are_alike(std::span<const Change> native, std::span<const Change> engine)
    {
        constexpr std::uint64_t misaligned = std::uint64_t{1} << 49U;
        return std::equal(native.begin(), native.end(), engine.begin(), engine.end(),
                          [](const Change& a, const Change& b) {
                              return a.offset == b.offset &&
                                     (a.value == b.value || (a.value ^ b.value) == misaligned);
                          });
    }

    /// SDM Vol. 2B "PUSH": of a segment register with a 32-bit operand size either four bytes are
    /// written, or the lower two only.
    static bool is_partial_push(std::span<const Change> native, std::span<const Change> engine)
    {
        constexpr std::uint64_t low = 0x0000'ffff'0000'ffff;
        return native.size() <= 2 && engine.size() <= 2 &&
               (native.size() != engine.size() ||
                std::equal(native.begin(), native.end(), engine.begin(),
                           [](const Change& a, const Change& b) {
                               return a.offset == b.offset && (a.value & low) == (b.value & low);
                           }));
    }

    const Case& case_;
    const Outcome& native_;
    const Outcome& engine_;
    const Verdict& verdict_;
    std::string text_;
};

}  // namespace

std::string difference(const Case& each,
                       const Outcome& native,
                       const Outcome& engine,
                       const Verdict& verdict)
{
    return Comparison{each, native, engine, verdict}.text();
}

}  // namespace vmm::oracle
