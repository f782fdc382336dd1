// SPDX-License-Identifier: Apache-2.0

/// @file
/// Writes that need no answer, and interrupts by eventfd, through the public API.

#include <array>
#include <cerrno>
#include <cstdint>

#include <sys/eventfd.h>

#include "small_vm.hpp"
#include "vmm/unique_fd.hpp"

namespace vmm {
namespace {

using test::SmallVm;

class VmIo : public test::EveryEngine {};
INSTANTIATE_TEST_SUITE_P(Engines, VmIo, test::engines, test::engine_name);
class VmIoIrqchip : public VmIo {};
INSTANTIATE_TEST_SUITE_P(Engines, VmIoIrqchip, test::irqchips, test::engine_name);

eventfd_t take(const UniqueFd& event)
{
    eventfd_t count = 0;
    return ::eventfd_read(event.get(), &count) == 0 ? count : 0;
}

TEST_P(VmIo, AnIoeventfdOfAPortTakesOnlyTheValueItAsksFor)
{
    SmallVm guest{engine()};
    const UniqueFd event{::eventfd(0, EFD_NONBLOCK)};
    const bus::IoEvent<Port> seven{.address = Port{0x55}, .length = 1, .datamatch = 7};
    guest.vm().add_ioeventfd(seven, event.get()).value();
    // mov $7, %al; out %al, $0x55; out %al, $0x55; inc %ax; out %al, $0x55; hlt
    guest.place(SmallVm::code_at, {0xb0, 7, 0xe6, 0x55, 0xe6, 0x55, 0x40, 0xe6, 0x55, 0xf4});
    Vcpu vcpu = guest.vcpu();
    Exit exit = vcpu.run().value();
    const auto* out = exit.get_if<PortWrite>();
    ASSERT_NE(out, nullptr) << exit.name();
    EXPECT_EQ(out->data[0], std::byte{8});
    EXPECT_EQ(take(event), 2U);
    guest.vm().remove_ioeventfd(seven, event.get()).value();
    EXPECT_EQ(guest.vm().remove_ioeventfd(seven, event.get()).error().errno_value(), ENOENT);
    EXPECT_TRUE(vcpu.run().value().is<Halt>());
}

TEST_P(VmIo, AnIoeventfdAddedLaterIsMet)
{
    SmallVm guest{engine()};
    const UniqueFd event{::eventfd(0, EFD_NONBLOCK)};
    guest.place(SmallVm::code_at, {0xe6, 0x55, 0xe6, 0x55, 0xf4});
    Vcpu vcpu = guest.vcpu();
    ASSERT_TRUE(vcpu.run().value().is<PortWrite>());
    guest.vm()
        .add_ioeventfd(bus::IoEvent<Port>{.address = Port{0x55}, .length = 1}, event.get())
        .value();
    EXPECT_TRUE(vcpu.run().value().is<Halt>());
    EXPECT_EQ(take(event), 1U);
}

TEST_P(VmIo, AnIoeventfdOfAnAddressTakesOnlyItsLength)
{
    SmallVm guest{engine()};
    const UniqueFd event{::eventfd(0, EFD_NONBLOCK)};
    guest.vm()
        .add_ioeventfd(bus::IoEvent<Gpa>{.address = Gpa{0x10'0000}, .length = 2}, event.get())
        .value();
    // mov $0xffff, %ax; mov %ax, %ds; mov %ax, 16; mov %al, 16; hlt
    guest.place(SmallVm::code_at,
                {0xb8, 0xff, 0xff, 0x8e, 0xd8, 0xa3, 0x10, 0, 0xa2, 0x10, 0, 0xf4});
    Vcpu vcpu = guest.vcpu();
    Exit exit = vcpu.run().value();
    const auto* write = exit.get_if<MmioWrite>();
    ASSERT_NE(write, nullptr) << exit.name();
    EXPECT_EQ(write->data.size(), 1U);
    EXPECT_EQ(take(event), 1U);
}

TEST_P(VmIo, CoalescedWritesWaitInTheRingAndAFullRingLeaves)
{
    SmallVm guest{engine()};
    bus::CoalescedPage page;
    guest.vm().add_coalesced_zone(*PortRange::make(Port{0x80}, 2)).value();
    guest.vm().set_coalesced_page(page).value();
    EXPECT_EQ(guest.vm().set_coalesced_page(page).error().errno_value(), EEXIST);
    // mov $170, %cx; 1: out %al, $0x80; inc %ax; loop 1b; hlt
    guest.place(SmallVm::code_at, {0xb9, 170, 0, 0xe6, 0x80, 0x40, 0xe2, 0xfb, 0xf4});
    Vcpu vcpu = guest.vcpu();
    vcpu.set_regs({.rsp = 0x8000, .rip = SmallVm::code_at, .rflags = 2});
    Exit exit = vcpu.run().value();
    const auto* out = exit.get_if<PortWrite>();
    ASSERT_NE(out, nullptr) << exit.name();
    EXPECT_EQ(out->data[0], std::byte{169}) << "one entry of the 170 stays free";
    unsigned expected = 0;
    bus::CoalescedRing{page}.drain([&](const bus::CoalescedEntry& entry) {
        EXPECT_EQ(entry.pio, 1U);
        EXPECT_EQ(entry.phys_addr, 0x80U);
        EXPECT_EQ(std::to_integer<unsigned>(entry.data[0]), expected++);
    });
    EXPECT_EQ(expected, 169U);
    guest.vm().remove_coalesced_zone(*PortRange::make(Port{0x80}, 2)).value();
    EXPECT_TRUE(vcpu.run().value().is<Halt>());
}

TEST_P(VmIoIrqchip, IrqfdsNeedAnIrqchip)
{
    SmallVm guest{options()};
    const UniqueFd event{::eventfd(0, EFD_NONBLOCK)};
    EXPECT_EQ(guest.vm().assign_irqfd(event.get(), 4).error().errno_value(), EINVAL);
    EXPECT_EQ(guest.vm().io_apic().error().errno_value(), ENXIO);
    EXPECT_EQ(guest.vm().pit().error().errno_value(), ENXIO);
}

TEST_P(VmIoIrqchip, AResamplingIrqfdIsToldOfTheEndOfItsInterrupt)
{
    SmallVm guest{options(), SmallVm::Irqchip::Full};
    // PIC: vectors from 0x20, only IRQ 5, level-triggered by ELCR; sti; hlt; jmp back to hlt.
    guest.place(SmallVm::code_at, {0xba, 0xd0, 0x04, 0xb0, 0x20, 0xee, 0xb0, 0x11, 0xe6, 0x20,
                                   0xb0, 0x20, 0xe6, 0x21, 0xb0, 0x04, 0xe6, 0x21, 0xb0, 0x01,
                                   0xe6, 0x21, 0xb0, 0xdf, 0xe6, 0x21, 0xfb, 0xf4, 0xeb, 0xfd});
    guest.place(0x25 * 4, {0x00, 0x20, 0, 0});
    // Handler: mov $0x20, %al; out %al, $0x20 (EOI); out %al, $0x33; iret
    guest.place(0x2000, {0xb0, 0x20, 0xe6, 0x20, 0xe6, 0x33, 0xcf});
    Vcpu vcpu = guest.vcpu();
    const UniqueFd raise{::eventfd(0, EFD_NONBLOCK)};
    const UniqueFd resample{::eventfd(0, EFD_NONBLOCK)};
    guest.vm().assign_irqfd(raise.get(), 5, resample.get()).value();
    EXPECT_EQ(guest.vm().assign_irqfd(raise.get(), 6).error().errno_value(), EBUSY);
    ASSERT_EQ(::eventfd_write(raise.get(), 1), 0);
    ASSERT_TRUE(vcpu.run().value().is<PortWrite>());
    EXPECT_EQ(take(resample), 1U) << "the handler has ended the interrupt";
    guest.vm().deassign_irqfd(raise.get(), 5).value();
}

TEST_P(VmIoIrqchip, IrqchipAndPitKeepWhatIsSet)
{
    SmallVm guest{options(), SmallVm::Irqchip::Full};
    Vm& vm = guest.vm();
    vm.create_pit().value();
    auto pic = vm.pic(x86::irqchip::ChipId::PicSlave).value();
    pic.imr = 0xa5;
    pic.irq_base = 0x70;
    vm.set_pic(x86::irqchip::ChipId::PicSlave, pic).value();
    EXPECT_EQ(vm.pic(x86::irqchip::ChipId::PicSlave).value().imr, 0xa5U);
    EXPECT_EQ(vm.pic(x86::irqchip::ChipId::IoApic).error().errno_value(), EINVAL);
    auto io_apic = vm.io_apic().value();
    io_apic.redirection_table[3] = 0x1'0033;
    vm.set_io_apic(io_apic).value();
    EXPECT_EQ(vm.io_apic().value().redirection_table[3], 0x1'0033U);
    auto pit = vm.pit().value();
    pit.channels[0].mode = 2;
    pit.channels[0].count = 0x1234;
    vm.set_pit(pit).value();
    EXPECT_EQ(vm.pit().value().channels[0].count, 0x1234U);
    vm.set_pit_reinject(false).value();
}

}  // namespace
}  // namespace vmm
