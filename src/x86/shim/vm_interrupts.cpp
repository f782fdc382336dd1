// SPDX-License-Identifier: Apache-2.0

/// @file
/// VM ioctls: interrupt lines, messages, routing, irqfds.

#include <cerrno>
#include <vector>

#include <linux/kvm.h>

#include "x86/shim/lists.hpp"
#include "x86/shim/vm_file.hpp"

namespace vmm::shim {
namespace {

using x86::irqchip::ChipId;
using x86::irqchip::GsiRoute;

long irq_line_status(VmFile& file, kvm_irq_level& line)
{
    const auto reached = file.vm().set_irq_line(line.irq, line.level != 0);
    if (!reached) {
        return refused(reached.error());
    }
    line.status = *reached;
    return 0;
}

long irq_line(VmFile& file, const kvm_irq_level& line)
{
    kvm_irq_level copy = line;
    return irq_line_status(file, copy);
}

Gpa message_address(std::uint32_t low, std::uint32_t high) noexcept
{
    return Gpa{static_cast<std::uint64_t>(high) << 32U | low};
}

long signal_msi(VmFile& file, const kvm_msi& message)
{
    if (message.flags != 0) {
        return -EINVAL;
    }
    const auto reached =
        file.vm().signal_msi(message_address(message.address_lo, message.address_hi), message.data);
    return reached ? *reached : refused(reached.error());
}

long set_gsi_routing(VmFile& file, unsigned long argument)
{
    const UserAddress user{argument};
    RoutingHead head;
    if (!copy_in(&head, user, sizeof head)) {
        return -EFAULT;
    }
    constexpr std::uint32_t most = 4096;
    if (!file.has_irqchip || head.nr > most || head.flags != 0) {
        return -EINVAL;
    }
    std::vector<kvm_irq_routing_entry> entries;
    if (!copy_list_in(entries, user + sizeof head, head.nr)) {
        return -EFAULT;
    }
    std::vector<GsiRoute> routes;
    routes.reserve(entries.size());
    for (const kvm_irq_routing_entry& e : entries) {
        if (e.flags != 0) {
            return -EINVAL;
        }
        switch (e.type) {
        case KVM_IRQ_ROUTING_IRQCHIP:
            routes.push_back(x86::irqchip::pin_route(
                e.gsi, static_cast<ChipId>(e.u.irqchip.irqchip), e.u.irqchip.pin));
            break;
        case KVM_IRQ_ROUTING_MSI:
            routes.push_back(x86::irqchip::msi_route(
                e.gsi, message_address(e.u.msi.address_lo, e.u.msi.address_hi), e.u.msi.data));
            break;
        default: return -EINVAL;
        }
    }
    return result_of(file.vm().set_gsi_routing(routes));
}

long irqfd(VmFile& file, const kvm_irqfd& wanted)
{
    constexpr std::uint32_t known = KVM_IRQFD_FLAG_DEASSIGN | KVM_IRQFD_FLAG_RESAMPLE;
    if ((wanted.flags & ~known) != 0) {
        return -EINVAL;
    }
    const int fd = static_cast<int>(wanted.fd);
    if ((wanted.flags & KVM_IRQFD_FLAG_DEASSIGN) != 0) {
        return result_of(file.vm().deassign_irqfd(fd, wanted.gsi));
    }
    if ((wanted.flags & KVM_IRQFD_FLAG_RESAMPLE) != 0) {
        return result_of(
            file.vm().assign_irqfd(fd, wanted.gsi, static_cast<int>(wanted.resamplefd)));
    }
    return result_of(file.vm().assign_irqfd(fd, wanted.gsi));
}

constexpr Row<VmFile> rows[] = {
    {KVM_IRQ_LINE, "KVM_IRQ_LINE", reads<irq_line>},
    {KVM_IRQ_LINE_STATUS, "KVM_IRQ_LINE_STATUS", updates<irq_line_status>},
    {KVM_SIGNAL_MSI, "KVM_SIGNAL_MSI", reads<signal_msi>},
    {request::set_gsi_routing, "KVM_SET_GSI_ROUTING", set_gsi_routing},
    {KVM_IRQFD, "KVM_IRQFD", reads<irqfd>},
};

}  // namespace

std::span<const Row<VmFile>> vm_interrupt_rows() noexcept
{
    return rows;
}

}  // namespace vmm::shim
