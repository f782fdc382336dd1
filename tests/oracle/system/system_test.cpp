// SPDX-License-Identifier: Apache-2.0

// What a CPU does beyond its instructions' results: generated guests run on `soft` and on `kvm` or
// `svm` in lockstep, with hardware as the judge; and on `soft` with and without its translator.
//
//     VMM_SYSTEM_GUESTS=100000 VMM_SYSTEM_SEED=1 vmm_system_tests
//
// sets how many and from which seed; VMM_SYSTEM_JUDGE=qemu says that the KVM is the one
// of the QEMU machine, whose CPU is no judge of some things (machine.cpp).
//
// A difference is printed with the guest reduced to the pieces that it needs, and its seed.

#include <cstdlib>
#include <iostream>
#include <map>

#include <fmt/format.h>
#include <gtest/gtest.h>

#include "core/small_vm.hpp"
#include "effort.hpp"
#include "oracle/system/explained.hpp"
#include "oracle/system/machine.hpp"

namespace vmm::oracle {
namespace {

constexpr const char* mode_names[] = {"real",          "protected", "PAE",
                                      "32-bit paging", "long",      "compatibility"};

std::string describe(std::uint64_t seed, const Guest& guest, const std::string& report)
{
    std::string out =
        fmt::format("seed {}, {} mode\n", seed, mode_names[static_cast<int>(guest.mode)]);
    for (const Piece& piece : guest.pieces) {
        out += fmt::format("  {:02x}  {}\n", fmt::join(piece.bytes, " "), piece.name);
    }
    return out + report;
}

enum class Judge { Equal, Hardware };

/// Runs generated guests; a difference is a failure, but for those of which it is known that KVM is
/// wrong.
void compare_guests(Machine& machine, Judge judge, std::uint64_t count)
{
    const std::uint64_t first = test::effort("VMM_SYSTEM_SEED", 1);
    const std::uint64_t permitted = test::effort("VMM_SYSTEM_DIFFERENCES", 5);
    std::map<Outcome::Kind, std::uint64_t> outcomes;
    std::map<std::string, std::uint64_t> explained;
    std::uint64_t unexplained = 0;
    std::uint64_t ran = 0;
    for (std::uint64_t seed = first; seed < first + count && unexplained < permitted; ++seed) {
        const Guest guest = generate(seed, machine.offer());
        if (((machine.offer().modes >> static_cast<unsigned>(guest.mode)) & 1U) == 0) {
            continue;
        }
        const Outcome outcome = machine.run(guest);
        ++ran;
        ++outcomes[outcome.kind];
        if (outcome.kind != Outcome::Kind::Differ) {
            continue;
        }
        const Guest reduced = reduce(machine, guest);
        const Outcome again = machine.run(reduced);
        if (const std::string why = explanation(reduced, again.report);
            judge == Judge::Hardware && !why.empty()) {
            ++explained[why];
            continue;
        }
        ++unexplained;
        ADD_FAILURE() << describe(seed, reduced, again.report);
    }
    std::cout << fmt::format(
        "{} guests: {} agree, {} differ ({} unexplained), {} beyond KVM's emulator, {} endless\n",
        ran, outcomes[Outcome::Kind::Agree], outcomes[Outcome::Kind::Differ], unexplained,
        outcomes[Outcome::Kind::Unsupported], outcomes[Outcome::Kind::Endless]);
    for (const auto& [why, times] : explained) {
        std::cout << fmt::format("  {:6} {}\n", times, why);
    }
}

TEST(SystemOracle, TranslatedDoesWhatInterpretedDoes)
{
    Machine machine{{.engine = Engine::Soft,
                     .lockstep = Engine::Soft,
                     .soft_mode = SoftMode::Stress,
                     .lockstep_soft_mode = SoftMode::Interpreter}};
    compare_guests(machine, Judge::Equal, test::effort("VMM_SYSTEM_GUESTS", 600));
}

TEST(SystemOracle, SoftDoesWhatKvmDoes)
{
    if (const auto kvm = Kvm::open({.engine = Engine::Kvm}); !kvm) {
        GTEST_SKIP() << kvm.error().message();
    }
    // A KVM without hardware behind it is an emulator, which does less than a CPU where the guest
    // does what it must not: of its differences a person must say who is right.
    if (std::getenv("VMM_SYSTEM_GUESTS") == nullptr && test::is_emulated_kvm(Engine::Kvm)) {
        GTEST_SKIP()
            << "this KVM has no hardware behind it; VMM_SYSTEM_GUESTS=400 compares all the same";
    }
    Machine machine{{.engine = Engine::Soft, .lockstep = Engine::Kvm}};
    compare_guests(machine, Judge::Hardware, test::effort("VMM_SYSTEM_GUESTS", 400));
}

TEST(SystemOracle, SoftDoesWhatSvmDoes)
{
    if (const auto kvm = Kvm::open({.engine = Engine::Svm}); !kvm) {
        GTEST_SKIP() << kvm.error().message();
    }
    Machine machine{{.engine = Engine::Soft, .lockstep = Engine::Svm}};
    compare_guests(machine, Judge::Hardware, test::effort("VMM_SYSTEM_GUESTS", 400));
}

}  // namespace
}  // namespace vmm::oracle
