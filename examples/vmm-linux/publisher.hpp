// SPDX-License-Identifier: Apache-2.0

#pragma once

#include <functional>
#include <memory>
#include <string>
#include <thread>

#include "vmm/result.hpp"
#include "vmm/unique_fd.hpp"

namespace vmm_linux {

/// Tells whoever connects to this process's socket (vmm-top, or `nc -U`) what the machine counts:
/// Prometheus' text, and the end of the stream.
class Publisher {
public:
    /// `look` is called on a thread of its own.
    [[nodiscard]] static vmm::Result<std::unique_ptr<Publisher>> create(
        std::function<std::string()> look);
    Publisher(const Publisher&) = delete;
    Publisher& operator=(const Publisher&) = delete;
    Publisher(Publisher&&) = delete;
    Publisher& operator=(Publisher&&) = delete;
    ~Publisher();

private:
    Publisher(std::string path,
              vmm::UniqueFd socket,
              vmm::UniqueFd stop,
              std::function<std::string()> look);
    void serve() const;

    const std::string path_;
    const vmm::UniqueFd socket_;
    const vmm::UniqueFd stop_;
    const std::function<std::string()> look_;
    std::thread thread_;
};

}  // namespace vmm_linux
