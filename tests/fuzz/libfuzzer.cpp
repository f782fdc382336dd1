// SPDX-License-Identifier: Apache-2.0

// libFuzzer's entry points.  The environment names the target, so that the processes libFuzzer
// starts itself find it too: VMM_FUZZ_TARGET; with VMM_FUZZ_SEEDS, its seeds are written to that
// folder and nothing is run.

#include <cstdlib>
#include <fstream>
#include <string>

#include "fuzz/target.hpp"

namespace {

const vmm::fuzz::Target* chosen = nullptr;

const char* environment(const char* name)
{
    return std::getenv(name);  // NOLINT(concurrency-mt-unsafe): before any thread.
}

void write_seeds(const std::string& folder)
{
    std::size_t number = 0;
    for (const auto& seed : chosen->seeds()) {
        std::ofstream file{folder + "/seed-" + std::to_string(number++), std::ios::binary};
        for (const std::uint8_t byte : seed) {
            file.put(static_cast<char>(byte));
        }
        if (!file.flush()) {
            std::fprintf(stderr, "cannot write seeds to %s\n", folder.c_str());
            std::exit(1);
        }
    }
}

}  // namespace

extern "C" int LLVMFuzzerInitialize(int* /*argc*/, char*** /*argv*/)
{
    const char* const name = environment("VMM_FUZZ_TARGET");
    for (const vmm::fuzz::Target& target : vmm::fuzz::targets) {
        if (name != nullptr && target.name == name) {
            chosen = &target;
        }
    }
    if (chosen == nullptr) {
        std::fprintf(stderr, "VMM_FUZZ_TARGET must be one of:");
        for (const vmm::fuzz::Target& target : vmm::fuzz::targets) {
            std::fprintf(stderr, " %s", std::string{target.name}.c_str());
        }
        std::fprintf(stderr, "\n");
        std::exit(2);
    }
    if (const char* const folder = environment("VMM_FUZZ_SEEDS")) {
        write_seeds(folder);
        std::exit(0);
    }
    return 0;
}

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size)
{
    vmm::fuzz::Input input{{data, size}};
    chosen->run(input);
    return 0;
}
