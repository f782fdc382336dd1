// SPDX-License-Identifier: Apache-2.0

/// @file
/// The function that ours stands in front of.

#pragma once

#include <atomic>
#include <cstdlib>

#include <dlfcn.h>

namespace vmm::shim::preload {

/// The next definition of a name after this library, which is mostly the C library's.
///
/// Thread safety: any thread, also before this library's constructors have run.
template <typename F>
class Next {
public:
    constexpr explicit Next(const char* name) noexcept : name_{name} {}

    [[nodiscard]] F* get() noexcept
    {
        F* function = function_.load(std::memory_order_acquire);
        if (function == nullptr) {
            // SAFETY: dlsym() gives the function of this name, whose type the caller states.
            function = reinterpret_cast<F*>(::dlsym(RTLD_NEXT, name_));
            if (function == nullptr) {
                std::abort();  // Nobody could have called it without us either.
            }
            function_.store(function, std::memory_order_release);
        }
        return function;
    }

private:
    const char* name_;
    std::atomic<F*> function_{nullptr};
};

}  // namespace vmm::shim::preload
