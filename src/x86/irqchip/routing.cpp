// SPDX-License-Identifier: Apache-2.0

#include "x86/irqchip/routing.hpp"

#include <algorithm>
#include <mutex>
#include <string>
#include <utility>

namespace vmm::x86::irqchip {
namespace {

constexpr std::uint32_t pic_pin_count = 8;

Error refusal(const GsiRoute& route, const std::string& reason)
{
    return {std::errc::invalid_argument,
            "KVM_SET_GSI_ROUTING: GSI " + std::to_string(route.gsi) + ": " + reason};
}

bool by_gsi(const GsiRoute& a, const GsiRoute& b) noexcept
{
    return a.gsi < b.gsi;
}

}  // namespace

std::vector<GsiRoute> default_routing()
{
    std::vector<GsiRoute> routes;
    for (std::uint32_t gsi = 0; gsi < ioapic_pin_count; ++gsi) {
        routes.push_back(pin_route(gsi, ChipId::IoApic, gsi));
        if (gsi < 2U * pic_pin_count) {
            const ChipId chip = gsi < pic_pin_count ? ChipId::PicMaster : ChipId::PicSlave;
            routes.push_back(pin_route(gsi, chip, gsi % pic_pin_count));
        }
    }
    return routes;
}

RoutingTable::RoutingTable(IrqchipMode mode) : mode_{mode}
{
    if (mode == IrqchipMode::Full) {
        routes_ = default_routing();
    }
}

Result<void> RoutingTable::check(const GsiRoute& route) const
{
    if (route.gsi >= max_routes) {
        return refusal(route, "GSIs go from 0 to " + std::to_string(max_routes - 1U));
    }
    switch (route.type) {
    case GsiRouteType::Msi:
        if (((route.msi_address.value() >> 32U) & 0xffU) != 0U) {
            return refusal(route, "MSI address bits 39:32 must be 0");
        }
        return success;
    case GsiRouteType::Irqchip: break;
    default: return refusal(route, "unknown type of route");  // The caller's number.
    }
    if (mode_ == IrqchipMode::Split) {
        return refusal(route, "a split irqchip has no pins; route to an MSI");
    }
    std::uint32_t pins = 0;
    switch (route.chip) {
    case ChipId::PicMaster:
    case ChipId::PicSlave: pins = pic_pin_count; break;
    case ChipId::IoApic: pins = ioapic_pin_count; break;
    default:
        return refusal(route,
                       "unknown irqchip " + std::to_string(static_cast<std::uint32_t>(route.chip)));
    }
    if (route.pin >= pins) {
        return refusal(route, "pin " + std::to_string(route.pin) + " of a chip with " +
                                  std::to_string(pins) + " pins");
    }
    return success;
}

Result<void> RoutingTable::replace(std::span<const GsiRoute> routes)
{
    if (routes.size() > max_routes) {
        return Error{std::errc::invalid_argument,
                     "KVM_SET_GSI_ROUTING: " + std::to_string(routes.size()) + " routes; at most " +
                         std::to_string(max_routes) + " are possible"};
    }
    for (const GsiRoute& route : routes) {
        VMM_TRY_VOID(check(route));
    }
    std::vector<GsiRoute> sorted{routes.begin(), routes.end()};
    std::stable_sort(sorted.begin(), sorted.end(), by_gsi);
    for (std::size_t i = 0; i < sorted.size(); ++i) {
        for (std::size_t j = i + 1; j < sorted.size() && sorted[j].gsi == sorted[i].gsi; ++j) {
            if (sorted[i].type == GsiRouteType::Msi || sorted[j].type == GsiRouteType::Msi) {
                return refusal(sorted[i], "an MSI must be its only route");
            }
            if (sorted[i].chip == sorted[j].chip) {
                return refusal(sorted[i], "two routes to the same irqchip");
            }
        }
    }
    const std::unique_lock lock{mutex_};
    routes_.swap(sorted);
    return success;
}

RoutingTable::Routes RoutingTable::find(std::uint32_t gsi) const noexcept
{
    Routes found;
    const std::shared_lock lock{mutex_};
    GsiRoute key;
    key.gsi = gsi;
    const auto [first, last] = std::equal_range(routes_.begin(), routes_.end(), key, by_gsi);
    for (auto route = first; route != last && found.count < max_routes_per_gsi; ++route) {
        found.entries[found.count++] = *route;
    }
    return found;
}

bool RoutingTable::has_level_message(std::uint32_t end, std::uint8_t vector) const noexcept
{
    // SDM Vol. 3A "Message Data Register Format".
    constexpr std::uint32_t vector_bits = 0xff;
    constexpr std::uint32_t level_triggered = 1U << 15U;
    const std::shared_lock lock{mutex_};
    for (const GsiRoute& route : routes_) {
        if (route.gsi >= end) {
            break;
        }
        if (route.type == GsiRouteType::Msi && (route.msi_data & level_triggered) != 0U &&
            (route.msi_data & vector_bits) == vector) {
            return true;
        }
    }
    return false;
}

std::vector<GsiRoute> RoutingTable::all() const
{
    const std::shared_lock lock{mutex_};
    return routes_;
}

}  // namespace vmm::x86::irqchip
