// SPDX-License-Identifier: Apache-2.0

/// @file
/// Where the client makes ioctl(2), and the change of its text there (see stub.hpp).

#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <map>
#include <mutex>
#include <vector>

namespace vmm::shim::raw {

/// Thread safety: every member from any thread.
class Sites {
public:
    Sites();

    /// The ones of this process; never destroyed.
    [[nodiscard]] static Sites& instance();

    /// `next` follows a SYSCALL: has what precedes that jump to a stub, if it can be done safely.
    void consider(std::uint64_t next) noexcept;

private:
    static constexpr std::uint64_t page_size = 4096;
    using Page = std::array<std::uint8_t, page_size>;
    struct StubPage {
        Page bytes{};
        std::size_t used{};
    };

    /// Some of /proc/self/maps.
    struct Mapping {
        std::uint64_t first;
        std::uint64_t end;
        bool is_text;  ///< Private, executable and not writable.
        bool has_file;
    };

    [[nodiscard]] static std::vector<Mapping> mappings();
    /// @return what is in the way; null: nothing.
    [[nodiscard]] const char* change(std::uint64_t next);
    [[nodiscard]] bool is_text(const Mapping& mapping) const noexcept;
    /// Makes a stub within the reach of the site.  @return where it is; 0: it cannot be made.
    [[nodiscard]] std::uint64_t make_stub(std::uint64_t next, const std::vector<Mapping>& all);

    static constexpr std::size_t max_considered = 256;
    /// Sites that were looked at, so that the way by SIGSYS does not become slower; written under
    /// `mutex_`.
    std::array<std::atomic<std::uint64_t>, max_considered> considered_{};
    std::atomic<std::size_t> considered_count_{0};

    std::mutex mutex_;
    std::map<std::uint64_t, Page> text_;  ///< Pages of the client's that were changed.
    std::map<std::uint64_t, StubPage> stubs_;
};

}  // namespace vmm::shim::raw

extern "C" {
/// Where stubs are; 0: not used.  vmm_raw_on_signal looks at them.
extern std::atomic<std::uint64_t> vmm_raw_stub_pages[];
}
