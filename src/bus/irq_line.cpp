// SPDX-License-Identifier: Apache-2.0

#include "vmm/device/irq_line.hpp"

namespace vmm::device {

void IrqPin::set(bool level) noexcept
{
    const std::lock_guard lock{mutex_};
    // Away from the delivered level and back, unseen: what an edge-triggered input lives on.
    if (level != wanted_ && level == delivered_) {
        dip_ = true;
    }
    wanted_ = level;
}

void IrqPin::set_edge() noexcept
{
    set(false);
    set(true);
}

void IrqPin::deliver() noexcept
{
    std::unique_lock lock{mutex_};
    if (delivering_) {
        return;
    }
    delivering_ = true;
    while (delivered_ != wanted_ || dip_) {
        // A dip is worth telling only for a line that is up; a pulse on one that is down is an
        // interrupt the device took back before anybody saw it.
        const bool level = delivered_ == wanted_ ? !wanted_ : wanted_;
        const bool skip = delivered_ == wanted_ && !wanted_;
        dip_ = false;
        if (skip) {
            continue;
        }
        delivered_ = level;
        if (line_) {
            lock.unlock();
            line_(level);
            lock.lock();
        }
    }
    delivering_ = false;
}

}  // namespace vmm::device
