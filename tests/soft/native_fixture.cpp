// SPDX-License-Identifier: Apache-2.0

#include "soft/native_fixture.hpp"

#include <algorithm>
#include <sstream>
#include <stdexcept>
#include <string>

#include <sys/mman.h>

#include "vmm/x86/control_registers.hpp"
#include "x86/soft/build_block.hpp"
#include "x86/soft/insn.hpp"
#include "x86/soft/op.hpp"

namespace vmm::x86::soft::test {

namespace {

std::vector<CpuidEntry> host_cpuid()
{
    std::vector<CpuidEntry> entries;
    const auto add = [&](std::uint32_t function, std::uint32_t index, std::uint32_t flags) {
        CpuidEntry entry{function, index, flags, function, 0, index, 0};
        asm volatile("cpuid" : "+a"(entry.eax), "=b"(entry.ebx), "+c"(entry.ecx), "=d"(entry.edx));
        entries.push_back(entry);
    };
    add(0, 0, 0);
    add(1, 0, 0);
    add(7, 0, CpuidEntry::significant_index);
    add(0xd, 0, CpuidEntry::significant_index);
    add(0xd, 1, CpuidEntry::significant_index);
    add(0x8000'0000U, 0, 0);
    add(0x8000'0001U, 0, 0);
    add(0x8000'0008U, 0, 0);
    return entries;
}

const Op* stop(Cpu& /*cpu*/, const Op* /*op*/)
{
    return nullptr;
}

/// As the block builder does it.
Op op_of(const Insn& insn, CodeSize size)
{
    Op op;
    const auto slot = [](std::uint8_t number) {
        return number == Insn::no_register ? zero_slot : static_cast<std::uint8_t>(number * 8U);
    };
    op.displacement = static_cast<std::int32_t>(insn.displacement);
    op.length = insn.length;
    op.reg = slot(insn.reg);
    op.rm = slot(insn.rm);
    op.base = insn.base == Insn::rip ? block_rip_slot : slot(insn.base);
    op.index = slot(insn.index);
    op.scale = insn.scale;
    op.segment = insn.segment;
    if (size != CodeSize::Bits64) {
        op.address_kind = AddressKind::Segmented;
    } else {
        op.address_kind = insn.segment >= Fs ? AddressKind::Based64 : AddressKind::Flat64;
    }
    op.operand_size = insn.operand_size;
    op.address_size = insn.address_size;
    op.memory_size = static_cast<std::uint8_t>(insn.memory_size);
    op.vvvv = insn.vvvv;
    op.immediate = insn.immediate;
    return op;
}

}  // namespace

bool NativeHost::mmio_read(Gpa gpa, std::span<std::byte> data) noexcept
{
    work = work * 1.25L;
    if (gpa.value() < mmio_base || gpa.value() + data.size() > mmio_base + device.size()) {
        return false;
    }
    std::memcpy(data.data(), device.data() + (gpa.value() - mmio_base), data.size());
    return true;
}

bool NativeHost::mmio_write(Gpa gpa, std::span<const std::byte> data) noexcept
{
    work = work * 1.25L;
    if (gpa.value() < mmio_base || gpa.value() + data.size() > mmio_base + device.size()) {
        return false;
    }
    std::memcpy(device.data() + (gpa.value() - mmio_base), data.data(), data.size());
    return true;
}

NativeMachine::NativeMachine() : owner{std::make_unique<Cpu>(vm, host)}, cpu{*owner}
{
    cpu.cpuid = Cpuid{host_cpuid()};
    cpu.cr0 = mask_of(Cr0::PE, Cr0::NE, Cr0::ET);
    cpu.cr4 = mask_of(Cr4::OSFXSR, Cr4::OSXMMEXCPT, Cr4::OSXSAVE);
    cpu.efer = mask_of(Efer::LME, Efer::LMA);
    cpu.xcr0 = 7;
    cpu.seg[Cs].l = 1;
    x87_initialise(cpu.fpu);
    cpu.mode_changed();
    vm.enter_guest(cpu);
}

void NativeMachine::set_32_bit()
{
    cpu.efer = 0;
    for (auto& segment : cpu.seg) {
        segment.base = 0;
        segment.limit = 0xffff'ffffU;
        segment.type = 3;
        segment.present = 1;
        segment.s = 1;
        segment.db = 1;
        segment.g = 1;
        segment.l = 0;
    }
    cpu.seg[Cs].type = 11;
    cpu.mode_changed();
}

bool NativeMachine::prepare(const Bytes& code, CodeSize size)
{
    if (decode(std::as_bytes(std::span{code}), size, insn) != DecodeStatus::Ok) {
        return false;
    }
    if (insn.isa != Isa::None && !is_offered(cpu, insn)) {
        return false;  // This host has no such instruction.
    }
    ops_[0] = op_of(insn, size);
    ops_[0].handler = select_native(insn, {size, true, false}, ops_[0]);
    ops_[1].handler = &stop;
    return ops_[0].handler != nullptr;
}

Outcome NativeMachine::execute()
{
    Outcome outcome{true, {}, false};
    cpu.current = &ops_[0];
    try {
        ops_[0].handler(cpu, &ops_[0]);
    } catch (const Fault& fault) {
        outcome.fault = fault;
    } catch (const LeaveForMmio&) {
        outcome.left_for_mmio = true;
    }
    return outcome;
}

Outcome NativeMachine::run(const Bytes& code, CodeSize size)
{
    if (!prepare(code, size)) {
        return {};
    }
    return execute();
}

// --- The oracle.

namespace {

class HostCode {
public:
    HostCode()
    {
        void* const memory = ::mmap(nullptr, size, PROT_READ | PROT_WRITE | PROT_EXEC,
                                    MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (memory == MAP_FAILED) {
            throw std::runtime_error{"no executable memory for the oracle"};
        }
        code_ = static_cast<std::uint8_t*>(memory);
    }

    void begin() { end_ = 0; }
    void emit(std::initializer_list<unsigned> bytes)
    {
        for (const unsigned each : bytes) {
            code_[end_++] = static_cast<std::uint8_t>(each);
        }
    }
    void emit32(std::size_t value)
    {
        for (unsigned shift = 0; shift < 32; shift += 8) {
            code_[end_++] = static_cast<std::uint8_t>(value >> shift);
        }
    }
    void emit(const Bytes& bytes)
    {
        for (const std::uint8_t each : bytes) {
            code_[end_++] = each;
        }
    }
    void call(HostContext& context) const
    {
        const auto function =
            reinterpret_cast<void (*)(HostContext*)>(reinterpret_cast<std::uintptr_t>(code_));
        function(&context);
    }

private:
    static constexpr std::size_t size = 4096;
    std::uint8_t* code_{};
    std::size_t end_{};
};

/// mov reg, [rsp + …] or the other way round, with the context at [rsp].
void emit_registers(HostCode& code, bool load)
{
    for (unsigned number = 0; number < 16; ++number) {
        if (number == Rsp || number == Rax) {
            continue;
        }
        // mov r, [rax + disp32] / mov [rax + disp32], r
        code.emit(
            {0x48U | (number >= 8 ? 4U : 0U), load ? 0x8bU : 0x89U, 0x80U | ((number & 7U) << 3U)});
        code.emit32(offsetof(HostContext, gpr) + 8U * number);
    }
}

}  // namespace

void run_on_host(const Bytes& bytes, HostContext& context)
{
    static HostCode code;
    constexpr std::size_t flags = offsetof(HostContext, flags);
    constexpr std::size_t fxsave = offsetof(HostContext, fxsave);
    constexpr std::size_t ymm = offsetof(HostContext, ymm);
    code.begin();
    code.emit({0x53, 0x55, 0x41, 0x54, 0x41, 0x55, 0x41, 0x56, 0x41, 0x57});  // push callee-saved
    code.emit({0x48, 0x83, 0xec, 0x08, 0x0f, 0xae, 0x1c, 0x24});  // sub rsp,8; stmxcsr [rsp]
    code.emit({0x57});                                            // push rdi (the context)
    code.emit({0x48, 0x89, 0xf8});                                // mov rax, rdi
    code.emit({0x48, 0x0f, 0xae, 0x88});                          // fxrstor64 [rax+fxsave]
    code.emit32(fxsave);
    for (unsigned number = 0; number < 16; ++number) {
        code.emit({0xc5, number >= 8 ? 0x7eU : 0xfeU, 0x6f, 0x80U | ((number & 7U) << 3U)});
        code.emit32(ymm + 32U * number);  // vmovdqu ymm, [rax+…]
    }
    code.emit({0xff, 0xb0});  // push [rax+flags]; popf
    code.emit32(flags);
    code.emit({0x9d});
    emit_registers(code, true);
    code.emit({0x48, 0x8b, 0x80});  // mov rax, [rax+gpr]
    code.emit32(offsetof(HostContext, gpr));
    code.emit(bytes);
    code.emit({0x50, 0x9c});                    // push rax; pushf
    code.emit({0x48, 0x8b, 0x44, 0x24, 0x10});  // mov rax, [rsp+16]
    emit_registers(code, false);
    code.emit({0x8f, 0x80});  // pop [rax+flags]
    code.emit32(flags);
    code.emit({0x8f, 0x80});  // pop [rax+gpr]
    code.emit32(offsetof(HostContext, gpr));
    code.emit({0x48, 0x0f, 0xae, 0x80});  // fxsave64
    code.emit32(fxsave);
    for (unsigned number = 0; number < 16; ++number) {
        code.emit({0xc5, number >= 8 ? 0x7eU : 0xfeU, 0x7f, 0x80U | ((number & 7U) << 3U)});
        code.emit32(ymm + 32U * number);
    }
    code.emit({0xdb, 0xe3, 0xc5, 0xf8, 0x77});                          // fninit; vzeroupper
    code.emit({0x5f, 0x0f, 0xae, 0x14, 0x24, 0x48, 0x83, 0xc4, 0x08});  // pop; ldmxcsr; add rsp
    code.emit({0x41, 0x5f, 0x41, 0x5e, 0x41, 0x5d, 0x41, 0x5c, 0x5d, 0x5b, 0xfc, 0xc3});
    code.call(context);
}

HostContext context_of(const Cpu& cpu)
{
    HostContext context;
    for (std::size_t number = 0; number < 16; ++number) {
        context.gpr[number] = cpu.gpr[number];
    }
    context.flags = (cpu.flags() & Cpu::arithmetic_mask) | 0x202U;
    std::memcpy(context.fxsave.data(), cpu.fpu.x87.data(), 24);
    std::memcpy(context.fxsave.data() + 32, cpu.fpu.x87.data() + 32, 128);
    std::memcpy(context.fxsave.data() + 24, &cpu.fpu.mxcsr, 4);
    context.ymm = cpu.fpu.ymm;
    return context;
}

namespace {

std::string hex(std::uint64_t value)
{
    std::ostringstream text;
    text << "0x" << std::hex << value;
    return text.str();
}

std::string hex(const std::byte* bytes, std::size_t size)
{
    std::ostringstream text;
    text << std::hex;
    for (std::size_t i = size; i-- > 0;) {
        const auto value = std::to_integer<unsigned>(bytes[i]);
        text << (value >> 4U) << (value & 15U) << (i % 4 == 0 && i != 0 ? "_" : "");
    }
    return text.str();
}

std::string is_not(const std::string& name, const std::string& found, const std::string& expected)
{
    return name + " is " + found + ", not " + expected + '\n';
}

}  // namespace

std::string difference(const Cpu& cpu, const HostContext& expected)
{
    std::string text;
    for (std::size_t number = 0; number < 16; ++number) {
        if (number != Rsp && cpu.gpr[number] != expected.gpr[number]) {
            text += is_not("gpr " + std::to_string(number), hex(cpu.gpr[number]),
                           hex(expected.gpr[number]));
        }
        if (cpu.fpu.ymm[number] != expected.ymm[number]) {
            text += is_not("ymm" + std::to_string(number), hex(cpu.fpu.ymm[number].data(), 32),
                           hex(expected.ymm[number].data(), 32));
        }
    }
    const std::uint64_t flags = cpu.flags() & Cpu::arithmetic_mask;
    if (flags != (expected.flags & Cpu::arithmetic_mask)) {
        text += is_not("flags", hex(flags), hex(expected.flags & Cpu::arithmetic_mask));
    }
    std::uint32_t mxcsr = 0;
    std::memcpy(&mxcsr, expected.fxsave.data() + 24, 4);
    if (cpu.fpu.mxcsr != mxcsr) {
        text += is_not("MXCSR", hex(cpu.fpu.mxcsr), hex(mxcsr));
    }
    const auto compare = [&](const std::string& name, std::size_t at, std::size_t size) {
        if (std::memcmp(cpu.fpu.x87.data() + at, expected.fxsave.data() + at, size) != 0) {
            text += is_not(name, hex(cpu.fpu.x87.data() + at, size),
                           hex(expected.fxsave.data() + at, size));
        }
    };
    compare("FCW", 0, 2);
    compare("FSW", 2, 2);
    compare("FTW", 4, 1);
    for (std::size_t number = 0; number < 8; ++number) {
        compare("ST" + std::to_string(number), 32 + 16 * number, 10);
    }
    return text;
}

// --- Random states.

void fill_with_operands(std::span<std::byte> bytes, Random& random)
{
    static constexpr std::array<std::uint32_t, 16> floats{
        0x0000'0000, 0x8000'0000, 0x3f80'0000, 0xbf80'0000, 0x7f80'0000, 0xff80'0000,
        0x7fc0'0000, 0x7f80'0001, 0x0000'0001, 0x807f'ffff, 0x7f7f'ffff, 0x0080'0000,
        0x4f00'0000, 0xcf00'0000, 0x3f00'0001, 0x4b80'0001};
    static constexpr std::array<std::uint64_t, 12> doubles{0,
                                                           0x8000'0000'0000'0000,
                                                           0x3ff0'0000'0000'0000,
                                                           0x7ff0'0000'0000'0000,
                                                           0x7ff8'0000'0000'0000,
                                                           0x7ff0'0000'0000'0001,
                                                           1,
                                                           0x7fef'ffff'ffff'ffff,
                                                           0x0010'0000'0000'0000,
                                                           0xc1e0'0000'0000'0000,
                                                           0x43e0'0000'0000'0000,
                                                           0x3810'0000'0000'0001};
    const std::uint64_t kind = random() % 4;
    for (std::size_t at = 0; at < bytes.size(); at += 8) {
        std::uint64_t value = random();
        switch (kind) {
        case 0: break;
        case 1:
            value = floats[random() % floats.size()] |
                    (std::uint64_t{floats[random() % floats.size()]} << 32U);
            break;
        case 2: value = doubles[random() % doubles.size()]; break;
        default: value &= 0x0f1f'000f'ff01'0003; break;
        }
        std::memcpy(bytes.data() + at, &value, std::min<std::size_t>(8, bytes.size() - at));
    }
}

void randomise(Cpu& cpu, Random& random)
{
    for (std::size_t number = 0; number < 16; ++number) {
        const std::uint64_t value = random();
        cpu.gpr[number] = random() % 3 == 0 ? value & 0x1f : value;
        fill_with_operands(cpu.fpu.ymm[number], random);
    }
    cpu.set_arithmetic_flags(random());
    // All masked; any rounding, DAZ, FTZ and flags.
    cpu.fpu.mxcsr = static_cast<std::uint32_t>((random() & 0xe07fU) | 0x1f80U);
    if (random() % 2 == 0) {
        cpu.fpu.mxcsr = 0x1f80;
    }
}

void randomise_x87(Cpu& cpu, Random& random)
{
    static constexpr std::array<std::uint16_t, 8> exponents{0,      1,      0x3fff, 0x7fff,
                                                            0x7ffe, 0x4005, 0x401e, 0x403e};
    FpuRegisters& fpu = cpu.fpu;
    x87_initialise(fpu);
    x87_image::set(fpu, x87_image::fcw, static_cast<std::uint16_t>((random() & 0xf00U) | 0x7fU));
    x87_image::set(fpu, x87_image::fsw, static_cast<std::uint16_t>(random() & 0x7f7fU));
    x87_image::set(fpu, x87_image::ftw,
                   static_cast<std::uint8_t>(random() % 3 == 0 ? random() : 0xffU));
    for (std::size_t number = 0; number < 8; ++number) {
        const std::size_t at = x87_image::st + 16 * number;
        std::uint64_t significand = random();
        if (random() % 4 != 0) {
            significand |= std::uint64_t{1} << 63U;
        }
        if (random() % 4 == 0) {
            significand &= 0xff00'0000'0000'0000U;
        }
        auto exponent = static_cast<std::uint16_t>(random());
        if (random() % 2 == 0) {
            exponent = static_cast<std::uint16_t>(exponents[random() % exponents.size()] |
                                                  (random() & 0x8000U));
        } else if (random() % 2 == 0) {
            exponent = static_cast<std::uint16_t>(0x3ff0U + random() % 64);
        }
        x87_image::set(fpu, at, significand);
        x87_image::set(fpu, at + 8, exponent);
    }
}

}  // namespace vmm::x86::soft::test
