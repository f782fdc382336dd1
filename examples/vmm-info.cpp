// SPDX-License-Identifier: Apache-2.0

// Which engines can run guests here; for each that cannot, why, and what would mend it.

#include <string>
#include <string_view>

#include <fmt/format.h>

#include "vmm/vmm.hpp"

namespace {

/// `text` as a JSON string.
std::string quoted(std::string_view text)
{
    std::string out = "\"";
    for (const char c : text) {
        if (c == '"' || c == '\\') {
            out += '\\';
        }
        if (static_cast<unsigned char>(c) < 0x20U) {
            out += fmt::format("\\u{:04x}", static_cast<unsigned>(c));
        } else {
            out += c;
        }
    }
    return out + '"';
}

void print_json(const std::vector<vmm::EngineReport>& reports, std::string_view taken)
{
    fmt::print("{{\n  \"auto\": {},\n  \"engines\": [\n", quoted(taken));
    for (std::size_t i = 0; i < reports.size(); ++i) {
        const vmm::EngineReport& r = reports[i];
        fmt::print("    {{\"engine\": {}, \"usable\": {}, \"reason\": {}, \"fix\": {}}}{}\n",
                   quoted(vmm::name(r.engine)), r.usable, quoted(r.reason), quoted(r.fix),
                   i + 1 < reports.size() ? "," : "");
    }
    fmt::print("  ]\n}}\n");
}

void print_text(const std::vector<vmm::EngineReport>& reports, std::string_view taken)
{
    for (const vmm::EngineReport& r : reports) {
        fmt::print("{:5} {:10} {}\n", vmm::name(r.engine), r.usable ? "usable" : "not usable",
                   r.reason);
        if (!r.fix.empty()) {
            fmt::print("{:16} to mend it: {}\n", "", r.fix);
        }
    }
    fmt::print("auto takes: {}\n", taken.empty() ? "none" : taken);
}

}  // namespace

int main(int argc, char** argv)
{
    const bool json = argc == 2 && std::string_view{argv[1]} == "--json";
    if (argc > 1 && !json) {
        fmt::print(stderr, "usage: vmm-info [--json]\n");
        return 2;
    }
    const std::vector<vmm::EngineReport> reports = vmm::probe_engines();
    std::string_view taken;
    for (const vmm::EngineReport& r : reports) {
        if (r.automatic) {
            taken = vmm::name(r.engine);
            break;
        }
    }
    if (json) {
        print_json(reports, taken);
    } else {
        print_text(reports, taken);
    }
    return taken.empty() ? 1 : 0;
}
