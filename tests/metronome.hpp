// SPDX-License-Identifier: Apache-2.0

/// @file
/// Kicks a vCPU again and again, so that a guest that loops for ever comes back.

#pragma once

#include <atomic>
#include <chrono>
#include <thread>
#include <utility>

#include "vmm/vcpu.hpp"

namespace vmm::test {

class Metronome {
public:
    Metronome(Vcpu::Kicker kicker, std::chrono::microseconds period)
        : thread_{[this, period, kicker = std::move(kicker)] {
              while (!done_.load()) {
                  std::this_thread::sleep_for(period);
                  kicker.kick();
              }
          }}
    {
    }
    Metronome(const Metronome&) = delete;
    Metronome& operator=(const Metronome&) = delete;
    Metronome(Metronome&&) = delete;
    Metronome& operator=(Metronome&&) = delete;
    ~Metronome()
    {
        done_.store(true);
        thread_.join();
    }

private:
    std::atomic<bool> done_{};
    std::thread thread_;
};

}  // namespace vmm::test
