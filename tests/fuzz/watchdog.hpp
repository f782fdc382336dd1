// SPDX-License-Identifier: Apache-2.0

/// @file
/// Kicks a vCPU for as long as this lives, so that no guest keeps a fuzzer.
///
/// Only where a guest that never exits is stopped depends on time; what it may do does not.

#pragma once

#include <chrono>
#include <mutex>
#include <optional>
#include <thread>

#include "vmm/vcpu.hpp"

namespace vmm::fuzz {

class Watchdog {
public:
    explicit Watchdog(Vcpu::Kicker kicker) { thread().watch(std::move(kicker)); }
    Watchdog(const Watchdog&) = delete;
    Watchdog& operator=(const Watchdog&) = delete;
    Watchdog(Watchdog&&) = delete;
    Watchdog& operator=(Watchdog&&) = delete;
    ~Watchdog() { thread().watch(std::nullopt); }

private:
    /// One for the process: a fuzzer runs a thousand guests a second.
    class Thread {
    public:
        void watch(std::optional<Vcpu::Kicker> kicker)
        {
            const std::lock_guard lock{mutex_};
            kicker_ = std::move(kicker);
        }

    private:
        std::mutex mutex_;
        std::optional<Vcpu::Kicker> kicker_;
        std::jthread thread_{[this](const std::stop_token& stop) {
            while (!stop.stop_requested()) {
                std::this_thread::sleep_for(std::chrono::microseconds{200});
                const std::lock_guard lock{mutex_};
                if (kicker_) {
                    kicker_->kick();
                }
            }
        }};
    };

    static Thread& thread()
    {
        static Thread thread;
        return thread;
    }
};

}  // namespace vmm::fuzz
