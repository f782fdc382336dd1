// SPDX-License-Identifier: Apache-2.0

#include <cerrno>
#include <cstdint>
#include <vector>

#include <gtest/gtest.h>

#include "irqchip/fixture.hpp"
#include "x86/irqchip/routing.hpp"

namespace vmm::test {
namespace {

class RoutingTest : public IrqchipFixture {
protected:
    RoutingTest() { enable_all(); }

    int refused(std::vector<GsiRoute> routes)
    {
        const std::vector<GsiRoute> before = chip.routing();
        const Result<void> result = chip.set_routing(routes);
        EXPECT_EQ(chip.routing(), before);
        return result ? 0 : result.error().errno_value();
    }
};

TEST_F(RoutingTest, TheDefaultIsPinNOfBothChips)
{
    const auto routes = chip.routing();
    EXPECT_EQ(routes.size(), 16U + 24U);
    redirect(0, 0x30);
    EXPECT_EQ(chip.set_line(0, 0, true), 2) << "PIC and I/O APIC";
    out(0x21, 0x10);
    redirect(4, 0x34);
    EXPECT_EQ(chip.set_line(4, 0, true), 1) << "only the I/O APIC";
    redirect(16, 0x40);
    EXPECT_EQ(chip.set_line(16, 0, true), 1);
    EXPECT_EQ(chip.set_line(24, 0, true), irq_masked);
    EXPECT_EQ(chip.set_line(0xffff'ffff, 0, true), irq_masked);
}

TEST_F(RoutingTest, StatusIsMaskedOnlyIfEveryChipMasksIt)
{
    out(0x21, 0xff);
    EXPECT_EQ(chip.set_line(5, 0, true), irq_masked);
    chip.set_line(5, 0, false);
    out(0x21, 0);
    EXPECT_EQ(chip.set_line(5, 0, true), irq_coalesced) << "the PIC had latched the edge masked";
    redirect(17, 0x41);
    EXPECT_EQ(chip.set_line(17, 0, true), 1);
    EXPECT_EQ(chip.set_line(17, 0, true), irq_coalesced);
}

TEST_F(RoutingTest, ANewTableReplacesTheOldOne)
{
    ASSERT_TRUE(chip.set_routing(
        std::vector{pin_route(0, ChipId::IoApic, 2), pin_route(0, ChipId::PicMaster, 0),
                    pin_route(9, ChipId::PicSlave, 1), msi_route(100, Gpa{0xfee0'3000}, 0x77)}));
    redirect(2, 0x30);
    EXPECT_EQ(chip.set_line(0, 0, true), 2);
    EXPECT_EQ(take(0x30).size(), 1U);
    EXPECT_EQ(chip.set_line(9, 0, true), 1);
    EXPECT_EQ(chip.pic_state(ChipId::PicSlave).irr, 2U);
    EXPECT_EQ(chip.set_line(100, 0, true), 1);
    EXPECT_EQ(chip.set_line(100, 0, false), irq_masked);
    EXPECT_EQ(take(0x77), (std::vector<std::uint32_t>{3}));
    EXPECT_EQ(chip.set_line(16, 0, true), irq_masked);
    ASSERT_TRUE(chip.set_routing({}));
    EXPECT_EQ(chip.set_line(0, 0, true), irq_masked);
}

TEST_F(RoutingTest, InvalidTablesChangeNothing)
{
    EXPECT_EQ(refused({pin_route(0, ChipId::IoApic, 24)}), EINVAL);
    EXPECT_EQ(refused({pin_route(0, ChipId::PicMaster, 8)}), EINVAL);
    EXPECT_EQ(refused({pin_route(0, static_cast<ChipId>(3), 0)}), EINVAL);
    EXPECT_EQ(refused({pin_route(4096, ChipId::IoApic, 0)}), EINVAL);
    GsiRoute unknown;
    unknown.type = static_cast<GsiRouteType>(9);
    EXPECT_EQ(refused({unknown}), EINVAL);
    EXPECT_EQ(refused({pin_route(1, ChipId::IoApic, 0), pin_route(1, ChipId::IoApic, 1)}), EINVAL);
    EXPECT_EQ(refused({pin_route(1, ChipId::IoApic, 0), msi_route(1, Gpa{}, 0)}), EINVAL);
    EXPECT_EQ(refused({msi_route(1, Gpa{0x1'fee0'0000}, 0)}), EINVAL);
    EXPECT_EQ(refused(std::vector<GsiRoute>(4097)), EINVAL);
    EXPECT_TRUE(chip.set_routing(std::vector{pin_route(4095, ChipId::IoApic, 23)}));
}

TEST_F(RoutingTest, MsiReturnsAsKvmDoes)
{
    EXPECT_EQ(chip.signal_msi(Gpa{0xfee0'1000}, 0x41), 1);
    EXPECT_EQ(take(0x41), (std::vector<std::uint32_t>{1}));
    EXPECT_EQ(chip.signal_msi(Gpa{0xfeef'f000}, 0x42), 4) << "broadcast";
    EXPECT_EQ(take(0x42).size(), 4U);
    EXPECT_EQ(chip.signal_msi(Gpa{0xfee6'3000}, 0x43), 0) << "nobody there";
    lapic_write(1, LapicRegister::Svr, 0xff);
    EXPECT_EQ(chip.signal_msi(Gpa{0xfee0'1000}, 0x44), 0) << "blocked";
    EXPECT_EQ(chip.signal_msi(Gpa{0xfeef'f008}, 0x45), 1) << "redirection hint: one is enough";
    EXPECT_EQ(take(0x45).size(), 1U);
    EXPECT_EQ(chip.signal_msi(Gpa{0xfee0'2000}, 0x400), 1);
    EXPECT_EQ(vcpu[2].nmis, 1);
}

}  // namespace
}  // namespace vmm::test
