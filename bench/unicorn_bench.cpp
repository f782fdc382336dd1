// SPDX-License-Identifier: Apache-2.0

/// @file
/// The guest functions of soft_bench on the Unicorn library: a line of TSC ticks for each, the
/// least of several runs, in soft_bench's order; "-" where Unicorn does not know an instruction.

#include <algorithm>
#include <cstdio>
#include <cstring>

#include <unicorn/unicorn.h>
#include <x86intrin.h>

#include "soft_guest.hpp"
#include "soft_workloads.hpp"

namespace {

constexpr std::uint64_t code = 0x1'0000;
constexpr std::uint64_t stack = 0x4'0000;
constexpr std::uint64_t memory_size = std::uint64_t{64} << 20U;

/// 0: it came to no good end.
std::uint64_t best_of(uc_engine* unicorn, const Workload& workload)
{
    std::uint64_t best = ~std::uint64_t{0};
    for (int i = 0; i < 25; ++i) {
        const std::uint64_t return_to = 0xf000;
        const std::uint64_t top = stack - 8;
        const std::uint64_t memory = guest_memory;
        uc_mem_write(unicorn, top, &return_to, sizeof return_to);
        uc_reg_write(unicorn, UC_X86_REG_RSP, &top);
        uc_reg_write(unicorn, UC_X86_REG_RDI, &workload.size);
        uc_reg_write(unicorn, UC_X86_REG_RSI, &memory);
        const std::uint64_t begin = __rdtsc();
        const uc_err error = uc_emu_start(unicorn, code + workload.offset(), return_to, 0, 0);
        best = std::min<std::uint64_t>(best, __rdtsc() - begin);
        if (error != UC_ERR_OK) {
            return 0;
        }
    }
    return best;
}

}  // namespace

int main()
{
    for (const Workload& workload : workloads) {
        // A fresh one each: what one workload leaves in its caches is not the next one's.
        uc_engine* unicorn = nullptr;
        if (uc_open(UC_ARCH_X86, UC_MODE_64, &unicorn) != UC_ERR_OK ||
            uc_mem_map(unicorn, 0, memory_size, UC_PROT_ALL) != UC_ERR_OK) {
            std::fprintf(stderr, "Unicorn does not start\n");
            return 1;
        }
        uc_mem_write(unicorn, code, __start_guest_code,
                     static_cast<std::size_t>(__stop_guest_code - __start_guest_code));
        const std::uint64_t best = best_of(unicorn, workload);
        if (best == 0) {
            std::puts("-");
        } else {
            std::printf("%llu\n", static_cast<unsigned long long>(best));
        }
        uc_close(unicorn);
    }
    return 0;
}
