// SPDX-License-Identifier: Apache-2.0

#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "vmm/vmm.hpp"

namespace vmm_linux {

struct Options {
    std::string kernel;
    std::string initrd;
    std::string append{"console=ttyS0"};
    std::uint64_t memory_bytes{512U << 20U};
    std::uint32_t cpus{1};
    vmm::Engine engine{vmm::Engine::Auto};
    std::optional<vmm::Engine> lockstep{};  ///< A second engine to compare the first with.
    vmm::SoftMode soft_mode{vmm::SoftMode::Translator};
    std::optional<vmm::SoftMode> lockstep_soft_mode{};
    vmm::IrqchipPlace irqchip{vmm::IrqchipPlace::Library};
    /// KVM's paravirtual features, bits of CPUID 0x40000001.EAX: offered though the library's offer
    /// has them not, and not offered though it has.
    std::uint32_t pv_added{};
    std::uint32_t pv_removed{};
    bool reboot{true};  ///< A guest that resets boots anew; clear: that ends the program.
    bool statistics{};  ///< Print what each vCPU has counted.
    bool help{};
};

extern const char* const usage;

/// The command line, or EINVAL and a sentence that says what would work.
[[nodiscard]] vmm::Result<Options> parse_options(int argc, char** argv);

}  // namespace vmm_linux
