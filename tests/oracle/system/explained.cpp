// SPDX-License-Identifier: Apache-2.0

#include "oracle/system/explained.hpp"

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <string_view>
#include <vector>

namespace vmm::oracle {
namespace {

/// The lines that say what differs.
std::vector<std::string> differing_fields(const std::string& report)
{
    std::vector<std::string> lines;
    const std::size_t end = report.find("leader:\n");
    std::size_t at = report.find('\n') + 1;
    while (at < end && end != std::string::npos) {
        const std::size_t next = report.find('\n', at);
        lines.push_back(report.substr(at, next - at));
        at = next + 1;
    }
    return lines;
}

/// A word of memory in which only RF of a pushed RFLAGS differs, which `soft` has set.
bool is_resume_flag(const std::string& line)
{
    unsigned long long gpa = 0;
    unsigned leader = 0;
    unsigned follower = 0;
    constexpr unsigned resume = 1U << 16U;
    return std::sscanf(line.c_str(), "  memory %llx %x | %x", &gpa, &leader, &follower) == 3 &&
           leader == (follower | resume) && leader != follower;
}

/// The handler's CS has the privilege bits of its gate's selector instead of the new CPL.
bool is_requested_privilege(const std::string& line)
{
    unsigned leader = 0;
    unsigned follower = 0;
    return std::sscanf(line.c_str(), "  cs.selector %x | %x", &leader, &follower) == 2 &&
           (leader | 3U) == (follower | 3U);
}

bool has_piece(const Guest& guest, std::string_view name)
{
    return std::any_of(guest.pieces.begin(), guest.pieces.end(),
                       [&](const Piece& piece) { return piece.name == name; });
}

}  // namespace

std::string explanation(const Guest& guest, const std::string& report)
{
    const std::vector<std::string> fields = differing_fields(report);
    if (!fields.empty() && std::all_of(fields.begin(), fields.end(), is_resume_flag)) {
        return "QEMU's CPU pushes RF clear for faults (SDM Vol. 3B \"Instruction-Breakpoint "
               "Exception Condition\": it is set)";
    }
    if (fields.size() == 1 && is_requested_privilege(fields.front())) {
        return "a KVM without hardware takes the RPL of a gate's selector over (SDM Vol. 3A "
               "\"Privilege Levels\": CPL is in bits 1:0 of CS)";
    }
    if (has_piece(guest, "sysret") && guest.mode == Mode::Real) {
        return "SYSRET in real mode with EFER.SCE = 0: QEMU's CPU raises #GP (SDM Vol. 2B "
               "\"SYSRET\": "
               "#UD)";
    }
    if (has_piece(guest, "sysexit") && report.find("| 0x801b\n") != std::string::npos) {
        return "SYSEXIT in long mode of an AMD CPU: QEMU's executes it (APM Vol. 3 \"SYSEXIT\": "
               "#UD)";
    }
    if (has_piece(guest, "iret") && fields.size() == 1 && fields.front().find("  memory ") == 0) {
        return "a KVM without hardware checks SS of an IRET before CS (SDM Vol. 2A \"IRET\": "
               "after), "
               "so another error code is pushed where both are bad";
    }
    if (has_piece(guest, "clts") && fields.size() == 1 && fields.front().find("  cr0 ") == 0) {
        return "CLTS of a KVM without hardware clears CR0.WP too";
    }
    const bool int_refused = has_piece(guest, "int n") && guest.pieces.size() == 1 &&
                             report.find("  rip          ") != std::string::npos &&
                             report.find("| 0x801b\n") != std::string::npos;
    if (int_refused) {
        return "a KVM without hardware answers INT n of an exception's vector with #GP";
    }
    const bool wrote_bad_address =
        has_piece(guest, "wrmsr") &&
        std::any_of(fields.begin(), fields.end(), [](const std::string& line) {
            return line.find("lstar") != std::string::npos ||
                   line.find("kernel_gs") != std::string::npos ||
                   line.find("sysenter") != std::string::npos ||
                   line.find("s.base") != std::string::npos;
        });
    if (wrote_bad_address) {
        return "WRMSR of an address that is not canonical: QEMU's CPU takes it (SDM Vol. 2D "
               "\"WRMSR\": #GP(0))";
    }
    return {};
}

}  // namespace vmm::oracle
