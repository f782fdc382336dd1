// SPDX-License-Identifier: Apache-2.0

/// @file
/// Does to a running machine all that a VMM may do, at random and without a pause, and looks
/// whether the library answers right.  The guest must notice nothing.

#pragma once

#include <array>
#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <mutex>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "machine.hpp"

namespace endure {

/// What was done how often.
enum class Deed : std::uint8_t {
    Kick,        ///< A vCPU was made to leave the guest.
    VcpuState,   ///< All of a vCPU's state was read, written back, and read again.
    Pause,       ///< All vCPUs were stopped together.
    Chips,       ///< Interrupt controllers, PIT and clock were read and written back.
    DirtyCheck,  ///< The dirty log was compared with what had changed in memory.
    DirtyPage,   ///< A page that the log named.
    Layout,      ///< RAM was taken away and put back in other slots.
    LogToggle,   ///< Logging was turned off and on.
    Slot,        ///< A slot beside RAM was added, moved, changed or removed.
    Route,       ///< The routing table was replaced.
};
inline constexpr std::size_t deeds = static_cast<std::size_t>(Deed::Route) + 1;
[[nodiscard]] const char* name(Deed deed) noexcept;

class Disturber {
public:
    /// @param wanted  Bit n: `Deed` n is done.
    Disturber(vmm_linux::Machine& machine,
              const vmm::Kvm& kvm,
              std::uint64_t seed,
              std::uint64_t wanted);
    Disturber(const Disturber&) = delete;
    Disturber& operator=(const Disturber&) = delete;
    Disturber(Disturber&&) = delete;
    Disturber& operator=(Disturber&&) = delete;
    ~Disturber() { stop(); }

    void start();
    void stop();

    /// To be called on a vCPU's thread, between two runs.
    void between_runs(vmm::Vcpu& vcpu);

    [[nodiscard]] std::uint64_t count(Deed deed) const noexcept
    {
        return counts_[static_cast<std::size_t>(deed)].load(std::memory_order_relaxed);
    }

private:
    using Random = std::mt19937_64;

    void note(Deed deed, std::uint64_t times = 1) noexcept
    {
        counts_[static_cast<std::size_t>(deed)].fetch_add(times, std::memory_order_relaxed);
    }
    [[nodiscard]] bool wants(Deed deed) const noexcept
    {
        return (wanted_ >> static_cast<unsigned>(deed) & 1U) != 0U;
    }
    /// The library did wrong: that ends the machine.
    void wrong(const std::string& sentence);
    /// Waits for at most so long, less if it is to end; false if it is.
    [[nodiscard]] bool rest(Random& random, unsigned longest_us);

    void kick_at_random();
    void change_slots();
    void change_routes();
    void stop_the_world();

    /// Calls it while no vCPU runs.  False, and not called, if they do not stop.
    bool while_paused(const std::function<void()>& action);
    void do_while_paused(Deed deed, Random& random);
    void rewrite_vcpu(vmm::Vcpu& vcpu);
    void rewrite_chips();
    void log_ram(bool logs);
    void lay_out_ram(Random& random);
    void forget_changes();
    void compare_dirty_log(Random& random);
    [[nodiscard]] std::vector<std::uint64_t> take_dirty_log(const vmm::memory::MemoryRegion& region,
                                                            Random& random);

    vmm_linux::Machine& machine_;
    const std::vector<std::uint32_t> msrs_;
    const std::uint64_t seed_;
    const std::uint64_t wanted_;
    std::array<std::atomic<std::uint64_t>, deeds> counts_{};

    std::mutex mutex_;
    std::condition_variable changed_;
    bool pause_wanted_{};
    std::size_t parked_{};
    std::atomic<bool> stopping_{};

    // RAM as it is laid out now, and as it was when the log was last empty.
    std::vector<vmm::memory::MemoryRegion> ram_;
    std::vector<std::vector<std::byte>> before_;
    std::vector<std::thread> threads_;
};

}  // namespace endure
