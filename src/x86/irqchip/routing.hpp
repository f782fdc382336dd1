// SPDX-License-Identifier: Apache-2.0

/// @file
/// The GSI routing table.  KVM api.rst "KVM_SET_GSI_ROUTING".

#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <shared_mutex>
#include <span>
#include <vector>

#include "vmm/result.hpp"
#include "vmm/x86/irqchip_state.hpp"

namespace vmm::x86::irqchip {

/// Whether the PIC and the I/O APIC are in the library too.
enum class IrqchipMode : std::uint8_t {
    Full,   ///< KVM_CREATE_IRQCHIP.
    Split,  ///< KVM_CAP_SPLIT_IRQCHIP: only the local APICs.
};

/// Where GSIs lead.
///
/// Thread safety: every member from any thread; a reader sees either the whole table from before
/// or the whole one from after a change.
class RoutingTable final {
public:
    static constexpr std::size_t max_routes = 4096;
    static constexpr std::size_t max_routes_per_gsi = 3;  // One for each irqchip.

    struct Routes {
        std::array<GsiRoute, max_routes_per_gsi> entries{};
        std::size_t count{};

        [[nodiscard]] const GsiRoute* begin() const noexcept { return entries.data(); }
        [[nodiscard]] const GsiRoute* end() const noexcept { return entries.data() + count; }
    };

    explicit RoutingTable(IrqchipMode mode);

    /// Replaces the table.  EINVAL, and nothing changes, if an entry is not valid.
    Result<void> replace(std::span<const GsiRoute> routes);

    [[nodiscard]] Routes find(std::uint32_t gsi) const noexcept;
    [[nodiscard]] std::vector<GsiRoute> all() const;
    /// Whether a GSI below `end` leads to a level-triggered message with `vector`.
    [[nodiscard]] bool has_level_message(std::uint32_t end, std::uint8_t vector) const noexcept;

private:
    [[nodiscard]] Result<void> check(const GsiRoute& route) const;

    const IrqchipMode mode_;
    mutable std::shared_mutex mutex_;
    std::vector<GsiRoute> routes_;  // Sorted by GSI.
};

/// What KVM_CREATE_IRQCHIP sets up: GSI n to pin n of the PIC pair (0 to 15) and of the I/O APIC
/// (0 to 23).  That the PC's timer is on the I/O APIC's pin 2 is not in it.
[[nodiscard]] std::vector<GsiRoute> default_routing();

}  // namespace vmm::x86::irqchip
