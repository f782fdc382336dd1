// SPDX-License-Identifier: Apache-2.0

#include <array>
#include <cstdlib>
#include <functional>
#include <future>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <utility>

#include <gtest/gtest.h>

#include "core/small_vm.hpp"
#include "vmm/vm.hpp"

namespace vmm {
namespace {

using test::SmallVm;

class VmTest : public test::EveryEngine {};
INSTANTIATE_TEST_SUITE_P(Engines, VmTest, test::engines, test::engine_name);
class VmIrqchipTest : public VmTest {};
INSTANTIATE_TEST_SUITE_P(Engines, VmIrqchipTest, test::irqchips, test::engine_name);

TEST(Kvm, AutoTakesAnEngineThatRanTheProbeGuest)
{
    const auto kvm = Kvm::open();
    ASSERT_TRUE(kvm.has_value());
    EXPECT_NE(kvm->engine(), Engine::Auto);
    EXPECT_EQ(kvm->api_version(), 12);
    EXPECT_EQ(kvm->check_extension(Capability::UserMemory), 1);
    EXPECT_EQ(kvm->check_extension(Capability::NrMemslots), 32764);
}

TEST(Kvm, AnEngineThatDoesNotWorkIsRefusedWithTheReason)
{
    for (const EngineReport& report : probe_engines()) {
        EXPECT_FALSE(report.reason.empty());
        if (report.usable) {
            continue;
        }
        const auto kvm = Kvm::open({report.engine});
        ASSERT_FALSE(kvm.has_value());
        EXPECT_EQ(kvm.error().errno_value(), ENODEV);
        EXPECT_NE(kvm.error().message().find("does not work here"), std::string::npos);
    }
}

TEST(Kvm, EngineNamesRoundTrip)
{
    for (const Engine engine :
         {Engine::Auto, Engine::Soft, Engine::Kvm, Engine::Svm, Engine::Vmx}) {
        EXPECT_EQ(engine_from_name(name(engine)), engine);
    }
    EXPECT_FALSE(engine_from_name("tcg"));
}

TEST(Kvm, SoftModeNamesRoundTrip)
{
    for (const SoftMode mode : {SoftMode::Translator, SoftMode::Interpreter, SoftMode::Stress}) {
        EXPECT_EQ(soft_mode_from_name(name(mode)), mode);
    }
    EXPECT_FALSE(soft_mode_from_name("jit"));
}

/// VMM_SOFT in the environment while it lives.
class SoftEnvironment {
public:
    explicit SoftEnvironment(const char* value)
    {
        if (const char* const before = std::getenv("VMM_SOFT")) {
            before_ = before;
        }
        ::setenv("VMM_SOFT", value, 1);
    }
    ~SoftEnvironment()
    {
        if (before_) {
            ::setenv("VMM_SOFT", before_->c_str(), 1);
        } else {
            ::unsetenv("VMM_SOFT");
        }
    }
    SoftEnvironment(const SoftEnvironment&) = delete;
    SoftEnvironment& operator=(const SoftEnvironment&) = delete;
    SoftEnvironment(SoftEnvironment&&) = delete;
    SoftEnvironment& operator=(SoftEnvironment&&) = delete;

private:
    std::optional<std::string> before_{};
};

TEST(Kvm, AnUnknownModeInTheEnvironmentIsRefusedWithThoseThatExist)
{
    const SoftEnvironment environment{"jit"};
    for (const Engine engine : {Engine::Soft, Engine::Auto}) {
        const auto kvm = Kvm::open({.engine = engine});
        ASSERT_FALSE(kvm.has_value());
        EXPECT_EQ(kvm.error().errno_value(), EINVAL);
        for (const char* const word : {"VMM_SOFT", "jit", "translator", "interpreter", "stress"}) {
            EXPECT_NE(kvm.error().message().find(word), std::string::npos) << word;
        }
    }
    for (const EngineReport& report : probe_engines()) {
        if (report.engine == Engine::Soft) {
            EXPECT_FALSE(report.usable);
            EXPECT_NE(report.fix.find("VMM_SOFT"), std::string::npos) << report.fix;
        }
    }
}

TEST(Kvm, ModesInTheEnvironmentAreObeyed)
{
    for (const char* const mode : {"translator", "interpreter", "stress"}) {
        const SoftEnvironment environment{mode};
        EXPECT_TRUE(Kvm::open({.engine = Engine::Soft}).has_value());
    }
}

TEST_P(VmTest, MemoryRegionsKeepKvmsErrno)
{
    SmallVm small{engine()};
    EXPECT_EQ(small.vm()
                  .set_user_memory_region({.slot = 1,
                                           .guest_phys_addr = Gpa{0x1000},
                                           .size_bytes = 0x1000,
                                           .host = small.memory()})
                  .error()
                  .errno_value(),
              EEXIST);
    EXPECT_EQ(small.vm()
                  .set_user_memory_region({.slot = 1,
                                           .guest_phys_addr = Gpa{0x20'0001},
                                           .size_bytes = 0x1000,
                                           .host = small.memory()})
                  .error()
                  .errno_value(),
              EINVAL);
}

TEST_P(VmTest, AVcpuIdIsTakenOnce)
{
    SmallVm small{engine()};
    const Vcpu first = small.vcpu(0);
    EXPECT_EQ(small.vm().create_vcpu(0).error().errno_value(), EEXIST);
    const auto end = static_cast<std::uint32_t>(
        Kvm::open({engine()}).value().check_extension(Capability::MaxVcpuId));
    EXPECT_EQ(small.vm().create_vcpu(end).error().errno_value(), EINVAL);
    EXPECT_TRUE(small.vm().create_vcpu(end - 1U).has_value());
}

TEST_P(VmTest, IdsHaveRoomForGapsButVcpusAreFewer)
{
    if (engine() != Engine::Soft) {
        GTEST_SKIP() << "the library's own limits, told by the engine that takes the least memory";
    }
    SmallVm small{engine(), SmallVm::Irqchip::Full};
    std::vector<Vcpu> vcpus;
    for (std::uint32_t id = 3072; id < 4096; ++id) {
        vcpus.push_back(small.vm().create_vcpu(id).value());
    }
    EXPECT_EQ(small.vm().create_vcpu(0).error().errno_value(), EINVAL) << "1,024 are there";
    vcpus.pop_back();
    EXPECT_TRUE(small.vm().create_vcpu(0).has_value());
}

TEST_P(VmIrqchipTest, AnIrqchipComesBeforeTheVcpusAndOnce)
{
    SmallVm small{options()};
    EXPECT_EQ(small.vm().create_pit().error().errno_value(), ENOENT);
    EXPECT_EQ(small.vm().set_irq_line(4, true).error().errno_value(), ENXIO);
    EXPECT_TRUE(small.vm().create_irqchip().has_value());
    EXPECT_EQ(small.vm().create_irqchip().error().errno_value(), EEXIST);
    EXPECT_TRUE(small.vm().create_pit().has_value());
    EXPECT_EQ(small.vm().create_pit().error().errno_value(), EEXIST);

    SmallVm late{options()};
    const Vcpu vcpu = late.vcpu();
    EXPECT_EQ(late.vm().create_irqchip().error().errno_value(), EINVAL);
}

TEST_P(VmTest, ManyLiveAtOnceInOneProcess)
{
    std::vector<std::unique_ptr<SmallVm>> vms;
    std::vector<Vcpu> vcpus;
    for (unsigned i = 0; i < 20; ++i) {
        auto& small = *vms.emplace_back(std::make_unique<SmallVm>(engine()));
        small.place(SmallVm::code_at, {0xb0, i, 0xe6, 0x10, 0xf4});  // mov $i, %al; out; hlt
        vcpus.push_back(small.vcpu());
    }
    for (unsigned i = 0; i < 20; ++i) {
        const Exit exit = vcpus[i].run().value();
        ASSERT_TRUE(exit.is<PortWrite>());
        EXPECT_EQ(exit.get_if<PortWrite>()->data[0], std::byte(i));
        EXPECT_TRUE(vcpus[i].run()->is<Halt>());
    }
}

TEST_P(VmTest, MemoryIsReadAndWrittenWhole)
{
    SmallVm small{engine()};
    const VmMemory memory = small.vm().memory();
    EXPECT_TRUE(memory.write(Gpa{0x2000}, std::uint32_t{0x1234'5678}));
    EXPECT_EQ(memory.read<std::uint32_t>(Gpa{0x2000}), 0x1234'5678U);
    EXPECT_FALSE(memory.read<std::uint32_t>(Gpa{SmallVm::memory_size - 2}).has_value());
    EXPECT_FALSE(memory.write(Gpa{SmallVm::memory_size - 2}, std::uint32_t{~0U}));
    EXPECT_EQ(small.byte_at(SmallVm::memory_size - 1), 0U);
}

TEST_P(VmTest, TheDirtyLogHasGuestWritesAndVmmWritesOnce)
{
    SmallVm small{engine()};
    alignas(4096) static std::array<std::byte, 0x4000> extra;
    const memory::MemoryRegion region{.slot = 1,
                                      .flags = memory::MemoryFlags::log_dirty,
                                      .guest_phys_addr = Gpa{0x20'0000},
                                      .size_bytes = extra.size(),
                                      .host = extra.data()};
    ASSERT_TRUE(small.vm().set_user_memory_region(region).has_value());
    EXPECT_EQ(small.vm().dirty_log(0).error().errno_value(), ENOENT);

    // A data segment at 2 MiB: mov %al, 0x1234 (page 1); out %al, $0x10; twice; hlt
    small.place(SmallVm::code_at,
                {0xa2, 0x34, 0x12, 0xe6, 0x10, 0xa2, 0x34, 0x12, 0xe6, 0x10, 0xf4});
    Vcpu vcpu = small.vcpu();
    x86::Sregs sregs = vcpu.sregs();
    sregs.ds.base = 0x20'0000;
    ASSERT_TRUE(vcpu.set_sregs(sregs).has_value());

    ASSERT_TRUE(vcpu.run()->is<PortWrite>());
    EXPECT_TRUE(small.vm().memory().write(Gpa{0x20'3000}, std::uint8_t{1}));
    EXPECT_EQ(small.vm().dirty_log(1)->at(0), 0b1010U);
    EXPECT_EQ(small.vm().dirty_log(1)->at(0), 0U);
    ASSERT_TRUE(vcpu.run()->is<PortWrite>());
    EXPECT_EQ(small.vm().dirty_log(1)->at(0), 0b0010U);
}

TEST_P(VmTest, AReadOnlySlotIsReadAsMemoryAndWrittenAsMmio)
{
    SmallVm small{engine()};
    alignas(4096) static std::array<std::byte, 0x1000> rom{std::byte{0x5a}};
    ASSERT_TRUE(small.vm()
                    .set_user_memory_region({.slot = 1,
                                             .flags = memory::MemoryFlags::read_only,
                                             .guest_phys_addr = Gpa{0x20'0000},
                                             .size_bytes = rom.size(),
                                             .host = rom.data()})
                    .has_value());
    // mov 0, %al; mov %al, 0x10; hlt, with a data segment at 2 MiB
    small.place(SmallVm::code_at, {0xa0, 0x00, 0x00, 0xa2, 0x10, 0x00, 0xf4});
    Vcpu vcpu = small.vcpu();
    x86::Sregs sregs = vcpu.sregs();
    sregs.ds.base = 0x20'0000;
    ASSERT_TRUE(vcpu.set_sregs(sregs).has_value());
    const Exit exit = vcpu.run().value();
    ASSERT_TRUE(exit.is<MmioWrite>());
    EXPECT_EQ(exit.get_if<MmioWrite>()->gpa, Gpa{0x20'0010});
    EXPECT_EQ(exit.get_if<MmioWrite>()->data[0], std::byte{0x5a});
    EXPECT_TRUE(vcpu.run()->is<Halt>());
    EXPECT_EQ(rom[0x10], std::byte{});
}

TEST_P(VmTest, ASlotMovesAndGoesUnderAVcpu)
{
    SmallVm small{engine()};
    alignas(4096) static std::array<std::byte, 0x1000> page{std::byte{0x77}};
    memory::MemoryRegion region{.slot = 1,
                                .guest_phys_addr = Gpa{0x20'0000},
                                .size_bytes = page.size(),
                                .host = page.data()};
    ASSERT_TRUE(small.vm().set_user_memory_region(region).has_value());
    // 1: mov 0, %al; out %al, $0x10; jmp 1b
    small.place(SmallVm::code_at, {0xa0, 0x00, 0x00, 0xe6, 0x10, 0xeb, 0xf9});
    Vcpu vcpu = small.vcpu();
    x86::Sregs sregs = vcpu.sregs();
    sregs.ds.base = 0x20'0000;
    ASSERT_TRUE(vcpu.set_sregs(sregs).has_value());
    Exit exit = vcpu.run().value();
    ASSERT_TRUE(exit.is<PortWrite>());
    EXPECT_EQ(exit.get_if<PortWrite>()->data[0], std::byte{0x77});

    region.guest_phys_addr = Gpa{0x30'0000};
    ASSERT_TRUE(small.vm().set_user_memory_region(region).has_value());
    exit = vcpu.run().value();
    ASSERT_TRUE(exit.is<MmioRead>());
    EXPECT_EQ(exit.get_if<MmioRead>()->gpa, Gpa{0x20'0000});
    exit.complete();
    sregs = vcpu.sregs();
    sregs.ds.base = 0x30'0000;
    ASSERT_TRUE(vcpu.set_sregs(sregs).has_value());
    ASSERT_TRUE(vcpu.run()->is<PortWrite>());
    exit = vcpu.run().value();
    ASSERT_TRUE(exit.is<PortWrite>());
    EXPECT_EQ(exit.get_if<PortWrite>()->data[0], std::byte{0x77});

    ASSERT_TRUE(small.vm().set_user_memory_region({.slot = 1}).has_value());
    exit = vcpu.run().value();
    ASSERT_TRUE(exit.is<MmioRead>());
    EXPECT_EQ(exit.get_if<MmioRead>()->gpa, Gpa{0x30'0000});
}

/// Calls `on_write` at each write.
class Caller final : public bus::DeviceBase {
public:
    explicit Caller(std::function<void()> on_write) : on_write_{std::move(on_write)} {}

    void read(std::uint64_t /*offset*/, std::span<std::byte> /*data*/) noexcept override {}
    void write(std::uint64_t /*offset*/, std::span<const std::byte> /*data*/) noexcept override
    {
        on_write_();
    }

private:
    std::function<void()> on_write_;
};

TEST_P(VmTest, CodeGoesWithItsSlotWhileItRuns)
{
    // 1: out %al, $0x10; jmp 1b, and the same with port 0x11, in the place of the other.
    alignas(4096) static std::array<std::byte, 0x1000> one{std::byte{0xe6}, std::byte{0x10},
                                                           std::byte{0xeb}, std::byte{0xfc}};
    alignas(4096) static std::array<std::byte, 0x1000> other{std::byte{0xe6}, std::byte{0x11},
                                                             std::byte{0xeb}, std::byte{0xfc}};
    SmallVm small{engine()};
    memory::MemoryRegion region{
        .slot = 1, .guest_phys_addr = Gpa{0x20'0000}, .size_bytes = one.size(), .host = one.data()};
    small.vm().set_user_memory_region(region).value();
    // The vCPU is in the device while another thread replaces the slot.
    constexpr unsigned often = 3'000;
    unsigned writes = 0;
    const auto device = std::make_shared<Caller>([&] {
        if (++writes == often) {
            std::thread{[&] {
                small.vm().set_user_memory_region({.slot = 1}).value();
                region.host = other.data();
                small.vm().set_user_memory_region(region).value();
            }}.join();
        }
    });
    small.vm().attach(*PortRange::make(Port{0x10}, 1), device).value();
    Vcpu vcpu = small.vcpu();
    x86::Sregs sregs = vcpu.sregs();
    sregs.cs.base = 0x20'0000;
    vcpu.set_sregs(sregs).value();
    vcpu.set_regs({.rsp = 0x8000, .rip = 0, .rflags = 2});
    const Exit exit = vcpu.run().value();
    ASSERT_TRUE(exit.is<PortWrite>()) << exit.name();
    EXPECT_EQ(exit.get_if<PortWrite>()->port, Port{0x11});
    EXPECT_EQ(writes, often);
}

TEST(Kvm, AnotherSlotCostsNoDecodedCode)
{
    SmallVm small{Engine::Soft};
    alignas(4096) static std::array<std::byte, 0x1000> page{};
    memory::MemoryRegion region{.slot = 1,
                                .guest_phys_addr = Gpa{0x20'0000},
                                .size_bytes = page.size(),
                                .host = page.data()};
    small.place(SmallVm::code_at, {0xe6, 0x10, 0xeb, 0xfc});  // 1: out %al, $0x10; jmp 1b
    Vcpu vcpu = small.vcpu();
    const auto blocks = [&] {
        vcpu.run().value();
        vcpu.run().value();
        return vcpu.statistics().counter("blocks");
    };
    const auto before = blocks();
    small.vm().set_user_memory_region(region).value();
    EXPECT_EQ(blocks(), before);
    small.vm().set_user_memory_region({.slot = 1}).value();
    EXPECT_EQ(blocks(), before);
}

class Register final : public bus::DeviceBase {
public:
    void read(std::uint64_t offset, std::span<std::byte> data) noexcept override
    {
        data[0] = std::byte{static_cast<unsigned char>(value + offset)};
    }
    void write(std::uint64_t /*offset*/, std::span<const std::byte> data) noexcept override
    {
        value = std::to_integer<unsigned>(data[0]);
    }
    unsigned value{};
};

TEST_P(VmTest, AnAttachedDeviceAnswersWithoutAnExit)
{
    SmallVm small{engine()};
    const auto device = std::make_shared<Register>();
    const PortRange ports = *PortRange::make(Port{0x20}, 4);
    ASSERT_TRUE(small.vm().attach(ports, device).has_value());
    EXPECT_EQ(small.vm().attach(ports, device).error().errno_value(), EEXIST);
    // mov $7, %al; out %al, $0x20; in $0x22, %al; out %al, $0x80; hlt
    small.place(SmallVm::code_at, {0xb0, 7, 0xe6, 0x20, 0xe4, 0x22, 0xe6, 0x80, 0xf4});
    Vcpu vcpu = small.vcpu();
    const Exit exit = vcpu.run().value();
    ASSERT_TRUE(exit.is<PortWrite>());
    EXPECT_EQ(exit.get_if<PortWrite>()->port, Port{0x80});
    EXPECT_EQ(exit.get_if<PortWrite>()->data[0], std::byte{9});
    EXPECT_EQ(device->value, 7U);
    EXPECT_TRUE(small.vm().detach(ports).has_value());
    EXPECT_EQ(small.vm().detach(ports).error().errno_value(), ENOENT);
}

TEST_P(VmTest, ADeviceMayComeAndGoBetweenAccessesToItsPort)
{
    SmallVm small{engine()};
    const auto device = std::make_shared<Register>();
    const PortRange ports = *PortRange::make(Port{0x20}, 4);
    // 1: out %al, $0x20; out %al, $0x80; jmp 1b
    small.place(SmallVm::code_at, {0xe6, 0x20, 0xe6, 0x80, 0xeb, 0xfa});
    Vcpu vcpu = small.vcpu();
    const auto next_port = [&] { return vcpu.run().value().get_if<PortWrite>()->port; };
    for (int round = 0; round < 3; ++round) {
        EXPECT_EQ(next_port(), Port{0x20});
        EXPECT_EQ(next_port(), Port{0x80});
        ASSERT_TRUE(small.vm().attach(ports, device).has_value());
        EXPECT_EQ(next_port(), Port{0x80});
        EXPECT_EQ(next_port(), Port{0x80});
        ASSERT_TRUE(small.vm().detach(ports).has_value());
    }
}

TEST_P(VmTest, TheLastOneMayGoOnTheEventLoopsThread)
{
    auto small = std::make_unique<SmallVm>(engine());
    std::promise<void> gone;
    EventLoop& loop = small->vm().event_loop();
    loop.post([&] {
        small.reset();
        gone.set_value();
    });
    gone.get_future().wait();
    EXPECT_EQ(small, nullptr);
}

TEST_P(VmIrqchipTest, APitThatFindsAPortTakenLeavesTheOthersFree)
{
    SmallVm small{options(), SmallVm::Irqchip::Full};
    const PortRange speaker = *PortRange::make(Port{0x61}, 1);
    const PortRange counters = *PortRange::make(Port{0x40}, 4);
    ASSERT_TRUE(small.vm().attach(speaker, std::make_shared<Register>()).has_value());
    EXPECT_EQ(small.vm().create_pit().error().errno_value(), EEXIST);
    EXPECT_TRUE(small.vm().attach(counters, std::make_shared<Register>()).has_value());
    ASSERT_TRUE(small.vm().detach(counters).has_value());
    ASSERT_TRUE(small.vm().detach(speaker).has_value());
    EXPECT_TRUE(small.vm().create_pit().has_value());
}

}  // namespace
}  // namespace vmm
