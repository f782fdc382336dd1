// SPDX-License-Identifier: Apache-2.0

/// @file
/// The software engine as a runner of cases: a machine whose user code sees what user code of the
/// host sees, through the engine's own boundary and run loop.

#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "oracle/case.hpp"
#include "x86/engine.hpp"
#include "x86/soft/translation_mode.hpp"

namespace vmm::oracle {

class SoftMachine {
public:
    explicit SoftMachine(x86::soft::TranslationMode mode);
    ~SoftMachine();
    SoftMachine(const SoftMachine&) = delete;
    SoftMachine& operator=(const SoftMachine&) = delete;
    SoftMachine(SoftMachine&&) = delete;
    SoftMachine& operator=(SoftMachine&&) = delete;

    /// What memory holds before each further case, but for its patches.
    void set_image(const Arena& image);
    void run(const Case& each, Outcome& outcome);
    /// What lies around the exits: INT3 at first.
    void fill_exit_page(std::uint8_t filler);
    static constexpr std::uint8_t exit_filler = 0xcc;

    /// Ends the case being run.  Async-signal-safe, any thread.
    void interrupt() noexcept { vcpu_->request_exit(); }

    [[nodiscard]] x86::soft::TranslationMode mode() const noexcept { return mode_; }
    [[nodiscard]] x86::CpuState& state() noexcept { return vcpu_->state(); }

private:
    class Memory;
    class Host;

    void build_tables();
    void enter_kernel();
    void write_code(const Case& each);
    void patch(std::uint32_t offset, const std::uint8_t* bytes, std::uint32_t size);
    void load(const Case& each);
    void load_segments(const State& in);
    void collect(const x86::EngineExit& exit, Outcome& outcome);
    void code_written();

    const x86::soft::TranslationMode mode_;
    std::unique_ptr<Memory> memory_;
    std::unique_ptr<Host> host_;
    std::unique_ptr<x86::EngineVm> vm_;
    std::unique_ptr<x86::EngineVcpu> vcpu_;
    Arena image_{};
    Arena before_{};
    std::uint32_t code_offset_{};  ///< Of the code in `before_`.
    std::uint32_t code_size_{};
};

}  // namespace vmm::oracle
