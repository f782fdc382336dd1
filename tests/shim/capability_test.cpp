// SPDX-License-Identifier: Apache-2.0

// KVM.md says what becomes of each capability; here each number is asked for.

#include <cctype>
#include <fstream>
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
    std::ifstream file{VMM_KVM_TABLE};
    EXPECT_TRUE(file) << VMM_KVM_TABLE;
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

TEST(CapabilityTable, IsWhatEachNumberAnswers)
{
    const Table table = read_table();
    const Descriptor kvm = open_kvm();
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
        ASSERT_GE(row->second.size(), 5U) << number;
        const std::string& says = row->second[2];
        if (says.rfind("works", 0) == 0) {
            EXPECT_EQ(answer, value_of(says)) << row->second[1];
            EXPECT_TRUE(row->second[3].rfind("works", 0) == 0U ||
                        (row->second[3] == "refused" && !row->second[4].empty()))
                << row->second[1];
        } else {
            EXPECT_EQ(says, "refused") << row->second[1];
            EXPECT_EQ(answer, 0) << row->second[1];
            EXPECT_FALSE(row->second[4].empty()) << row->second[1] << ": why?";
        }
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
        ASSERT_GE(row.size(), 5U) << row[1];
        for (const std::size_t engine : {2U, 3U}) {
            EXPECT_TRUE(row[engine] == "works" || (row[engine] == "refused" && !row[4].empty()))
                << row[1];
        }
    }
}

}  // namespace
}  // namespace vmm::shim::test
