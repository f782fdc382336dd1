// SPDX-License-Identifier: Apache-2.0

#include "x86/shim/log.hpp"

#include <cstdio>
#include <cstdlib>
#include <string_view>

namespace vmm::shim {
namespace {

LogLevel wanted_level() noexcept
{
    const char* const set = std::getenv("VMM_KVM_LOG");
    const std::string_view name = set != nullptr ? set : "";
    return name == "trace"   ? LogLevel::Trace
           : name == "debug" ? LogLevel::Debug
           : name == "error" ? LogLevel::Error
                             : LogLevel::Warning;
}

}  // namespace

bool is_wanted(LogLevel level) noexcept
{
    static const LogLevel wanted = wanted_level();
    return level <= wanted;
}

void log(LogLevel level, const std::string& line) noexcept
{
    if (is_wanted(level)) {
        std::fprintf(stderr, "vmm-kvm: %s\n", line.c_str());
    }
}

std::string hex(unsigned long value)
{
    char text[2 + 2 * sizeof value + 1];
    std::snprintf(text, sizeof text, "%#lx", value);
    return text;
}

}  // namespace vmm::shim
