// SPDX-License-Identifier: Apache-2.0

/// @file
/// Interrupts raised, and doorbells answered, through eventfd(2): the parts of KVM_IRQFD and
/// KVM_IOEVENTFD that are neither bus nor interrupt controller.

#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <utility>
#include <vector>

#include "vmm/event_loop.hpp"
#include "vmm/export.hpp"
#include "vmm/result.hpp"
#include "vmm/unique_fd.hpp"

namespace vmm::device {

/// A reference to an eventfd, which lives on when the descriptor it was made from is closed.
///
/// Thread safety: const members may be called from any thread.
class VMM_API EventFd final {
public:
    /// Errors: EBADF for no descriptor, EINVAL for one of another kind, EMFILE.
    [[nodiscard]] static Result<EventFd> from_fd(int fd);

    /// Adds 1 to its count, as a guest's write to an ioeventfd does.  A count that is full stays
    /// full.
    void signal() const noexcept;
    /// Takes its count, or nothing and 0; never waits.
    [[nodiscard]] std::uint64_t take() const noexcept;
    /// Whether both refer to one eventfd, through whatever descriptors.
    [[nodiscard]] bool is_same(const EventFd& other) const noexcept { return id_ == other.id_; }
    [[nodiscard]] int fd() const noexcept { return fd_.get(); }

private:
    EventFd(UniqueFd fd, std::uint64_t id) noexcept : fd_{std::move(fd)}, id_{id} {}

    UniqueFd fd_;
    std::uint64_t id_;  // The kernel's number for the eventfd.
};

/// The eventfds by which a virtual machine's interrupts are raised.  KVM api.rst "KVM_IRQFD".
///
/// Thread safety: all members may be called from any thread.
class VMM_API IrqfdTable final {
public:
    /// Sets the level of a GSI, as this table's own source of it; called on the loop's thread and
    /// in `acknowledge()`, under no lock.
    using SetGsi = std::function<void(std::uint32_t gsi, bool level)>;

    using PulseGsi = std::function<void(std::uint32_t gsi)>;

    /// @param loop   Must outlive this.
    /// @param pulse  Raises and lowers a GSI in one, where that is another thing than `set_gsi`
    ///               twice: whoever changes where GSIs lead may come between the two.
    IrqfdTable(EventLoop& loop, SetGsi set_gsi, PulseGsi pulse = {});
    IrqfdTable(const IrqfdTable&) = delete;
    IrqfdTable& operator=(const IrqfdTable&) = delete;
    IrqfdTable(IrqfdTable&&) = delete;
    IrqfdTable& operator=(IrqfdTable&&) = delete;
    ~IrqfdTable();

    /// From now on a signal of `eventfd`, also one given before, pulses `gsi`.
    ///
    /// Errors: EBADF, EINVAL (not an eventfd), EBUSY for an eventfd assigned already, to whatever
    /// GSI.
    [[nodiscard]] Result<void> assign(int eventfd, std::uint32_t gsi);

    /// For level-triggered interrupts: a signal of `eventfd` raises `gsi` until it is
    /// acknowledged, which signals `resamplefd`.
    ///
    /// Errors: as `assign()`.
    [[nodiscard]] Result<void> assign_resample(int eventfd, std::uint32_t gsi, int resamplefd);

    /// Undoes `assign()`; no signal is acted on after this returned.  A pair that is not assigned
    /// is fine.
    ///
    /// Errors: EBADF, EINVAL.
    [[nodiscard]] Result<void> deassign(int eventfd, std::uint32_t gsi);

    /// The guest ended the interrupt of `gsi` (EOI): lowers it and asks its resampling irqfds to
    /// look whether they still need it.
    void acknowledge(std::uint32_t gsi);

private:
    struct Irqfd;
    [[nodiscard]] Result<void> add(int eventfd, std::uint32_t gsi, std::optional<EventFd> resample);
    void on_signal(const Irqfd& irqfd) const;

    EventLoop& loop_;
    const SetGsi set_gsi_;
    const PulseGsi pulse_;
    std::mutex mutex_;
    std::vector<std::shared_ptr<Irqfd>> irqfds_;
};

}  // namespace vmm::device
