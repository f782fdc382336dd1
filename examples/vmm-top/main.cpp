// SPDX-License-Identifier: Apache-2.0

// Shows what a running vmm-linux does: its exits by reason, how many a second, and their time.

#include <algorithm>
#include <charconv>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include <fmt/format.h>

#include "runtime_folder.hpp"

namespace {

using vmm::Result;

constexpr const char* usage =
    "usage: vmm-top [--once | --raw] [PID]\n"
    "Shows what a running vmm-linux does, all its virtual CPUs together, anew each second.\n"
    "  PID     which one; needed where there are several\n"
    "  --once  shows what it has done so far, once\n"
    "  --raw   the same in Prometheus' text format, by virtual CPU\n";

/// What is shown of one reason.
struct Row {
    std::uint64_t count{};
    std::uint64_t timed{};
    std::uint64_t total_ns{};
};

struct Snapshot {
    std::map<std::string, Row> reasons;
    std::map<std::string, std::uint64_t> counters;
};

Result<std::string> find_machine(const std::string& pid)
{
    const std::string folder = vmm_top::runtime_folder();
    if (!vmm_top::is_private(folder)) {
        return vmm::Error{std::errc::no_such_file_or_directory,
                          folder +
                              ": there is no such folder of this user's alone, so no vmm-linux "
                              "of this user runs"};
    }
    std::vector<std::string> found;
    std::error_code ignored;
    for (const auto& entry : std::filesystem::directory_iterator{folder, ignored}) {
        const std::string name = entry.path().filename().string();
        constexpr std::string_view prefix = "linux-";
        // One that was killed has left its socket.
        if (name.rfind(prefix, 0) == 0 && (pid.empty() || name == prefix.data() + pid) &&
            std::filesystem::exists("/proc/" + name.substr(prefix.size()), ignored)) {
            found.push_back(entry.path().string());
        }
    }
    if (found.size() == 1) {
        return found.front();
    }
    return vmm::Error{std::errc::no_such_process,
                      found.empty()
                          ? fmt::format("no vmm-linux {}runs; its socket would be in {}",
                                        pid.empty() ? "" : pid + " ", folder)
                          : fmt::format("several run, give one's PID: {}", fmt::join(found, ", "))};
}

Result<std::string> ask(const std::string& path)
{
    VMM_TRY(const sockaddr_un address, vmm_top::socket_address(path));
    const vmm::UniqueFd socket = vmm_top::make_socket();
    if (!socket || ::connect(socket.get(), vmm_top::generic(address), sizeof address) != 0) {
        return vmm::Error::from_errno(path.c_str());
    }
    std::string text;
    std::vector<char> part(1U << 16U);
    for (;;) {
        const ssize_t count = ::read(socket.get(), part.data(), part.size());
        if (count < 0 && errno == EINTR) {
            continue;
        }
        if (count < 0) {
            return vmm::Error::from_errno(path.c_str());
        }
        if (count == 0) {
            return text;
        }
        text.append(part.data(), static_cast<std::size_t>(count));
    }
}

/// The value of `label` in `{vcpu="0",reason="halt"}`.
std::string label_of(std::string_view labels, std::string_view label)
{
    const std::size_t at = labels.find(std::string{label} + "=\"");
    if (at == std::string_view::npos) {
        return {};
    }
    const std::string_view rest = labels.substr(at + label.size() + 2);
    return std::string{rest.substr(0, rest.find('"'))};
}

void take_line(Snapshot& snapshot, std::string_view line)
{
    const std::size_t brace = line.find('{');
    const std::size_t space = line.rfind(' ');
    if (line.empty() || line[0] == '#' || brace == std::string_view::npos || space < brace) {
        return;
    }
    std::uint64_t value = 0;
    std::from_chars(line.data() + space + 1, line.data() + line.size(), value);
    const std::string_view name = line.substr(0, brace);
    const std::string reason = label_of(line.substr(brace, space - brace), "reason");
    if (name == "vmm_exit_reason_total") {
        snapshot.reasons[reason].count += value;
    } else if (name == "vmm_exit_nanoseconds_count") {
        snapshot.reasons[reason].timed += value;
    } else if (name == "vmm_exit_nanoseconds_sum") {
        snapshot.reasons[reason].total_ns += value;
    } else if (reason.empty()) {
        constexpr std::string_view prefix = "vmm_";
        snapshot.counters[std::string{name.substr(prefix.size())}] += value;
    }
}

Snapshot read_snapshot(std::string_view text)
{
    Snapshot snapshot;
    while (!text.empty()) {
        const std::size_t end = std::min(text.find('\n'), text.size());
        take_line(snapshot, text.substr(0, end));
        text.remove_prefix(std::min(end + 1, text.size()));
    }
    return snapshot;
}

/// Sorted by what happens most now, or has happened.
void show(const Snapshot& now, const Snapshot* before, double seconds)
{
    std::vector<std::pair<std::string, Row>> rows{now.reasons.begin(), now.reasons.end()};
    const auto since = [&](const std::pair<std::string, Row>& row) {
        const auto old = before != nullptr ? before->reasons.find(row.first) : now.reasons.end();
        return before == nullptr              ? row.second.count
               : old == before->reasons.end() ? row.second.count
                                              : row.second.count - old->second.count;
    };
    std::stable_sort(rows.begin(), rows.end(),
                     [&](const auto& a, const auto& b) { return since(a) > since(b); });
    fmt::print("{:<20} {:>14} {:>12} {:>12}\n", "exits", "total", before ? "a second" : "",
               "mean ns");
    for (const auto& row : rows) {
        const Row& each = row.second;
        fmt::print("{:<20} {:>14} {:>12} {:>12}\n", row.first, each.count,
                   before ? fmt::format("{:.0f}", static_cast<double>(since(row)) / seconds) : "",
                   each.timed != 0 ? each.total_ns / each.timed : 0);
    }
    fmt::print("\n");
    for (const auto& [name, value] : now.counters) {
        fmt::print("{:<28} {:>14}\n", name, value);
    }
    std::fflush(stdout);
}

Result<int> run(bool once, bool raw, const std::string& pid)
{
    VMM_TRY(const std::string path, find_machine(pid));
    VMM_TRY(std::string text, ask(path));
    if (raw) {
        fmt::print("{}", text);
        return 0;
    }
    Snapshot before = read_snapshot(text);
    if (once) {
        show(before, nullptr, 1);
        return 0;
    }
    auto then = std::chrono::steady_clock::now();
    for (;;) {
        std::this_thread::sleep_for(std::chrono::seconds{1});
        const auto answer = ask(path);
        if (!answer) {
            return 0;  // It has ended.
        }
        const auto now = std::chrono::steady_clock::now();
        Snapshot next = read_snapshot(*answer);
        fmt::print("\x1b[H\x1b[2J{}\n\n", path);
        show(next, &before, std::chrono::duration<double>(now - std::exchange(then, now)).count());
        before = std::move(next);
    }
}

}  // namespace

int main(int argc, char** argv)
{
    bool once = false;
    bool raw = false;
    std::string pid;
    for (int i = 1; i < argc; ++i) {
        const std::string_view argument = argv[i];
        if (argument == "--help" || argument == "-h") {
            fmt::print("{}", usage);
            return 0;
        }
        if (argument == "--once") {
            once = true;
        } else if (argument == "--raw") {
            raw = true;
        } else if (pid.empty() && !argument.empty() &&
                   argument.find_first_not_of("0123456789") == std::string_view::npos) {
            pid = argument;
        } else {
            fmt::print(stderr, "vmm-top: {}: not understood; see --help\n", argument);
            return 2;
        }
    }
    const auto status = run(once, raw, pid);
    if (!status) {
        fmt::print(stderr, "vmm-top: {}\n", status.error().message());
        return 1;
    }
    return *status;
}
