// SPDX-License-Identifier: Apache-2.0

#include <gtest/gtest.h>

#include "soft/native_fixture.hpp"
#include "vmm/x86/control_registers.hpp"
#include "x86/soft/build_block.hpp"

namespace vmm::x86::soft::test {
namespace {

constexpr std::uint64_t area = 0x4000;

const Bytes fxsave64{0x48, 0x0f, 0xae, 0x03};
const Bytes fxrstor64{0x48, 0x0f, 0xae, 0x0b};
const Bytes xsave64{0x48, 0x0f, 0xae, 0x23};
const Bytes xrstor64{0x48, 0x0f, 0xae, 0x2b};
const Bytes xsaveopt64{0x48, 0x0f, 0xae, 0x33};
const Bytes xsavec64{0x48, 0x0f, 0xc7, 0x23};
const Bytes xsaves64{0x48, 0x0f, 0xc7, 0x2b};
const Bytes xrstors64{0x48, 0x0f, 0xc7, 0x1b};

class NativeXsave : public testing::Test {
protected:
    NativeXsave()
    {
        std::memset(machine.at(area), 0xcc, 4096);
        cpu.gpr[Rbx] = area;
        set_mask(7);
    }

    void set_mask(std::uint64_t mask)
    {
        cpu.gpr[Rax] = mask & 0xffff'ffffU;
        cpu.gpr[Rdx] = mask >> 32U;
    }
    void randomise_all()
    {
        randomise(cpu, random);
        randomise_x87(cpu, random);
        for (auto& each : cpu.fpu.ymm) {
            each[3] = std::byte{1};
            each[19] = std::byte{1};
        }
        cpu.gpr[Rbx] = area;
        set_mask(7);
    }
    void clear_header() { std::memset(machine.at(area + 512), 0, 64); }
    [[nodiscard]] std::uint64_t xstate_bv() { return machine.get<std::uint64_t>(area + 512); }
    [[nodiscard]] std::uint64_t xcomp_bv() { return machine.get<std::uint64_t>(area + 520); }
    [[nodiscard]] int vector_of(const Bytes& code)
    {
        const Outcome outcome = machine.run(code);
        EXPECT_TRUE(outcome.selected);
        return outcome.fault ? static_cast<int>(outcome.fault->vector) : -1;
    }
    /// What counts of the FPU: the image's unused part does not.
    [[nodiscard]] static bool is_same(const FpuRegisters& one, const FpuRegisters& other)
    {
        return std::memcmp(one.x87.data(), other.x87.data(), 24) == 0 &&
               std::memcmp(one.x87.data() + 32, other.x87.data() + 32, 128) == 0 &&
               one.ymm == other.ymm && one.mxcsr == other.mxcsr;
    }

