// SPDX-License-Identifier: Apache-2.0

#include <functional>
#include <ostream>
#include <random>
#include <string>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "boot/fake_memory.hpp"
#include "boot/images.hpp"
#include "vmm/boot/linux.hpp"

namespace vmm::boot {
namespace {

using ::testing::HasSubstr;

constexpr std::uint64_t machine = 64 * mib;

LinuxBoot boot_of(const ByteTable& image)
{
    LinuxBoot boot;
    boot.kernel = image.bytes();
    boot.memory_bytes = machine;
    boot.command_line = "console=ttyS0";
    return boot;
}

std::uint64_t zero_page_at(std::size_t field)
{
    return layout::zero_page.value() + field;
}

std::string text_at(FakeMemory& memory, Gpa from, std::size_t count)
{
    std::string text;
    for (const auto byte : memory.read(from.value(), count)) {
        text.push_back(static_cast<char>(byte));
    }
    return text;
}

TEST(Bzimage, EntersAt64BitsWhereTheKernelHasIt)
{
    const auto image = make_bzimage();
    FakeMemory memory{machine};

    const auto loaded = load_linux(memory, boot_of(image));

    ASSERT_TRUE(loaded) << loaded.error().message();
    EXPECT_EQ(loaded->entry.mode, EntryMode::Long64);
    EXPECT_EQ(loaded->entry.regs.rip, 16 * mib + 0x200);
    EXPECT_EQ(loaded->entry.regs.rsi, layout::zero_page.value());
    EXPECT_EQ(loaded->entry.regs.rflags, 2U);
    EXPECT_EQ(loaded->entry.sregs.cr0 & 0x8000'0001U, 0x8000'0001U);
    EXPECT_EQ(loaded->entry.sregs.efer, 0x500U);
    EXPECT_EQ(loaded->entry.sregs.cs.selector, 0x10U);
    EXPECT_EQ(loaded->entry.sregs.cs.l, 1U);
    EXPECT_EQ(loaded->entry.sregs.cs.db, 0U);
    EXPECT_EQ(loaded->entry.sregs.ds.selector, 0x18U);
    EXPECT_EQ(loaded->kernel_end, 20 * mib);
    EXPECT_EQ(memory.refused, 0);
}

TEST(Bzimage, EntersAt32BitsWhereAskedOrWhereThereIsNothingElse)
{
    auto image = make_bzimage();
    auto boot = boot_of(image);
    boot.entry = KernelEntry::Protected32;
    FakeMemory memory{machine};
    const auto asked = load_linux(memory, boot);
    image.put<std::uint16_t>(zero_page::xloadflags, 0);
    const auto only = load_linux(memory, boot_of(image));

    for (const auto& loaded : {asked, only}) {
        ASSERT_TRUE(loaded) << loaded.error().message();
        EXPECT_EQ(loaded->entry.mode, EntryMode::Protected32Flat);
        EXPECT_EQ(loaded->entry.regs.rip, 16 * mib);
        EXPECT_EQ(loaded->entry.regs.rsi, layout::zero_page.value());
        EXPECT_EQ(loaded->entry.sregs.cr0, 0x11U);
        EXPECT_EQ(loaded->entry.sregs.cs.limit, 0xffff'ffffU);
        EXPECT_EQ(loaded->entry.sregs.cs.db, 1U);
    }
}

TEST(Bzimage, CopiesThePayloadWithoutTheSetupCode)
{
    const auto image = make_bzimage();
    FakeMemory memory{machine};

    ASSERT_TRUE(load_linux(memory, boot_of(image)));

    const auto payload = image.bytes().subspan(image_setup_bytes);
    EXPECT_EQ(memory.read(16 * mib, image_payload_bytes),
              std::vector<std::byte>(payload.begin(), payload.end()));
    EXPECT_EQ(memory.get<std::uint8_t>(16 * mib + image_payload_bytes), 0U);
}

TEST(Bzimage, FillsTheZeroPage)
{
    namespace at = zero_page;
    const auto image = make_bzimage();
    const std::vector<std::byte> initrd(5000, std::byte{0x77});
    auto boot = boot_of(image);
    boot.initrd = initrd;
    boot.rsdp = Gpa{0xe'0000};
    FakeMemory memory{machine};

    const auto loaded = load_linux(memory, boot);

    ASSERT_TRUE(loaded) << loaded.error().message();
    EXPECT_EQ(memory.get<std::uint32_t>(zero_page_at(at::header_magic)), header_magic_value);
    EXPECT_EQ(memory.get<std::uint8_t>(zero_page_at(at::type_of_loader)), 0xffU);
    EXPECT_EQ(memory.get<std::uint8_t>(zero_page_at(at::loadflags)), 0x01U);
    EXPECT_EQ(memory.get<std::uint32_t>(zero_page_at(at::init_size)), 4 * mib);
    EXPECT_EQ(memory.get<std::uint64_t>(zero_page_at(at::acpi_rsdp_addr)), 0xe'0000U);
    EXPECT_EQ(memory.get<std::uint32_t>(zero_page_at(at::cmd_line_ptr)), 0x2'0000U);
    EXPECT_EQ(text_at(memory, layout::command_line, 14), std::string("console=ttyS0\0", 14));
    EXPECT_EQ(memory.get<std::uint32_t>(zero_page_at(at::ramdisk_image)), loaded->initrd.value());
    EXPECT_EQ(memory.get<std::uint32_t>(zero_page_at(at::ramdisk_size)), 5000U);
    EXPECT_EQ(loaded->initrd, Gpa{machine - 8192});
    EXPECT_EQ(memory.read(loaded->initrd.value(), initrd.size()), initrd);
    // No display: neither lines nor columns.
    EXPECT_EQ(memory.read(layout::zero_page.value(), 0x40), std::vector<std::byte>(0x40));
}

TEST(Bzimage, TellsTheKernelTheMemoryMap)
{
    const auto image = make_bzimage();
    auto boot = boot_of(image);
    boot.memory_bytes = 6144 * mib;
    FakeMemory memory{boot.memory_bytes};

    ASSERT_TRUE(load_linux(memory, boot));

    const auto expected = e820_map(boot.memory_bytes).value();
    ASSERT_EQ(expected.size(), 4U);
    ASSERT_EQ(memory.get<std::uint8_t>(zero_page_at(zero_page::e820_entries)), 4U);
    for (std::size_t i = 0; i < 4; ++i) {
        const auto at = zero_page_at(zero_page::e820_table + i * 20);
        EXPECT_EQ(memory.get<std::uint64_t>(at), expected[i].first.value());
        EXPECT_EQ(memory.get<std::uint64_t>(at + 8), expected[i].size);
        EXPECT_EQ(memory.get<std::uint32_t>(at + 16), static_cast<std::uint32_t>(expected[i].type));
    }
}

TEST(Bzimage, MapsTheFirst4GibToThemselves)
{
    const auto image = make_bzimage();
    FakeMemory memory{machine};

    const auto loaded = load_linux(memory, boot_of(image));

    ASSERT_TRUE(loaded);
    const auto cr3 = loaded->entry.sregs.cr3;
    for (const std::uint64_t gva : {0x0ULL, 0x1ff'fffULL, 0x4000'0000ULL, 0xfee0'0000ULL}) {
        const auto pdpt = memory.get<std::uint64_t>(cr3);
        ASSERT_EQ(pdpt & 3U, 3U);
        const auto pd = memory.get<std::uint64_t>((pdpt & ~0xfffULL) + (gva >> 30U) * 8);
        ASSERT_EQ(pd & 3U, 3U);
        const auto pde = memory.get<std::uint64_t>((pd & ~0xfffULL) + ((gva >> 21U) & 0x1ffU) * 8);
        EXPECT_EQ(pde, (gva & ~0x1f'ffffULL) | 0x83U);
    }
    EXPECT_EQ(memory.get<std::uint64_t>(memory.get<std::uint64_t>(cr3) - 3 + 4 * 8), 0U);
}

TEST(Bzimage, WritesTheDescriptorsThatTheSegmentsSay)
{
    const auto image = make_bzimage();
    FakeMemory memory{machine};

    const auto loaded = load_linux(memory, boot_of(image));

    ASSERT_TRUE(loaded);
    const auto gdt = loaded->entry.sregs.gdt.base;
    EXPECT_EQ(loaded->entry.sregs.gdt.limit, 47U);
    EXPECT_EQ(memory.get<std::uint64_t>(gdt), 0U);
    EXPECT_EQ(memory.get<std::uint64_t>(gdt + 0x10), 0x00af'9b00'0000'ffffU);
    EXPECT_EQ(memory.get<std::uint64_t>(gdt + 0x18), 0x00cf'9300'0000'ffffU);
    EXPECT_EQ(memory.get<std::uint64_t>(gdt + 0x20), 0x0000'8b00'1080'0067U);
}

TEST(Bzimage, KeepsTheInitrdBelowTheAddressTheKernelNames)
{
    auto image = make_bzimage();
    image.put<std::uint32_t>(zero_page::initrd_addr_max, 0x1ff'ffff);
    const std::vector<std::byte> initrd(4096, std::byte{1});
    auto boot = boot_of(image);
    boot.initrd = initrd;
    FakeMemory memory{machine};

    const auto loaded = load_linux(memory, boot);

    ASSERT_TRUE(loaded);
    EXPECT_EQ(loaded->initrd, Gpa{0x200'0000 - 4096});
}

TEST(Bzimage, TakesAnInitrdThatJustFits)
{
    const auto image = make_bzimage();
    const std::vector<std::byte> just(44 * mib, std::byte{1});
    const std::vector<std::byte> more(44 * mib + 1, std::byte{1});
    auto boot = boot_of(image);
    FakeMemory memory{machine};

    boot.initrd = just;
    const auto fits = load_linux(memory, boot);
    boot.initrd = more;
    const auto fails = load_linux(memory, boot);

    ASSERT_TRUE(fits) << fits.error().message();
    EXPECT_EQ(fits->initrd, Gpa{20 * mib});
    ASSERT_FALSE(fails);
    EXPECT_EQ(fails.error().errno_value(), ENOMEM);
    EXPECT_THAT(fails.error().message(), HasSubstr("initrd"));
}

TEST(Bzimage, TakesACommandLineUpToTheKernelsLimit)
{
    const auto image = make_bzimage();
    auto boot = boot_of(image);
    FakeMemory memory{machine};

    boot.command_line = std::string(2047, 'x');
    const auto fits = load_linux(memory, boot);
    boot.command_line = std::string(2048, 'x');
    const auto fails = load_linux(memory, boot);

    EXPECT_TRUE(fits);
    ASSERT_FALSE(fails);
    EXPECT_EQ(fails.error().errno_value(), E2BIG);
    EXPECT_THAT(fails.error().message(), HasSubstr("2048"));
    EXPECT_THAT(fails.error().message(), HasSubstr("2047"));
}

TEST(Bzimage, TakesAMachineThatTheKernelJustFits)
{
    const auto image = make_bzimage();
    auto boot = boot_of(image);
    boot.memory_bytes = 20 * mib;
    FakeMemory enough{boot.memory_bytes};
    const auto fits = load_linux(enough, boot);
    boot.memory_bytes -= 4096;
    FakeMemory less{boot.memory_bytes};
    const auto fails = load_linux(less, boot);

    EXPECT_TRUE(fits);
    ASSERT_FALSE(fails);
    EXPECT_EQ(fails.error().errno_value(), ENOMEM);
    EXPECT_EQ(less.refused, 0);
}

/// A change to a good image, and what the refusal must say.
struct Broken {
    const char* name;
    std::function<void(ByteTable&, LinuxBoot&)> damage;
    int error;
    const char* message;
};

void PrintTo(const Broken& broken, std::ostream* out)
{
    *out << broken.name;
}

template <typename T>
auto put(std::size_t offset, T value)
{
    return [=](ByteTable& image, LinuxBoot&) { image.put<T>(offset, value); };
}

auto truncate(std::size_t size)
{
    return [=](ByteTable&, LinuxBoot& boot) { boot.kernel = boot.kernel.first(size); };
}

std::string name_of(const ::testing::TestParamInfo<Broken>& broken)
{
    return broken.param.name;
}

class BrokenBzimage : public ::testing::TestWithParam<Broken> {};

TEST_P(BrokenBzimage, IsRefusedInOneHelpfulLine)
{
    auto image = make_bzimage();
    auto boot = boot_of(image);
    GetParam().damage(image, boot);
    FakeMemory memory{machine};

    const auto loaded = load_linux(memory, boot);

    ASSERT_FALSE(loaded);
    EXPECT_EQ(loaded.error().errno_value(), GetParam().error);
    EXPECT_THAT(loaded.error().message(), HasSubstr(GetParam().message));
    EXPECT_EQ(loaded.error().message().find('\n'), std::string::npos);
    EXPECT_EQ(memory.refused, 0);
}

INSTANTIATE_TEST_SUITE_P(
    Each,
    BrokenBzimage,
    ::testing::Values(
        Broken{"Empty", truncate(0), ENOEXEC, "0 bytes"},
        Broken{"OnlyABootSector", truncate(512), ENOEXEC, "512 bytes"},
        Broken{"HeaderCutOff", truncate(0x250), ENOEXEC, "truncated"},
        Broken{"PayloadCutOff", truncate(image_setup_bytes + image_payload_bytes - 1), ENOEXEC,
               "truncated"},
        Broken{"WrongBootFlag", put<std::uint16_t>(zero_page::boot_flag, 0xaa54), ENOEXEC, "HdrS"},
        Broken{"WrongMagic", put<std::uint32_t>(zero_page::header_magic, 0), ENOEXEC, "bzImage"},
        Broken{"Protocol205", put<std::uint16_t>(zero_page::version, 0x0205), ENOEXEC, "2.05"},
        Broken{"Zimage", put<std::uint8_t>(zero_page::loadflags, 0), ENOEXEC, "zImage"},
        Broken{"NoPayload", put<std::uint32_t>(zero_page::syssize, 0), ENOEXEC, "syssize"},
        Broken{"HugePayload", put<std::uint32_t>(zero_page::syssize, 0xffff'ffff), ENOEXEC,
               "truncated"},
        Broken{"HugeInitSize", put<std::uint32_t>(zero_page::init_size, 0xffff'ffff), ENOMEM,
               "3 GiB"},
        Broken{"LargerThanTheMachine", put<std::uint32_t>(zero_page::init_size, 0x400'0000), ENOMEM,
               "give it more memory"},
        Broken{"LoadedAtTheTop", put<std::uint64_t>(zero_page::pref_address, ~std::uint64_t{0}),
               ENOEXEC, "pref_address"},
        Broken{"LoadedAtZero", put<std::uint64_t>(zero_page::pref_address, 0), ENOEXEC,
               "pref_address"},
        Broken{"NoCommandLineAllowed", put<std::uint32_t>(zero_page::cmdline_size, 0), E2BIG,
               "command line"},
        Broken{"PvhAsked", [](ByteTable&, LinuxBoot& boot) { boot.entry = KernelEntry::Pvh; },
               EINVAL, "PVH"},
        Broken{"No64BitEntry",
               [](ByteTable& image, LinuxBoot& boot) {
                   image.put<std::uint16_t>(zero_page::xloadflags, 0);
                   boot.entry = KernelEntry::Long64;
               },
               EINVAL, "64-bit entry"},
        Broken{"OneMib", [](ByteTable&, LinuxBoot& boot) { boot.memory_bytes = mib; }, ENOMEM,
               "1 MiB"},
        Broken{"NoMemory", [](ByteTable&, LinuxBoot& boot) { boot.memory_bytes = 0; }, EINVAL,
               "memory size"},
        Broken{"NulInTheCommandLine",
               [](ByteTable&, LinuxBoot& boot) { boot.command_line.push_back('\0'); }, EINVAL,
               "NUL"}),
    name_of);

TEST(Bzimage, AnOlderKernelIsLoadedAt1Mib)
{
    auto image = make_bzimage();
    image.put<std::uint16_t>(zero_page::version, 0x0206);
    FakeMemory memory{machine};

    const auto loaded = load_linux(memory, boot_of(image));

    ASSERT_TRUE(loaded) << loaded.error().message();
    EXPECT_EQ(loaded->kernel, Gpa{mib});
    EXPECT_EQ(loaded->entry.mode, EntryMode::Protected32Flat);
    EXPECT_EQ(loaded->entry.regs.rip, mib);
}

TEST(Elf, TakesThePvhEntryWhereThereIsANote)
{
    const auto image = make_elf64(PvhNote::Present);
    const std::vector<std::byte> initrd(100, std::byte{3});
    auto boot = boot_of(image);
    boot.initrd = initrd;
    boot.rsdp = Gpa{0xe'0000};
    FakeMemory memory{machine};

    const auto loaded = load_linux(memory, boot);

    ASSERT_TRUE(loaded) << loaded.error().message();
    EXPECT_EQ(loaded->entry.mode, EntryMode::Protected32Flat);
    EXPECT_EQ(loaded->entry.regs.rip, elf_load + 0x40);
    const auto info = loaded->entry.regs.rbx;
    EXPECT_EQ(memory.get<std::uint32_t>(info), 0x336e'c578U);
    EXPECT_EQ(memory.get<std::uint32_t>(info + 4), 1U);
    EXPECT_EQ(memory.get<std::uint32_t>(info + 12), 1U);
    const auto module = memory.get<std::uint64_t>(info + 16);
    EXPECT_EQ(memory.get<std::uint64_t>(module), loaded->initrd.value());
    EXPECT_EQ(memory.get<std::uint64_t>(module + 8), 100U);
    EXPECT_EQ(text_at(memory, Gpa{memory.get<std::uint64_t>(info + 24)}, 13), "console=ttyS0");
    EXPECT_EQ(memory.get<std::uint64_t>(info + 32), 0xe'0000U);
    const auto map = memory.get<std::uint64_t>(info + 40);
    EXPECT_EQ(memory.get<std::uint32_t>(info + 48), 3U);
    EXPECT_EQ(memory.get<std::uint64_t>(map + 8), 0x9'fc00U);
    EXPECT_EQ(memory.get<std::uint64_t>(map + 48 + 8), machine - mib);
    EXPECT_EQ(memory.get<std::uint32_t>(map + 24 + 16), 2U);
}

TEST(Elf, LoadsSegmentsAndClearsTheirRest)
{
    const auto image = make_elf64(PvhNote::Present);
    FakeMemory memory{machine};
    const std::vector<std::byte> dirt(0x3000, std::byte{0xee});
    ASSERT_TRUE(memory.write(Gpa{elf_load}, dirt));

    ASSERT_TRUE(load_linux(memory, boot_of(image)));

    const auto code = image.bytes().subspan(elf_code_at, elf_code_bytes);
    EXPECT_EQ(memory.read(elf_load, elf_code_bytes),
              std::vector<std::byte>(code.begin(), code.end()));
    EXPECT_EQ(memory.read(elf_load + elf_code_bytes, elf_bss_bytes - elf_code_bytes),
              std::vector<std::byte>(elf_bss_bytes - elf_code_bytes));
    EXPECT_EQ(memory.get<std::uint8_t>(elf_load + elf_bss_bytes), 0xeeU);
}

TEST(Elf, WithoutANoteIsEnteredAt64BitsWithAZeroPage)
{
    const auto image = make_elf64(PvhNote::Absent);
    FakeMemory memory{machine};

    const auto loaded = load_linux(memory, boot_of(image));

    ASSERT_TRUE(loaded) << loaded.error().message();
    EXPECT_EQ(loaded->entry.mode, EntryMode::Long64);
    EXPECT_EQ(loaded->entry.regs.rip, elf_load + 0x10);
    EXPECT_EQ(loaded->entry.regs.rsi, layout::zero_page.value());
    EXPECT_EQ(memory.get<std::uint32_t>(zero_page_at(zero_page::header_magic)), header_magic_value);
    EXPECT_EQ(memory.get<std::uint8_t>(zero_page_at(zero_page::e820_entries)), 3U);
}

TEST(Elf, Of32BitsIsEnteredAt32Bits)
{
    const auto image = make_elf32();
    FakeMemory memory{machine};

    const auto loaded = load_linux(memory, boot_of(image));

    ASSERT_TRUE(loaded) << loaded.error().message();
    EXPECT_EQ(loaded->entry.mode, EntryMode::Protected32Flat);
    EXPECT_EQ(loaded->entry.regs.rip, elf_load + 0x10);
    EXPECT_EQ(loaded->kernel_end, elf_load + elf_bss_bytes);
}

TEST(Elf, AnEmptySegmentIsIgnoredWhereverItLies)
{
    auto image = make_elf64(PvhNote::Absent);
    image.put<std::uint32_t>(120, 1);
    image.put<std::uint64_t>(120 + 24, ~std::uint64_t{0});
    image.put<std::uint64_t>(120 + 32, 0);
    image.put<std::uint64_t>(120 + 40, 0);
    FakeMemory memory{machine};

    EXPECT_TRUE(load_linux(memory, boot_of(image)));
}

class BrokenElf : public ::testing::TestWithParam<Broken> {};

TEST_P(BrokenElf, IsRefusedInOneHelpfulLine)
{
    auto image = make_elf64(PvhNote::Present);
    auto boot = boot_of(image);
    GetParam().damage(image, boot);
    FakeMemory memory{machine};

    const auto loaded = load_linux(memory, boot);

    ASSERT_FALSE(loaded);
    EXPECT_EQ(loaded.error().errno_value(), GetParam().error) << loaded.error().message();
    EXPECT_THAT(loaded.error().message(), HasSubstr(GetParam().message));
    EXPECT_EQ(loaded.error().message().find('\n'), std::string::npos);
    EXPECT_EQ(memory.refused, 0);
}

void second_load(ByteTable& image, std::uint64_t paddr, std::uint64_t bytes)
{
    image.put<std::uint32_t>(120, 1);
    image.put<std::uint64_t>(120 + 24, paddr);
    image.put<std::uint64_t>(120 + 40, bytes);
}

INSTANTIATE_TEST_SUITE_P(
    Each,
    BrokenElf,
    ::testing::
        Values(
            Broken{"OnlyTheMagic", truncate(4), ENOEXEC, "class"},
            Broken{"HeaderCutOff", truncate(63), ENOEXEC, "truncated"},
            Broken{"ProgramHeadersCutOff", truncate(64 + 56 * 2 - 1), ENOEXEC, "program headers"},
            Broken{"SegmentCutOff", truncate(elf_code_at + elf_code_bytes - 1), ENOEXEC,
                   "segment 0"},
            Broken{"BigEndian", put<std::uint8_t>(5, 2), ENOEXEC, "big-endian"},
            Broken{"Relocatable", put<std::uint16_t>(16, 1), ENOEXEC, "type 1"},
            Broken{"ForArm", put<std::uint16_t>(18, 183), ENOEXEC, "machine 183"},
            Broken{"OddHeaderSize", put<std::uint16_t>(54, 55), ENOEXEC, "55 bytes"},
            Broken{"TableBeyondTheFile", put<std::uint64_t>(32, ~std::uint64_t{0}), ENOEXEC,
                   "program headers"},
            Broken{"ContentsWrap", put<std::uint64_t>(64 + 8, ~std::uint64_t{0} - 8), ENOEXEC,
                   "segment 0"},
            Broken{"FileLargerThanMemory", put<std::uint64_t>(64 + 40, 8), ENOEXEC, "in memory"},
            Broken{"HugeBss", put<std::uint64_t>(64 + 40, ~std::uint64_t{0}), ENOMEM, "segment 0"},
            Broken{"AddressWraps", put<std::uint64_t>(64 + 24, ~std::uint64_t{0} - 4), ENOMEM,
                   "segment 0"},
            Broken{"Low", put<std::uint64_t>(64 + 24, 0x1000), ENOEXEC, "1 MiB"},
            Broken{"NothingToLoad", put<std::uint32_t>(64, 0), ENOEXEC, "no segment"},
            Broken{"Overlap",
                   [](ByteTable& image, LinuxBoot&) {
                       second_load(image, elf_load + elf_bss_bytes - 1, 0x1000);
                   },
                   ENOEXEC, "overlap"},
            Broken{"EntryOutside",
                   [](ByteTable& image, LinuxBoot&) { put_note(image, elf_load + elf_bss_bytes); },
                   ENOEXEC, "entry point"},
            Broken{
                "NoPvhNote",
                [](ByteTable& image, LinuxBoot& boot) {
                    image.put<std::uint32_t>(120, 0);
                    boot.entry = KernelEntry::Pvh;
                },
                EINVAL, "CONFIG_PVH"},
            Broken{"Long64Asked",
                   [](ByteTable&, LinuxBoot& boot) { boot.entry = KernelEntry::Long64; }, EINVAL,
                   "PVH entry"}),
    name_of);

/// Whatever bytes come, the loader answers, and touches only RAM.
class AnyBytes : public ::testing::Test {
protected:
    void load(std::span<const std::byte> bytes)
    {
        LinuxBoot boot;
        boot.kernel = bytes;
        boot.initrd = bytes;
        boot.memory_bytes = machine;
        FakeMemory memory{machine};
        const auto loaded = load_linux(memory, boot);
        ASSERT_EQ(memory.refused, 0);
        if (!loaded) {
            ASSERT_FALSE(loaded.error().message().empty());
        }
    }

    std::mt19937_64 random_{20'26};
};

constexpr int iterations = 10'000;

TEST_F(AnyBytes, RandomOnes)
{
    for (int i = 0; i < iterations; ++i) {
        ByteTable image{random_() % 2000};
        for (std::size_t at = 0; at < image.size(); ++at) {
            image.put<std::uint8_t>(at, static_cast<std::uint8_t>(random_()));
        }
        ASSERT_NO_FATAL_FAILURE(load(image.bytes()));
    }
}

TEST_F(AnyBytes, DamagedImages)
{
    for (int i = 0; i < iterations; ++i) {
        auto image = i % 3 == 0   ? make_bzimage()
                     : i % 3 == 1 ? make_elf64(PvhNote::Present)
                                  : make_elf32();
        // The headers are in the first 0x290 bytes.
        for (auto count = 1 + random_() % 4; count > 0; --count) {
            const auto at = random_() % 0x290;
            const auto value = static_cast<std::uint8_t>(random_() % 4 == 0 ? 0xff : random_());
            image.put<std::uint8_t>(at, value);
        }
        ASSERT_NO_FATAL_FAILURE(load(image.bytes()));
    }
}

TEST_F(AnyBytes, TruncatedImages)
{
    for (const auto& image : {make_bzimage(), make_elf64(PvhNote::Present), make_elf32()}) {
        for (std::size_t size = 0; size < image.size(); ++size) {
            LinuxBoot boot;
            boot.kernel = image.bytes().first(size);
            boot.memory_bytes = machine;
            FakeMemory memory{machine};
            ASSERT_FALSE(load_linux(memory, boot)) << size;
            ASSERT_EQ(memory.refused, 0);
        }
    }
}

}  // namespace
}  // namespace vmm::boot
