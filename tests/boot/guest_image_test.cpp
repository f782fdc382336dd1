// SPDX-License-Identifier: Apache-2.0

#include <random>

#include <gtest/gtest.h>

#include "boot/fake_memory.hpp"
#include "vmm/boot/guest_image.hpp"
#include "vmm/boot/raw_image.hpp"

namespace vmm::boot {
namespace {

constexpr std::uint64_t mib = 1024 * 1024;
constexpr std::uint64_t gib = 1024 * mib;

TEST(RamRanges, AreOneUpTo3Gib)
{
    EXPECT_EQ(ram_ranges(4096).value(), (std::vector{RamRange{Gpa{0}, 4096}}));
    EXPECT_EQ(ram_ranges(3 * gib).value(), (std::vector{RamRange{Gpa{0}, 3 * gib}}));
}

TEST(RamRanges, GoOnAt4Gib)
{
    EXPECT_EQ(ram_ranges(3 * gib + 4096).value(),
              (std::vector{RamRange{Gpa{0}, 3 * gib}, RamRange{Gpa{4 * gib}, 4096}}));
}

TEST(RamRanges, RefuseSizesNoMachineHas)
{
    for (const std::uint64_t size : {std::uint64_t{0}, std::uint64_t{4095}, std::uint64_t{4097},
                                     max_memory_bytes + 4096, ~std::uint64_t{0}}) {
        const auto ranges = ram_ranges(size);
        ASSERT_FALSE(ranges) << size;
        EXPECT_EQ(ranges.error().errno_value(), EINVAL);
        EXPECT_FALSE(e820_map(size));
    }
    EXPECT_TRUE(ram_ranges(max_memory_bytes));
}

void expect_map_of(std::uint64_t size)
{
    const auto map = e820_map(size).value();
    std::uint64_t sum = 0;
    std::uint64_t end = 0;
    for (const auto& entry : map) {
        ASSERT_GT(entry.size, 0U) << size;
        ASSERT_GE(entry.first.value(), end) << size;
        end = entry.first.value() + entry.size;
        sum += entry.size;
        ASSERT_FALSE(entry.first < ram_hole_end && end > ram_hole_begin.value()) << size;
        if (entry.type == E820Type::Ram) {
            ASSERT_TRUE(end <= 0x9'fc00 || entry.first.value() >= mib) << size;
        }
    }
    ASSERT_EQ(sum, size);
}

TEST(E820Map, IsSortedDisjointAndSumsToTheMemory)
{
    for (auto size = mib; size <= 512 * gib; size *= 2) {
        expect_map_of(size);
        expect_map_of(size + 4096);
        expect_map_of(size + size / 2);
    }
    std::mt19937_64 random{7};
    for (int i = 0; i < 10'000; ++i) {
        expect_map_of((1 + random() % (512 * gib / 4096)) * 4096);
    }
}

TEST(ImageWriter, ClearsByWritingZeros)
{
    class Recorder final : public ImageWriter {
    public:
        Result<void> write(Gpa target, std::span<const std::byte> bytes) override
        {
            EXPECT_EQ(target.value(), next);
            for (const auto byte : bytes) {
                EXPECT_EQ(byte, std::byte{0});
            }
            next += bytes.size();
            return success;
        }
        std::uint64_t next{0x1001};
    };
    Recorder recorder;

    EXPECT_TRUE(recorder.zero(Gpa{0x1001}, 200'000));

    EXPECT_EQ(recorder.next, 0x1001U + 200'000U);
}

TEST(ImageWriter, ClearingStopsAtTheEndOfTheAddressSpace)
{
    class Anything final : public ImageWriter {
    public:
        Result<void> write(Gpa, std::span<const std::byte>) override { return success; }
    };
    Anything memory;

    EXPECT_FALSE(memory.zero(Gpa{~std::uint64_t{0} - 10}, 1'000'000));
}

TEST(FlatImage, StartsInRealModeWhereAsked)
{
    FakeMemory memory{mib};
    const std::vector<std::byte> image{std::byte{0xf4}, std::byte{0x90}};
    const auto entry = load_flat(memory, {.image = image,
                                          .target = Gpa{0x8000},
                                          .code_segment = 0x800,
                                          .ip = 1,
                                          .memory_bytes = mib});

    ASSERT_TRUE(entry) << entry.error().message();
    EXPECT_EQ(entry->mode, EntryMode::Real);
    EXPECT_EQ(entry->regs.rip, 1U);
    EXPECT_EQ(entry->sregs.cs.base, 0x8000U);
    EXPECT_EQ(entry->sregs.cs.selector, 0x800U);
    EXPECT_EQ(entry->sregs.ss.base, 0x8000U);
    EXPECT_EQ(entry->sregs.cr0, 0x6000'0010U);
    EXPECT_EQ(memory.get<std::uint16_t>(0x8000), 0x90f4U);
}

TEST(FlatImage, IsRefusedWhereItDoesNotFit)
{
    FakeMemory memory{65'536};
    const std::vector<std::byte> image(2, std::byte{0x90});
    const auto load = [&](std::uint64_t target) {
        return load_flat(memory, {.image = image, .target = Gpa{target}, .memory_bytes = 65'536});
    };

    EXPECT_TRUE(load(65'534));
    for (const auto target : {std::uint64_t{65'535}, std::uint64_t{65'536}, ~std::uint64_t{0}}) {
        const auto entry = load(target);
        ASSERT_FALSE(entry);
        EXPECT_EQ(entry.error().errno_value(), ENOMEM);
    }
    EXPECT_FALSE(load_flat(memory, {.image = {}, .memory_bytes = 65'536}));
}

TEST(Bios, EndsAt4GibAndIsShadowedBelow1Mib)
{
    const auto small = place_bios(0x1'0000).value();
    EXPECT_EQ(small.rom, Gpa{0xffff'0000});
    EXPECT_EQ(small.shadow, Gpa{0xf'0000});
    EXPECT_EQ(small.shadow_offset, 0U);

    const auto large = place_bios(0x4'0000).value();
    EXPECT_EQ(large.rom, Gpa{0xfffc'0000});
    EXPECT_EQ(large.shadow, Gpa{0xe'0000});
    EXPECT_EQ(large.shadow_bytes, 0x2'0000U);
    EXPECT_EQ(large.shadow_offset, 0x2'0000U);
    EXPECT_EQ(large.entry.sregs.cs.base + large.entry.regs.rip, 0xffff'fff0U);
    EXPECT_EQ(large.entry.sregs.cs.selector, 0xf000U);
}

TEST(Bios, OfAnotherSizeIsRefused)
{
    for (const std::uint64_t size : {0x0ULL, 0x8000ULL, 0x1'0001ULL, 0x101'0000ULL, ~0ULL}) {
        EXPECT_FALSE(place_bios(size)) << size;
    }
    EXPECT_TRUE(place_bios(0x100'0000));
}

}  // namespace
}  // namespace vmm::boot
