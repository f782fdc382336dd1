// SPDX-License-Identifier: Apache-2.0

/// @file
/// Ports and MMIO: answered by the library, or by the caller between two entries.

#include <deque>
#include <vector>

#include <gtest/gtest.h>

#include "soft/guest_harness.hpp"

namespace vmm::x86::soft::test {
namespace {

template <typename T>
T value_of(std::span<const std::byte> data)
{
    T value{};
    std::memcpy(&value, data.data(), std::min(sizeof(T), data.size()));
    return value;
}

template <typename T>
void answer(const EngineExit& exit, T value)
{
    std::memcpy(exit.data.data(), &value, std::min(sizeof(T), exit.data.size()));
}

class GuestIo : public ::testing::Test {
protected:
    GuestIo() { guest.long_mode(); }
    Guest guest;
};

TEST_F(GuestIo, OutLeavesWithDataAndRipPastIt)
{
    guest.load(Guest::code, {0xe7, 0x80, 0xf4});  // out 0x80, eax
    guest.reg(Rax) = 0x1122'3344'5566'7788;
    EXPECT_EQ(guest.run(), Reason::PortWrite);
    EXPECT_EQ(guest.exit.port, 0x80);
    EXPECT_EQ(guest.exit.size, 4);
    EXPECT_EQ(guest.exit.count, 1U);
    EXPECT_EQ(value_of<std::uint32_t>(guest.exit.data), 0x5566'7788U);
    EXPECT_EQ(guest.state().rip, Guest::code + 2);
    EXPECT_TRUE(guest.vcpu->complete_pending());
    EXPECT_EQ(guest.run(), Reason::Halt);
}

TEST_F(GuestIo, InIsCompleteAfterTheNextEntry)
{
    guest.load(Guest::code, {0xed, 0xf4});  // in eax, dx
    guest.reg(Rax) = ~std::uint64_t{0};
    guest.reg(Rdx) = 0x3f8;
    EXPECT_EQ(guest.run(), Reason::PortRead);
    EXPECT_EQ(guest.exit.port, 0x3f8);
    EXPECT_EQ(guest.exit.data.size(), 4U);
    answer<std::uint32_t>(guest.exit, 0xcafe'f00d);
    EXPECT_EQ(guest.run(), Reason::Halt);
    EXPECT_EQ(guest.reg(Rax), 0xcafe'f00dU);
}

TEST_F(GuestIo, InIsCompletedWithoutRunning)
{
    guest.load(Guest::code, {0xec, 0xff, 0xc1, 0xf4});  // in al, dx; inc ecx
    guest.reg(Rax) = 0x1234;
    guest.reg(Rcx) = 0;
    EXPECT_EQ(guest.run(), Reason::PortRead);
    answer<std::uint8_t>(guest.exit, 0x99);
    EXPECT_TRUE(guest.vcpu->complete_pending());
    EXPECT_EQ(guest.reg(Rax), 0x1299U);
    EXPECT_EQ(guest.state().rip, Guest::code + 1);
    EXPECT_EQ(guest.reg(Rcx), 0U);
    EXPECT_TRUE(guest.vcpu->complete_pending());  // Nothing left.
    EXPECT_EQ(guest.run(), Reason::Halt);
    EXPECT_EQ(guest.reg(Rcx), 1U);
}

TEST_F(GuestIo, AnAnsweredInEndsInASingleStepTrap)
{
    guest.load(Guest::code, {0xec, 0xf4});
    guest.state().rflags |= std::uint64_t{1} << 8U;  // TF
    EXPECT_EQ(guest.run(), Reason::PortRead);
    EXPECT_EQ(guest.state().pending_debug, 0U);
    answer<std::uint8_t>(guest.exit, 0x42);
    EXPECT_TRUE(guest.vcpu->complete_pending());
    EXPECT_EQ(guest.reg(Rax) & 0xffU, 0x42U);
    EXPECT_EQ(guest.state().pending_debug, std::uint64_t{1} << 14U);  // DR6.BS
}

TEST_F(GuestIo, KickWithAnAnswerPendingCompletesFirst)
{
    guest.load(Guest::code, {0xec, 0xf4});
    EXPECT_EQ(guest.run(), Reason::PortRead);
    answer<std::uint8_t>(guest.exit, 0x42);
    guest.vcpu->request_exit();
    EXPECT_EQ(guest.run(), Reason::Interrupted);
    EXPECT_EQ(guest.reg(Rax) & 0xffU, 0x42U);
    EXPECT_EQ(guest.state().rip, Guest::code + 1);
}

TEST_F(GuestIo, LibraryDevicesAnswerWithoutAnExit)
{
    std::vector<std::uint32_t> written;
    guest.host.on_port_read = [](std::uint16_t port, std::span<std::byte> data) {
        std::memset(data.data(), port & 0xff, data.size());
        return true;
    };
    guest.host.on_port_write = [&](std::uint16_t, std::span<const std::byte> data) {
        written.push_back(value_of<std::uint32_t>(data));
        return true;
    };
    // in ax, 0x31; out dx, al; hlt
    guest.load(Guest::code, {0x66, 0xe5, 0x31, 0xee, 0xf4});
    guest.reg(Rax) = 0;
    EXPECT_EQ(guest.run(), Reason::Halt);
    EXPECT_EQ(guest.reg(Rax), 0x3131U);
    EXPECT_EQ(written, (std::vector<std::uint32_t>{0x31}));
}

TEST_F(GuestIo, RepeatedOutsLeavesWithAPage)
{
    for (unsigned i = 0; i < 6000; ++i) {
        guest.put<std::uint8_t>(Guest::data + i, static_cast<std::uint8_t>(i * 7));
    }
    guest.load(Guest::code, {0xf3, 0x6e, 0xf4});  // rep outsb
    guest.reg(Rsi) = Guest::data;
    guest.reg(Rcx) = 6000;
    guest.reg(Rdx) = 0xe9;
    std::vector<std::byte> seen;
    unsigned exits = 0;
    while (guest.run() == Reason::PortWrite) {
        EXPECT_EQ(guest.exit.size, 1);
        EXPECT_EQ(guest.exit.data.size(), guest.exit.count);
        seen.insert(seen.end(), guest.exit.data.begin(), guest.exit.data.end());
        ++exits;
    }
    EXPECT_EQ(guest.exit.reason, Reason::Halt);
    EXPECT_EQ(exits, 2U);
    ASSERT_EQ(seen.size(), 6000U);
    EXPECT_EQ(std::memcmp(seen.data(), guest.ram.at(Guest::data), 6000), 0);
    EXPECT_EQ(guest.reg(Rcx), 0U);
    EXPECT_EQ(guest.reg(Rsi), Guest::data + 6000);
}

TEST_F(GuestIo, RepeatedInsFillsFromTheCaller)
{
    guest.load(Guest::code, {0xf3, 0x6d, 0xf4});  // rep insd
    guest.reg(Rdi) = Guest::data + 0xff2;         // an element crosses the page
    guest.reg(Rcx) = 10;
    std::uint32_t next = 100;
    while (guest.run() == Reason::PortRead) {
        for (std::uint32_t i = 0; i < guest.exit.count; ++i) {
            std::memcpy(guest.exit.data.data() + i * 4, &next, 4);
            ++next;
        }
    }
    EXPECT_EQ(guest.exit.reason, Reason::Halt);
    EXPECT_EQ(next, 110U);
    for (std::uint32_t i = 0; i < 10; ++i) {
        EXPECT_EQ(guest.get<std::uint32_t>(Guest::data + 0xff2 + i * 4), 100 + i);
    }
    EXPECT_EQ(guest.reg(Rdi), Guest::data + 0xff2 + 40);
}

TEST_F(GuestIo, InsIntoAMissingPageFaultsBeforeTheDeviceIsRead)
{
    guest.put<std::uint64_t>(Guest::tables + 0x3000 + 0x100 * 8, 0);
    unsigned reads = 0;
    guest.host.on_port_read = [&](std::uint16_t, std::span<std::byte>) {
        ++reads;
        return true;
    };
    guest.load(Guest::code, {0x6c, 0xf4});
    guest.reg(Rdi) = 0x10'0000;
    EXPECT_EQ(guest.run(), Reason::Halt);
    EXPECT_EQ(guest.halted_by_vector(), 14);
    EXPECT_EQ(reads, 0U);
}

TEST_F(GuestIo, InsIntoMmioKeepsTheDataItHasRead)
{
    unsigned reads = 0;
    guest.host.on_port_read = [&](std::uint16_t, std::span<std::byte> data) {
        ++reads;
        std::memset(data.data(), 0x5c, data.size());
        return true;
    };
    guest.load(Guest::code, {0x6c, 0xf4});
    guest.reg(Rdi) = Guest::mmio;
    EXPECT_EQ(guest.run(), Reason::MmioWrite);
    EXPECT_EQ(value_of<std::uint8_t>(guest.exit.data), 0x5c);
    EXPECT_EQ(guest.run(), Reason::Halt);
    EXPECT_EQ(reads, 1U);
    EXPECT_EQ(guest.reg(Rdi), Guest::mmio + 1);
}

TEST_F(GuestIo, PortsAreForbiddenToUsers)
{
    guest.user_mode();
    guest.load(Guest::code, {0xec});
    EXPECT_EQ(guest.run(), Reason::Halt);
    EXPECT_EQ(guest.halted_by_vector(), 13);
    EXPECT_EQ(guest.stack_word(1), Guest::code);
}

TEST_F(GuestIo, MmioReadCompletesWithTheAnswer)
{
    guest.load(Guest::code, {0x8b, 0x03, 0xf4});  // mov eax, [rbx]
    guest.reg(Rbx) = Guest::mmio + 0x10;
    EXPECT_EQ(guest.run(), Reason::MmioRead);
    EXPECT_EQ(guest.exit.gpa, Guest::mmio + 0x10);
    EXPECT_EQ(guest.exit.size, 4);
    EXPECT_EQ(guest.state().rip, Guest::code);
    answer<std::uint32_t>(guest.exit, 0x1234'5678);
    EXPECT_EQ(guest.run(), Reason::Halt);
    EXPECT_EQ(guest.reg(Rax), 0x1234'5678U);
}

TEST_F(GuestIo, ReadModifyWriteLeavesTwiceAndHappensOnce)
{
    guest.load(Guest::code, {0x01, 0x03, 0xf4});  // add [rbx], eax
    guest.reg(Rbx) = Guest::mmio;
    guest.reg(Rax) = 5;
    EXPECT_EQ(guest.run(), Reason::MmioRead);
    answer<std::uint32_t>(guest.exit, 0xffff'ffff);
    EXPECT_EQ(guest.run(), Reason::MmioWrite);
    EXPECT_EQ(value_of<std::uint32_t>(guest.exit.data), 4U);
    EXPECT_EQ(guest.run(), Reason::Halt);
    EXPECT_TRUE((guest.state().rflags & 1U) != 0);  // CF of the one addition
}

TEST_F(GuestIo, CompletePendingSaysWhenMoreIsNeeded)
{
    guest.load(Guest::code, {0xff, 0x03, 0xf4});  // inc dword [rbx]
    guest.reg(Rbx) = Guest::mmio;
    EXPECT_EQ(guest.run(), Reason::MmioRead);
    answer<std::uint32_t>(guest.exit, 41);
    EXPECT_FALSE(guest.vcpu->complete_pending());
    EXPECT_EQ(guest.run(), Reason::MmioWrite);
    EXPECT_EQ(value_of<std::uint32_t>(guest.exit.data), 42U);
    EXPECT_TRUE(guest.vcpu->complete_pending());
    EXPECT_EQ(guest.state().rip, Guest::code + 2);
    EXPECT_EQ(guest.run(), Reason::Halt);
}

TEST_F(GuestIo, AccessFromMemoryIntoMmio)
{
    // Memory ends in the middle of the operand.
    guest.ram.hole_first = 0x21;
    guest.ram.hole_last = 0x21;
    ASSERT_TRUE(guest.vm->memory_changed().has_value());
    guest.put<std::uint32_t>(Guest::data + 0xffc, 0xaabb'ccdd);
    guest.load(Guest::code, {0x48, 0x8b, 0x03, 0x48, 0x89, 0x03, 0xf4});  // mov rax,[rbx]; and back
    guest.reg(Rbx) = Guest::data + 0xffc;
    EXPECT_EQ(guest.run(), Reason::MmioRead);
    EXPECT_EQ(guest.exit.gpa, Guest::data + 0x1000);
    EXPECT_EQ(guest.exit.size, 4);
    answer<std::uint32_t>(guest.exit, 0x1122'3344);
    EXPECT_EQ(guest.run(), Reason::MmioWrite);
    EXPECT_EQ(guest.reg(Rax), 0x1122'3344'aabb'ccddU);
    EXPECT_EQ(guest.exit.gpa, Guest::data + 0x1000);
    EXPECT_EQ(value_of<std::uint32_t>(guest.exit.data), 0x1122'3344U);
    EXPECT_EQ(guest.run(), Reason::Halt);
}

TEST_F(GuestIo, MoveFromMmioToMmioByRepetition)
{
    guest.load(Guest::code, {0xf3, 0xa4, 0xf4});
    guest.reg(Rsi) = Guest::mmio;
    guest.reg(Rdi) = Guest::mmio + 0x1000;
    guest.reg(Rcx) = 3;
    std::vector<std::pair<std::uint64_t, unsigned>> writes;
    unsigned reads = 0;
    for (;;) {
        const Reason reason = guest.run();
        if (reason == Reason::MmioRead) {
            ++reads;
            answer<std::uint8_t>(guest.exit, static_cast<std::uint8_t>(guest.exit.gpa + 0x70));
        } else if (reason == Reason::MmioWrite) {
            writes.emplace_back(guest.exit.gpa, value_of<std::uint8_t>(guest.exit.data));
        } else {
            EXPECT_EQ(reason, Reason::Halt);
            break;
        }
    }
    EXPECT_EQ(reads, 3U);
    EXPECT_EQ(writes,
              (std::vector<std::pair<std::uint64_t, unsigned>>{{Guest::mmio + 0x1000, 0x70},
                                                               {Guest::mmio + 0x1001, 0x71},
                                                               {Guest::mmio + 0x1002, 0x72}}));
    EXPECT_EQ(guest.reg(Rcx), 0U);
}

TEST_F(GuestIo, PollingADeviceReadsItEachTime)
{
    unsigned reads = 0;
    guest.host.on_mmio_read = [&](std::uint64_t, std::span<std::byte> data) {
        std::memset(data.data(), 0, data.size());
        data[0] = ++reads == 50 ? std::byte{1} : std::byte{0};
        return true;
    };
    // l: mov eax, [rbx]; test eax, eax; jz l; hlt
    guest.load(Guest::code, {0x8b, 0x03, 0x85, 0xc0, 0x74, 0xfa, 0xf4});
    guest.reg(Rbx) = Guest::mmio;
    EXPECT_EQ(guest.run(), Reason::Halt);
    EXPECT_EQ(reads, 50U);
}

TEST_F(GuestIo, LibraryAndCallerTakeTurnsInOneInstruction)
{
    // The library answers the read, the caller the write: the device is read once.
    unsigned reads = 0;
    guest.host.on_mmio_read = [&](std::uint64_t, std::span<std::byte> data) {
        ++reads;
        std::memset(data.data(), 0, data.size());
        return true;
    };
    guest.load(Guest::code, {0xff, 0x03, 0xff, 0x03, 0xf4});  // inc dword [rbx], twice
    guest.reg(Rbx) = Guest::mmio;
    EXPECT_EQ(guest.run(), Reason::MmioWrite);
    EXPECT_EQ(guest.run(), Reason::MmioWrite);
    EXPECT_EQ(guest.run(), Reason::Halt);
    EXPECT_EQ(reads, 2U);
}

TEST_F(GuestIo, StackInMmioAtAnExceptionIsAnInternalError)
{
    guest.load(Guest::code, {0x0f, 0x0b});
    guest.reg(Rsp) = Guest::mmio + 0x1000;
    EXPECT_EQ(guest.run(), Reason::InternalError);
}

TEST_F(GuestIo, PushIntoMmio)
{
    guest.load(Guest::code, {0x50, 0xf4});
    guest.reg(Rsp) = Guest::mmio + 0x1000;
    guest.reg(Rax) = 77;
    EXPECT_EQ(guest.run(), Reason::MmioWrite);
    EXPECT_EQ(guest.exit.gpa, Guest::mmio + 0xff8);
    EXPECT_EQ(guest.reg(Rsp), Guest::mmio + 0x1000);
    EXPECT_EQ(guest.run(), Reason::Halt);
    EXPECT_EQ(guest.reg(Rsp), Guest::mmio + 0xff8);
}

/// A MOV that leaves for MMIO, and what it makes of the answer 0x88…85 in RAX that was all ones.
struct Move {
    std::vector<std::uint8_t> code;
    unsigned size;
    std::uint64_t result;
};

TEST_F(GuestIo, MovesTakeTheAnswerAsTheirKindSays)
{
    const std::array<Move, 9> moves{
        Move{{0x8a, 0x03}, 1, 0xffff'ffff'ffff'ff85},              // mov al, [rbx]
        Move{{0x8a, 0x23}, 1, 0xffff'ffff'ffff'85ff},              // mov ah, [rbx]
        Move{{0x66, 0x8b, 0x03}, 2, 0xffff'ffff'ffff'8685},        // mov ax, [rbx]
        Move{{0x8b, 0x03}, 4, 0x8887'8685},                        // mov eax, [rbx]
        Move{{0x48, 0x8b, 0x03}, 8, 0x8c8b'8a89'8887'8685},        // mov rax, [rbx]
        Move{{0x0f, 0xb6, 0x03}, 1, 0x85},                         // movzx eax, byte [rbx]
        Move{{0x48, 0x0f, 0xbf, 0x03}, 2, 0xffff'ffff'ffff'8685},  // movsx rax, word [rbx]
        Move{{0x48, 0x63, 0x03}, 4, 0xffff'ffff'8887'8685},        // movsxd rax, dword [rbx]
        // mov eax, [absolute]
        Move{{0xa1, 0x00, 0x00, 0x00, 0x30, 0x00, 0x00, 0x00, 0x00}, 4, 0x8887'8685}};
    for (const Move& move : moves) {
        SCOPED_TRACE(testing::PrintToString(move.code));
        guest.load(Guest::code, move.code);
        guest.put<std::uint8_t>(Guest::code + move.code.size(), 0xf4);
        guest.vm->memory_written(Gpa{Guest::code}, 16);
        guest.state().rip = Guest::code;
        guest.reg(Rax) = ~std::uint64_t{0};
        guest.reg(Rbx) = Guest::mmio;
        ASSERT_EQ(guest.run(), Reason::MmioRead);
        EXPECT_EQ(guest.exit.gpa, Guest::mmio);
        EXPECT_EQ(guest.exit.data.size(), move.size);
        answer<std::uint64_t>(guest.exit, 0x8c8b'8a89'8887'8685);
        EXPECT_EQ(guest.run(), Reason::Halt);
        EXPECT_EQ(guest.reg(Rax), move.result);
    }
}

/// As with KVM: the instruction is not executed again.
TEST_F(GuestIo, AMoveThatWaitsIsCompletedThoughItsCodeIsGone)
{
    guest.load(Guest::code, {0x8b, 0x03, 0xf4});  // mov eax, [rbx]
    guest.reg(Rbx) = Guest::mmio;
    ASSERT_EQ(guest.run(), Reason::MmioRead);
    EXPECT_EQ(guest.state().rip, Guest::code);
    guest.load(Guest::code, {0x31, 0xdb});  // xor ebx, ebx
    guest.vm->memory_written(Gpa{Guest::code}, 2);
    answer<std::uint32_t>(guest.exit, 0x1234);
    EXPECT_EQ(guest.run(), Reason::Halt);
    EXPECT_EQ(guest.reg(Rax), 0x1234U);
    EXPECT_EQ(guest.reg(Rbx), Guest::mmio);
}

TEST_F(GuestIo, AMoveToMmioIsCompleteWhenItLeaves)
{
    guest.load(Guest::code, {0xc7, 0x03, 0x78, 0x56, 0x34, 0x12, 0xf4});  // mov dword [rbx], …
    guest.reg(Rbx) = Guest::mmio + 4;
    ASSERT_EQ(guest.run(), Reason::MmioWrite);
    EXPECT_EQ(guest.exit.gpa, Guest::mmio + 4);
    EXPECT_EQ(value_of<std::uint32_t>(guest.exit.data), 0x1234'5678U);
    EXPECT_EQ(guest.state().rip, Guest::code + 6);
    EXPECT_EQ(guest.run(), Reason::Halt);
}

TEST_F(GuestIo, AnAnsweredMoveEndsInASingleStepTrap)
{
    for (const std::uint8_t opcode : {std::uint8_t{0x8b}, std::uint8_t{0x89}}) {
        guest.load(Guest::code, {opcode, 0x03, 0xf4});
        guest.vm->memory_written(Gpa{Guest::code}, 2);
        guest.state().rip = Guest::code;
        guest.reg(Rsp) = Guest::stack;
        guest.reg(Rbx) = Guest::mmio;
        guest.state().rflags = 0x102;
        guest.vcpu->state_changed();
        EXPECT_EQ(guest.run(), opcode == 0x8b ? Reason::MmioRead : Reason::MmioWrite);
        EXPECT_EQ(guest.run(), Reason::Halt);
        EXPECT_EQ(guest.halted_by_vector(), 1);
        EXPECT_EQ(guest.stack_word(0), Guest::code + 2);
    }
}

/// What an MMIO page was found at is forgotten with the mapping.
TEST_F(GuestIo, AMovedMappingIsSeenByMoves)
{
    // mov eax, [rbx]; mov cr3, rcx; mov eax, [rbx]; hlt
    guest.load(Guest::code, {0x8b, 0x03, 0x0f, 0x22, 0xd9, 0x8b, 0x03, 0xf4});
    guest.reg(Rbx) = Guest::mmio;
    guest.reg(Rcx) = guest.state().cr3;
    ASSERT_EQ(guest.run(), Reason::MmioRead);
    constexpr std::uint64_t large_page = 0x20'0000;
    constexpr std::uint64_t entry = Guest::tables + 0x2000 + Guest::mmio / large_page * 8;
    guest.put(entry, guest.get<std::uint64_t>(entry) + large_page);
    ASSERT_EQ(guest.run(), Reason::MmioRead);
    EXPECT_EQ(guest.exit.gpa, Guest::mmio + large_page);
}

}  // namespace
}  // namespace vmm::x86::soft::test
