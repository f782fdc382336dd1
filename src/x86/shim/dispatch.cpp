// SPDX-License-Identifier: Apache-2.0

#include "x86/shim/dispatch.hpp"

#include <mutex>
#include <set>
#include <string>
#include <utility>

namespace vmm::shim {

long refused(const Error& error)
{
    log(LogLevel::Debug, error.message());
    return -error.errno_value();
}

void trace(const std::string& what, long result) noexcept
{
    log(LogLevel::Trace, what + " = " + std::to_string(result));
}

void note_unknown(const char* kind, unsigned request) noexcept
{
    try {
        static std::mutex mutex;
        static auto& known = *new std::set<std::pair<std::string, unsigned>>;
        {
            const std::lock_guard lock{mutex};
            if (!known.emplace(kind, request).second) {
                return;
            }
        }
        log(LogLevel::Warning, std::string{"ioctl "} + hex(request) + " on " + kind +
                                   ": not known to this library; refused as KVM refuses it");
    } catch (const std::bad_alloc&) {
        // Unsaid, then.
    }
}

}  // namespace vmm::shim
