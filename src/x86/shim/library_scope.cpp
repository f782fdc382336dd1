// SPDX-License-Identifier: Apache-2.0

#include "x86/shim/library_scope.hpp"

#include <utility>

namespace vmm::shim {
namespace {

thread_local unsigned depth = 0;

}  // namespace

LibraryScope::LibraryScope() noexcept
{
    ++depth;
}

LibraryScope::~LibraryScope()
{
    --depth;
}

bool LibraryScope::is_inside() noexcept
{
    return depth != 0;
}

ClientScope::ClientScope() noexcept : before_{std::exchange(depth, 0U)} {}

ClientScope::~ClientScope()
{
    depth = before_;
}

}  // namespace vmm::shim
