// SPDX-License-Identifier: Apache-2.0

#include "core/log.hpp"

#include <spdlog/cfg/env.h>
#include <spdlog/sinks/stdout_sinks.h>

namespace vmm::core {

spdlog::logger& log()
{
    static const std::shared_ptr<spdlog::logger> logger = [] {
        if (auto chosen = spdlog::get("vmm")) {
            return chosen;
        }
        auto made = spdlog::stderr_logger_mt("vmm");
        made->set_level(spdlog::level::warn);
        made->set_pattern("vmm: %v");
        spdlog::cfg::load_env_levels();
        return made;
    }();
    return *logger;
}

}  // namespace vmm::core
