// SPDX-License-Identifier: Apache-2.0

/// @file
/// VM ioctls: the interrupt controllers and the PIT, and their state.

#include <bit>
#include <cerrno>
#include <cstddef>
#include <cstring>

#include <linux/kvm.h>

#include "x86/shim/vm_file.hpp"

namespace vmm::shim {
namespace {

using x86::irqchip::ChipId;
using x86::irqchip::IoApicState;
using x86::irqchip::PicState;
using x86::irqchip::PitChannelState;
using x86::irqchip::PitState;

static_assert(sizeof(kvm_pic_state) == sizeof(PicState) &&
              offsetof(kvm_pic_state, elcr) == offsetof(PicState, elcr));
static_assert(sizeof(kvm_ioapic_state) == sizeof(IoApicState) &&
              offsetof(kvm_ioapic_state, redirtbl) == offsetof(IoApicState, redirection_table));
static_assert(sizeof(kvm_pit_channel_state) == sizeof(PitChannelState) &&
              offsetof(kvm_pit_channel_state, mode) == offsetof(PitChannelState, mode) &&
              offsetof(kvm_pit_channel_state, count_load_time) ==
                  offsetof(PitChannelState, count_load_time));

long create_irqchip(VmFile& file, unsigned long /*argument*/)
{
    const long result = result_of(file.vm().create_irqchip());
    if (result == 0) {
        file.has_irqchip = true;
    }
    return result;
}

template <typename To, typename From>
long store(To& to, const Result<From>& from)
{
    if (!from) {
        return refused(from.error());
    }
    std::memcpy(&to, &*from, sizeof to);
    return 0;
}

long get_irqchip(VmFile& file, kvm_irqchip& chip)
{
    switch (chip.chip_id) {
    case KVM_IRQCHIP_PIC_MASTER:
    case KVM_IRQCHIP_PIC_SLAVE:
        return store(chip.chip.pic, file.vm().pic(static_cast<ChipId>(chip.chip_id)));
    case KVM_IRQCHIP_IOAPIC: return store(chip.chip.ioapic, file.vm().io_apic());
    default: return file.vm().io_apic() ? -EINVAL : -ENXIO;
    }
}

long set_irqchip(VmFile& file, const kvm_irqchip& chip)
{
    switch (chip.chip_id) {
    case KVM_IRQCHIP_PIC_MASTER:
    case KVM_IRQCHIP_PIC_SLAVE:
        return result_of(file.vm().set_pic(static_cast<ChipId>(chip.chip_id),
                                           std::bit_cast<PicState>(chip.chip.pic)));
    case KVM_IRQCHIP_IOAPIC:
        return result_of(file.vm().set_io_apic(std::bit_cast<IoApicState>(chip.chip.ioapic)));
    default: return file.vm().io_apic() ? -EINVAL : -ENXIO;
    }
}

long create_pit(VmFile& file, unsigned long /*argument*/)
{
    return result_of(file.vm().create_pit());
}

/// The speaker is there whether the client asks for a dummy of it or not, as with KVM.
long create_pit2(VmFile& file, const kvm_pit_config& /*config*/)
{
    return result_of(file.vm().create_pit());
}

long get_pit2(VmFile& file, kvm_pit_state2& out)
{
    const auto state = file.vm().pit();
    if (!state) {
        return refused(state.error());
    }
    std::memcpy(out.channels, state->channels.data(), sizeof out.channels);
    out.flags = state->flags;
    return 0;
}

long set_pit2(VmFile& file, const kvm_pit_state2& wanted)
{
    PitState state;
    std::memcpy(state.channels.data(), wanted.channels, sizeof wanted.channels);
    state.flags = wanted.flags;
    return result_of(file.vm().set_pit(state));
}

long get_pit(VmFile& file, kvm_pit_state& out)
{
    kvm_pit_state2 whole{};
    const long result = get_pit2(file, whole);
    std::memcpy(out.channels, whole.channels, sizeof out.channels);
    return result;
}

long set_pit(VmFile& file, const kvm_pit_state& wanted)
{
    kvm_pit_state2 whole{};
    std::memcpy(whole.channels, wanted.channels, sizeof wanted.channels);
    return set_pit2(file, whole);
}

long reinject_control(VmFile& file, const kvm_reinject_control& wanted)
{
    return result_of(file.vm().set_pit_reinject(wanted.pit_reinject != 0));
}

constexpr Row<VmFile> rows[] = {
    {KVM_CREATE_IRQCHIP, "KVM_CREATE_IRQCHIP", create_irqchip},
    {KVM_GET_IRQCHIP, "KVM_GET_IRQCHIP", updates<get_irqchip>},
    // The header has it the wrong way round, and so does the ABI.
    {KVM_SET_IRQCHIP, "KVM_SET_IRQCHIP", reads<set_irqchip>},
    {KVM_CREATE_PIT, "KVM_CREATE_PIT", create_pit},
    {KVM_CREATE_PIT2, "KVM_CREATE_PIT2", reads<create_pit2>},
    {KVM_GET_PIT, "KVM_GET_PIT", writes<get_pit>},
    {KVM_SET_PIT, "KVM_SET_PIT", reads<set_pit>},
    {KVM_GET_PIT2, "KVM_GET_PIT2", writes<get_pit2>},
    {KVM_SET_PIT2, "KVM_SET_PIT2", reads<set_pit2>},
    {KVM_REINJECT_CONTROL, "KVM_REINJECT_CONTROL", reads<reinject_control>},
};

}  // namespace

std::span<const Row<VmFile>> vm_irqchip_rows() noexcept
{
    return rows;
}

}  // namespace vmm::shim
