// SPDX-License-Identifier: Apache-2.0

// KVM.md says what becomes of each capability; here each number is asked for.

#include <algorithm>
#include <array>
#include <cctype>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <map>
#include <set>
#include <sstream>
#include <string>
#include <vector>

#include "client.hpp"

namespace vmm::shim::test {
namespace {

/// The cells of a row of a table, without blanks around.
std::vector<std::string> cells_of(const std::string& line)
{
    std::vector<std::string> cells;
    std::istringstream row{line.substr(1)};
    for (std::string cell; std::getline(row, cell, '|');) {
        const std::size_t first = cell.find_first_not_of(' ');
        const std::size_t last = cell.find_last_not_of(' ');
        cells.push_back(first == std::string::npos ? "" : cell.substr(first, last - first + 1));
    }
    return cells;
}

/// What the document says.
struct Table {
    std::map<unsigned, std::vector<std::string>> rows{};
    std::set<unsigned> of_others{};  ///< Numbers of other architectures.
    std::vector<std::vector<std::string>> ioctls{};
};

Table read_table()
{
    Table table;
    const char* const elsewhere = std::getenv("VMM_KVM_TABLE");
    std::ifstream file{elsewhere != nullptr ? elsewhere : VMM_KVM_TABLE};
    EXPECT_TRUE(file) << VMM_KVM_TABLE << " is not there: VMM_KVM_TABLE in the environment";
    bool others = false;
    for (std::string line; std::getline(file, line);) {
        if (line.rfind("Of other architectures", 0) == 0) {
            others = true;
            line.erase(0, line.find(':') + 1);
        } else if (line.empty()) {
            others = false;
        }
        if (others) {
            std::istringstream numbers{line};
            for (std::string number; std::getline(numbers, number, ',');) {
                if (number.find_first_of("0123456789") != std::string::npos) {
                    table.of_others.insert(static_cast<unsigned>(std::stoul(number)));
                }
            }
        } else if (line.size() > 2 && line[0] == '|') {
            const auto cells = cells_of(line);
            if (std::isdigit(static_cast<unsigned char>(cells[0][0])) != 0) {
                table.rows[static_cast<unsigned>(std::stoul(cells[0]))] = cells;
            } else if (cells[0] == "system" || cells[0] == "VM" || cells[0] == "vCPU") {
                table.ioctls.push_back(cells);
            }
        }
    }
    return table;
}

/// "works: 4,096" is 4096, and "works" 1.
long value_of(const std::string& cell)
{
    std::string digits =
        cell.substr(cell.find(':') == std::string::npos ? cell.size() : cell.find(':') + 1);
    std::erase(digits, ',');
    return digits.empty() ? 1 : std::stol(digits, nullptr, 0);
}

constexpr std::size_t columns = 7;

/// Of the engine that answers; 0 for the kernel's own KVM, which may offer more or less.
std::size_t engine_column()
{
    const char* const name = std::getenv("VMM_KVM_ENGINE");
    const std::string engine = name != nullptr ? name : "soft";
    constexpr std::array engines{"soft", "kvm", "svm", "vmx"};
    const auto* const found = std::find(engines.begin(), engines.end(), engine);
    return found == engines.end() ? 0 : 2U + static_cast<std::size_t>(found - engines.begin());
}

/// Each engine works, or the remark says why it does not.
void expect_answers(const std::vector<std::string>& row)
{
    constexpr std::size_t remark = columns - 1;
    for (std::size_t engine = 2; engine < remark; ++engine) {
        EXPECT_TRUE(row[engine].rfind("works", 0) == 0U ||
                    (row[engine] == "refused" && !row[remark].empty()))
            << row[1] << ": why not?";
    }
}

TEST(CapabilityTable, IsWhatEachNumberAnswers)
{
    const Table table = read_table();
    const Descriptor kvm = open_kvm();
    const std::size_t column = engine_column();
    if (column == 0) {
        GTEST_SKIP() << "the table is of engines";
    }
    const bool is_host = column == 3;  // Which may have fewer of what it counts.
    constexpr unsigned end = 400;
    unsigned asked = 0;
    for (unsigned number = 0; number < end; ++number) {
        const long answer = call(kvm.get(), KVM_CHECK_EXTENSION, number);
        const auto row = table.rows.find(number);
        if (row == table.rows.end()) {
            EXPECT_EQ(answer, 0) << number << " has no row";
            continue;
        }
        ++asked;
        ASSERT_EQ(row->second.size(), columns) << number;
        const std::string& says = row->second[column];
        if (says.rfind("works", 0) == 0) {
            if (is_host) {
                EXPECT_GT(answer, 0) << row->second[1];
            } else {
                EXPECT_EQ(answer, value_of(says)) << row->second[1];
            }
        } else {
            EXPECT_EQ(answer, 0) << row->second[1];
        }
        expect_answers(row->second);
    }
    EXPECT_EQ(asked, table.rows.size());
}

TEST(CapabilityTable, HasEachNumberOfLinux6Point1)
{
    const Table table = read_table();
    const std::set<unsigned> never{5, 17, 19, 20, 27, 28};  // Not given to any capability.
    for (unsigned number = 0; number <= KVM_CAP_DIRTY_LOG_RING_ACQ_REL; ++number) {
        EXPECT_EQ(table.rows.count(number) + table.of_others.count(number) + never.count(number),
                  1U)
            << number;
    }
}

TEST(CapabilityTable, SaysOfEachIoctlThatItWorksOrWhyNot)
{
    const Table table = read_table();
    EXPECT_GT(table.ioctls.size(), 100U);
    for (const auto& row : table.ioctls) {
        ASSERT_EQ(row.size(), columns) << row[1];
        expect_answers(row);
    }
}

/// The names that this machine's header defines by what follows them.
std::vector<std::string> names_of_header(const std::string& prefix, const std::string& value)
{
    std::vector<std::string> names;
    std::ifstream header{"/usr/include/linux/kvm.h"};
    for (std::string line; std::getline(header, line);) {
        std::istringstream words{line};
        std::string define;
        std::string name;
        std::string rest;
        words >> define >> name;
        std::getline(words >> std::ws, rest);
        if (define == "#define" && name.rfind(prefix, 0) == 0U &&
            rest.find(value) != std::string::npos) {
            names.push_back(name);
        }
    }
    return names;
}

TEST(CapabilityTable, HasEachIoctlOfThisMachinesHeader)
{
    std::ifstream file{VMM_KVM_TABLE};
    const std::string text{std::istreambuf_iterator<char>{file}, {}};
    const auto ioctls = names_of_header("KVM_", "KVMIO,");
    if (ioctls.empty()) {
        GTEST_SKIP() << "there is no linux/kvm.h";
    }
    if (!names_of_header("KVM_SET_USER_MEMORY_REGION2", "KVMIO,").empty()) {
        GTEST_SKIP() << "the header is of a later Linux than the table, which is of 6.1";
    }
    EXPECT_GT(ioctls.size(), 150U);
    for (const std::string& name : ioctls) {
        const bool is_of_another = name.rfind("KVM_ARM_", 0) == 0U ||
                                   name.rfind("KVM_PPC_", 0) == 0U ||
                                   name.rfind("KVM_S390_", 0) == 0U;
        EXPECT_TRUE(is_of_another || text.find('`' + name + '`') != std::string::npos) << name;
    }
}

}  // namespace
}  // namespace vmm::shim::test
