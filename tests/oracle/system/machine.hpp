// SPDX-License-Identifier: Apache-2.0

/// @file
/// Runs a generated guest on two engines in lockstep.

#pragma once

#include <cstdlib>
#include <memory>
#include <optional>
#include <string>
#include <thread>

#include "oracle/system/generator.hpp"
#include "vmm/vmm.hpp"

namespace vmm::oracle {

struct Outcome {
    enum class Kind : std::uint8_t {
        Agree,
        Differ,
        Unsupported,  ///< KVM met what its emulator does not know, or came to no exit in a second.
        Endless,      ///< The guest loops: kicked, and compared up to then.
    } kind{};
    std::string report{};
};

class Machine {
public:
    /// `options` has a second engine.
    explicit Machine(const KvmOptions& options);
    ~Machine();
    Machine(const Machine&) = delete;
    Machine& operator=(const Machine&) = delete;
    Machine(Machine&&) = delete;
    Machine& operator=(Machine&&) = delete;

    [[nodiscard]] const Offer& offer() const noexcept { return offer_; }
    [[nodiscard]] Outcome run(const Guest& guest);

private:
    struct Instance;

    void trust_judge();
    void start();
    void set_state(const Guest& guest);
    [[nodiscard]] Outcome follow();

    KvmOptions options_;
    Offer offer_;
    std::unique_ptr<std::byte, decltype(&std::free)> memory_;
    std::optional<Kvm> kvm_;
    std::unique_ptr<Instance> instance_;
};

/// The guest without the pieces that its difference does not need.
[[nodiscard]] Guest reduce(Machine& machine, Guest guest);

}  // namespace vmm::oracle
