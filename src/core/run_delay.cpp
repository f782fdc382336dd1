// SPDX-License-Identifier: Apache-2.0

#include "core/run_delay.hpp"

#include <array>
#include <charconv>
#include <optional>
#include <string_view>
#include <utility>

#include <fcntl.h>
#include <unistd.h>

namespace vmm::core {
namespace {

/// Linux "Documentation/scheduler/sched-stats": time on the CPU, time waiting for it, time slices.
std::optional<std::uint64_t> read_delay(int file) noexcept
{
    std::array<char, 96> text;
    const ssize_t size = ::pread(file, text.data(), text.size(), 0);
    if (size <= 0) {
        return std::nullopt;
    }
    const std::string_view line{text.data(), static_cast<std::size_t>(size)};
    const std::size_t space = line.find(' ');
    if (space == std::string_view::npos) {
        return std::nullopt;
    }
    std::uint64_t delay = 0;
    const char* const end = line.data() + line.size();
    const auto [at, error] = std::from_chars(line.data() + space + 1, end, delay);
    return error == std::errc{} ? std::optional{delay} : std::nullopt;
}

}  // namespace

std::uint64_t RunDelay::ns() noexcept
{
    const auto now = std::this_thread::get_id();
    const bool is_another = std::exchange(thread_, now) != now;
    if (is_another) {
        file_ = UniqueFd{::open("/proc/thread-self/schedstat", O_RDONLY | O_CLOEXEC)};
    }
    if (!file_) {
        return total_;
    }
    if (const auto delay = read_delay(file_.get())) {
        if (!is_another) {
            total_ += *delay - before_;
        }
        before_ = *delay;
    }
    return total_;
}

}  // namespace vmm::core
