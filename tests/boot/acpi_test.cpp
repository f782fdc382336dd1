// SPDX-License-Identifier: Apache-2.0

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <map>
#include <optional>
#include <string>

#include <unistd.h>

#include <gtest/gtest.h>

#include "boot/fake_memory.hpp"
#include "vmm/boot/acpi.hpp"
#include "x86/boot/aml.hpp"
#include "x86/boot/bytes.hpp"

namespace vmm::boot {
namespace {

using Bytes = std::span<const std::byte>;

unsigned sum_of(Bytes bytes)
{
    unsigned sum = 0;
    for (const auto byte : bytes) {
        sum += std::to_integer<unsigned>(byte);
    }
    return sum & 0xffU;
}

std::string text_of(Bytes bytes)
{
    std::string text;
    for (const auto byte : bytes) {
        text.push_back(static_cast<char>(byte));
    }
    return text;
}

template <typename T>
T get(Bytes bytes, std::size_t offset)
{
    const auto value = read_le<T>(bytes, offset);
    EXPECT_TRUE(value) << "offset " << offset << " of " << bytes.size();
    return value.value_or(0);
}

/// The table that begins at `at`, as long as its header says.
Bytes table_at(const AcpiTables& tables, Gpa at)
{
    const Bytes all{tables.bytes};
    const auto rest = all.subspan(at - tables.first);
    return rest.first(get<std::uint32_t>(rest, 4));
}

AcpiTables tables_for(std::uint32_t cpus)
{
    AcpiPlatform platform;
    platform.cpus = cpus;
    return build_acpi(platform).value();
}

class AcpiForCpus : public ::testing::TestWithParam<std::uint32_t> {};
INSTANTIATE_TEST_SUITE_P(Counts, AcpiForCpus, ::testing::Values(1, 2, 4, 64, 254, 255, 256, 288));

TEST_P(AcpiForCpus, EveryTableIsFoundFromTheRsdpAndSumsToZero)
{
    const auto tables = tables_for(GetParam());
    const Bytes all{tables.bytes};

    EXPECT_EQ(tables.rsdp, Gpa{0xe'0000});
    EXPECT_LE(all.size(), layout::acpi_tables_bytes);
    EXPECT_EQ(text_of(all.first(8)), "RSD PTR ");
    EXPECT_EQ(sum_of(all.first(20)), 0U);
    EXPECT_EQ(sum_of(all.first(36)), 0U);
    ASSERT_EQ(get<std::uint64_t>(all, 24), tables.xsdt.value());
    const auto xsdt = table_at(tables, tables.xsdt);
    EXPECT_EQ(text_of(xsdt.first(4)), "XSDT");
    ASSERT_EQ(xsdt.size(), 36U + 2 * 8);
    const auto fadt = table_at(tables, Gpa{get<std::uint64_t>(xsdt, 36)});
    const auto madt = table_at(tables, Gpa{get<std::uint64_t>(xsdt, 44)});
    const auto dsdt = table_at(tables, Gpa{get<std::uint64_t>(fadt, 140)});
    EXPECT_EQ(text_of(fadt.first(4)), "FACP");
    EXPECT_EQ(text_of(madt.first(4)), "APIC");
    EXPECT_EQ(text_of(dsdt.first(4)), "DSDT");
    for (const auto& table : {xsdt, fadt, madt, dsdt}) {
        EXPECT_EQ(sum_of(table), 0U);
    }
    EXPECT_EQ(get<std::uint32_t>(fadt, 40), get<std::uint64_t>(fadt, 140));
}

TEST_P(AcpiForCpus, TheMadtListsEachCpuOnce)
{
    const auto tables = tables_for(GetParam());
    const auto madt = table_at(tables, tables.madt);
    std::map<unsigned, unsigned> entries;
    std::uint32_t next_id = 0;

    std::size_t at = 44;
    while (at < madt.size()) {
        const auto type = get<std::uint8_t>(madt, at);
        const auto size = get<std::uint8_t>(madt, at + 1);
        ASSERT_GE(size, 6U);
        ASSERT_LE(at + size, madt.size());
        ++entries[type];
        if (type == 0) {
            EXPECT_EQ(get<std::uint8_t>(madt, at + 3), next_id++);
            EXPECT_EQ(get<std::uint32_t>(madt, at + 4), 1U);
        } else if (type == 9) {
            EXPECT_GE(next_id, 255U);
            EXPECT_EQ(get<std::uint32_t>(madt, at + 4), next_id++);
            EXPECT_EQ(get<std::uint32_t>(madt, at + 8), 1U);
        }
        at += size;
    }

    EXPECT_EQ(next_id, GetParam());
    EXPECT_EQ(entries[1], 1U);
    EXPECT_EQ(entries[2], 2U);
    EXPECT_EQ(entries[4], 1U);
}

TEST(Acpi, TheMadtOverridesTheTimerAndTheSci)
{
    const auto tables = tables_for(1);
    const auto madt = table_at(tables, tables.madt);

    // 44 bytes of header, 8 of local APIC, 12 of I/O APIC.
    EXPECT_EQ(get<std::uint32_t>(madt, 36), 0xfee0'0000U);
    EXPECT_EQ(get<std::uint32_t>(madt, 52 + 4), 0xfec0'0000U);
    EXPECT_EQ(get<std::uint8_t>(madt, 64 + 3), 0U);
    EXPECT_EQ(get<std::uint32_t>(madt, 64 + 4), 2U);
    EXPECT_EQ(get<std::uint16_t>(madt, 64 + 8), 0U);
    EXPECT_EQ(get<std::uint8_t>(madt, 74 + 3), 9U);
    EXPECT_EQ(get<std::uint32_t>(madt, 74 + 4), 9U);
    EXPECT_EQ(get<std::uint16_t>(madt, 74 + 8), 0xdU);
}

TEST(Acpi, TheFadtNamesThePorts)
{
    AcpiPlatform platform;
    platform.pm1a_event = Port{0xb000};
    platform.pm1a_control = Port{0xb004};
    platform.pm_timer = Port{0xb008};
    platform.reset = Port{0x64};
    platform.reset_value = 0xfe;
    const auto tables = build_acpi(platform).value();
    const auto fadt = table_at(tables, tables.fadt);

    ASSERT_EQ(fadt.size(), 268U);
    EXPECT_EQ(get<std::uint32_t>(fadt, 36), tables.facs.value());
    EXPECT_EQ(get<std::uint16_t>(fadt, 46), 9U);
    EXPECT_EQ(get<std::uint32_t>(fadt, 48), 0U);
    EXPECT_EQ(get<std::uint32_t>(fadt, 56), 0xb000U);
    EXPECT_EQ(get<std::uint64_t>(fadt, 148 + 4), 0xb000U);
    EXPECT_EQ(get<std::uint32_t>(fadt, 64), 0xb004U);
    EXPECT_EQ(get<std::uint64_t>(fadt, 172 + 4), 0xb004U);
    EXPECT_EQ(get<std::uint32_t>(fadt, 76), 0xb008U);
    EXPECT_EQ(get<std::uint64_t>(fadt, 116 + 4), 0x64U);
    EXPECT_EQ(get<std::uint8_t>(fadt, 128), 0xfeU);
    constexpr std::uint32_t hardware_reduced = 1U << 20U;
    EXPECT_EQ(get<std::uint32_t>(fadt, 112) & hardware_reduced, 0U);
}

TEST(Acpi, TheFacsIsAligned)
{
    const auto tables = tables_for(3);
    EXPECT_TRUE(tables.facs.is_aligned(64));
    EXPECT_EQ(text_of(table_at(tables, tables.facs).first(4)), "FACS");
    EXPECT_EQ(table_at(tables, tables.facs).size(), 64U);
}

TEST(Acpi, RefusesWhatItCannotDescribe)
{
    for (const std::uint32_t cpus : {0U, 289U, ~0U}) {
        AcpiPlatform platform;
        platform.cpus = cpus;
        const auto tables = build_acpi(platform);
        ASSERT_FALSE(tables);
        EXPECT_EQ(tables.error().errno_value(), EINVAL);
    }
    EXPECT_FALSE(build_acpi(AcpiPlatform{}, Gpa{0xe'0010}));
    EXPECT_FALSE(build_acpi(AcpiPlatform{}, Gpa{0x1'0000'0000}));
    AcpiPlatform platform;
    platform.serial_lines.front().irq = 16;
    EXPECT_FALSE(build_acpi(platform));
}

TEST(Acpi, IsWrittenWhereAGuestLooksForIt)
{
    FakeMemory memory{1024 * 1024};

    const auto rsdp = write_acpi(memory, AcpiPlatform{});

    ASSERT_TRUE(rsdp);
    EXPECT_EQ(memory.get<std::uint64_t>(rsdp->value()), 0x2052'5450'2044'5352U);
    EXPECT_GE(rsdp->value(), 0xe'0000U);
    EXPECT_EQ(rsdp->value() % 16, 0U);
}

/// Reads the terms that `build_acpi()` writes, strictly: what it does not know, it refuses.
class AmlReader {
public:
    /// Walks `code` to its end; the names of all devices land in `devices`.
    bool terms(Bytes code)
    {
        while (!code.empty()) {
            if (!term(code)) {
                return false;
            }
        }
        return true;
    }

    std::vector<std::string> devices;
    std::map<std::string, std::size_t> names;

private:
    static std::optional<Bytes> packaged(Bytes& code)
    {
        if (code.empty()) {
            return std::nullopt;
        }
        const auto lead = std::to_integer<std::size_t>(code[0]);
        const auto follow = lead >> 6U;
        if (code.size() <= follow) {
            return std::nullopt;
        }
        std::size_t length = follow == 0 ? lead & 0x3fU : lead & 0xfU;
        for (std::size_t i = 0; i < follow; ++i) {
            length |= std::to_integer<std::size_t>(code[1 + i]) << (4 + 8 * i);
        }
        if (length > code.size() || length < 1 + follow) {
            return std::nullopt;
        }
        const auto body = code.subspan(1 + follow, length - 1 - follow);
        code = code.subspan(length);
        return body;
    }
    static std::optional<std::string> segment(Bytes& code)
    {
        if (!code.empty() && code[0] == std::byte{'\\'}) {
            code = code.subspan(1);
        }
        if (code.size() < 4) {
            return std::nullopt;
        }
        auto text = text_of(code.first(4));
        for (const char c : text) {
            if (!((c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_')) {
                return std::nullopt;
            }
        }
        code = code.subspan(4);
        return text;
    }
    bool value(Bytes& code)
    {
        if (code.empty()) {
            return false;
        }
        const auto op = std::to_integer<unsigned>(code[0]);
        code = code.subspan(1);
        std::size_t skip = 0;
        switch (op) {
        case 0x00:
        case 0x01: break;
        case 0x0a: skip = 1; break;
        case 0x0b: skip = 2; break;
        case 0x0c: skip = 4; break;
        case 0x0e: skip = 8; break;
        case 0x0d: {
            const auto end = std::find(code.begin(), code.end(), std::byte{0});
            skip = static_cast<std::size_t>(end - code.begin()) + 1;
            break;
        }
        case 0x11: {
            auto body = packaged(code);
            if (!body) {
                return false;
            }
            const auto whole = body->size();
            if (!value(*body)) {  // Its size, then so many bytes.
                return false;
            }
            return whole > body->size();
        }
        case 0x12: {
            auto body = packaged(code);
            if (!body || body->empty()) {
                return false;
            }
            auto count = std::to_integer<unsigned>((*body)[0]);
            *body = body->subspan(1);
            for (; count > 0; --count) {
                if (!value(*body)) {
                    return false;
                }
            }
            return body->empty();
        }
        default: return false;
        }
        if (skip > code.size()) {
            return false;
        }
        code = code.subspan(skip);
        return true;
    }
    bool term(Bytes& code)
    {
        const auto op = std::to_integer<unsigned>(code[0]);
        code = code.subspan(1);
        if (op == 0x08) {
            const auto name = segment(code);
            return name && ++names[*name] != 0 && value(code);
        }
        const bool device = op == 0x5b && !code.empty() && code[0] == std::byte{0x82};
        if (device) {
            code = code.subspan(1);
        } else if (op != 0x10) {
            return false;
        }
        auto body = packaged(code);
        if (!body) {
            return false;
        }
        const auto name = segment(*body);
        if (!name) {
            return false;
        }
        if (device) {
            devices.push_back(*name);
        }
        return terms(*body);
    }
};

TEST_P(AcpiForCpus, TheDsdtIsWellFormedAml)
{
    const auto tables = tables_for(GetParam());
    AmlReader reader;

    ASSERT_TRUE(reader.terms(table_at(tables, tables.dsdt).subspan(36)));

    EXPECT_EQ(reader.names["_S5_"], 1U);
    ASSERT_EQ(reader.devices.size(), GetParam() + 3U);
    EXPECT_EQ(reader.devices.front(), "C000");
    const auto after_cpus = reader.devices.begin() + static_cast<std::ptrdiff_t>(GetParam());
    EXPECT_EQ(std::vector(after_cpus, reader.devices.end()),
              (std::vector<std::string>{"MBRD", "COM1", "RTC_"}));
    auto unique = reader.devices;
    std::sort(unique.begin(), unique.end());
    EXPECT_EQ(std::unique(unique.begin(), unique.end()), unique.end());
}

/// The reference compiler's opinion, where it is installed (package acpica-tools).
TEST(Acpi, TheReferenceCompilerDisassemblesTheDsdt)
{
    if (!std::filesystem::exists("/usr/bin/iasl")) {
        GTEST_SKIP() << "iasl is not installed";
    }
    AcpiPlatform platform;
    platform.cpus = 288;
    platform.serial_lines.push_back({.base = Port{0x2f8}, .irq = 3});
    const auto tables = build_acpi(platform).value();
    const auto folder =
        std::filesystem::temp_directory_path() / ("vmm-acpi-" + std::to_string(::getpid()));
    std::filesystem::create_directory(folder);
    for (const auto& [name, at] : {std::pair{"dsdt", tables.dsdt}, std::pair{"facp", tables.fadt},
                                   std::pair{"apic", tables.madt}}) {
        std::ofstream file{folder / (std::string{name} + ".aml"), std::ios::binary};
        const auto text = text_of(table_at(tables, at));
        file.write(text.data(), static_cast<std::streamsize>(text.size()));
        file.close();
        const auto command = "cd " + folder.string() + " && iasl -d " + name + ".aml >" + name +
                             ".log 2>&1 && iasl " + name + ".dsl >>" + name + ".log 2>&1";
        EXPECT_EQ(std::system(command.c_str()), 0) << name << " in " << folder;
    }
    std::filesystem::remove_all(folder);
}

TEST(Aml, LengthsTakeTheShortestForm)
{
    const auto scope_bytes = [](std::size_t body) {
        aml::Term term;
        term.bytes.resize(body);
        return aml::scope("\\_SB_", term).bytes;
    };
    // The operator, the length, five bytes of name, the body.
    EXPECT_EQ(scope_bytes(0x3f - 6).size(), 1U + 0x3f);
    EXPECT_EQ(scope_bytes(0x3f - 6)[1], std::byte{0x3f});
    EXPECT_EQ(scope_bytes(0x3f - 5)[1], std::byte{0x41});
    EXPECT_EQ(scope_bytes(0xfff - 7)[1], std::byte{0x4f});
    EXPECT_EQ(scope_bytes(0xfff - 7)[2], std::byte{0xff});
    EXPECT_EQ(scope_bytes(0xfff - 6)[1], std::byte{0x81});
    EXPECT_EQ(scope_bytes(0xf'ffff - 7).size(), 1U + 0x10'0001);
    EXPECT_EQ(scope_bytes(0xf'ffff - 7)[1], std::byte{0xc1});
}

TEST(Aml, IntegersTakeTheShortestForm)
{
    EXPECT_EQ(aml::integer(0).bytes.size(), 1U);
    EXPECT_EQ(aml::integer(1).bytes.size(), 1U);
    EXPECT_EQ(aml::integer(0xff).bytes.size(), 2U);
    EXPECT_EQ(aml::integer(0x100).bytes.size(), 3U);
    EXPECT_EQ(aml::integer(0x1'0000).bytes.size(), 5U);
    EXPECT_EQ(aml::integer(0x1'0000'0000).bytes.size(), 9U);
}

TEST(Aml, CompressesIdentifiers)
{
    // ACPI Specification, "EISAID (EISA ID String To Integer Conversion Macro)".
    const auto term = aml::eisa_id("PNP0501");
    EXPECT_EQ(term.bytes, (std::vector{std::byte{0x0c}, std::byte{0x41}, std::byte{0xd0},
                                       std::byte{0x05}, std::byte{0x01}}));
}

}  // namespace
}  // namespace vmm::boot
