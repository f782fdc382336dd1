// SPDX-License-Identifier: Apache-2.0

/// @file
/// Faults of native instructions, masked accesses, MXCSR; and the memory that thunks live in.

#include <fstream>
#include <string>
#include <thread>

#include <gtest/gtest.h>

#include "soft/native_fixture.hpp"
#include "vmm/x86/control_registers.hpp"

namespace vmm::x86::soft::test {
namespace {

constexpr std::uint64_t data_gpa = 0x4000;
constexpr std::uint64_t no_memory = 0x8000'0000'0000'0000U;  // Not canonical.

const Bytes addps{0x0f, 0x58, 0xca};               // xmm1, xmm2
const Bytes divps{0x0f, 0x5e, 0xca};               // xmm1, xmm2
const Bytes vaddps{0xc5, 0xec, 0x58, 0xcb};        // ymm1, ymm2, ymm3
const Bytes popcnt{0xf3, 0x48, 0x0f, 0xb8, 0xc1};  // rax, rcx

int vector_of(NativeMachine& machine, const Bytes& code)
{
    const Outcome outcome = machine.run(code);
    EXPECT_TRUE(outcome.selected);
    fpu_release(machine.cpu);
    return outcome.fault ? static_cast<int>(outcome.fault->vector) : -1;
}

constexpr int none = -1;
constexpr int ud = 6;
constexpr int nm = 7;
constexpr int gp = 13;
constexpr int xm = 19;

template <typename T>
void fill(Cpu& cpu, unsigned number, T value)
{
    for (std::size_t at = 0; at < 32; at += sizeof(T)) {
        std::memcpy(cpu.fpu.ymm[number].data() + at, &value, sizeof(T));
    }
}

template <typename T>
T lane(const Cpu& cpu, unsigned number, std::size_t index)
{
    T value;
    std::memcpy(&value, cpu.fpu.ymm[number].data() + index * sizeof(T), sizeof(T));
    return value;
}

TEST(NativeUnits, SseNeedsItsControlBits)
{
    NativeMachine machine;
    Cpu& cpu = machine.cpu;
    const std::uint64_t cr0 = cpu.cr0;
    const std::uint64_t cr4 = cpu.cr4;
    EXPECT_EQ(vector_of(machine, addps), none);
    cpu.cr0 = cr0 | mask_of(Cr0::TS);
    EXPECT_EQ(vector_of(machine, addps), nm);
    EXPECT_EQ(vector_of(machine, popcnt), none);
    cpu.cr0 = cr0 | mask_of(Cr0::TS, Cr0::EM);
    EXPECT_EQ(vector_of(machine, addps), ud);
    cpu.cr0 = cr0 | mask_of(Cr0::TS);
    cpu.cr4 = cr4 & ~mask_of(Cr4::OSFXSR);
    EXPECT_EQ(vector_of(machine, addps), ud);
    cpu.cr0 = cr0;
    EXPECT_EQ(vector_of(machine, {0x0f, 0xfc, 0xc1}), none);      // PADDB mm
    EXPECT_EQ(vector_of(machine, {0xf3, 0x0f, 0xd6, 0xc1}), ud);  // MOVQ2DQ
    EXPECT_EQ(vector_of(machine, {0x0f, 0xae, 0x13}), ud);        // LDMXCSR
}

TEST(NativeUnits, AvxNeedsItsControlBits)
{
    NativeMachine machine;
    Cpu& cpu = machine.cpu;
    const std::uint64_t cr4 = cpu.cr4;
    EXPECT_EQ(vector_of(machine, vaddps), none);
    cpu.cr0 |= mask_of(Cr0::EM);  // Counts for legacy instructions only.
    EXPECT_EQ(vector_of(machine, vaddps), none);
    cpu.cr0 |= mask_of(Cr0::TS);
    EXPECT_EQ(vector_of(machine, vaddps), nm);
    cpu.xcr0 = 3;
    EXPECT_EQ(vector_of(machine, vaddps), ud);
    cpu.xcr0 = 7;
    cpu.cr4 = cr4 & ~mask_of(Cr4::OSXSAVE);
    EXPECT_EQ(vector_of(machine, vaddps), ud);
    cpu.cr0 &= ~mask_of(Cr0::TS, Cr0::EM);
    EXPECT_EQ(vector_of(machine, {0xc5, 0xfc, 0x77}), ud);                    // VZEROALL
    EXPECT_EQ(vector_of(machine, {0xc4, 0xe2, 0x71, 0x2c, 0x03}), ud);        // VMASKMOVPS
    EXPECT_EQ(vector_of(machine, {0xc4, 0xe2, 0x71, 0x90, 0x04, 0x13}), ud);  // VPGATHERDD
    EXPECT_EQ(vector_of(machine, {0xc4, 0xe2, 0xf0, 0xf2, 0xc2}), none);      // ANDN
}

TEST(NativeMxcsr, AnUnmaskedExceptionKeepsTheDestination)
{
    NativeMachine machine;
    Cpu& cpu = machine.cpu;
    fill(cpu, 1, 1.0F);
    fill(cpu, 2, 0.0F);
    cpu.fpu.mxcsr = 0x1f80U & ~0x200U;  // ZM
    EXPECT_EQ(vector_of(machine, divps), xm);
    EXPECT_EQ(cpu.fpu.mxcsr, (0x1f80U & ~0x200U) | 4U);
    EXPECT_EQ(lane<float>(cpu, 1, 0), 1.0F);

    cpu.cr4 &= ~mask_of(Cr4::OSXMMEXCPT);
    EXPECT_EQ(vector_of(machine, divps), ud);
    EXPECT_EQ(lane<float>(cpu, 1, 3), 1.0F);

    // Other exceptions stay masked, their flags are noted.
    fill(cpu, 2, 3.0F);
    cpu.fpu.mxcsr = 0x1f80U & ~0x200U;
    EXPECT_EQ(vector_of(machine, divps), none);
    EXPECT_EQ(cpu.fpu.mxcsr, (0x1f80U & ~0x200U) | 0x20U);
    EXPECT_EQ(lane<float>(cpu, 1, 0), 1.0F / 3.0F);
}

TEST(NativeMxcsr, FlagsOfAnEarlierFaultDoNotRaiseAgain)
{
    NativeMachine machine;
    Cpu& cpu = machine.cpu;
    fill(cpu, 1, 1.0F);
    fill(cpu, 2, 2.0F);
    cpu.fpu.mxcsr = (0x1f80U & ~0x200U) | 4U;
    EXPECT_EQ(vector_of(machine, divps), none);
    EXPECT_EQ(lane<float>(cpu, 1, 0), 0.5F);
}

TEST(NativeMxcsr, ComparisonsAndConversionsFaultBeforeTheirResult)
{
    NativeMachine machine;
    Cpu& cpu = machine.cpu;
    cpu.fpu.mxcsr = 0x1f00;  // IM
    fill<std::uint32_t>(cpu, 1, 0x7f80'0001);
    fill(cpu, 2, 1.0F);
    cpu.set_arithmetic_flags(0x891);
    EXPECT_EQ(vector_of(machine, {0x0f, 0x2f, 0xca}), xm);  // COMISS
    EXPECT_EQ(cpu.flags() & Cpu::arithmetic_mask, 0x891U);
    cpu.gpr[Rax] = 0x1234;
    EXPECT_EQ(vector_of(machine, {0xf3, 0x0f, 0x2c, 0xc1}), xm);  // CVTTSS2SI eax, xmm1
    EXPECT_EQ(cpu.gpr[Rax], 0x1234U);
    // VCVTPS2PH to memory stores nothing.
    machine.put<std::uint64_t>(data_gpa, 0x1111'2222'3333'4444);
    cpu.gpr[Rbx] = data_gpa;
    cpu.fpu.mxcsr = 0x1f00;
    EXPECT_EQ(vector_of(machine, {0xc4, 0xe3, 0x79, 0x1d, 0x0b, 0x00}), xm);
    EXPECT_EQ(machine.get<std::uint64_t>(data_gpa), 0x1111'2222'3333'4444U);
    EXPECT_EQ(cpu.fpu.mxcsr, 0x1f01U);
}

TEST(NativeMxcsr, TheHostsOwnIsLeftAlone)
{
    NativeMachine machine;
    Cpu& cpu = machine.cpu;
    const std::uint32_t before = host_mxcsr();
    fill(cpu, 1, 1.0F);
    fill(cpu, 2, 0.0F);
    for (const std::uint32_t guest : {0xffffU, 0x7f80U, 0x0000U, 0xffff'ffffU}) {
        cpu.fpu.mxcsr = guest;
        machine.run(divps);
        fpu_release(cpu);
        EXPECT_EQ(host_mxcsr(), before);
    }
}

TEST(NativeMxcsr, StaysInTheHostBetweenInstructions)
{
    NativeMachine machine;
    Cpu& cpu = machine.cpu;
    const std::uint32_t before = host_mxcsr();
    fill(cpu, 1, 1.0F);
    fill(cpu, 2, 3.0F);
    cpu.fpu.mxcsr = 0x5f80;  // Rounds up.
    machine.run(divps);
    EXPECT_TRUE(cpu.mxcsr_live);
    EXPECT_EQ(lane<std::uint32_t>(cpu, 1, 0), 0x3eaa'aaabU);
    // What reads and changes it sees the flags.
    cpu.gpr[Rbx] = data_gpa;
    machine.run({0x0f, 0xae, 0x1b});  // STMXCSR
    EXPECT_EQ(machine.get<std::uint32_t>(data_gpa), 0x5fa0U);
    fill(cpu, 1, 1.0F);
    machine.put<std::uint32_t>(data_gpa, 0x3f80);  // Rounds down.
    machine.run(divps);
    machine.run({0x0f, 0xae, 0x13});  // LDMXCSR
    fill(cpu, 1, 1.0F);
    machine.run(divps);
    EXPECT_EQ(lane<std::uint32_t>(cpu, 1, 0), 0x3eaa'aaaaU);
    // Outside of the guest, the host has its own.
    machine.vm.leave_guest(cpu);
    EXPECT_EQ(host_mxcsr(), before);
    EXPECT_EQ(cpu.fpu.mxcsr, 0x3fa0U);
    machine.vm.enter_guest(cpu);
}

TEST(NativeMxcsr, LdmxcsrRefusesReservedBits)
{
    NativeMachine machine;
    Cpu& cpu = machine.cpu;
    cpu.gpr[Rbx] = data_gpa;
    machine.put<std::uint32_t>(data_gpa, 0x1'1f80);
    EXPECT_EQ(vector_of(machine, {0x0f, 0xae, 0x13}), gp);
    EXPECT_EQ(cpu.fpu.mxcsr, 0x1f80U);
    machine.put<std::uint32_t>(data_gpa, 0xffff);
    EXPECT_EQ(vector_of(machine, {0x0f, 0xae, 0x13}), none);
    EXPECT_EQ(cpu.fpu.mxcsr, 0xffffU);
    cpu.gpr[Rbx] = data_gpa + 8;
    EXPECT_EQ(vector_of(machine, {0xc5, 0xf8, 0xae, 0x1b}), none);  // VSTMXCSR
    EXPECT_EQ(machine.get<std::uint32_t>(data_gpa + 8), 0xffffU);
}

TEST(NativeMemory, MisalignedOperands)
{
    NativeMachine machine;
    Cpu& cpu = machine.cpu;
    cpu.gpr[Rbx] = data_gpa + 8;
    EXPECT_EQ(vector_of(machine, {0x0f, 0x28, 0x0b}), gp);          // MOVAPS
    EXPECT_EQ(vector_of(machine, {0x0f, 0x58, 0x0b}), gp);          // ADDPS
    EXPECT_EQ(vector_of(machine, {0x0f, 0x10, 0x0b}), none);        // MOVUPS
    EXPECT_EQ(vector_of(machine, {0xc5, 0xf8, 0x58, 0x0b}), none);  // VADDPS
    EXPECT_EQ(vector_of(machine, {0xc5, 0xf8, 0x28, 0x0b}), gp);    // VMOVAPS
    cpu.gpr[Rbx] = data_gpa + 16;
    EXPECT_EQ(vector_of(machine, {0x0f, 0x28, 0x0b}), none);
    EXPECT_EQ(vector_of(machine, {0xc5, 0xfc, 0x28, 0x0b}), gp);  // VMOVAPS ymm
    EXPECT_EQ(vector_of(machine, {0x0f, 0xae, 0x43, 0x08}), gp);  // FXSAVE
    EXPECT_EQ(vector_of(machine, {0x0f, 0xae, 0x23}), gp);        // XSAVE
}

TEST(NativeMemory, DevicesAreReadAndWritten)
{
    NativeMachine machine;
    Cpu& cpu = machine.cpu;
    for (std::size_t i = 0; i < 64; ++i) {
        machine.host.device[i] = static_cast<std::byte>(i);
    }
    cpu.gpr[Rbx] = mmio_base;
    EXPECT_EQ(vector_of(machine, {0x0f, 0x10, 0x0b}), none);  // MOVUPS xmm1, [rbx]
    EXPECT_EQ(lane<std::uint8_t>(cpu, 1, 15), 15);
    cpu.gpr[Rbx] = mmio_base + 100;
    EXPECT_EQ(vector_of(machine, {0x0f, 0x11, 0x0b}), none);
    EXPECT_EQ(machine.host.device[115], std::byte{15});
    cpu.gpr[Rbx] = 0x80'0000;
    EXPECT_TRUE(machine.run({0x0f, 0x10, 0x0b}).left_for_mmio);
    EXPECT_EQ(lane<std::uint8_t>(cpu, 1, 15), 15);
}

TEST(NativeMemory, MmxStoresThatFaultLeaveTheX87State)
{
    NativeMachine machine;
    Cpu& cpu = machine.cpu;
    ASSERT_EQ(vector_of(machine, {0xd9, 0xe8}), none);  // FLD1
    fpu_release(cpu);
    const auto before = cpu.fpu.x87;
    cpu.gpr[Rbx] = no_memory;
    EXPECT_EQ(vector_of(machine, {0x0f, 0x7f, 0x03}), gp);  // MOVQ [rbx], mm0
    EXPECT_EQ(vector_of(machine, {0x0f, 0x6f, 0x03}), gp);
    EXPECT_EQ(cpu.fpu.x87, before);
    cpu.gpr[Rbx] = 0x80'0000;
    EXPECT_TRUE(machine.run({0x0f, 0x7f, 0x03}).left_for_mmio);
    EXPECT_EQ(cpu.fpu.x87, before);
}

TEST(NativeMasked, OnlySelectedElementsAreAccessed)
{
    NativeMachine machine;
    Cpu& cpu = machine.cpu;
    const Bytes load{0xc4, 0xe2, 0x75, 0x2c, 0x03};   // VMASKMOVPS ymm0, ymm1, [rbx]
    const Bytes store{0xc4, 0xe2, 0x75, 0x2e, 0x03};  // VMASKMOVPS [rbx], ymm1, ymm0
    const Bytes bytes{0x66, 0x0f, 0xf7, 0xca};        // MASKMOVDQU xmm1, xmm2
    fill<std::uint32_t>(cpu, 1, 0);
    fill<std::uint32_t>(cpu, 2, 0);
    cpu.gpr[Rbx] = no_memory;
    cpu.gpr[Rdi] = no_memory;
    EXPECT_EQ(vector_of(machine, load), none);
    EXPECT_EQ(lane<std::uint64_t>(cpu, 0, 0), 0U);
    EXPECT_EQ(vector_of(machine, store), none);
    EXPECT_EQ(vector_of(machine, bytes), none);
    // The last element is the first beyond the end of memory.
    cpu.gpr[Rbx] = NativeMemory::size - 28;
    machine.put<std::uint32_t>(NativeMemory::size - 4, 0x5555'5555);
    fill<std::uint32_t>(cpu, 1, 0x8000'0000);
    const std::uint32_t off = 0;
    std::memcpy(cpu.fpu.ymm[1].data() + 28, &off, 4);
    EXPECT_EQ(vector_of(machine, load), none);
    EXPECT_EQ(lane<std::uint32_t>(cpu, 0, 6), 0x5555'5555U);
    EXPECT_EQ(vector_of(machine, store), none);
    std::memset(cpu.fpu.ymm[1].data() + 28, 0x80, 4);
    EXPECT_TRUE(machine.run(load).left_for_mmio);
    EXPECT_TRUE(machine.run(store).left_for_mmio);
}

TEST(NativeMasked, AGatherThatFaultsKeepsWhatItHas)
{
    NativeMachine machine;
    Cpu& cpu = machine.cpu;
    // VPGATHERDQ ymm0, [rbx + xmm1], ymm2: the third element is not canonical.
    const Bytes gather{0xc4, 0xe2, 0xed, 0x90, 0x04, 0x0b};
    cpu.gpr[Rbx] = 0x7fff'ffff'fff0U - 0x4000'0000U;
    fill<std::uint32_t>(cpu, 1, 0x4000'1000);
    fill<std::uint64_t>(cpu, 0, 0x1111);
    fill<std::uint64_t>(cpu, 2, ~std::uint64_t{0});
    EXPECT_EQ(vector_of(machine, gather), gp);
    EXPECT_EQ(lane<std::uint64_t>(cpu, 2, 0), ~std::uint64_t{0});

    cpu.gpr[Rbx] = data_gpa;
    const std::array<std::int32_t, 4> indices{0, 8, 0, 16};
    std::memcpy(cpu.fpu.ymm[1].data(), indices.data(), 16);
    machine.put<std::uint64_t>(data_gpa, 0xaaaa);
    machine.put<std::uint64_t>(data_gpa + 8, 0xbbbb);
    machine.put<std::uint64_t>(data_gpa + 16, 0xcccc);
    EXPECT_EQ(vector_of(machine, gather), none);
    EXPECT_EQ(lane<std::uint64_t>(cpu, 0, 1), 0xbbbbU);
    EXPECT_EQ(lane<std::uint64_t>(cpu, 0, 3), 0xccccU);
    EXPECT_EQ(lane<std::uint64_t>(cpu, 2, 0), 0U);
}

TEST(NativeMasked, AGatherKeepsElementsBeforeTheFault)
{
    NativeMachine machine;
    Cpu& cpu = machine.cpu;
    // VPGATHERQQ ymm0, [rbx + ymm1], ymm2
    const Bytes gather{0xc4, 0xe2, 0xed, 0x91, 0x04, 0x0b};
    cpu.gpr[Rbx] = data_gpa;
    machine.put<std::uint64_t>(data_gpa, 0xaaaa);
    fill<std::uint64_t>(cpu, 0, 0x1111);
    fill<std::uint64_t>(cpu, 1, 0);
    std::memcpy(cpu.fpu.ymm[1].data() + 16, &no_memory, 8);
    fill<std::uint64_t>(cpu, 2, ~std::uint64_t{0});
    EXPECT_EQ(vector_of(machine, gather), gp);
    EXPECT_EQ(lane<std::uint64_t>(cpu, 0, 1), 0xaaaaU);
    EXPECT_EQ(lane<std::uint64_t>(cpu, 0, 2), 0x1111U);
    EXPECT_EQ(lane<std::uint64_t>(cpu, 2, 1), 0U);
    EXPECT_EQ(lane<std::uint64_t>(cpu, 2, 2), ~std::uint64_t{0});
}

TEST(NativeMasked, AGatherNeedsThreeRegisters)
{
    NativeMachine machine;
    for (const Bytes& code : {Bytes{0xc4, 0xe2, 0x7d, 0x90, 0x04, 0x0b},     // mask = destination
                              Bytes{0xc4, 0xe2, 0x75, 0x90, 0x04, 0x0b}}) {  // mask = index
        Outcome outcome = machine.run(code);
        EXPECT_TRUE(!outcome.selected || (outcome.fault && outcome.fault->vector == Vector::UD));
    }
}

TEST(NativeCode, NoMappingIsWritableAndExecutable)
{
    ASSERT_TRUE(native_available());
    std::ifstream maps{"/proc/self/maps"};
    bool writable = false;
    bool executable = false;
    for (std::string line; std::getline(maps, line);) {
        if (line.find("vmm-native") == std::string::npos) {
            continue;
        }
        const std::string permissions = line.substr(line.find(' ') + 1, 4);
        const bool writes = permissions[1] == 'w';
        const bool executes = permissions[2] == 'x';
        EXPECT_FALSE(writes && executes) << line;
        writable = writable || writes;
        executable = executable || executes;
    }
    EXPECT_TRUE(writable);
    EXPECT_TRUE(executable);
}

TEST(NativeCode, ThunksAreSharedByRegisters)
{
    NativeMachine machine;
    NativeMachine other;
    std::array<const void*, 3> thunks{};
    const std::array<Bytes, 3> codes{Bytes{0x66, 0x0f, 0xfe, 0xca},        // PADDD xmm1, xmm2
                                     Bytes{0x66, 0x45, 0x0f, 0xfe, 0xff},  // PADDD xmm15, xmm15
                                     Bytes{0x66, 0x0f, 0xfe, 0xc0}};
    for (std::size_t i = 0; i < codes.size(); ++i) {
        Insn insn;
        Op op;
        ASSERT_EQ(decode(std::as_bytes(std::span{codes[i]}), CodeSize::Bits64, insn),
                  DecodeStatus::Ok);
        ASSERT_NE(select_native(insn, {CodeSize::Bits64, true, false}, op), nullptr);
        thunks[i] = op.aux;
    }
    EXPECT_EQ(thunks[0], thunks[1]);
    EXPECT_EQ(thunks[0], thunks[2]);
}

TEST(NativeCode, ManyThreadsMakeThunks)
{
    std::array<std::thread, 4> threads;
    for (std::size_t number = 0; number < threads.size(); ++number) {
        threads[number] = std::thread{[] {
            for (unsigned immediate = 0; immediate < 256; ++immediate) {
                Insn insn;
                Op op;
                const Bytes code{0x0f, 0xc6, 0xca, static_cast<std::uint8_t>(immediate)};
                ASSERT_EQ(decode(std::as_bytes(std::span{code}), CodeSize::Bits64, insn),
                          DecodeStatus::Ok);
                ASSERT_NE(select_native(insn, {CodeSize::Bits64, true, false}, op), nullptr);
            }
        }};
    }
    for (std::thread& thread : threads) {
        thread.join();
    }
}

}  // namespace
}  // namespace vmm::x86::soft::test
