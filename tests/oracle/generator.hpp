// SPDX-License-Identifier: Apache-2.0

/// @file
/// Makes cases: bytes of a row of the opcode maps, and a state in which they do something.

#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "oracle/case.hpp"
#include "oracle/encoding.hpp"
#include "oracle/random.hpp"
#include "oracle/rows.hpp"
#include "x86/soft/insn.hpp"

namespace vmm::oracle {

/// The bytes of one instruction.
struct Code {
    std::vector<std::uint8_t> bytes{};
    Encoding encoding{};
    /// What the engine's decoder says; only to place operands by.
    x86::soft::Insn insn{};
    bool is_known{};
};

class Generator {
public:
    explicit Generator(std::uint64_t seed) : random_{seed} {}

    /// Random memory with some order in it: numbers of all kinds, runs of equal bytes.
    void make_image(Arena& image);
    /// An instruction of the row, legal or not.
    [[nodiscard]] Code encode(const Row& row);
    /// A case of one instruction.
    void make_case(const Code& code, Case& result);
    /// A case of several, with branches among them and stores into them.
    void make_sequence(const std::vector<Row>& rows,
                       std::span<const std::uint32_t> eligible,
                       bool is_32,
                       Case& result);

    [[nodiscard]] Random& random() noexcept { return random_; }

private:
    void add_prefixes(const Row& row, Code& code);
    void add_vex(const Row& row, Code& code);
    void add_modrm(const Row& row, Code& code);
    void add_displacement(Code& code, std::size_t size);

    void randomise_state(State& state);
    void randomise_fpu(State& state);
    void randomise_x87(State& state);
    void fill_with_numbers(std::uint8_t* bytes, std::size_t size);
    [[nodiscard]] std::uint64_t value();
    [[nodiscard]] std::uint64_t data_pointer();
    [[nodiscard]] std::uint64_t place_operand(std::uint32_t size);
    [[nodiscard]] std::uint64_t selector();
    [[nodiscard]] std::uint64_t code_target();
    [[nodiscard]] std::uint64_t far_target(std::uint64_t code_selector, bool is_32);
    [[nodiscard]] std::uint64_t any_flags();

    [[nodiscard]] std::vector<std::uint8_t> draw_fit(const std::vector<Row>& rows,
                                                     std::span<const std::uint32_t> eligible,
                                                     bool is_32);
    void add_self_modification(std::vector<std::uint8_t>& bytes, std::uint64_t start, bool is_32);

    void place_code(Case& result, std::vector<std::uint8_t>& bytes);
    void aim(Case& result, Code& code);
    void aim_branch(Case& result, Code& code);
    void aim_vector_index(Case& result, const Code& code);
    void prepare(Case& result, const Code& code, std::uint64_t operand);
    void prepare_system(Case& result, const Code& code, std::uint64_t operand);
    [[nodiscard]] std::array<std::uint8_t, 64> save_header();
    void prepare_save_area(Case& result, const Code& code, std::uint64_t operand);

    Random random_;
};

/// Puts `bytes` at a linear address of the data pages, if it lies there.
void patch_data(Case& result,
                std::size_t number,
                std::uint64_t linear,
                std::span<const std::uint8_t> bytes);

}  // namespace vmm::oracle
