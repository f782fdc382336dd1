// SPDX-License-Identifier: Apache-2.0

/// @file
/// Several accesses by one look-up in the TLB: those near one register, as to a stack frame or to a
/// structure.  The first looks up all of the bytes that they touch.  The others need no check: no
/// TLB is flushed between two instructions of a block that C++ does not execute.

#include <algorithm>

#include "x86/soft/emitter.hpp"

namespace vmm::x86::soft {

namespace {

constexpr std::int32_t max_span = 256;  ///< A longer window would often leave the page.
constexpr std::int64_t max_distance = 1 << 20;

constexpr std::uint16_t register_bit(unsigned guest_register) noexcept
{
    return static_cast<std::uint16_t>(1U << (guest_register & 15U));
}

}  // namespace

bool is_fixed_distance(const Insn& insn) noexcept
{
    return insn.base < 16 && insn.index == Insn::no_register && insn.address_size == 8 &&
           insn.segment != Fs && insn.segment != Gs && insn.displacement < max_distance &&
           insn.displacement > -max_distance;
}

namespace {

void add_stack_access(Effects& effects, std::int32_t distance, bool write) noexcept
{
    effects.accesses[effects.access_count++] = {Rsp, distance, 8, write};
}

void add_operand(const Insn& insn, std::size_t size, bool write, Effects& effects) noexcept
{
    if (insn.has_memory && is_fixed_distance(insn) && size != 0) {
        effects.accesses[effects.access_count++] = {insn.base,
                                                    static_cast<std::int32_t>(insn.displacement),
                                                    static_cast<std::uint8_t>(size), write};
    }
}

void adjust(Effects& effects, unsigned guest_register, std::int64_t by) noexcept
{
    effects.writes = static_cast<std::uint16_t>(effects.writes | register_bit(guest_register));
    if (by < max_distance && by > -max_distance) {
        effects.adjusted = static_cast<std::uint8_t>(guest_register);
        effects.adjustment = static_cast<std::int32_t>(by);
    }
}

/// Of an instruction with a form.
Effects effects_of_form(const Insn& insn, const Form& form) noexcept
{
    Effects effects;
    effects.is_known = true;
    const auto note = [&](Use use, std::uint8_t width, unsigned number) {
        if (writes(use) && width != 0) {
            // AH … BH are in the first four.
            const bool may_be_high = width == 1 && !insn.has_rex && number >= 4 && number < 8;
            effects.writes =
                static_cast<std::uint16_t>(effects.writes | register_bit(number) |
                                           (may_be_high ? register_bit(number - 4U) : 0));
        }
    };
    note(form.reg, form.reg_width, insn.reg);
    note(form.vvvv, form.reg_width, insn.vvvv);
    const bool is_locked = insn.lock || form.needs_register;
    if (!insn.has_memory) {
        note(form.rm, form.rm_width, insn.rm);
    } else if (!is_locked && form.alignment == 0) {
        add_operand(insn, form.vectors != 0 ? insn.memory_size : form.rm_width, writes(form.rm),
                    effects);
    }
    const bool adds = insn.map == OpcodeMap::Primary && !insn.vex &&
                      (insn.opcode == 0x81 || insn.opcode == 0x83) && insn.mod == 3 &&
                      insn.operand_size == 8 && (insn.group == 0 || insn.group == 5);
    if (adds) {
        const auto by = static_cast<std::int64_t>(insn.immediate);
        adjust(effects, insn.rm, insn.group == 0 ? by : -by);
    }
    return effects;
}

/// Of those that emit_integer.cpp and emit_branch.cpp know.
Effects effects_of_primary(const Insn& insn) noexcept
{
    Effects effects;
    effects.is_known = true;
    const unsigned opcode = insn.opcode;
    const auto writes_only = [&](unsigned registers) {
        effects.writes = static_cast<std::uint16_t>(registers);
        return effects;
    };
    if (opcode < 0x40 && (opcode & 6U) == 4) {
        return writes_only(register_bit(Rax));  // With an immediate.
    }
    if ((opcode & 0xf8U) == 0x50 || opcode == 0x68 || opcode == 0x6a) {
        add_stack_access(effects, -8, true);
        adjust(effects, Rsp, -8);
        return effects;
    }
    if ((opcode & 0xf8U) == 0x58) {
        add_stack_access(effects, 0, false);
        if (insn.rm == Rsp) {
            return writes_only(register_bit(Rsp));
        }
        adjust(effects, Rsp, 8);
        effects.writes = static_cast<std::uint16_t>(effects.writes | register_bit(insn.rm));
        return effects;
    }
    if ((opcode & 0xf0U) == 0x70) {
        effects.may_leave = true;
        return effects;
    }
    if ((opcode & 0xf8U) == 0x90) {
        return writes_only(insn.rm == Rax ? 0U : register_bit(insn.rm) | register_bit(Rax));
    }
    if ((opcode & 0xf0U) == 0xb0) {
        return writes_only(register_bit(insn.rm) |
                           (opcode < 0xb8 ? register_bit(insn.rm - 4U) : 0U));
    }
    if ((opcode & 0xf8U) == 0xd8) {
        return writes_only(register_bit(Rax));  // FNSTSW AX
    }
    switch (opcode) {
    case 0x8d:
        if (insn.base == insn.reg && is_fixed_distance(insn) && insn.operand_size == 8) {
            adjust(effects, insn.reg, insn.displacement);
            return effects;
        }
        return writes_only(register_bit(insn.reg));
    case 0x98: return writes_only(register_bit(Rax));
    case 0x99: return writes_only(register_bit(Rdx));
    case 0xa8:
    case 0xa9:
    case 0xf5:
    case 0xf8:
    case 0xf9: return effects;
    case 0xc2:
    case 0xc3: add_stack_access(effects, 0, false); return writes_only(register_bit(Rsp));
    case 0xc9:
        effects.accesses[effects.access_count++] = {Rbp, 0, 8, false};
        return writes_only(register_bit(Rsp) | register_bit(Rbp));
    case 0xe8: add_stack_access(effects, -8, true); return writes_only(register_bit(Rsp));
    case 0xf6:
    case 0xf7:
        add_operand(insn, (opcode & 1U) != 0 ? insn.operand_size : 1U, false, effects);
        return writes_only(register_bit(Rax) | register_bit(Rdx));
    case 0xff:
        add_operand(insn, 8, false, effects);
        if (insn.group == 6) {
            add_stack_access(effects, -8, true);
            adjust(effects, Rsp, -8);
        } else if (insn.group == 2) {
            add_stack_access(effects, -8, true);
            effects.writes = register_bit(Rsp);
        } else if (insn.group != 4) {
            return {};
        }
        return effects;
    default: return {};
    }
}

Effects effects_of_0f(const Insn& insn) noexcept
{
    Effects effects;
    effects.is_known = true;
    const unsigned opcode = insn.opcode;
    if ((opcode & 0xf0U) == 0x80) {
        effects.may_leave = true;
        return effects;
    }
    if ((opcode & 0xf8U) == 0xc8) {
        effects.writes = register_bit(insn.rm);
        return effects;
    }
    switch (opcode) {
    case 0x0d:  // Prefetches, NOP.
    case 0x18:
    case 0x1f: return effects;
    case 0xb0:
    case 0xb1:
        effects.writes = register_bit(Rax);
        if (!insn.lock) {
            add_operand(insn, (opcode & 1U) != 0 ? insn.operand_size : 1U, true, effects);
        }
        return effects;
    default: return {};
    }
}

}  // namespace

Effects effects_of(const Insn& insn, const Form* form) noexcept
{
    if (form != nullptr) {
        return effects_of_form(insn, *form);
    }
    if (insn.vex || (insn.lock && insn.map != OpcodeMap::Map0F)) {
        return {};
    }
    if (insn.map == OpcodeMap::Primary) {
        return effects_of_primary(insn);
    }
    return insn.map == OpcodeMap::Map0F ? effects_of_0f(insn) : Effects{};
}

/// The window that begins with `access` of the current step, if there is more in it.
bool BlockEmitter::plan_window(const MemoryAccess& access, Window& window) const
{
    window = Window{};
    window.base = access.base;
    window.low = access.distance;
    window.high = access.distance + access.size;
    window.write = access.write;
    window.last = step_;
    std::int32_t shift = 0;
    bool may_have_left = false;
    for (std::size_t i = step_; i < steps_.size(); ++i) {
        const Effects& effects = steps_[i].effects;
        if (!effects.is_known) {
            break;
        }
        for (std::size_t j = 0; j < effects.access_count && i != step_; ++j) {
            const MemoryAccess& other = effects.accesses[j];
            const std::int32_t low = std::min(window.low, other.distance + shift);
            const std::int32_t high =
                std::max(window.high, other.distance + shift + std::int32_t{other.size});
            // What may not be written in the end need not be writable.
            const bool fits =
                high - low <= max_span && (window.write || !other.write || !may_have_left);
            if (other.base == window.base && fits) {
                window.low = low;
                window.high = high;
                window.write = window.write || other.write;
                window.last = i;
            }
        }
        may_have_left = may_have_left || effects.may_leave;
        if ((effects.writes & register_bit(window.base)) != 0) {
            if (effects.adjusted != window.base) {
                break;
            }
            shift += effects.adjustment;
            if (shift > max_distance || shift < -max_distance) {
                break;
            }
        }
    }
    return window.last != step_;
}

/// Where `access` is, by r10; or exit.
BlockEmitter::Operand BlockEmitter::access_near(const MemoryAccess& access)
{
    std::size_t place = 0;
    bool is_free = false;
    for (std::size_t i = 0; i < windows_.size(); ++i) {
        const Window& window = windows_[i];
        const std::int32_t low = access.distance + window.shift;
        if (window.base == access.base && low >= window.low &&
            low + std::int32_t{access.size} <= window.high && (window.write || !access.write)) {
            mov(r10, state(layout_.windows + i * 8));
            return in_window(access);
        }
        if (window.base == access.base || window.base == Window::none) {
            place = i;
            is_free = true;
        }
    }
    Window window;
    if (!is_free || !plan_window(access, window)) {
        const Xbyak::Reg64 base = load(access.base, r10);
        lea(r10, ptr[base + static_cast<std::size_t>(std::int64_t{access.distance})]);
        return look_up(access.size, access.write);
    }
    windows_[place] = window;
    open_window(place);
    return in_window(access);
}

/// r10 makes host addresses of linear ones.
BlockEmitter::Operand BlockEmitter::in_window(const MemoryAccess& access)
{
    const std::uint8_t base = host_register[access.base];
    if (base != spilled) {
        return {true, 10, access.distance, base};
    }
    // Forms may want r11 for another register.
    mov(r11, slot(access.base));
    lea(r10, ptr[r10 + r11]);
    return {true, 10, access.distance};
}

/// r10 and the window's slot = what makes host addresses of its linear ones, or exit.
void BlockEmitter::open_window(std::size_t number)
{
    const Window& window = windows_[number];
    const Xbyak::Reg64 base = load(window.base, r10);
    lea(r10, ptr[base + static_cast<std::size_t>(std::int64_t{window.low} - window.shift)]);
    find_entry(static_cast<std::size_t>(window.high - window.low), window.write);
    mov(r10, ptr[r11 + offsetof(TlbEntry, addend)]);
    mov(state(layout_.windows + number * 8), r10);
}

/// The current step has been emitted.
void BlockEmitter::move_windows()
{
    const Step& step = steps_[step_];
    for (Window& window : windows_) {
        if (window.base == Window::none) {
            continue;
        }
        const bool is_written = (step.effects.writes & register_bit(window.base)) != 0;
        const bool is_moved = is_written && step.effects.adjusted == window.base;
        if (step.is_interpreted || !step.effects.is_known || window.last <= step_ ||
            (is_written && !is_moved)) {
            window = Window{};
        } else if (is_moved) {
            window.shift += step.effects.adjustment;
        }
    }
}

}  // namespace vmm::x86::soft
