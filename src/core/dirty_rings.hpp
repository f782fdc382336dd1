// SPDX-License-Identifier: Apache-2.0

/// @file
/// The dirty rings of a VM's vCPUs.

#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <span>
#include <vector>

#include "vmm/memory/dirty_ring.hpp"
#include "vmm/memory/memslots.hpp"
#include "x86/irqchip/irqchip.hpp"

namespace vmm::core {

class DirtyRings;

/// One vCPU's.
struct VcpuDirtyRing {
    const DirtyRings* owner;
    x86::irqchip::VcpuSink* vcpu;  ///< Is kicked when the ring is full.
    memory::DirtyRing ring;

    VcpuDirtyRing(const DirtyRings& rings,
                  x86::irqchip::VcpuSink& writer,
                  std::span<memory::DirtyGfn> entries) noexcept
        : owner{&rings},
          vcpu{&writer},
          ring{entries}
    {
    }
};

/// A page is in a ring while its bit in the slot's bitmap is set, and so in one ring only.
///
/// Thread safety: all members from any thread.  Lock order: `mutex_`, then a ring's; nobody who has
/// them waits for the readers of the slot table, since a reader may want them.
class DirtyRings final : public memory::DirtySink {
public:
    /// While it lives, what this thread writes is logged into `ring`; null: as before.
    class Logging {
    public:
        explicit Logging(VcpuDirtyRing* ring) noexcept : ring_{ring}
        {
            if (ring_ != nullptr) {
                begin();
            }
        }
        Logging(const Logging&) = delete;
        Logging& operator=(const Logging&) = delete;
        Logging(Logging&&) = delete;
        Logging& operator=(Logging&&) = delete;
        ~Logging()
        {
            if (ring_ != nullptr) {
                end();
            }
        }

    private:
        void begin() noexcept;
        void end() noexcept;

        VcpuDirtyRing* ring_;
        VcpuDirtyRing* before_{};
    };

    DirtyRings(memory::MemslotTable<>& slots, std::uint32_t entries) noexcept
        : slots_{slots},
          entries_{entries}
    {
    }

    [[nodiscard]] std::uint32_t entries() const noexcept { return entries_; }

    [[nodiscard]] std::shared_ptr<VcpuDirtyRing> add(x86::irqchip::VcpuSink& vcpu,
                                                     std::span<memory::DirtyGfn> entries);
    void remove(const std::shared_ptr<VcpuDirtyRing>& ring) noexcept;

    void page_dirtied(std::uint16_t address_space,
                      std::uint32_t slot,
                      std::uint64_t page) noexcept override;

    /// Frees what was collected, and clears its bits.  @return how many entries.
    [[nodiscard]] std::uint32_t reset();

private:
    void log_lost(const memory::MemslotTable<>::Reader& table) noexcept;

    memory::MemslotTable<>& slots_;
    const std::uint32_t entries_;
    /// Some bit is set whose page is in no ring: there was no room, or no vCPU.
    std::atomic<bool> lost_{};
    std::mutex mutex_;
    std::vector<std::shared_ptr<VcpuDirtyRing>> rings_;
};

}  // namespace vmm::core
