// SPDX-License-Identifier: Apache-2.0

/// @file
/// vmm-oracle: compares the software engine with the host CPU, instruction by instruction.

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <stdexcept>
#include <string>

#include <fmt/format.h>

#include "oracle/case_text.hpp"
#include "oracle/oracle.hpp"

namespace {

using namespace vmm::oracle;

struct Options {
    std::uint64_t seed{1};
    std::uint64_t cases{};
    double seconds{};
    std::string row{};
    std::string single{};
    std::string planted{};
    unsigned sequences{10};
    std::size_t stop_after{10};
    bool coverage{};
    std::string modes{"interpreter,stress"};
};

constexpr const char* usage =
    "vmm-oracle: runs random instructions on the host CPU and on the software engine, and "
    "compares\n"
    "\n"
    "  --seed N         where the random numbers start (1)\n"
    "  --cases N        how many cases; or\n"
    "  --seconds N      for how long (10)\n"
    "  --row PART       only rows of the opcode maps whose name contains PART, e.g. 64:0f:b1\n"
    "  --sequences N    percentage of cases that are several instructions (10)\n"
    "  --stop-after N   differences after which to stop (10)\n"
    "  --coverage       lists each row with its cases\n"
    "  --soft MODES     how the engine executes: interpreter, translator, stress (translates at\n"
    "                   once), or several with commas, for each of which every case is judged\n"
    "                   (interpreter,stress)\n"
    "  --plant NAME     a bug for the engine, to see it found: shift-flags, sse-rounding,\n"
    "                   page-fault-error, cmpxchg16b, rep-count\n"
    "  --case TEXT      one case, as a difference is printed\n";

Options parse_options(int argc, char** argv)
{
    Options options;
    for (int i = 1; i < argc; ++i) {
        const std::string name = argv[i];
        const auto value = [&]() -> std::string {
            if (i + 1 >= argc) {
                throw std::invalid_argument(name + " wants a value");
            }
            return argv[++i];
        };
        if (name == "--seed") {
            options.seed = std::stoull(value());
        } else if (name == "--cases") {
            options.cases = std::stoull(value());
        } else if (name == "--seconds") {
            options.seconds = std::stod(value());
        } else if (name == "--row") {
            options.row = value();
        } else if (name == "--sequences") {
            options.sequences = static_cast<unsigned>(std::stoul(value()));
        } else if (name == "--stop-after") {
            options.stop_after = std::stoul(value());
        } else if (name == "--soft") {
            options.modes = value();
        } else if (name == "--coverage") {
            options.coverage = true;
        } else if (name == "--plant") {
            options.planted = value();
        } else if (name == "--case") {
            options.single = value();
        } else {
            throw std::invalid_argument("unknown option " + name + "\n\n" + usage);
        }
    }
    if (options.cases == 0 && options.seconds == 0) {
        options.seconds = 10;
    }
    return options;
}

std::vector<vmm::x86::soft::TranslationMode> parse_modes(const std::string& text)
{
    std::vector<vmm::x86::soft::TranslationMode> modes;
    for (std::size_t at = 0; at <= text.size();) {
        const std::size_t end = std::min(text.find(',', at), text.size());
        const std::string name = text.substr(at, end - at);
        const auto mode = vmm::x86::soft::translation_mode_from_name(name);
        if (!mode) {
            throw std::invalid_argument("--soft " + text + ": \"" + name +
                                        "\" is none of interpreter, translator, stress");
        }
        modes.push_back(*mode);
        at = end + 1;
    }
    return modes;
}

void print_coverage(const Oracle& oracle)
{
    std::size_t empty = 0;
    for (std::size_t i = 0; i < oracle.rows().size(); ++i) {
        const Row& row = oracle.rows()[i];
        const Coverage& each = oracle.coverage()[i];
        const bool is_empty = each.completed + each.excepted + each.not_judged == 0;
        empty += is_empty ? 1 : 0;
        fmt::print("{:32} {:6} {:10} completed {:10} excepted {:10} not judged{}{}\n", row.name(),
                   row.is_known ? "" : "none", each.completed, each.excepted, each.not_judged,
                   each.why != nullptr ? std::string{": "} + each.why : "",
                   is_empty ? "  EMPTY" : "");
    }
    fmt::print("{} rows, {} of them empty\n", oracle.rows().size(), empty);
}

int run_single(Oracle& oracle, const std::string& text)
{
    Case each;
    Arena image{};
    from_text(text, each, image);
    const std::string different = oracle.try_case(each, image);
    fmt::print("{}", different.empty() ? "no difference\n" : different);
    return different.empty() ? 0 : 1;
}

void plant(Oracle& oracle, const std::string& name)
{
    if (name.empty()) {
        return;
    }
    for (const PlantedBug& each : planted_bugs()) {
        if (each.name == name) {
            oracle.plant(each);
            return;
        }
    }
    throw std::invalid_argument("no bug is called " + name);
}

int run(const Options& options)
{
    Oracle oracle{options.seed, parse_modes(options.modes)};
    plant(oracle, options.planted);
    if (!options.single.empty()) {
        return run_single(oracle, options.single);
    }
    oracle.choose_rows(options.row);
    oracle.set_sequences(options.sequences);
    using Clock = std::chrono::steady_clock;
    const Clock::time_point start = Clock::now();
    const auto elapsed = [&] {
        return std::chrono::duration<double>(Clock::now() - start).count();
    };
    std::uint64_t cases = 0;
    std::size_t reported = 0;
    while (options.cases != 0 ? cases < options.cases : elapsed() < options.seconds) {
        cases += oracle.run_batch();
        for (; reported < oracle.differences().size(); ++reported) {
            const Difference& each = oracle.differences()[reported];
            fmt::print("DIFFERENCE in row {}:\n{}  {}\n\n", each.row, each.text, each.test);
            std::fflush(stdout);
        }
        if (reported >= options.stop_after) {
            break;
        }
    }
    if (options.coverage) {
        print_coverage(oracle);
    }
    std::uint64_t judged = 0;
    for (const Coverage& each : oracle.coverage()) {
        judged += each.completed + each.excepted;
    }
    const double seconds = elapsed();
    fmt::print("seed {}: {} cases in {:.1f} s ({:.0f} a second), {} judged, {} differences\n",
               options.seed, cases, seconds, static_cast<double>(cases) / seconds, judged,
               reported);
    return reported == 0 ? 0 : 1;
}

}  // namespace

int main(int argc, char** argv)
{
    try {
        return run(parse_options(argc, argv));
    } catch (const std::exception& error) {
        fmt::print(stderr, "vmm-oracle: {}\n", error.what());
        return 2;
    }
}
