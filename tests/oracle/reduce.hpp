// SPDX-License-Identifier: Apache-2.0

/// @file
/// Makes a case that differs as plain as it can be while it still does.

#pragma once

#include <functional>
#include <string>

#include "oracle/case.hpp"

namespace vmm::oracle {

struct Reduced {
    Case smallest{};
    Arena image{};
    std::string text{};  ///< What differs of it.
};

/// `difference` runs a case and says what differs; empty: nothing.
[[nodiscard]] Reduced reduce(
    const Case& each,
    const Arena& image,
    const std::function<std::string(const Case&, const Arena&)>& difference);

}  // namespace vmm::oracle
