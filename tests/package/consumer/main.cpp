// SPDX-License-Identifier: Apache-2.0
//
// Uses a header-only part and a compiled part of the library.

#include <cstdio>

#include <unistd.h>

#include <vmm/address.hpp>
#include <vmm/boot/guest_image.hpp>
#include <vmm/result.hpp>
#include <vmm/unique_fd.hpp>

int main()
{
    const vmm::UniqueFd output{::dup(STDOUT_FILENO)};
    const vmm::Result<std::vector<vmm::boot::E820Entry>> map = vmm::boot::e820_map(64 << 20);
    const auto refused = vmm::boot::e820_map(1);
    if (!output || !map || map->front().first != vmm::Gpa{0} || refused) {
        return 1;
    }
    std::printf("consumer: %s\n", refused.error().message().c_str());
    return 0;
}
