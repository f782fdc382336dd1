// SPDX-License-Identifier: Apache-2.0

/// @file
/// How long tests that could go on for ever go on.

#pragma once

#include <cstdint>
#include <cstdlib>
#include <string>

namespace vmm::test {

/// The number in the environment variable `name`, or `usual`.
inline std::uint64_t effort(const char* name, std::uint64_t usual)
{
    const char* const asked = std::getenv(name);
    return asked != nullptr ? std::stoull(asked) : usual;
}

/// Random operations of one property test.
inline std::uint64_t property_ops(std::uint64_t usual = 20'000)
{
    return effort("VMM_PROPERTY_OPS", usual);
}

}  // namespace vmm::test
