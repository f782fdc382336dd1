// SPDX-License-Identifier: Apache-2.0

/// @file
/// Random bytes as code, in every mode: exits, never a crash or a hang.

#include <atomic>
#include <cstdlib>
#include <random>
#include <thread>

#include <gtest/gtest.h>

#include "soft/guest_harness.hpp"

namespace vmm::x86::soft::test {
namespace {

unsigned programs()
{
    const char* const asked = std::getenv("VMM_RANDOM_PROGRAMS");
    return asked == nullptr ? 4'000U : static_cast<unsigned>(std::strtoul(asked, nullptr, 10));
}

/// Bytes that make instructions more often than not.
std::uint8_t likely_byte(std::mt19937_64& random)
{
    constexpr std::array<std::uint8_t, 20> prefixes{0x66, 0x67, 0xf0, 0xf2, 0xf3, 0x48, 0x41,
                                                    0x0f, 0x0f, 0x0f, 0xc4, 0xc5, 0x26, 0x64,
                                                    0x8b, 0x89, 0xc7, 0xff, 0xe8, 0xeb};
    return random() % 4 == 0 ? prefixes[random() % prefixes.size()]
                             : static_cast<std::uint8_t>(random());
}

void set_mode(Guest& guest, unsigned mode)
{
    switch (mode) {
    case 0: guest.long_mode(); break;
    case 1: guest.protected_mode(); break;
    case 2: guest.real_mode(); break;
    default:
        guest.long_mode();
        guest.user_mode();
        break;
    }
}

TEST(GuestRandom, BytesAsCode)
{
    std::mt19937_64 random{42};
    std::array<std::unique_ptr<Guest>, 4> guests{};
    for (unsigned mode = 0; mode < guests.size(); ++mode) {
        guests[mode] = std::make_unique<Guest>(std::size_t{2} << 20U);
    }
    // An endless guest ends by being kicked over and over.
    std::atomic<EngineVcpu*> current{};
    std::atomic<bool> done{};
    std::thread kicker{[&] {
        while (!done.load()) {
            if (EngineVcpu* const vcpu = current.load()) {
                vcpu->request_exit();
            }
            std::this_thread::yield();
        }
    }};
    const unsigned count = programs();
    std::array<unsigned, 16> reasons{};
    for (unsigned program = 0; program < count; ++program) {
        const unsigned mode = program % 4;
        Guest& guest = *guests[mode];
        CpuState& state = guest.state();
        reset_state(state, false);
        set_mode(guest, mode);
        for (unsigned number = 0; number < 16; ++number) {
            if (number != Rsp) {
                state.gpr[number] = random() % 3 == 0 ? Guest::data + random() % 4096 : random();
            }
        }
        std::array<std::uint8_t, 256> bytes{};
        for (std::uint8_t& byte : bytes) {
            byte = likely_byte(random);
        }
        guest.load(Guest::code, bytes);
        guest.vm->memory_written(Gpa{Guest::code}, bytes.size());
        current = guest.vcpu.get();
        for (unsigned round = 0; round < 20; ++round) {
            const Reason reason = guest.run();
            ++reasons[static_cast<std::size_t>(reason) % reasons.size()];
            if (reason == Reason::Halt || reason == Reason::Shutdown ||
                reason == Reason::InternalError || (reason == Reason::Interrupted && round > 2)) {
                break;
            }
            for (std::byte& byte : guest.exit.data) {
                byte = static_cast<std::byte>(random());
            }
        }
    }
    done = true;
    kicker.join();
    EXPECT_GT(reasons[static_cast<std::size_t>(Reason::Halt)], 0U);
    EXPECT_GT(reasons[static_cast<std::size_t>(Reason::Shutdown)], 0U);
}

}  // namespace
}  // namespace vmm::x86::soft::test
