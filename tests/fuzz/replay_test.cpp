// SPDX-License-Identifier: Apache-2.0

// Every fuzz target without a fuzzer: its seeds, the inputs that once found a bug, and as many
// mutations of them as a test has time for, the same ones each time.

#include <filesystem>
#include <fstream>
#include <iterator>
#include <random>
#include <string>

#include <gtest/gtest.h>

#include "effort.hpp"
#include "fuzz/target.hpp"

namespace vmm::fuzz {
namespace {

using Bytes = std::vector<std::uint8_t>;

void run(const Target& target, const Bytes& bytes)
{
    Input input{bytes};
    target.run(input);
}

Bytes mutated(Bytes bytes, std::mt19937& random)
{
    for (unsigned changes = 1U + random() % 8U; changes != 0; --changes) {
        if (bytes.empty() || random() % 4U == 0) {
            const std::size_t at = random() % (bytes.size() + 1U);
            bytes.insert(bytes.begin() + static_cast<std::ptrdiff_t>(at),
                         static_cast<std::uint8_t>(random()));
        } else if (random() % 4U == 0) {
            bytes.resize(random() % bytes.size());
        } else {
            bytes[random() % bytes.size()] = static_cast<std::uint8_t>(random());
        }
    }
    return bytes;
}

Bytes noise(std::mt19937& random)
{
    Bytes bytes(random() % 512U);
    for (std::uint8_t& byte : bytes) {
        byte = static_cast<std::uint8_t>(random());
    }
    return bytes;
}

class Fuzz : public testing::TestWithParam<Target> {};

TEST_P(Fuzz, SeedsRun)
{
    const Seeds seeds = GetParam().seeds();
    EXPECT_FALSE(seeds.empty());
    for (const Bytes& seed : seeds) {
        run(GetParam(), seed);
    }
    run(GetParam(), {});
}

TEST_P(Fuzz, RegressionsRun)
{
    const std::filesystem::path folder =
        std::filesystem::path{VMM_FUZZ_REGRESSIONS} / GetParam().name;
    if (!std::filesystem::exists(folder)) {
        return;  // Nothing was found there yet.
    }
    for (const auto& entry : std::filesystem::directory_iterator{folder}) {
        SCOPED_TRACE(entry.path().string());
        std::ifstream file{entry.path(), std::ios::binary};
        ASSERT_TRUE(file.good());
        run(GetParam(), Bytes{std::istreambuf_iterator<char>{file}, {}});
    }
}

// VMM_FUZZ_REPLAYS sets their number.
TEST_P(Fuzz, MutationsRun)
{
    const Seeds seeds = GetParam().seeds();
    const std::uint64_t count = test::effort("VMM_FUZZ_REPLAYS", 150);
    for (std::uint32_t number = 0; number < count; ++number) {
        std::mt19937 random{number};
        run(GetParam(),
            number % 3U == 0 ? noise(random) : mutated(seeds[random() % seeds.size()], random));
    }
}

INSTANTIATE_TEST_SUITE_P(All, Fuzz, testing::ValuesIn(targets), [](const auto& parameter) {
    return std::string{parameter.param.name};
});

}  // namespace
}  // namespace vmm::fuzz
