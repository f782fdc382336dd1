// SPDX-License-Identifier: Apache-2.0

#include "core/irqfds.hpp"

namespace vmm::core {

Irqfds::Irqfds(EventLoop& loop, x86::irqchip::Irqchip& irqchip)
    : irqchip_{irqchip},
      table_{std::make_shared<device::IrqfdTable>(
          loop,
          [&irqchip](std::uint32_t gsi, bool level) {
              irqchip.set_line(gsi, x86::irqchip::irq_source_resample, level);
          },
          [&irqchip](std::uint32_t gsi) { irqchip.pulse(gsi, x86::irqchip::irq_source_resample); })}
{
}

Irqfds::~Irqfds()
{
    for (const auto& [gsi, number] : notifiers_) {
        irqchip_.remove_ack_notifier(number);
    }
}

Result<void> Irqfds::assign(int eventfd, std::uint32_t gsi)
{
    return table_->assign(eventfd, gsi);
}

Result<void> Irqfds::assign_resample(int eventfd, std::uint32_t gsi, int resamplefd)
{
    watch_end_of_interrupt(gsi);
    return table_->assign_resample(eventfd, gsi, resamplefd);
}

Result<void> Irqfds::deassign(int eventfd, std::uint32_t gsi)
{
    return table_->deassign(eventfd, gsi);
}

void Irqfds::watch_end_of_interrupt(std::uint32_t gsi)
{
    const std::lock_guard lock{mutex_};
    if (notifiers_.count(gsi) != 0U) {
        return;
    }
    // Weak: a notification may be on its way while the VM ends.
    notifiers_[gsi] =
        irqchip_.add_ack_notifier(gsi, [gsi, weak = std::weak_ptr<device::IrqfdTable>{table_}] {
            if (const auto table = weak.lock()) {
                table->acknowledge(gsi);
            }
        });
}

}  // namespace vmm::core
