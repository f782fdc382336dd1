// SPDX-License-Identifier: Apache-2.0

#include "oracle/system/generator.hpp"

#include <algorithm>
#include <array>
#include <cstring>
#include <initializer_list>

namespace vmm::oracle {
namespace {

using Bytes = std::vector<std::uint8_t>;

constexpr std::uint16_t code64 = 0x08;
constexpr std::uint16_t data0 = 0x10;
constexpr std::uint16_t code32 = 0x18;
constexpr std::uint16_t data3 = 0x20;
constexpr std::uint16_t code64_user = 0x28;
constexpr std::uint16_t code32_user = 0x30;
constexpr unsigned first_random = 7;
constexpr unsigned last_random = 39;
constexpr std::uint16_t tss_selector = 40 * 8;
constexpr std::uint16_t other_tss_selector = 42 * 8;
constexpr std::uint16_t ldt_selector = 44 * 8;
constexpr unsigned first_gate = 46;
constexpr unsigned last_gate = 60;
constexpr unsigned gdt_entries = 64;

std::uint64_t descriptor(std::uint32_t base, std::uint32_t limit, unsigned access, unsigned flags)
{
    return (limit & 0xffffU) | std::uint64_t{base & 0xff'ffffU} << 16U |
           std::uint64_t{access} << 40U | std::uint64_t{(limit >> 16U) & 0xfU} << 48U |
           std::uint64_t{flags} << 52U | std::uint64_t{base >> 24U} << 56U;
}

class Generator {
public:
    Generator(std::uint64_t seed, const Offer& offer) : random_{seed}, offer_{offer} {}

    Guest make()
    {
        guest_.mode = static_cast<Mode>(pick(6));
        guest_.memory.resize(Layout::memory);
        user_ = guest_.mode != Mode::Real && chance(3) && offer_.user;
        make_gdt();
        make_idt();
        make_tss();
        make_paging();
        make_state();
        const unsigned count = 1 + pick(6);
        for (unsigned i = 0; i < count; ++i) {
            guest_.pieces.push_back(piece());
        }
        guest_.place_code();
        return std::move(guest_);
    }

private:
    std::uint32_t pick(std::uint32_t below)
    {
        return static_cast<std::uint32_t>(random_() % below);
    }
    /// One in `n`.
    bool chance(std::uint32_t n) { return pick(n) == 0; }
    template <typename T>
    T any(std::initializer_list<T> of)
    {
        return *(of.begin() + pick(static_cast<std::uint32_t>(of.size())));
    }
    template <typename T>
    void put(std::uint64_t at, T value)
    {
        std::memcpy(guest_.memory.data() + at, &value, sizeof value);
    }

    [[nodiscard]] bool is_long() const
    {
        return guest_.mode == Mode::Long || guest_.mode == Mode::Compatibility;
    }
    [[nodiscard]] bool is_16() const { return guest_.mode == Mode::Real; }
    [[nodiscard]] bool is_64() const { return guest_.mode == Mode::Long; }

    // --- Descriptors

    std::uint64_t random_segment()
    {
        const unsigned type = pick(16);
        const bool code = (type & 8U) != 0;
        const unsigned access = (chance(8) ? 0U : 0x80U) | any({0U, 0U, 3U, pick(4)}) << 5U |
                                0x10U | type | (offer_.limits && chance(4) ? 0U : 1U);
        unsigned flags = any({0xcU, 0xcU, 0x8U, 0xaU});
        if (!code) {
            flags &= 0xcU;
        } else if (chance(24)) {
            flags = 0xe;  // L and D together: reserved.
        }
        return descriptor(0, offer_.limits && chance(6) ? pick(0x100000) : 0xf'ffff, access, flags);
    }

    std::uint16_t random_selector()
    {
        if (is_16() && !offer_.limits) {
            return 0;  // Other bases end in code beyond the limit.
        }
        switch (pick(12)) {
        case 0: return static_cast<std::uint16_t>(pick(4));
        case 1: return static_cast<std::uint16_t>(pick(0x10000));
        case 2: return static_cast<std::uint16_t>(pick(8) * 8 + 4 + pick(4));  // LDT
        case 3:
            return static_cast<std::uint16_t>((first_gate + pick(last_gate - first_gate + 1)) * 8 |
                                              pick(4));
        case 4: return static_cast<std::uint16_t>((40 + pick(6)) * 8 | (chance(3) ? pick(4) : 0));
        case 5:
        case 6:
        case 7:
            return static_cast<std::uint16_t>(
                (first_random + pick(last_random - first_random + 1)) * 8 |
                (chance(2) ? pick(4) : (user_ ? 3U : 0U)));
        default:
            return static_cast<std::uint16_t>((1 + pick(6)) * 8 |
                                              (chance(3) ? pick(4) : (user_ ? 3U : 0U)));
        }
    }

    void make_gdt()
    {
        put(Layout::gdt + code64, descriptor(0, 0xf'ffff, 0x9b, 0xa));
        put(Layout::gdt + data0, descriptor(0, 0xf'ffff, 0x93, 0xc));
        put(Layout::gdt + code32, descriptor(0, 0xf'ffff, 0x9b, 0xc));
        put(Layout::gdt + data3, descriptor(0, 0xf'ffff, 0xf3, 0xc));
        put(Layout::gdt + code64_user, descriptor(0, 0xf'ffff, 0xfb, 0xa));
        put(Layout::gdt + code32_user, descriptor(0, 0xf'ffff, 0xfb, 0xc));
        for (unsigned i = first_random; i <= last_random; ++i) {
            put(Layout::gdt + 8 * i, random_segment());
        }
        put(Layout::gdt + tss_selector, descriptor(Layout::tss, 0x2067, 0x8b, 0));
        put(Layout::gdt + other_tss_selector,
            descriptor(Layout::other_tss, chance(6) ? 0x2bU : 0x67U,
                       any({0x89U, 0x89U, 0xe9U, 0x8bU, 0x09U}), 0));
        put(Layout::gdt + ldt_selector, descriptor(Layout::ldt, 0x3f, chance(6) ? 0x02 : 0x82, 0));
        for (unsigned i = 0; i < 8; ++i) {
            put(Layout::ldt + 8 * i, random_segment());
        }
        for (unsigned i = first_gate; i <= last_gate; i += 2) {
            const unsigned type =
                is_long() ? any({0xcU, 0xcU, 0x4U, 0xeU}) : any({0xcU, 0xcU, 0x4U, 0x5U});
            const auto target = any<std::uint16_t>(
                {is_long() ? code64 : code32, is_long() ? code64 : code32, random_selector()});
            put_gate(Layout::gdt + 8 * i, type, target, Layout::handlers + 0x200 + pick(16) * 2,
                     is_long() ? 0 : pick(4), is_long());
        }
        for (unsigned i = 0; i < 0x120; ++i) {
            put(Layout::handlers + 2 * i, std::uint16_t{0xf4f4});
        }
    }

    void put_gate(std::uint32_t at,
                  unsigned type,
                  std::uint16_t selector,
                  std::uint32_t offset,
                  unsigned low,
                  bool wide)
    {
        const unsigned access = (chance(12) ? 0U : 0x80U) | any({0U, 3U, 3U, pick(4)}) << 5U | type;
        if (type == 5U) {
            selector = chance(2) ? other_tss_selector : random_selector();
        }
        put(at, (offset & 0xffffU) | std::uint64_t{selector} << 16U | std::uint64_t{low} << 32U |
                    std::uint64_t{access} << 40U | std::uint64_t{offset >> 16U} << 48U);
        if (wide) {
            put(at + 8, std::uint64_t{chance(24) ? 0x8000U : 0U});
        }
    }

    void make_idt()
    {
        for (unsigned vector = 0; vector < 256; ++vector) {
            const std::uint32_t handler = Layout::handlers + 2 * vector;
            if (guest_.mode == Mode::Real) {
                put(4 * vector, handler);  // In the table at 0.
                continue;
            }
            const std::uint32_t at = Layout::idt + (is_long() ? 16 : 8) * vector;
            const std::uint16_t target = is_long() ? code64 : code32;
            if (!chance(5)) {
                put(at, (handler & 0xffffU) | std::uint64_t{target} << 16U |
                            std::uint64_t{0xee00} << 32U);
                continue;
            }
            const unsigned type = is_long() ? any({0xeU, 0xfU, 0xcU, 0x6U})
                                            : any({0xeU, 0xfU, 0x6U, 0x7U, 0x5U, 0xcU});
            put_gate(at, type, chance(2) ? target : random_selector(), handler,
                     is_long() && chance(3) ? pick(8) : 0, is_long());
        }
    }

    void make_tss()
    {
        std::uint32_t at = Layout::tss;
        if (is_long()) {
            for (unsigned i = 0; i < 10; ++i) {
                put(at + 4 + 8 * i, std::uint64_t{Layout::stacks + 0x1000 * (1 + i)});
            }
        } else {
            for (unsigned i = 0; i < 3; ++i) {
                put(at + 4 + 8 * i, Layout::stacks + 0x1000 * (1 + i));
                put(at + 8 + 8 * i, std::uint32_t{i == 0 || chance(2) ? data0 : random_selector()});
            }
        }
        put(at + 0x66, std::uint16_t{0x68});
        for (unsigned i = 0; i < 0x2000; i += 8) {
            put(at + 0x68 + (i & 0x3ffU), chance(2) ? std::uint64_t{0} : random_());
        }
        at = Layout::other_tss;
        put(at + 0x1c, Layout::tables);
        put(at + 0x20, Layout::handlers + 0x210);
        put(at + 0x24, std::uint32_t{2});
        put(at + 0x38, Layout::stacks + 0x7000);
        const std::array<unsigned, 6> segments{0x48, 0x4c, 0x50, 0x54, 0x58, 0x5c};
        for (const unsigned offset : segments) {
            const std::uint16_t fine = offset == 0x4c ? code32 : data0;
            put(at + offset, std::uint32_t{chance(6) ? random_selector() : fine});
        }
        put(at + 0x60, std::uint32_t{chance(4) ? ldt_selector : 0U});
        put(at + 0x64, std::uint32_t{0x68'0000});
    }

    // --- Paging

    std::uint64_t window_entry(unsigned page)
    {
        std::uint64_t entry = (Layout::data + 0x1000 * page) | 7U;
        entry ^= std::uint64_t{chance(4)} | std::uint64_t{chance(3)} << 1U |
                 std::uint64_t{chance(3)} << 2U;
        entry |= std::uint64_t{pick(4)} << 5U;
        if (guest_.mode != Mode::Legacy) {
            entry |= std::uint64_t{chance(4)} << 63U;
            entry |= std::uint64_t{chance(16)} << 51U;
        }
        return entry;
    }

    void make_paging()
    {
        const std::uint32_t base = Layout::tables;
        // The first MiB: all permitted.
        const auto fill = [&](std::uint32_t table, unsigned entry_size) {
            for (unsigned i = 0; i < 256; ++i) {
                const std::uint64_t entry = (std::uint64_t{i} << 12U) | 0x67U;
                entry_size == 8 ? put(table + 8 * i, entry)
                                : put(table + 4 * i, static_cast<std::uint32_t>(entry));
            }
        };
        if (guest_.mode == Mode::Legacy) {
            fill(base + 0x1000, 4);
            put(base, (base + 0x1000) | 7U);
            put(base + 4 * (Layout::window >> 22U), (base + 0x2000) | 7U);
            for (unsigned i = 0; i < Layout::window_pages; ++i) {
                put(base + 0x2000 + 4 * i, static_cast<std::uint32_t>(window_entry(i)));
            }
            return;
        }
        // PML4 at base, PDPT at + 0x1000, directories for 0 and for the window, and their tables.
        put(base, std::uint64_t{base + 0x1000} | 7U);
        const std::uint64_t rights = guest_.mode == Mode::Pae ? 1U : 7U;
        put(base + 0x1000, std::uint64_t{base + 0x2000} | rights);
        put(base + 0x1008, std::uint64_t{base + 0x3000} | rights);
        put(base + 0x2000, std::uint64_t{base + 0x4000} | 7U);
        std::uint64_t directory = std::uint64_t{base + 0x5000} | 7U;
        if (chance(6)) {
            directory ^= any<std::uint64_t>({2, 4, 1ULL << 63U, 6});
        }
        put(base + 0x3000, directory);
        put(base + 0x3008,
            (std::uint64_t{chance(2) ? 0x1000U : 0U} | 0x87U) ^ (chance(2) ? 4U : 0U));
        fill(base + 0x4000, 8);
        for (unsigned i = 0; i < Layout::window_pages; ++i) {
            put(base + 0x5000 + 8 * i, window_entry(i));
        }
    }

    // --- State

    x86::Segment segment(std::uint16_t selector, unsigned type, bool wide) const
    {
        x86::Segment s;
        s.selector = static_cast<std::uint16_t>(selector | (user_ ? 3U : 0U));
        s.limit = 0xffff'ffff;
        s.type = static_cast<std::uint8_t>(type);
        s.present = 1;
        s.s = 1;
        s.g = 1;
        s.dpl = user_ ? 3 : 0;
        s.l = wide ? 1 : 0;
        s.db = wide ? 0 : 1;
        return s;
    }

    void make_state()
    {
        x86::Sregs& s = guest_.sregs;
        s.gdt = {Layout::gdt, gdt_entries * 8 - 1, {}};
        s.idt = {Layout::idt, static_cast<std::uint16_t>(is_long() ? 0xfff : 0x7ff), {}};
        s.cr0 = 0x10 | (chance(3) ? 0U : 0x2'0000U) | (chance(3) ? 0x20U : 0U);
        s.apic_base = 0xfee0'0900;
        if (guest_.mode == Mode::Real) {
            make_real_mode();
        } else {
            s.cr0 |= 1;
            s.cs =
                segment(user_ ? (is_64() ? code64_user : code32_user) : (is_64() ? code64 : code32),
                        11, is_64());
            for (x86::Segment* each : {&s.ds, &s.es, &s.fs, &s.gs, &s.ss}) {
                *each = segment(user_ ? data3 : data0, 3, false);
            }
            s.tr.selector = tss_selector;
            s.tr.base = Layout::tss;
            s.tr.limit = 0x2067;
            s.tr.type = 11;
            s.tr.present = 1;
            s.ldt.selector = ldt_selector;
            s.ldt.base = Layout::ldt;
            s.ldt.limit = 0x3f;
            s.ldt.type = 2;
            s.ldt.present = 1;
        }
        if (guest_.mode != Mode::Real && guest_.mode != Mode::Protected) {
            s.cr0 |= 0x8000'0000;
            s.cr3 = guest_.mode == Mode::Pae ? Layout::tables + 0x1000 : Layout::tables;
            s.cr4 |= guest_.mode == Mode::Legacy ? 0x10U : 0x20U;
            s.efer |= offer_.nx && !chance(4) ? 0x800U : 0U;
        }
        if (is_long()) {
            s.efer |= 0x500;
        }
        s.efer |= is_long() && !chance(4) ? 1U : 0U;
        s.cr4 |= chance(2) ? 0U : 0x600U;
        s.cr4 |= chance(6) && guest_.mode != Mode::Real ? 8U : 0U;  // DE
        if (offer_.umip && chance(3)) {
            s.cr4 |= 1U << 11U;
        }
        guest_.regs.rip = Layout::code;
        guest_.regs.rsp = Layout::stacks * (guest_.mode == Mode::Real ? 0U : 1U) + 0x800;
        guest_.regs.rflags =
            2U | (chance(3) ? 0x200U : 0U) | (offer_.user ? any({0U, 0U, 0x3000U, 0x1000U}) : 0U);
        guest_.regs.rbp = Layout::stacks + 0x400;
        guest_.regs.rsi = Layout::data;
        guest_.regs.rdi = Layout::pointers;
        if (offer_.breakpoints && chance(6)) {
            guest_.debug.db = {Layout::handlers, Layout::code + 1 + pick(16), Layout::data,
                               Layout::stacks + 0x7f8};
            guest_.debug.dr7 = 0x400U | (pick(256)) | (std::uint64_t{any({0U, 1U, 3U})} << 24U) |
                               (std::uint64_t{any({0x1U, 0xdU, 0xfU, 3U})} << 28U);
        }
    }

    void make_real_mode()
    {
        x86::Sregs& s = guest_.sregs;
        for (x86::Segment* each : {&s.cs, &s.ds, &s.es, &s.fs, &s.gs, &s.ss}) {
            each->limit = 0xffff;
            each->type = each == &s.cs ? 11 : 3;
            each->present = 1;
            each->s = 1;
        }
        s.ss.selector = Layout::stacks >> 4U;
        s.ss.base = Layout::stacks;
        s.idt = {0, 0x3ff, {}};
        s.tr.type = 11;
        s.tr.present = 1;
        s.tr.limit = 0xffff;
        s.ldt.type = 2;
        s.ldt.present = 1;
        s.ldt.limit = 0xffff;
    }

    // --- Code

    static void append(Bytes& to, std::initializer_list<unsigned> bytes)
    {
        for (const unsigned byte : bytes) {
            to.push_back(static_cast<std::uint8_t>(byte));
        }
    }
    static void append_number(Bytes& to, std::uint64_t value, unsigned size)
    {
        for (unsigned i = 0; i < size; ++i) {
            to.push_back(static_cast<std::uint8_t>(value >> (8U * i)));
        }
    }
    /// mov $value, %reg, 32 bits wide whatever the mode.
    Bytes load(unsigned reg, std::uint32_t value) const
    {
        Bytes code;
        if (is_16()) {
            append(code, {0x66});
        }
        append(code, {0xb8U + reg});
        append_number(code, value, 4);
        return code;
    }
    static Bytes joined(Bytes a, const Bytes& b)
    {
        a.insert(a.end(), b.begin(), b.end());
        return a;
    }
    Bytes with_eax(std::uint32_t value, std::initializer_list<unsigned> then) const
    {
        Bytes code = load(0, value);
        append(code, then);
        return code;
    }

    Piece piece()
    {
        switch (pick(20)) {
        case 0:
        case 1: return load_segment();
        case 2:
        case 3: return far_pointer();
        case 4: return far_return();
        case 5:
        case 6: return interrupt_return();
        case 7: return interrupt();
        case 8: return system_register();
        case 9: return control_register();
        case 10: return debug_register();
        case 11: return msr();
        case 12: return fast_call();
        case 13: return flags();
        case 14:
        case 15:
        case 16: return window_access();
        case 17: return descriptor_query();
        case 18: return port();
        default: return odd();
        }
    }

    Piece load_segment()
    {
        const unsigned reg = any({0U, 2U, 3U, 4U, 5U});
        return {"mov to segment register", with_eax(random_selector(), {0x8e, 0xc0U | reg << 3U})};
    }

    std::uint32_t random_target()
    {
        return chance(8) ? pick(0x1000'0000) : Layout::handlers + 0x200 + 2 * pick(16);
    }

    Piece far_pointer()
    {
        const bool call = chance(2);
        Bytes code;
        if (!is_64() && chance(2)) {
            append(code, {call ? 0x9aU : 0xeaU});
            append_number(code, random_target(), is_16() ? 2 : 4);
            append_number(code, random_selector(), 2);
            return {call ? "lcall" : "ljmp", code};
        }
        const std::uint32_t slot = Layout::pointers + 16 * pick(16);
        const unsigned size = is_16() ? 2 : 4;
        put(slot, random_target());
        put(slot + size, random_selector());
        if (is_16()) {
            append(code, {0xff, (call ? 3U : 5U) << 3U | 6U});
            append_number(code, slot, 2);
        } else {
            if (is_64() && chance(3)) {
                put(slot + 8, random_selector());
                put(slot + 4, std::uint32_t{0});
                append(code, {0x48});
            }
            append(code, {0xff, (call ? 3U : 5U) << 3U | (is_64() ? 4U : 5U)});
            if (is_64()) {
                append(code, {0x25});
            }
            append_number(code, slot, 4);
        }
        return {call ? "lcall indirect" : "ljmp indirect", code};
    }

    /// push $value, in the mode's operand size (16, 32 or 64 bits).
    Bytes push(std::uint32_t value) const
    {
        Bytes code{0x68};
        append_number(code, value, is_16() ? 2 : 4);
        return code;
    }

    Piece far_return()
    {
        Bytes code;
        if (chance(2)) {
            code = joined(push(random_selector()), push(Layout::stacks + 0x6000));
        }
        code = joined(code, push(random_selector()));
        code = joined(code, push(random_target()));
        if (is_64() && !chance(4)) {
            append(code, {0x48});
        }
        if (chance(2)) {
            append(code, {0xca, 4U * pick(4), 0});
        } else {
            append(code, {0xcb});
        }
        return {"far return", code};
    }

    Piece interrupt_return()
    {
        Bytes code = push(random_selector());
        code = joined(code, push(Layout::stacks + 0x6000));
        std::uint32_t image = 2U | (static_cast<std::uint32_t>(random_()) & 0x3'7fd5U);
        if (!chance(3)) {
            image &= ~0x2'4100U;  // VM, NT, TF
        }
        image &= offer_.single_step ? ~0U : ~0x100U;
        code = joined(code, push(image));
        code = joined(code, push(random_selector()));
        code = joined(code, push(random_target()));
        if (is_64() && !chance(6)) {
            append(code, {0x48});
        }
        append(code, {0xcf});
        return {"iret", code};
    }

    Piece interrupt()
    {
        switch (pick(6)) {
        case 0: return {"int3", {0xcc}};
        case 1: return {"int1", {0xf1}};
        case 2: return {"ud2", {0x0f, 0x0b}};
        case 3: return {"into", {0xce}};
        default: return {"int n", {0xcd, static_cast<std::uint8_t>(pick(256))}};
        }
    }

    /// A memory operand at `slot`, for an opcode 0f `opcode` /`group`.
    Bytes memory_form(unsigned opcode, unsigned group, std::uint32_t slot) const
    {
        Bytes code;
        append(code, {0x0f, opcode});
        if (is_16()) {
            append(code, {group << 3U | 6U});
            append_number(code, slot, 2);
        } else if (is_64()) {
            append(code, {group << 3U | 4U, 0x25});
            append_number(code, slot, 4);
        } else {
            append(code, {group << 3U | 5U});
            append_number(code, slot, 4);
        }
        return code;
    }

    Piece system_register()
    {
        const std::uint32_t slot = Layout::pointers + 0x100 + 16 * pick(8);
        switch (pick(8)) {
        case 0: return {"lldt", with_eax(random_selector(), {0x0f, 0x00, 0xd0})};
        case 1:
            return {"ltr", with_eax(any<std::uint32_t>(
                                        {random_selector(), other_tss_selector, tss_selector}),
                                    {0x0f, 0x00, 0xd8})};
        case 2: return {"lmsw", with_eax(pick(16), {0x0f, 0x01, 0xf0})};
        case 3: return {"clts", {0x0f, 0x06}};
        case 4: return {"sgdt or sidt", memory_form(1, pick(2), slot)};
        case 5:
            return {"sldt, str or smsw",
                    chance(3)
                        ? Bytes{0x0f, 0x01, 0xe0}
                        : Bytes{0x0f, 0x00, static_cast<std::uint8_t>(0xc0U | pick(2) << 3U)}};
        case 6:
            put(slot, std::uint16_t{0xfff});
            put(slot + 2, std::uint64_t{Layout::gdt});
            return {"lgdt", memory_form(1, 2, slot)};
        default:
            put(slot, static_cast<std::uint16_t>(any({0xfffU, 0x1fU, 0x67U})));
            put(slot + 2, std::uint64_t{guest_.mode == Mode::Real ? 0 : Layout::idt});
            return {"lidt", memory_form(1, 3, slot)};
        }
    }

    Piece control_register()
    {
        const unsigned which = any({0U, 0U, 3U, 4U, 4U, 2U, 8U, 1U});
        Bytes code;
        if (which == 8) {
            if (!is_64()) {
                return {"mov from cr0", {0x0f, 0x20, 0xc0}};
            }
            code = load(0, pick(20));
            append(code, {0x44, 0x0f, 0x22, 0xc0});
            return {"mov to cr8", code};
        }
        if (chance(4)) {
            return {"mov from control register",
                    {0x0f, 0x20, static_cast<std::uint8_t>(0xc0U | which << 3U)}};
        }
        // One bit is another.
        append(code, {0x0f, 0x20, 0xc0U | which << 3U});
        const unsigned bit = which == 0 ? any({0U, 1U, 2U, 3U, 5U, 16U, 18U, 29U, 30U, 31U})
                             : which == 4
                                 ? any({0U, 1U, 2U, 3U, 4U, 5U, 7U, 9U, 10U, 12U, 13U, 18U, 24U})
                                 : 3U;
        if (is_16()) {
            append(code, {0x66});
        }
        append(code, {0x0f, 0xba, 0xf8, bit});  // btc $bit, %eax
        append(code, {0x0f, 0x22, 0xc0U | which << 3U});
        return {"mov to control register", code};
    }

    Piece debug_register()
    {
        const unsigned which = pick(8);
        if (chance(2)) {
            return {"mov from debug register",
                    {0x0f, 0x21, static_cast<std::uint8_t>(0xc0U | which << 3U)}};
        }
        std::uint32_t value = any<std::uint32_t>({Layout::handlers, Layout::data, Layout::stacks});
        if (which >= 6 || (which >= 4 && guest_.mode != Mode::Real)) {
            value = any<std::uint32_t>({0x400U, 0xffff'0ff0U, 0x2400U, 0x401U, 0xd'0402U, 0U});
        }
        return {"mov to debug register", with_eax(value, {0x0f, 0x23, 0xc0U | which << 3U})};
    }

    Piece msr()
    {
        const auto index = any<std::uint32_t>({0xc000'0080, 0xc000'0080, 0xc000'0081, 0xc000'0082,
                                               0xc000'0084, 0xc000'0100, 0xc000'0101, 0xc000'0102,
                                               0x174, 0x175, 0x176, 0x277, 0x1234'5678});
        Bytes code = load(1, index);
        if (chance(3)) {
            append(code, {0x0f, 0x32});
            return {"rdmsr", code};
        }
        std::uint32_t low = any<std::uint32_t>(
            {Layout::handlers + 0x204, random_selector(), static_cast<std::uint32_t>(random_())});
        if (index == 0xc000'0080) {
            low = any<std::uint32_t>({0x501, 0x500, 0x101, 0x100, 1, 0, 0xd01, 0x2000});
        }
        const auto high = any<std::uint32_t>({0U, 0U, 0xffff'ffffU, 0x0023'0008U, 0x8000U});
        code = joined(code, load(0, low));
        code = joined(code, load(2, high));
        append(code, {0x0f, 0x30});
        return {"wrmsr", code};
    }

    Piece fast_call()
    {
        switch (pick(5)) {
        case 0: return {"syscall", {0x0f, 0x05}};
        case 1:
            return {"sysret",
                    joined(load(1, random_target()),
                           is_64() && chance(2) ? Bytes{0x48, 0x0f, 0x07} : Bytes{0x0f, 0x07})};
        case 2: return {"sysenter", {0x0f, 0x34}};
        case 3:
            return {"sysexit",
                    joined(joined(load(1, Layout::stacks + 0x5000), load(2, random_target())),
                           Bytes{0x0f, 0x35})};
        default: return {"swapgs", {0x0f, 0x01, 0xf8}};
        }
    }

    Piece flags()
    {
        switch (pick(5)) {
        case 0: return {"sti", {0xfb}};
        case 1: return {"cli", {0xfa}};
        case 2: return {"pushf", {0x9c}};
        case 3: {
            Bytes code = push((offer_.single_step ? 0x102U : 2U) | (chance(2) ? 0U : 0x200U));
            append(code, {0x9d, 0x90});
            return {"popf with TF", code};
        }
        default: {
            Bytes code = push(2U | (static_cast<std::uint32_t>(random_()) & 0x3'7ed5U));
            append(code, {0x9d});
            return {"popf", code};
        }
        }
    }

    Piece window_access()
    {
        const std::uint32_t linear =
            is_16() ? (offer_.limits ? Layout::stacks : 0xa000U) + pick(0x4000)
                    : (chance(8) ? Layout::window + 0x20'0000 + pick(0x1000)
                                 : Layout::window + pick(Layout::window_pages * 0x1000));
        Bytes code = load(3, linear);
        switch (pick(6)) {
        case 0:
        case 1:
            append(code, is_16() ? std::initializer_list<unsigned>{0x67, 0x66, 0x8b, 0x03}
                                 : std::initializer_list<unsigned>{0x8b, 0x03});
            break;
        case 2:
        case 3:
            append(code, is_16() ? std::initializer_list<unsigned>{0x67, 0x66, 0x89, 0x03}
                                 : std::initializer_list<unsigned>{0x89, 0x03});
            break;
        case 4:
            append(code, is_16() ? std::initializer_list<unsigned>{0x67, 0x66, 0xff, 0x03}
                                 : std::initializer_list<unsigned>{0xff, 0x03});
            break;
        default: append(code, {0xff, 0xe3}); break;  // jmp *%ebx
        }
        return {"access through the window", code};
    }

    Piece descriptor_query()
    {
        const auto selector = random_selector();
        switch (pick(5)) {
        case 0: return {"lar", with_eax(selector, {0x0f, 0x02, 0xc8})};
        case 1: return {"lsl", with_eax(selector, {0x0f, 0x03, 0xc8})};
        case 2: return {"verr", with_eax(selector, {0x0f, 0x00, 0xe0})};
        case 3: return {"verw", with_eax(selector, {0x0f, 0x00, 0xe8})};
        default: return {"arpl", is_64() ? Bytes{0x90} : with_eax(selector, {0x63, 0xc3})};
        }
    }

    Piece port()
    {
        Bytes code = load(2, pick(0x2200));
        append(code, {any({0xecU, 0xedU, 0xeeU, 0xefU})});
        return {"in or out", code};
    }

    Piece odd()
    {
        switch (pick(6)) {
        case 0: return {"invlpg", {0x0f, 0x01, is_16() ? std::uint8_t{0x3f} : std::uint8_t{0x3b}}};
        case 1: return {"wbinvd", {0x0f, 0x09}};
        case 2: return {"mov ss; int3", with_eax(user_ ? data3 | 3U : data0, {0x8e, 0xd0, 0xcc})};
        case 3: return {"div by zero", joined(load(1, 0), Bytes{0xf7, 0xf1})};
        case 4: return {"fninit", {0xdb, 0xe3}};
        default:
            return {"push and pop segment",
                    is_64() ? Bytes{0x0f, 0xa0, 0x0f, 0xa9} : Bytes{0x06, 0x1f}};
        }
    }

    Random random_;
    Offer offer_;
    Guest guest_;
    bool user_{};
};

}  // namespace

void Guest::place_code()
{
    std::fill_n(memory.begin() + Layout::code, 0x1000, std::byte{0xf4});
    std::size_t at = Layout::code;
    for (const Piece& piece : pieces) {
        for (const std::uint8_t byte : piece.bytes) {
            memory[at++] = std::byte{byte};
        }
    }
}

Guest generate(std::uint64_t seed, const Offer& offer)
{
    return Generator{seed, offer}.make();
}

}  // namespace vmm::oracle
