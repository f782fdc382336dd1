// SPDX-License-Identifier: Apache-2.0

#include <iomanip>
#include <set>
#include <sstream>

#include <gtest/gtest.h>

#include "soft/native_fixture.hpp"
#include "vmm/x86/control_registers.hpp"

namespace vmm::x86::soft::test {
namespace {

constexpr std::uint64_t data_gpa = 0x4000;

std::string text_of(const Bytes& code)
{
    std::ostringstream text;
    for (const unsigned each : code) {
        text << std::hex << std::setw(2) << std::setfill('0') << each << ' ';
    }
    return text.str();
}

std::uint16_t fsw_of(Cpu& cpu)
{
    fpu_release(cpu);
    return x87_image::get<std::uint16_t>(cpu.fpu, x87_image::fsw);
}

unsigned top_of(Cpu& cpu)
{
    return (fsw_of(cpu) >> 11U) & 7U;
}

/// The bytes of FSTENV and FSAVE that hold pointers: they are the engine's own.
void clear_pointers(std::byte* area, bool is_32)
{
    std::memset(area + (is_32 ? 12 : 6), 0, is_32 ? 16 : 8);
}

Bytes random_x87(Random& random)
{
    Bytes code;
    if (random() % 8 == 0) {
        code.push_back(0x66);
    }
    code.push_back(static_cast<std::uint8_t>(0xd8U | (random() & 7U)));
    const auto reg = static_cast<unsigned>(random() & 0x38U);
    code.push_back(
        static_cast<std::uint8_t>(random() % 2 == 0 ? 0xc0U | reg | (random() & 7U) : reg | 3U));
    return code;
}

bool stores_environment(const Insn& insn)
{
    return insn.mod != 3 && insn.group == 6 && (insn.opcode == 0xd9 || insn.opcode == 0xdd);
}

TEST(NativeX87, RandomInstructionsMatchTheHost)
{
    Random random{11};
    NativeMachine machine;
    Cpu& cpu = machine.cpu;
    auto host_ram = std::make_unique<NativeMemory::Ram>();
    std::set<std::pair<unsigned, unsigned>> seen;
    for (unsigned i = 0; i < 60'000; ++i) {
        const Bytes code = random_x87(random);
        if (!machine.prepare(code)) {
            continue;
        }
        const Insn insn = machine.insn;
        if (insn.mod == 3 && (insn.opcode & 7U) == 3 &&
            (insn.modrm == 0xe1 || insn.modrm == 0xe0)) {
            continue;  // FNENI, FNDISI: nothing to see.
        }
        seen.insert({insn.opcode, insn.mod == 3 ? insn.modrm : insn.group});
        randomise(cpu, random);
        randomise_x87(cpu, random);
        fill_with_operands({machine.at(data_gpa - 128), 4096 + 256}, random);
        std::uint64_t address = data_gpa + random() % 64;
        if (random() % 4 == 0) {
            address = data_gpa + 0x1000 - random() % 110;
        }
        *host_ram = *machine.memory.ram;
        cpu.gpr[Rbx] = address;
        HostContext expected = context_of(cpu);
        expected.gpr[Rbx] = reinterpret_cast<std::uint64_t>(host_ram->data() + address);
        if (random() % 2 == 0) {
            fpu_load_live(cpu);
        }
        const Outcome outcome = machine.execute();
        ASSERT_FALSE(outcome.fault) << text_of(code);
        fpu_release(cpu);
        run_on_host(code, expected);
        expected.gpr[Rbx] = address;
        if (stores_environment(insn)) {
            clear_pointers(machine.at(address), code[0] != 0x66);
            clear_pointers(host_ram->data() + address, code[0] != 0x66);
        }
        ASSERT_EQ(difference(cpu, expected), "") << text_of(code);
        ASSERT_EQ(std::memcmp(machine.memory.ram->data(), host_ram->data(), host_ram->size()), 0)
            << text_of(code);
    }
    EXPECT_GT(seen.size(), 440U);
}

TEST(NativeX87, SequencesKeepTheStateInTheHost)
{
    Random random{12};
    NativeMachine machine;
    Cpu& cpu = machine.cpu;
    for (unsigned i = 0; i < 500; ++i) {
        randomise(cpu, random);
        randomise_x87(cpu, random);
        HostContext expected = context_of(cpu);
        Bytes all;
        for (unsigned step = 0; step < 30; ++step) {
            Bytes code = random_x87(random);
            code.back() |= 0xc0U;
            if (!machine.prepare(code)) {
                continue;
            }
            ASSERT_FALSE(machine.execute().fault);
            if (random() % 8 == 0) {
                fpu_release(cpu);
            }
            all.insert(all.end(), code.begin(), code.end());
        }
        fpu_release(cpu);
        run_on_host(all, expected);
        ASSERT_EQ(difference(cpu, expected), "") << text_of(all);
    }
}

const Bytes fld1{0xd9, 0xe8};
const Bytes fldz{0xd9, 0xee};
const Bytes fdivp{0xde, 0xf9};
const Bytes fnclex{0xdb, 0xe2};
const Bytes fnstsw_ax{0xdf, 0xe0};
const Bytes fwait{0x9b};
const Bytes fld_qword{0xdd, 0x03};
const Bytes fstp_qword{0xdd, 0x1b};

/// 1 / 0 with division by zero unmasked.
void divide_by_zero(NativeMachine& machine)
{
    machine.put<std::uint16_t>(data_gpa, 0x37b);
    machine.cpu.gpr[Rbx] = data_gpa;
    ASSERT_FALSE(machine.run({0xd9, 0x2b}).fault);  // FLDCW
    ASSERT_FALSE(machine.run(fld1).fault);
    ASSERT_FALSE(machine.run(fldz).fault);
    ASSERT_FALSE(machine.run(fdivp).fault);
}

TEST(NativeX87, AnUnmaskedExceptionIsRaisedByTheNextWaitingInstruction)
{
    NativeMachine machine;
    Cpu& cpu = machine.cpu;
    divide_by_zero(machine);
    for (const Bytes& code : {fld1, fwait, fldz, Bytes{0x0f, 0x6f, 0xc1} /* MOVQ mm0, mm1 */,
                              Bytes{0x0f, 0x77} /* EMMS */, Bytes{0xd9, 0x2b} /* FLDCW */}) {
        const Outcome outcome = machine.run(code);
        ASSERT_TRUE(outcome.fault) << text_of(code);
        EXPECT_EQ(outcome.fault->vector, Vector::MF);
        EXPECT_FALSE(outcome.fault->has_error_code);
    }
    // The waiting ones have changed nothing: both operands are still there.
    EXPECT_EQ(top_of(cpu), 6U);
    EXPECT_EQ(fsw_of(cpu) & 0x80bfU, 0x8084U);
    // Those that do not wait go on.
    EXPECT_FALSE(machine.run(fnstsw_ax).fault);
    EXPECT_EQ(cpu.gpr[Rax] & 0x80bfU, 0x8084U);
    cpu.gpr[Rbx] = data_gpa + 64;
    EXPECT_FALSE(machine.run({0xd9, 0x3b}).fault);  // FNSTCW
    EXPECT_EQ(machine.get<std::uint16_t>(data_gpa + 64), 0x37b);
    EXPECT_FALSE(machine.run(fnclex).fault);
    EXPECT_FALSE(machine.run(fld1).fault);
    EXPECT_EQ(top_of(cpu), 5U);
}

TEST(NativeX87, SavingAPendingExceptionDoesNotRaiseIt)
{
    NativeMachine machine;
    divide_by_zero(machine);
    machine.cpu.gpr[Rbx] = data_gpa + 256;
    EXPECT_FALSE(machine.run({0xdd, 0x33}).fault);  // FNSAVE
    EXPECT_EQ(machine.get<std::uint16_t>(data_gpa + 260) & 0x84U, 0x84U);
    EXPECT_EQ(x87_image::get<std::uint16_t>(machine.cpu.fpu, x87_image::fcw), 0x37f);
    EXPECT_FALSE(machine.run(fld1).fault);
    EXPECT_FALSE(machine.run({0xdb, 0xe3}).fault);  // FNINIT
    // Coming back, it is pending again.
    EXPECT_FALSE(machine.run({0xdd, 0x23}).fault);  // FRSTOR
    const Outcome outcome = machine.run(fwait);
    ASSERT_TRUE(outcome.fault);
    EXPECT_EQ(outcome.fault->vector, Vector::MF);
}

TEST(NativeX87, UnmaskingAFlagMakesItPending)
{
    NativeMachine machine;
    Cpu& cpu = machine.cpu;
    ASSERT_FALSE(machine.run(fld1).fault);
    ASSERT_FALSE(machine.run(fldz).fault);
    ASSERT_FALSE(machine.run(fdivp).fault);
    machine.put<std::uint16_t>(data_gpa, 0x37b);
    cpu.gpr[Rbx] = data_gpa;
    ASSERT_FALSE(machine.run({0xd9, 0x2b}).fault);
    ASSERT_TRUE(machine.run(fld1).fault);
    EXPECT_NE(fsw_of(cpu) & 0x80U, 0);
}

/// Sets or clears CPUID.(EAX=07H,ECX=0):EBX.FDP_EXCPTN_ONLY, whatever the host has.
void set_fdp_on_error_only(Cpu& cpu, bool wanted)
{
    constexpr std::uint32_t fdp_excptn_only = 1U << 6U;
    std::vector<CpuidEntry> entries{cpu.cpuid.entries().begin(), cpu.cpuid.entries().end()};
    for (CpuidEntry& entry : entries) {
        if (entry.function == 7) {
            entry.ebx = wanted ? entry.ebx | fdp_excptn_only : entry.ebx & ~fdp_excptn_only;
        }
    }
    cpu.cpuid = Cpuid{entries};
}

TEST(NativeX87, PointersAreTheGuests)
{
    NativeMachine machine;
    Cpu& cpu = machine.cpu;
    set_fdp_on_error_only(cpu, false);
    cpu.gpr[17] = 0xffff'8000'1234'5678;
    cpu.gpr[Rbx] = data_gpa;
    ASSERT_FALSE(machine.run({0xdc, 0x43, 0x08}).fault);  // FADD qword [rbx+8]
    fpu_release(cpu);
    EXPECT_EQ(x87_image::get<std::uint64_t>(cpu.fpu, x87_image::fip), cpu.gpr[17]);
    EXPECT_EQ(x87_image::get<std::uint64_t>(cpu.fpu, x87_image::fdp), data_gpa + 8);
    if (!cpu.cpuid.is_intel()) {
        EXPECT_EQ(x87_image::get<std::uint16_t>(cpu.fpu, x87_image::fop), 0x443);
    }
    // A register form leaves FDP, a control instruction everything.
    cpu.gpr[17] = 0x1000;
    ASSERT_FALSE(machine.run(fld1).fault);
    cpu.gpr[17] = 0x2000;
    ASSERT_FALSE(machine.run(fnclex).fault);
    cpu.gpr[Rbx] = data_gpa + 0x100;
    ASSERT_FALSE(machine.run({0xd9, 0x33}).fault);  // FNSTENV
    EXPECT_EQ(machine.get<std::uint32_t>(data_gpa + 0x10c), 0x1000U);
    EXPECT_EQ(machine.get<std::uint32_t>(data_gpa + 0x114), data_gpa + 8);
    // FNSTENV masks everything afterwards.
    EXPECT_EQ(x87_image::get<std::uint16_t>(cpu.fpu, x87_image::fcw) & 0x3fU, 0x3fU);
}

TEST(NativeX87, TheDataPointerMayBeKeptForUnmaskedExceptions)
{
    // SDM Vol. 1 "x87 FPU Instruction and Data (Operand) Pointers".
    NativeMachine machine;
    Cpu& cpu = machine.cpu;
    set_fdp_on_error_only(cpu, true);
    cpu.gpr[Rbx] = data_gpa;
    const auto fdp = [&] {
        fpu_release(cpu);
        return x87_image::get<std::uint64_t>(cpu.fpu, x87_image::fdp);
    };
    ASSERT_FALSE(machine.run(fld1).fault);
    ASSERT_FALSE(machine.run({0xdc, 0x43, 0x08}).fault);  // FADD qword [rbx+8]
    EXPECT_EQ(fdp(), 0U);
    x87_image::set<std::uint16_t>(cpu.fpu, x87_image::fcw, x87_initial_fcw & ~4U);  // ZM clear.
    machine.put(data_gpa + 8, 0.0);
    ASSERT_FALSE(machine.run({0xdc, 0x73, 0x08}).fault);  // FDIV qword [rbx+8]
    EXPECT_EQ(fdp(), data_gpa + 8);
}

TEST(NativeX87, RealModeEnvironmentHoldsLinearAddresses)
{
    NativeMachine machine;
    Cpu& cpu = machine.cpu;
    machine.set_32_bit();
    cpu.cr0 &= ~std::uint64_t{1};
    cpu.seg[Cs].selector = 0xf000;
    cpu.code_size = CodeSize::Bits16;
    x87_image::set<std::uint64_t>(cpu.fpu, x87_image::fip, 0xf000'0000'1234U);
    x87_image::set<std::uint64_t>(cpu.fpu, x87_image::fdp, 0x2000'0000'0010U);
    x87_image::set<std::uint16_t>(cpu.fpu, x87_image::fop, 0x5d9);
    Insn insn;
    const Bytes code{0xd9, 0x37};  // FNSTENV [bx]
    ASSERT_EQ(decode(std::as_bytes(std::span{code}), CodeSize::Bits16, insn), DecodeStatus::Ok);
    std::array<Op, 2> ops{};
    ops[0].address_kind = AddressKind::Flat64;
    ops[0].address_size = 8;
    ops[0].base = Rbx * 8;
    ops[0].index = zero_slot;
    ops[0].handler = select_native(insn, {CodeSize::Bits16, false, false}, ops[0]);
    ops[1].handler = [](Cpu&, const Op*) -> const Op* { return nullptr; };
    ASSERT_NE(ops[0].handler, nullptr);
    cpu.gpr[Rbx] = data_gpa;
    cpu.current = ops.data();
    ops[0].handler(cpu, ops.data());
    EXPECT_EQ(machine.get<std::uint16_t>(data_gpa + 6), 0x1234);
    EXPECT_EQ(machine.get<std::uint16_t>(data_gpa + 8), 0xf5d9);
    EXPECT_EQ(machine.get<std::uint16_t>(data_gpa + 10), 0x0010);
    EXPECT_EQ(machine.get<std::uint16_t>(data_gpa + 12), 0x2000);
}

TEST(NativeX87, MemoryMayBeADevice)
{
    NativeMachine machine;
    Cpu& cpu = machine.cpu;
    const double value = 2.5;
    std::memcpy(machine.host.device.data(), &value, sizeof(value));
    cpu.gpr[Rbx] = mmio_base;
    ASSERT_FALSE(machine.run(fld1).fault);  // Live while the device runs code of its own.
    ASSERT_FALSE(machine.run(fld_qword).fault);
    ASSERT_FALSE(machine.run({0xde, 0xc1}).fault);  // FADDP
    cpu.gpr[Rbx] = mmio_base + 64;
    ASSERT_FALSE(machine.run(fstp_qword).fault);
    double result = 0;
    std::memcpy(&result, machine.host.device.data() + 64, sizeof(result));
    EXPECT_EQ(result, 3.5);
    EXPECT_EQ(top_of(cpu), 0U);
}

TEST(NativeX87, AStoreThatLeavesForMmioHasPoppedNothing)
{
    NativeMachine machine;
    Cpu& cpu = machine.cpu;
    ASSERT_FALSE(machine.run(fld1).fault);
    fpu_release(cpu);
    const auto before = cpu.fpu.x87;
    cpu.gpr[Rbx] = 0x80'0000;
    EXPECT_TRUE(machine.run(fstp_qword).left_for_mmio);
    fpu_release(cpu);
    EXPECT_EQ(std::memcmp(before.data() + 32, cpu.fpu.x87.data() + 32, 128), 0);
    EXPECT_EQ(top_of(cpu), 7U);
    EXPECT_TRUE(machine.run(fld_qword).left_for_mmio);
    EXPECT_EQ(top_of(cpu), 7U);
}

TEST(NativeX87, AFaultingAddressChangesNothing)
{
    NativeMachine machine;
    Cpu& cpu = machine.cpu;
    ASSERT_FALSE(machine.run(fld1).fault);
    cpu.gpr[Rbx] = 0x8000'0000'0000'0000U;
    for (const Bytes& code : {fld_qword, fstp_qword, Bytes{0xdd, 0x33}, Bytes{0xd9, 0x2b}}) {
        const Outcome outcome = machine.run(code);
        ASSERT_TRUE(outcome.fault) << text_of(code);
        EXPECT_EQ(outcome.fault->vector, Vector::GP);
        EXPECT_EQ(top_of(cpu), 7U);
    }
}

TEST(NativeX87, DeviceNotAvailable)
{
    NativeMachine machine;
    Cpu& cpu = machine.cpu;
    const auto vector_of = [&](const Bytes& code) -> int {
        const Outcome outcome = machine.run(code);
        return outcome.fault ? static_cast<int>(outcome.fault->vector) : -1;
    };
    constexpr int nm = 7;
    constexpr int ud = 6;
    const Bytes paddb_mm{0x0f, 0xfc, 0xc1};
    const std::uint64_t cr0 = cpu.cr0;
    cpu.cr0 = cr0 | mask_of(Cr0::TS);
    EXPECT_EQ(vector_of(fld1), nm);
    EXPECT_EQ(vector_of(fnclex), nm);
    EXPECT_EQ(vector_of(paddb_mm), nm);
    EXPECT_EQ(vector_of(fwait), -1);
    cpu.cr0 = cr0 | mask_of(Cr0::TS, Cr0::MP);
    EXPECT_EQ(vector_of(fwait), nm);
    cpu.cr0 = cr0 | mask_of(Cr0::MP);
    EXPECT_EQ(vector_of(fwait), -1);
    cpu.cr0 = cr0 | mask_of(Cr0::EM);
    EXPECT_EQ(vector_of(fld1), nm);
    EXPECT_EQ(vector_of(paddb_mm), ud);
    EXPECT_EQ(vector_of(fwait), -1);
}

TEST(NativeX87, LeavingTheGuestLeavesTheHostFpuClean)
{
    NativeMachine machine;
    for (unsigned i = 0; i < 8; ++i) {
        ASSERT_FALSE(machine.run(fld1).fault);
    }
    EXPECT_TRUE(machine.cpu.x87_live);
    machine.vm.leave_guest(machine.cpu);
    EXPECT_FALSE(machine.cpu.x87_live);
    volatile long double one = 1.0L;
    EXPECT_EQ(one + one, 2.0L);
    machine.vm.enter_guest(machine.cpu);
    EXPECT_EQ(top_of(machine.cpu), 0U);
    EXPECT_EQ(x87_image::get<std::uint8_t>(machine.cpu.fpu, x87_image::ftw), 0xff);
}

}  // namespace
}  // namespace vmm::x86::soft::test