    NativeMachine machine;
    Cpu& cpu = machine.cpu;
    Random random{21};
};

/// Where the last instruction was is shown with an exception only, or always.
TEST_F(NativeXsave, PointersAreShownWhereTheHostShowsThem)
{
    alignas(16) std::array<std::byte, 512> before{};
    alignas(16) std::array<std::byte, 512> after{};
    asm volatile("fxsave64 %[before]\n\tfninit\n\tfld1\n\tfxsave64 %[after]\n\tfxrstor64 %[before]"
                 : [before] "+m"(before), [after] "=m"(after));
    std::uint64_t host = 0;
    std::memcpy(&host, after.data() + 8, sizeof host);
    cpu.gpr[17] = 0x1000;
    ASSERT_TRUE(machine.run({0xd9, 0xe8}).selected);  // fld1
    ASSERT_EQ(vector_of(fxsave64), -1);
    EXPECT_EQ(machine.get<std::uint64_t>(area + 8) != 0, host != 0);
}

TEST_F(NativeXsave, APrefetchOfARegisterIsIntels)
{
    const Bytes prefetch{0x0f, 0x0d, 0xc3};
    ASSERT_EQ(decode(std::as_bytes(std::span{prefetch}), CodeSize::Bits64, machine.insn),
              DecodeStatus::Ok);
    EXPECT_EQ(is_offered(cpu, machine.insn), cpu.cpuid.is_intel());
}

TEST_F(NativeXsave, FxsaveIsTheHostsImage)
{
    for (unsigned i = 0; i < 200; ++i) {
        randomise_all();
        std::memset(machine.at(area), 0xcc, 512);
        HostContext expected = context_of(cpu);
        run_on_host({0x90}, expected);  // Ends with FXSAVE64.
        ASSERT_EQ(vector_of(fxsave64), -1);
        EXPECT_EQ(std::memcmp(machine.at(area), expected.fxsave.data(), 28), 0);
        EXPECT_EQ(machine.get<std::uint32_t>(area + 28), 0xffffU);
        EXPECT_EQ(std::memcmp(machine.at(area + 32), expected.fxsave.data() + 32, 384), 0);
        // The rest is software's.
        for (std::uint64_t at = area + 416; at < area + 512; ++at) {
            ASSERT_EQ(machine.get<std::uint8_t>(at), 0xcc);
        }
        const FpuRegisters before = cpu.fpu;
        randomise_all();
        ASSERT_EQ(vector_of(fxrstor64), -1);
        for (auto each : {&FpuRegisters::x87}) {
            EXPECT_EQ(std::memcmp((cpu.fpu.*each).data(), (before.*each).data(), 24), 0);
            EXPECT_EQ(std::memcmp((cpu.fpu.*each).data() + 32, (before.*each).data() + 32, 128), 0);
        }
        EXPECT_EQ(cpu.fpu.mxcsr, before.mxcsr);
        for (std::size_t number = 0; number < 16; ++number) {
            EXPECT_EQ(std::memcmp(cpu.fpu.ymm[number].data(), before.ymm[number].data(), 16), 0);
        }
    }
}

TEST_F(NativeXsave, FxrstorChecksMxcsr)
{
    ASSERT_EQ(vector_of(fxsave64), -1);
    machine.put<std::uint32_t>(area + 24, 0x1'0000);
    machine.put<std::uint16_t>(area, 0x27f);
    EXPECT_EQ(vector_of(fxrstor64), 13);
    EXPECT_EQ(x87_image::get<std::uint16_t>(cpu.fpu, x87_image::fcw), 0x37f);
}

TEST_F(NativeXsave, SavesAndRestoresInEveryFormat)
{
    const auto round_trip = [&](const Bytes& save, const Bytes& restore, bool compacted) {
        randomise_all();
        clear_header();
        ASSERT_EQ(vector_of(save), -1);
        EXPECT_EQ(xstate_bv(), 7U);
        EXPECT_EQ(xcomp_bv(), compacted ? 0x8000'0000'0000'0007U : 0U);
        EXPECT_EQ(std::memcmp(machine.at(area + 576), cpu.fpu.ymm[0].data() + 16, 16), 0);
        const FpuRegisters before = cpu.fpu;
        randomise_all();
        ASSERT_EQ(vector_of(restore), -1);
        EXPECT_TRUE(is_same(cpu.fpu, before));
    };
    round_trip(xsave64, xrstor64, false);
    round_trip(xsaveopt64, xrstor64, false);
    round_trip(xsavec64, xrstor64, true);
    round_trip(xsaves64, xrstors64, true);
    round_trip(xsavec64, xrstors64, true);
}

TEST_F(NativeXsave, OnlyRequestedComponentsAreTouched)
{
    randomise_all();
    clear_header();
    machine.put<std::uint64_t>(area + 512, 5);
    set_mask(2);
    ASSERT_EQ(vector_of(xsave64), -1);
    EXPECT_EQ(xstate_bv(), 7U);
    EXPECT_EQ(machine.get<std::uint8_t>(area), 0xcc);        // FCW
    EXPECT_EQ(machine.get<std::uint8_t>(area + 576), 0xcc);  // AVX
    EXPECT_EQ(machine.get<std::uint32_t>(area + 24), cpu.fpu.mxcsr);
    EXPECT_EQ(std::memcmp(machine.at(area + 160), cpu.fpu.ymm[0].data(), 16), 0);
    // AVX alone takes MXCSR along in the standard format.
    set_mask(4);
    machine.put<std::uint32_t>(area + 24, 0);
    ASSERT_EQ(vector_of(xsave64), -1);
    EXPECT_EQ(machine.get<std::uint32_t>(area + 24), cpu.fpu.mxcsr);
    // XCR0 limits the mask.
    cpu.xcr0 = 3;
    clear_header();
    set_mask(~std::uint64_t{0});
    ASSERT_EQ(vector_of(xsave64), -1);
    EXPECT_EQ(xstate_bv(), 3U);
}

TEST_F(NativeXsave, InitialComponentsAreLeftOut)
{
    cpu.fpu = FpuRegisters{};
    x87_initialise(cpu.fpu);
    clear_header();
    ASSERT_EQ(vector_of(xsave64), -1);
    EXPECT_EQ(xstate_bv(), 0U);
    EXPECT_EQ(machine.get<std::uint16_t>(area), 0x37f);  // XSAVE writes what is initial, too.
    std::memset(machine.at(area), 0xcc, 512);
    ASSERT_EQ(vector_of(xsaveopt64), -1);
    EXPECT_EQ(machine.get<std::uint16_t>(area), 0xcccc);
    cpu.fpu.ymm[7][20] = std::byte{1};
    ASSERT_EQ(vector_of(xsavec64), -1);
    EXPECT_EQ(xstate_bv(), 4U);
    EXPECT_EQ(machine.get<std::uint16_t>(area), 0xcccc);
    EXPECT_EQ(machine.get<std::uint8_t>(area + 576 + 7 * 16 + 4), 1);
    // MXCSR alone makes SSE state in use.
    cpu.fpu.mxcsr = 0x1fa0;
    ASSERT_EQ(vector_of(xsavec64), -1);
    EXPECT_EQ(xstate_bv(), 6U);
}

TEST_F(NativeXsave, RestoringWhatIsAbsentInitialises)
{
    randomise_all();
    clear_header();
    machine.put<std::uint32_t>(area + 24, 0x1fa5);
    ASSERT_EQ(vector_of(xrstor64), -1);
    FpuRegisters expected;
    x87_initialise(expected);
    expected.mxcsr = 0x1fa5;  // The standard format always loads it.
    EXPECT_TRUE(is_same(cpu.fpu, expected));
    randomise_all();
    machine.put<std::uint64_t>(area + 520, 0x8000'0000'0000'0007);
    ASSERT_EQ(vector_of(xrstor64), -1);
    expected.mxcsr = 0x1f80;
    EXPECT_TRUE(is_same(cpu.fpu, expected));
}

TEST_F(NativeXsave, InvalidHeadersFaultAndChangeNothing)
{
    randomise_all();
    const FpuRegisters before = cpu.fpu;
    const auto refuses = [&](const Bytes& code, std::uint64_t bv, std::uint64_t comp,
                             std::uint64_t third, std::uint64_t fourth = 0) {
        clear_header();
        std::memset(machine.at(area), 0, 512);
        machine.put(area + 512, bv);
        machine.put(area + 520, comp);
        machine.put(area + 528, third);
        machine.put(area + 536, fourth);
        EXPECT_EQ(vector_of(code), 13) << std::hex << bv << ' ' << comp << ' ' << third;
        EXPECT_TRUE(is_same(cpu.fpu, before));
    };
    constexpr std::uint64_t compacted = std::uint64_t{1} << 63U;
    refuses(xrstor64, 8, 0, 0);
    refuses(xrstor64, 7, 7, 0);
    refuses(xrstor64, 7, 0, 1);
    refuses(xrstor64, 7, compacted | 3, 0);
    refuses(xrstor64, 7, compacted | 15, 0);
    refuses(xrstor64, 7, compacted | 7, 0, 1);
    refuses(xrstors64, 7, 0, 0);
    refuses(xrstors64, 4, compacted | 3, 0);
    clear_header();
    machine.put<std::uint64_t>(area + 512, 2);
    machine.put<std::uint32_t>(area + 24, 0x2'0000);
    EXPECT_EQ(vector_of(xrstor64), 13);
    EXPECT_TRUE(is_same(cpu.fpu, before));
}

TEST_F(NativeXsave, ControlBitsAndPrivilege)
{
    cpu.cr0 |= mask_of(Cr0::TS);
    for (const Bytes& code : {xsave64, xrstor64, xsavec64, fxsave64, fxrstor64}) {
        EXPECT_EQ(vector_of(code), 7);
    }
    cpu.cr4 &= ~mask_of(Cr4::OSXSAVE);
    EXPECT_EQ(vector_of(xsave64), 6);
    EXPECT_EQ(vector_of(xrstors64), 6);
    cpu.cr4 |= mask_of(Cr4::OSXSAVE);
    cpu.cr0 &= ~mask_of(Cr0::TS);
    cpu.cpl = 3;
    EXPECT_EQ(vector_of(xsaves64), 13);
    EXPECT_EQ(vector_of(xrstors64), 13);
    EXPECT_EQ(vector_of(xsavec64), -1);
}

TEST_F(NativeXsave, AreasMayCrossAPage)
{
    randomise_all();
    cpu.gpr[Rbx] = area + 4096 - 576;
    std::memset(machine.at(cpu.gpr[Rbx] + 512), 0, 64);
    ASSERT_EQ(vector_of(xsave64), -1);
    const FpuRegisters before = cpu.fpu;
    randomise_all();
    cpu.gpr[Rbx] = area + 4096 - 576;
    ASSERT_EQ(vector_of(xrstor64), -1);
    EXPECT_TRUE(is_same(cpu.fpu, before));
}

TEST_F(NativeXsave, LiveX87StateIsSaved)
{
    ASSERT_EQ(vector_of({0xd9, 0xe8}), -1);  // FLD1
    EXPECT_TRUE(cpu.x87_live);
    ASSERT_EQ(vector_of(fxsave64), -1);
    EXPECT_EQ(machine.get<std::uint8_t>(area + 4), 0x80);
    EXPECT_EQ(machine.get<std::uint64_t>(area + 32), 0x8000'0000'0000'0000U);
}

TEST_F(NativeXsave, TheApiRoundTrips)
{
    randomise_all();
    Fpu fpu;
    to_fpu(cpu, fpu);
    Xsave xsave;
    to_xsave(cpu, xsave);
    const FpuRegisters before = cpu.fpu;
    randomise_all();
    ASSERT_TRUE(from_xsave(cpu, xsave));
    EXPECT_TRUE(is_same(cpu.fpu, before));
    Fpu again;
    to_fpu(cpu, again);
    EXPECT_EQ(again, fpu);
    randomise_all();
    from_fpu(cpu, fpu);
    to_fpu(cpu, again);
    EXPECT_EQ(again, fpu);
    fpu.mxcsr = 0xffff'ffff;
    from_fpu(cpu, fpu);
    EXPECT_EQ(cpu.fpu.mxcsr, 0xffffU);
}

TEST_F(NativeXsave, TheApiRefusesInvalidAreas)
{
    randomise_all();
    const FpuRegisters before = cpu.fpu;
    const auto refused = [&](std::size_t at, std::uint64_t value) {
        Xsave xsave;
        to_xsave(cpu, xsave);
        std::memcpy(xsave.region.data() + at, &value, sizeof(value));
        const Result<void> result = from_xsave(cpu, xsave);
        EXPECT_FALSE(result);
        EXPECT_TRUE(is_same(cpu.fpu, before));
        return result ? 0 : result.error().errno_value();
    };
    EXPECT_EQ(refused(512, std::uint64_t{1} << 9U), EINVAL);
    EXPECT_EQ(refused(520, std::uint64_t{1} << 63U), EINVAL);
    EXPECT_EQ(refused(528, 1), EINVAL);
    EXPECT_EQ(refused(568, 1), EINVAL);
    EXPECT_EQ(refused(24, 0x1'0000), EINVAL);
}

}  // namespace
}  // namespace vmm::x86::soft::test
