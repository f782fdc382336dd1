// SPDX-License-Identifier: Apache-2.0

/// @file
/// The irqfds of a VM: eventfds wired to its irqchip (KVM_IRQFD).

#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <mutex>

#include "vmm/device/irqfd.hpp"
#include "x86/irqchip/irqchip.hpp"

namespace vmm::core {

/// Thread safety: all members from any thread.
class Irqfds {
public:
    /// Both must outlive this.
    Irqfds(EventLoop& loop, x86::irqchip::Irqchip& irqchip);
    Irqfds(const Irqfds&) = delete;
    Irqfds& operator=(const Irqfds&) = delete;
    Irqfds(Irqfds&&) = delete;
    Irqfds& operator=(Irqfds&&) = delete;
    ~Irqfds();

    Result<void> assign(int eventfd, std::uint32_t gsi);
    Result<void> assign_resample(int eventfd, std::uint32_t gsi, int resamplefd);
    Result<void> deassign(int eventfd, std::uint32_t gsi);

private:
    void watch_end_of_interrupt(std::uint32_t gsi);

    x86::irqchip::Irqchip& irqchip_;
    const std::shared_ptr<device::IrqfdTable> table_;
    std::mutex mutex_;
    std::map<std::uint32_t, std::uint64_t> notifiers_;  // By GSI; they stay until the VM ends.
};

}  // namespace vmm::core
