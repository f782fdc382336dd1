// SPDX-License-Identifier: Apache-2.0

// Guests of random bytes: whatever they do, the process lives and `run()` returns.

#include <array>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <random>

#include <gtest/gtest.h>

#include "core/small_vm.hpp"
#include "metronome.hpp"

namespace vmm {
namespace {

using test::SmallVm;
using Random = std::mt19937_64;

std::uint64_t interesting(Random& random)
{
    switch (random() % 6U) {
    case 0: return 0;
    case 1: return random() % SmallVm::memory_size;
    case 2: return ~std::uint64_t{0} - random() % 64U;
    case 3: return std::uint64_t{1} << (random() % 64U);
    case 4: return 0xffff'8000'0000'0000U + random() % SmallVm::memory_size;
    default: return random();
    }
}

/// Bytes that are instructions more often than noise is: a real one's first bytes now and then.
void fill_code(SmallVm& small, Random& random)
{
    constexpr std::array<unsigned char, 32> common{0x0f, 0x66, 0xf2, 0xf3, 0xf0, 0x48, 0x4c, 0xc5,
                                                   0xc4, 0x8b, 0x89, 0xff, 0xc7, 0x0f, 0xd9, 0xdd,
                                                   0x0f, 0x01, 0xcf, 0xcd, 0xea, 0x9a, 0xca, 0x8e,
                                                   0x17, 0x07, 0x0f, 0x22, 0xa4, 0xa5, 0xaa, 0x6c};
    for (std::size_t i = 0; i < SmallVm::memory_size; i += 8) {
        std::uint64_t word = random();
        if (random() % 4U == 0) {
            word = (word & ~std::uint64_t{0xff}) | common[random() % common.size()];
        }
        std::memcpy(small.memory() + i, &word, sizeof word);
    }
}

x86::Segment flat_segment(std::uint16_t selector, std::uint8_t type, bool is_64)
{
    x86::Segment s;
    s.limit = 0xffff'ffff;
    s.selector = selector;
    s.type = type;
    s.present = 1;
    s.s = 1;
    s.g = 1;
    s.db = is_64 && type == 11 ? 0 : 1;
    s.l = is_64 && type == 11 ? 1 : 0;
    return s;
}

/// 2 MiB pages that map the first 1 GiB to itself, at the end of memory.
void place_page_tables(SmallVm& small)
{
    const auto put = [&](std::size_t at, std::uint64_t entry) {
        std::memcpy(small.memory() + at, &entry, sizeof entry);
    };
    put(0xf'd000, 0xf'e007);
    put(0xf'e000, 0xf'f007);
    for (std::size_t i = 0; i < 512; ++i) {
        put(0xf'f000 + 8 * i, (i << 21U) | 0x87U);
    }
}

enum class Mode { Real, Protected, Long };

void set_mode(SmallVm& small, Vcpu& vcpu, Mode mode, Random& random)
{
    x86::Sregs sregs = vcpu.sregs();
    const bool is_64 = mode == Mode::Long;
    if (mode != Mode::Real) {
        sregs.cr0 |= 1U;
        sregs.cs = flat_segment(8, 11, is_64);
        for (x86::Segment* s : {&sregs.ds, &sregs.es, &sregs.fs, &sregs.gs, &sregs.ss}) {
            *s = flat_segment(16, 3, is_64);
        }
        sregs.gdt = {0x1'0000, 0xffff};
        sregs.idt = {0x2'0000, 0xfff};
    }
    if (is_64) {
        place_page_tables(small);
        sregs.cr3 = 0xf'd000;
        sregs.cr4 |= 0x6a0;  // PAE, PGE, OSFXSR, OSXMMEXCPT
        sregs.cr0 |= 0x8000'0000;
        sregs.efer = 0x500;
    }
    ASSERT_TRUE(vcpu.set_sregs(sregs).has_value());
    x86::Regs regs{interesting(random),
                   interesting(random),
                   interesting(random),
                   interesting(random),
                   interesting(random),
                   interesting(random),
                   random() % SmallVm::memory_size,
                   interesting(random)};
    regs.rip = mode == Mode::Real ? random() % 0xfff0U : random() % (SmallVm::memory_size - 0x4000);
    regs.rflags = 2U | (random() & 0x4'7fd5U);
    vcpu.set_regs(regs);
}

/// Answers exits for a while.
void run_for_a_while(Vcpu& vcpu, Random& random)
{
    constexpr int most_exits = 20;
    int kicks = 0;
    for (int i = 0; i < most_exits && kicks < 2; ++i) {
        const Result<Exit> exit = vcpu.run();
        ASSERT_TRUE(exit.has_value());
        if (const auto* read = exit->get_if<MmioRead>()) {
            std::memset(read->data.data(), static_cast<int>(random() & 0xffU), read->data.size());
        }
        kicks += exit->is<Interrupted>() ? 1 : 0;
        if (exit->is<Shutdown>() || exit->is<InternalError>() || exit->is<EntryFailure>()) {
            return;
        }
        if (random() % 4U == 0) {
            exit->complete();
        }
    }
}

class RandomGuests : public testing::TestWithParam<Mode> {};

// VMM_RANDOM_GUESTS sets their number; issue text asks for 10,000 in all under ASan and UBSan.
TEST_P(RandomGuests, NeverHarmTheProcess)
{
    const char* const wanted = std::getenv("VMM_RANDOM_GUESTS");  // NOLINT(concurrency-mt-unsafe)
    const long count = wanted != nullptr ? std::atol(wanted) : 150;
    for (long i = 0; i < count; ++i) {
        const auto seed = static_cast<std::uint64_t>(i) * 3U + static_cast<unsigned>(GetParam());
        SCOPED_TRACE(testing::Message() << "seed " << seed);
        Random random{seed};
        SmallVm small{Engine::Soft,
                      random() % 2U == 0 ? SmallVm::Irqchip::None : SmallVm::Irqchip::Full};
        fill_code(small, random);
        Vcpu vcpu = small.vcpu();
        set_mode(small, vcpu, GetParam(), random);
        const test::Metronome metronome{vcpu.kicker(), std::chrono::microseconds{500}};
        run_for_a_while(vcpu, random);
        if (HasFatalFailure()) {
            return;
        }
    }
}

std::string mode_name(const testing::TestParamInfo<Mode>& test)
{
    switch (test.param) {
    case Mode::Real: return "Real";
    case Mode::Protected: return "Protected";
    case Mode::Long: return "Long";
    }
    return "Unknown";
}

INSTANTIATE_TEST_SUITE_P(Modes,
                         RandomGuests,
                         testing::Values(Mode::Real, Mode::Protected, Mode::Long),
                         mode_name);

}  // namespace
}  // namespace vmm
