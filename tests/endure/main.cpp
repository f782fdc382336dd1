// SPDX-License-Identifier: Apache-2.0

// Boots the guest of tests/endure.sh and disturbs it for as long as it runs.

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <mutex>
#include <string>

#include <fmt/format.h>

#include "disturber.hpp"
#include "machine.hpp"
#include "options.hpp"

namespace {

using vmm::Result;
using vmm_linux::Outcome;

Result<std::vector<std::byte>> read_file(const std::string& path)
{
    std::ifstream file{path, std::ios::binary};
    if (!file) {
        return vmm::Error{std::errc::no_such_file_or_directory, path + " cannot be read"};
    }
    const std::string text{std::istreambuf_iterator<char>{file}, {}};
    const auto bytes = std::as_bytes(std::span{text});
    return std::vector<std::byte>{bytes.begin(), bytes.end()};
}

std::uint64_t number_from(const char* variable, std::uint64_t otherwise)
{
    // No other thread runs yet.
    const char* const text = std::getenv(variable);  // NOLINT(concurrency-mt-unsafe)
    return text != nullptr ? std::strtoull(text, nullptr, 0) : otherwise;
}

Result<Outcome> run(const vmm_linux::Options& options)
{
    vmm_linux::Images images;
    VMM_TRY(images.kernel, read_file(options.kernel));
    VMM_TRY(images.initrd, read_file(options.initrd));
    VMM_TRY(const vmm::Kvm kvm,
            vmm::Kvm::open({.engine = options.engine, .soft_mode = options.soft_mode}));
    std::mutex console;
    VMM_TRY(const auto machine, vmm_linux::Machine::create(
                                    kvm, options, images,
                                    [&](std::span<const std::byte> bytes) {
                                        const std::lock_guard lock{console};
                                        std::fwrite(bytes.data(), 1, bytes.size(), stdout);
                                        std::fflush(stdout);
                                    },
                                    [] {}));
    const std::uint64_t seed = number_from("VMM_ENDURE_SEED", std::random_device{}());
    fmt::print("seed {}\n", seed);
    endure::Disturber disturber{*machine, kvm, seed,
                                number_from("VMM_ENDURE_DEEDS", ~std::uint64_t{0})};
    disturber.start();
    const auto begin = std::chrono::steady_clock::now();
    const Outcome outcome = machine->run([&](vmm::Vcpu& vcpu) { disturber.between_runs(vcpu); });
    const std::chrono::duration<double> took = std::chrono::steady_clock::now() - begin;
    disturber.stop();
    fmt::print("\n{:.0f} s on the host:", took.count());
    for (std::size_t i = 0; i < endure::deeds; ++i) {
        const auto deed = static_cast<endure::Deed>(i);
        fmt::print("{} {} {}", i == 0 ? "" : ",", disturber.count(deed), endure::name(deed));
    }
    fmt::print("\n");
    if (options.statistics) {
        machine->print_statistics();
    }
    return outcome;
}

}  // namespace

int main(int argc, char** argv)
{
    const auto options = vmm_linux::parse_options(argc, argv);
    if (!options) {
        fmt::print(stderr, "vmm-endure: {}\n", options.error().message());
        return 2;
    }
    const auto outcome = run(*options);
    if (!outcome) {
        fmt::print(stderr, "vmm-endure: {}\n", outcome.error().message());
        return 1;
    }
    switch (outcome->kind) {
    case Outcome::Kind::Status: return static_cast<int>(outcome->status);
    case Outcome::Kind::Stuck: fmt::print(stderr, "vmm-endure: {}\n", outcome->detail); return 126;
    default: fmt::print(stderr, "vmm-endure: the guest stopped\n"); return 124;
    }
}
