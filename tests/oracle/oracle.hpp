// SPDX-License-Identifier: Apache-2.0

/// @file
/// The oracle itself: draws cases, has both sides run them, and reduces what differs.

#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "oracle/case.hpp"
#include "oracle/generator.hpp"
#include "oracle/judge.hpp"
#include "oracle/native_cpu.hpp"
#include "oracle/rows.hpp"
#include "oracle/soft_machine.hpp"

namespace vmm::oracle {

/// What has been executed of one row.
struct Coverage {
    std::uint64_t completed{};  ///< Cases that both sides ran to the end.
    std::uint64_t excepted{};   ///< Cases that ended in the same exception.
    std::uint64_t not_judged{};
    const char* why{};  ///< The last reason for `not_judged`.
};

struct Difference {
    std::string row{};
    std::string text{};  ///< What differs.
    std::string test{};  ///< To paste into `regression_test.cpp`.
};

/// A bug of the engine's that is not there: to see that the oracle would find it.
struct PlantedBug {
    const char* name{};
    /// Whether it concerns the case.
    bool (*concerns)(const Encoding&){};
    /// Changes what the engine is given, or what came out, as the bug would.
    void (*before)(Case&){};
    void (*after)(const Case&, Outcome&){};
};
[[nodiscard]] std::span<const PlantedBug> planted_bugs() noexcept;

class Oracle {
public:
    /// Each case is run by the engine in every one of `modes`, and judged for each.
    Oracle(std::uint64_t seed, const std::vector<x86::soft::TranslationMode>& modes);

    void plant(const PlantedBug& bug) { planted_ = &bug; }

    /// Rows whose name contains `part`; all of them, if none is set.
    void choose_rows(const std::string& part);
    /// How many of 100 cases are of several instructions.
    void set_sequences(unsigned percent) { sequences_ = percent; }

    /// Draws and runs one batch; returns how many cases.  What differs goes to `differences()`.
    std::size_t run_batch();
    [[nodiscard]] std::vector<Difference>& differences() noexcept { return differences_; }

    [[nodiscard]] const std::vector<Row>& rows() const noexcept { return rows_; }
    [[nodiscard]] const std::vector<std::uint32_t>& chosen() const noexcept { return known_; }
    /// By row; the last entry is that of sequences.
    [[nodiscard]] const std::vector<Coverage>& coverage() const noexcept { return coverage_; }

    /// Runs one case alone on both sides; what differs, or empty.
    [[nodiscard]] std::string try_case(const Case& each, const Arena& image);

private:
    /// The engine in one of its modes.
    struct Side {
        std::unique_ptr<SoftMachine> machine{};
        std::unique_ptr<std::array<Outcome, Batch::capacity>> outcomes{};
    };

    void draw_batch();
    void draw_sequences(std::uint32_t first);
    [[nodiscard]] std::uint32_t draw_row();
    void run_engine(SoftMachine& machine, const Case& each, Outcome& outcome);
    [[nodiscard]] std::vector<std::uint32_t> find_suspects();
    [[nodiscard]] std::string difference_of(const Side& side, std::uint32_t number);
    [[nodiscard]] bool depends_on_exit_page(Side& side, const Case& each);

    Generator generator_;
    std::vector<Row> rows_;
    std::vector<std::uint32_t> known_;    ///< Chosen rows with instructions.
    std::vector<std::uint32_t> unknown_;  ///< Chosen rows without.
    std::size_t next_known_{};
    std::vector<Coverage> coverage_;
    std::vector<Difference> differences_;
    NativeCpu native_;
    std::vector<Side> sides_;
    std::array<std::uint32_t, Batch::capacity> row_of_{};
    unsigned sequences_{};
    const PlantedBug* planted_{};
};

}  // namespace vmm::oracle
