// SPDX-License-Identifier: Apache-2.0

/// @file
/// VM ioctls: writes that ring an eventfd or are put aside.

#include <cerrno>
#include <limits>

#include <linux/kvm.h>

#include "x86/shim/vm_file.hpp"

namespace vmm::shim {
namespace {

template <typename A>
long change_event(VmFile& file, const kvm_ioeventfd& wanted, A address)
{
    bus::IoEvent<A> event{.address = address, .length = wanted.len};
    if ((wanted.flags & KVM_IOEVENTFD_FLAG_DATAMATCH) != 0) {
        event.datamatch = wanted.datamatch;
    }
    return (wanted.flags & KVM_IOEVENTFD_FLAG_DEASSIGN) != 0
               ? result_of(file.vm().remove_ioeventfd(event, wanted.fd))
               : result_of(file.vm().add_ioeventfd(event, wanted.fd));
}

long ioeventfd(VmFile& file, const kvm_ioeventfd& wanted)
{
    constexpr std::uint32_t known =
        KVM_IOEVENTFD_FLAG_DATAMATCH | KVM_IOEVENTFD_FLAG_PIO | KVM_IOEVENTFD_FLAG_DEASSIGN;
    if ((wanted.flags & ~known) != 0) {
        return -EINVAL;
    }
    if ((wanted.flags & KVM_IOEVENTFD_FLAG_PIO) == 0) {
        return change_event(file, wanted, Gpa{wanted.addr});
    }
    if (wanted.addr > std::numeric_limits<Port::Value>::max()) {
        return -EINVAL;
    }
    return change_event(file, wanted, Port{static_cast<Port::Value>(wanted.addr)});
}

/// Calls `f` with the zone as a range of ports or of addresses; EINVAL if it is neither.
template <typename F>
long with_zone(const kvm_coalesced_mmio_zone& zone, F f)
{
    if (zone.pio > 1) {
        return -EINVAL;
    }
    if (zone.pio == 0) {
        const auto range = GpaRange::make(Gpa{zone.addr}, zone.size);
        return range ? result_of(f(*range)) : -EINVAL;
    }
    constexpr auto last = std::numeric_limits<Port::Value>::max();
    if (zone.addr > last || zone.size > last) {
        return -EINVAL;
    }
    const auto range = PortRange::make(Port{static_cast<Port::Value>(zone.addr)},
                                       static_cast<Port::Value>(zone.size));
    return range ? result_of(f(*range)) : -EINVAL;
}

/// A client may name zones before there is a vCPU, whose area has the ring: they are taken note of
/// and wait for it.
long register_coalesced(VmFile& file, const kvm_coalesced_mmio_zone& zone)
{
    return with_zone(zone, [&](auto range) { return file.vm().add_coalesced_zone(range); });
}

long unregister_coalesced(VmFile& file, const kvm_coalesced_mmio_zone& zone)
{
    return with_zone(zone, [&](auto range) { return file.vm().remove_coalesced_zone(range); });
}

constexpr Row<VmFile> rows[] = {
    {KVM_IOEVENTFD, "KVM_IOEVENTFD", reads<ioeventfd>},
    {KVM_REGISTER_COALESCED_MMIO, "KVM_REGISTER_COALESCED_MMIO", reads<register_coalesced>},
    {KVM_UNREGISTER_COALESCED_MMIO, "KVM_UNREGISTER_COALESCED_MMIO", reads<unregister_coalesced>},
};

}  // namespace

std::span<const Row<VmFile>> vm_io_rows() noexcept
{
    return rows;
}

}  // namespace vmm::shim
