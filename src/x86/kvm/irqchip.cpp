// SPDX-License-Identifier: Apache-2.0

#include "x86/kvm/irqchip.hpp"

#include <bit>
#include <cstring>
#include <vector>

#include <fmt/format.h>

namespace vmm::x86::kvm {
namespace {

using irqchip::ChipId;
using irqchip::GsiRoute;
using irqchip::GsiRouteType;
using irqchip::IoApicState;
using irqchip::PicState;
using irqchip::PitState;

/// The table's head; the entries follow it.
struct RoutingHead {
    std::uint32_t count;
    std::uint32_t flags;
};
constexpr auto set_gsi_routing = _IOW(KVMIO, 0x6a, RoutingHead);

kvm_irq_routing_entry to_kvm(const GsiRoute& route) noexcept
{
    kvm_irq_routing_entry entry{};
    entry.gsi = route.gsi;
    entry.type = static_cast<std::uint32_t>(route.type);
    if (route.type == GsiRouteType::Msi) {
        entry.u.msi.address_lo = static_cast<std::uint32_t>(route.msi_address.value());
        entry.u.msi.address_hi = static_cast<std::uint32_t>(route.msi_address.value() >> 32U);
        entry.u.msi.data = route.msi_data;
    } else {
        entry.u.irqchip.irqchip = static_cast<std::uint32_t>(route.chip);
        entry.u.irqchip.pin = route.pin;
    }
    return entry;
}

/// A failed request, with KVM's errno and what may have been wrong.
template <typename T>
Result<int> request(const KvmVm& vm,
                    unsigned long number,
                    const char* name,
                    T argument,
                    const std::string& hint)
{
    const auto done = control(vm.fd(), number, name, argument);
    if (!done) {
        return Error{static_cast<std::errc>(done.error().errno_value()),
                     done.error().message() + "; " + hint};
    }
    return done;
}

Result<kvm_irqchip> get_chip(const KvmVm& vm, ChipId chip)
{
    kvm_irqchip out{};
    out.chip_id = static_cast<std::uint32_t>(chip);
    VMM_TRY_VOID(control(vm.fd(), KVM_GET_IRQCHIP, "KVM_GET_IRQCHIP", &out));
    return out;
}

Result<void> set_chip(const KvmVm& vm, const kvm_irqchip& chip)
{
    VMM_TRY_VOID(control(vm.fd(), KVM_SET_IRQCHIP, "KVM_SET_IRQCHIP", &chip));
    return success;
}

Result<void> irqfd(const KvmVm& vm, const kvm_irqfd& wanted)
{
    VMM_TRY_VOID(request(vm, KVM_IRQFD, "KVM_IRQFD", &wanted,
                         fmt::format("eventfd {} and GSI {}: an eventfd is assigned once, and a "
                                     "resampling one needs an I/O APIC of the kernel's",
                                     wanted.fd, wanted.gsi)));
    return success;
}

}  // namespace

Result<int> KvmIrqchip::set_line(std::uint32_t gsi, bool level)
{
    kvm_irq_level line{};
    line.irq = gsi;
    line.level = level ? 1 : 0;
    VMM_TRY_VOID(control(vm_->fd(), KVM_IRQ_LINE_STATUS, "KVM_IRQ_LINE_STATUS", &line));
    return line.status;
}

Result<int> KvmIrqchip::signal_msi(Gpa address, std::uint32_t data)
{
    kvm_msi message{};
    message.address_lo = static_cast<std::uint32_t>(address.value());
    message.address_hi = static_cast<std::uint32_t>(address.value() >> 32U);
    message.data = data;
    const int reached = ::ioctl(vm_->fd().get(), KVM_SIGNAL_MSI, &message);
    if (reached >= 0) {
        return reached;
    }
    // KVM's own -1, for a message to no CPU, looks like EPERM here.
    if (errno == EPERM) {
        return 0;
    }
    return Error::from_errno("KVM_SIGNAL_MSI");
}

Result<void> KvmIrqchip::set_routing(std::span<const GsiRoute> routes)
{
    std::vector<std::byte> table(sizeof(RoutingHead) +
                                 routes.size() * sizeof(kvm_irq_routing_entry));
    const RoutingHead head{static_cast<std::uint32_t>(routes.size()), 0};
    std::memcpy(table.data(), &head, sizeof head);
    std::byte* to = table.data() + sizeof head;
    for (const GsiRoute& route : routes) {
        const kvm_irq_routing_entry entry = to_kvm(route);
        std::memcpy(to, &entry, sizeof entry);
        to += sizeof entry;
    }
    VMM_TRY_VOID(request(*vm_, set_gsi_routing, "KVM_SET_GSI_ROUTING", table.data(),
                         "GSIs below 4096 lead to one message, or to one pin of each chip that "
                         "there is"));
    return success;
}

Result<void> KvmIrqchip::assign_irqfd(int eventfd, std::uint32_t gsi, std::optional<int> resamplefd)
{
    kvm_irqfd wanted{};
    wanted.fd = static_cast<std::uint32_t>(eventfd);
    wanted.gsi = gsi;
    if (resamplefd) {
        wanted.flags = KVM_IRQFD_FLAG_RESAMPLE;
        wanted.resamplefd = static_cast<std::uint32_t>(*resamplefd);
    }
    return irqfd(*vm_, wanted);
}

Result<void> KvmIrqchip::deassign_irqfd(int eventfd, std::uint32_t gsi)
{
    kvm_irqfd wanted{};
    wanted.fd = static_cast<std::uint32_t>(eventfd);
    wanted.gsi = gsi;
    wanted.flags = KVM_IRQFD_FLAG_DEASSIGN;
    return irqfd(*vm_, wanted);
}

// --- State.  The structs have KVM's layout: bit_cast checks the size.

Result<PicState> KvmIrqchip::pic(ChipId chip) const
{
    VMM_TRY(const kvm_irqchip state, get_chip(*vm_, chip));
    return std::bit_cast<PicState>(state.chip.pic);
}

Result<void> KvmIrqchip::set_pic(ChipId chip, const PicState& state)
{
    kvm_irqchip wanted{};
    wanted.chip_id = static_cast<std::uint32_t>(chip);
    wanted.chip.pic = std::bit_cast<kvm_pic_state>(state);
    return set_chip(*vm_, wanted);
}

Result<IoApicState> KvmIrqchip::io_apic() const
{
    VMM_TRY(const kvm_irqchip state, get_chip(*vm_, ChipId::IoApic));
    return std::bit_cast<IoApicState>(state.chip.ioapic);
}

Result<void> KvmIrqchip::set_io_apic(const IoApicState& state)
{
    kvm_irqchip wanted{};
    wanted.chip_id = static_cast<std::uint32_t>(ChipId::IoApic);
    wanted.chip.ioapic = std::bit_cast<kvm_ioapic_state>(state);
    return set_chip(*vm_, wanted);
}

Result<std::shared_ptr<bus::DeviceBase>> KvmIrqchip::create_pit()
{
    kvm_pit_config config{};
    config.flags = KVM_PIT_SPEAKER_DUMMY;  // Port 0x61, which the library's has too.
    VMM_TRY_VOID(control(vm_->fd(), KVM_CREATE_PIT2, "KVM_CREATE_PIT2", &config));
    has_pit_ = true;
    return std::shared_ptr<bus::DeviceBase>{};
}

Result<PitState> KvmIrqchip::pit() const
{
    kvm_pit_state2 state{};
    VMM_TRY_VOID(control(vm_->fd(), KVM_GET_PIT2, "KVM_GET_PIT2", &state));
    PitState out;
    static_assert(sizeof out.channels == sizeof state.channels);
    std::memcpy(out.channels.data(), state.channels, sizeof state.channels);
    out.flags = state.flags & irqchip::pit_speaker_data_on;
    return out;
}

Result<void> KvmIrqchip::set_pit(const PitState& state)
{
    kvm_pit_state2 wanted{};
    std::memcpy(wanted.channels, state.channels.data(), sizeof wanted.channels);
    wanted.flags = state.flags;
    VMM_TRY_VOID(control(vm_->fd(), KVM_SET_PIT2, "KVM_SET_PIT2", &wanted));
    return success;
}

Result<void> KvmIrqchip::set_pit_reinject(bool enabled)
{
    kvm_reinject_control wanted{};
    wanted.pit_reinject = enabled ? 1 : 0;
    VMM_TRY_VOID(control(vm_->fd(), KVM_REINJECT_CONTROL, "KVM_REINJECT_CONTROL", &wanted));
    return success;
}

}  // namespace vmm::x86::kvm
