// SPDX-License-Identifier: Apache-2.0

/// @file
/// Self- and cross-modifying code.

#include <thread>

#include <gtest/gtest.h>

#include "soft/guest_harness.hpp"

namespace vmm::x86::soft::test {
namespace {

TEST(GuestCodeChange, StoreIntoTheNextInstruction)
{
    Guest guest;
    guest.long_mode();
    // mov byte [rip+1], 0x55 (the immediate of the next); mov eax, 0x11; hlt
    guest.load(Guest::code,
               {0xc6, 0x05, 0x01, 0x00, 0x00, 0x00, 0x55, 0xb8, 0x11, 0x00, 0x00, 0x00, 0xf4});
    EXPECT_EQ(guest.run(), Reason::Halt);
    EXPECT_EQ(guest.reg(Rax), 0x55U);
}

TEST(GuestCodeChange, StoreIntoAnInstructionThatHasRunInALoop)
{
    Guest guest;
    guest.long_mode();
    // mov ecx, 100; l: add eax, 1 (imm8 at +7); add byte [rip-8], 1; dec ecx; jnz l; hlt
    guest.load(Guest::code, {0xb9, 100,  0,    0,    0,    0x83, 0xc0, 0x01, 0x80, 0x05,
                             0xf8, 0xff, 0xff, 0xff, 0x01, 0xff, 0xc9, 0x75, 0xf2, 0xf4});
    guest.reg(Rax) = 0;
    EXPECT_EQ(guest.run(), Reason::Halt);
    std::uint64_t expected = 0;
    for (int i = 0; i < 100; ++i) {
        expected += static_cast<std::uint64_t>(static_cast<std::int8_t>(1 + i));
    }
    EXPECT_EQ(guest.reg(Rax), expected & 0xffff'ffffU);
}

TEST(GuestCodeChange, StoreIntoAnotherBlock)
{
    Guest guest;
    guest.long_mode();
    constexpr std::uint64_t function = Guest::code + 0x2000;
    guest.load(function, {0xb8, 0x01, 0x00, 0x00, 0x00, 0xc3});  // mov eax, 1; ret
    // call f; mov ebx, eax; mov byte [f + 1], 2; call f; hlt
    guest.load(Guest::code, {0xe8, 0xfb, 0x1f, 0x00, 0x00, 0x89, 0xc3, 0xc6, 0x04, 0x25, 0x01,
                             0x20, 0x01, 0x00, 0x02, 0xe8, 0xec, 0x1f, 0x00, 0x00, 0xf4});
    EXPECT_EQ(guest.run(), Reason::Halt);
    EXPECT_EQ(guest.reg(Rbx), 1U);
    EXPECT_EQ(guest.reg(Rax), 2U);
}

TEST(GuestCodeChange, CallThatPushesOverItsOwnCode)
{
    Guest guest;
    guest.long_mode();
    // The return address lands on the instructions behind the call's target.
    guest.load(Guest::code, {0xe8, 0x00, 0x00, 0x00, 0x00, 0x90, 0x90, 0x90, 0x90, 0x90, 0x90, 0x90,
                             0x90, 0xf4, 0xf4});
    guest.reg(Rsp) = Guest::code + 13;  // pushes to code + 5 … code + 12
    // There: 05 00 01 00 00 00 00 00: add eax, 0x100; add [rax], al; add ah, dh
    guest.reg(Rax) = Guest::data - 0x100;
    guest.reg(Rdx) = 0;
    EXPECT_EQ(guest.run(), Reason::Halt);
    EXPECT_EQ(guest.reg(Rax), Guest::data);
    EXPECT_EQ(guest.state().rip, Guest::code + 15);
}

TEST(GuestCodeChange, RepeatedMoveOverItself)
{
    Guest guest;
    guest.long_mode();
    // rep movsb over the following: inc eax -> dec eax
    guest.load(Guest::code, {0xf3, 0xa4, 0xff, 0xc0, 0xff, 0xc0, 0xf4});
    guest.load(Guest::data, {0xff, 0xc8, 0xff, 0xc8});
    guest.reg(Rsi) = Guest::data;
    guest.reg(Rdi) = Guest::code + 2;
    guest.reg(Rcx) = 4;
    guest.reg(Rax) = 10;
    EXPECT_EQ(guest.run(), Reason::Halt);
    EXPECT_EQ(guest.reg(Rax), 8U);
}

TEST(GuestCodeChange, ChangeOfMappingLeadsToOtherCode)
{
    Guest guest;
    guest.long_mode();
    constexpr std::uint64_t page = 0x50'000;
    constexpr std::uint64_t other = 0x60'000;
    guest.load(page, {0xb8, 0x01, 0x00, 0x00, 0x00, 0xc3});
    guest.load(other, {0xb8, 0x02, 0x00, 0x00, 0x00, 0xc3});
    // call page; mov ebx, eax; mov [rsi], rdx (the entry); invlpg [rdi]; call page; hlt
    guest.load(Guest::code, {0xe8, 0xfb, 0xff, 0x03, 0x00, 0x89, 0xc3, 0x48, 0x89, 0x16, 0x0f, 0x01,
                             0x3f, 0xe8, 0xee, 0xff, 0x03, 0x00, 0xf4});
    guest.reg(Rsi) = Guest::tables + 0x3000 + page / 4096 * 8;
    guest.reg(Rdx) = other | 7U;
    guest.reg(Rdi) = page;
    EXPECT_EQ(guest.run(), Reason::Halt);
    EXPECT_EQ(guest.reg(Rbx), 1U);
    EXPECT_EQ(guest.reg(Rax), 2U);
}

TEST(GuestCodeChange, UnreportedWriteIsFoundAfterATlbFlush)
{
    Guest guest;
    guest.long_mode();
    guest.load(Guest::code, {0xb8, 0x01, 0x00, 0x00, 0x00, 0xf4});
    EXPECT_EQ(guest.run(), Reason::Halt);
    guest.put<std::uint8_t>(Guest::code + 1, 7);
    guest.state().rip = Guest::code;
    guest.vcpu->state_changed();
    EXPECT_EQ(guest.run(), Reason::Halt);
    EXPECT_EQ(guest.reg(Rax), 7U);
}

TEST(GuestCodeChange, IllegalBytesBecomeAnInstruction)
{
    Guest guest;
    guest.long_mode();
    // The #UD handler writes a NOP pair over the faulting UD2 and returns.
    guest.load(Guest::code, {0xff, 0xc0, 0x0f, 0x0b, 0xf4});
    // mov word [code + 2], 0x9090; iretq
    guest.load(Guest::idt_code + 12, {0xeb, 0x72});
    guest.load(Guest::idt_code + 0x80,
               {0x66, 0xc7, 0x04, 0x25, 0x02, 0x00, 0x01, 0x00, 0x90, 0x90, 0x48, 0xcf});
    guest.reg(Rax) = 0;
    EXPECT_EQ(guest.run(), Reason::Halt);
    EXPECT_EQ(guest.halted_by_vector(), -1);
    EXPECT_EQ(guest.reg(Rax), 1U);
}

TEST(GuestCodeChange, ManyRewritesStayBoundedAndRight)
{
    Guest guest;
    guest.long_mode();
    constexpr std::uint64_t function = Guest::code + 0x1000;
    guest.load(function, {0xb8, 0x00, 0x00, 0x00, 0x00, 0xc3});
    // l: mov [f + 1], ecx; call f; cmp eax, ecx; jne bad; dec ecx; jnz l; hlt; bad: ud2
    guest.load(Guest::code, {0x89, 0x0c, 0x25, 0x01, 0x10, 0x01, 0x00, 0xe8, 0xf4, 0x0f, 0x00, 0x00,
                             0x39, 0xc8, 0x75, 0x05, 0xff, 0xc9, 0x75, 0xec, 0xf4, 0x0f, 0x0b});
    guest.reg(Rcx) = 30'000;
    EXPECT_EQ(guest.run(), Reason::Halt);
    EXPECT_EQ(guest.halted_by_vector(), -1);
    EXPECT_EQ(guest.reg(Rcx), 0U);
}

/// One vCPU rewrites the immediate of a function that another keeps calling: the other sees each
/// value whole, never goes back, and sees the last one.
TEST(GuestCodeChange, AnotherVcpuSeesTheNewCode)
{
    Guest guest;
    guest.long_mode();
    GuestHost second_host;
    const std::unique_ptr<EngineVcpu> second = guest.add_vcpu(second_host);
    constexpr std::uint64_t function = Guest::code + 0x3ffc;  // the immediate is aligned to 4
    constexpr std::uint64_t reader = Guest::code + 0x8000;
    constexpr std::uint32_t last = 2000;
    guest.load(function + 3, {0xb8, 0x00, 0x00, 0x00, 0x00, 0xc3});  // mov eax, imm; ret
    // Writer: l: inc ecx; mov [function + 4], ecx; cmp ecx, last; jne l; hlt
    guest.load(Guest::code, {0xff, 0xc1, 0x89, 0x0c, 0x25, 0x00, 0x40, 0x01, 0x00, 0x81, 0xf9,
                             static_cast<std::uint8_t>(last & 0xffU),
                             static_cast<std::uint8_t>(last >> 8U), 0, 0, 0x75, 0xef, 0xf4});
    // Reader: l: call function + 3; cmp eax, ebx; jb bad; mov ebx, eax; cmp eax, last; jne l; hlt;
    // bad: ud2
    guest.load(reader, {0xe8,
                        0xfa,
                        0xbf,
                        0xff,
                        0xff,
                        0x39,
                        0xd8,
                        0x72,
                        0x0a,
                        0x89,
                        0xc3,
                        0x3d,
                        static_cast<std::uint8_t>(last & 0xffU),
                        static_cast<std::uint8_t>(last >> 8U),
                        0,
                        0,
                        0x75,
                        0xee,
                        0xf4,
                        0x0f,
                        0x0b});
    Guest::long_mode(*second);
    second->state().rip = reader;
    second->state().gpr[Rsp] = Guest::stack + 0x10000;
    second->state().gpr[Rbx] = 0;
    guest.reg(Rcx) = 0;
    Reason second_reason{};
    std::thread other{[&] { second_reason = second->enter().reason; }};
    EXPECT_EQ(guest.run(), Reason::Halt);
    other.join();
    EXPECT_EQ(second_reason, Reason::Halt);
    EXPECT_EQ(second->state().rip, reader + 19);
    EXPECT_EQ(second->state().gpr[Rbx], last);
}

/// Two vCPUs count in one word with LOCK, in plain memory and across a page boundary.
TEST(GuestCodeChange, LockedCountersAreExact)
{
    for (const std::uint64_t at : {Guest::data, Guest::data + 0xffe, Guest::data + 62}) {
        Guest guest;
        guest.long_mode();
        GuestHost second_host;
        const std::unique_ptr<EngineVcpu> second = guest.add_vcpu(second_host);
        Guest::long_mode(*second);
        // l: lock inc dword [rsi]; dec ecx; jnz l; hlt
        guest.load(Guest::code, {0xf0, 0xff, 0x06, 0xff, 0xc9, 0x75, 0xf9, 0xf4});
        const std::uint64_t count = at == Guest::data ? 100'000 : 500;
        for (EngineVcpu* vcpu : {guest.vcpu.get(), second.get()}) {
            vcpu->state().gpr[Rsi] = at;
            vcpu->state().gpr[Rcx] = count;
        }
        std::thread other{[&] { static_cast<void>(second->enter()); }};
        EXPECT_EQ(guest.run(), Reason::Halt);
        other.join();
        EXPECT_EQ(guest.get<std::uint32_t>(at), 2 * count);
    }
}

/// What a function that moves to another page returns: 1 at first, 2 where it has moved to.
class MovedFunction : public testing::Test {
protected:
    static constexpr std::uint64_t function = 0x60'0000;  ///< In a large page.
    static constexpr std::uint64_t small_function = 0x5'0000;
    static constexpr std::uint64_t moved = 0x80'0000;
    static constexpr std::uint64_t directory = Guest::tables + 0x2000;
    static constexpr std::uint64_t table = Guest::tables + 0x3000;
    static constexpr std::uint64_t global = 0x100;

    MovedFunction() { guest.long_mode(); }

    /// 100 calls of the function at RBX, `forget`, a call of it, HLT.
    void load_caller(std::initializer_list<std::uint8_t> forget)
    {
        // mov ecx, 100; l: call rbx; dec ecx; jnz l
        guest.load(Guest::code, {0xb9, 100, 0, 0, 0, 0xff, 0xd3, 0xff, 0xc9, 0x75, 0xfa});
        const std::uint64_t rest = Guest::code + 11;
        guest.load(rest, {0x48, 0x89, 0x16});  // mov [rsi], rdx
        guest.load(rest + 3, forget);
        guest.load(rest + 3 + forget.size(), {0xff, 0xd3, 0xf4});
    }
    void place(std::uint64_t at, std::uint8_t value)
    {
        guest.load(at, {0xb8, value, 0, 0, 0, 0xc3});  // mov eax, value; ret
    }

    Guest guest;
};

TEST_F(MovedFunction, IsSeenAfterInvlpg)
{
    load_caller({0x0f, 0x01, 0x3b});  // invlpg [rbx]
    place(small_function, 1);
    place(small_function + 0x1000, 2);
    guest.reg(Rbx) = small_function;
    guest.reg(Rsi) = table + small_function / 4096 * 8;
    guest.reg(Rdx) = (small_function + 0x1000) | 7;
    EXPECT_EQ(guest.run(), Reason::Halt);
    EXPECT_EQ(guest.reg(Rax), 2U);
}

TEST_F(MovedFunction, IsSeenAfterInvlpgOfAnyAddressInItsLargePage)
{
    load_caller({0x0f, 0x01, 0x3f});  // invlpg [rdi]
    place(function, 1);
    place(moved, 2);
    guest.reg(Rbx) = function;
    guest.reg(Rdi) = function + 0x12'3000;
    guest.reg(Rsi) = directory + function / 0x20'0000 * 8;
    guest.reg(Rdx) = moved | 0x87;
    EXPECT_EQ(guest.run(), Reason::Halt);
    EXPECT_EQ(guest.reg(Rax), 2U);
}

TEST_F(MovedFunction, IsSeenAfterAWriteOfCr3UnlessGlobal)
{
    for (const bool is_global : {false, true}) {
        guest.long_mode();
        load_caller({0x0f, 0x22, 0xd9});  // mov cr3, rcx
        guest.load(Guest::code, {0xb8, 100, 0, 0, 0, 0xff, 0xd3, 0xff, 0xcd, 0x75, 0xfa});
        place(function, 1);
        place(moved, 2);
        guest.reg(Rbx) = function;
        guest.reg(Rbp) = 100;
        guest.reg(Rcx) = Guest::tables;
        guest.reg(Rsi) = directory + function / 0x20'0000 * 8;
        guest.reg(Rdx) = moved | 0x87 | (is_global ? global : 0);
        guest.put<std::uint64_t>(guest.reg(Rsi), function | 0x87 | (is_global ? global : 0));
        guest.vcpu->state_changed();
        EXPECT_EQ(guest.run(), Reason::Halt);
        EXPECT_EQ(guest.reg(Rax), is_global ? 1U : 2U);
    }
}

/// A jump to it begins in the last byte below 4 GiB, and what is behind that, in the first page,
/// moves.
TEST_F(MovedFunction, IsSeenByAJumpAroundTheEndOfMemory)
{
    constexpr std::uint64_t last_page = 0xffff'f000;
    constexpr std::uint64_t tables = 0x9'0000;  // For the last GiB: directory, table.
    constexpr std::uint64_t frame = 0x7'0000;   // The last page's; the first's come behind.
    guest.put<std::uint64_t>(Guest::tables + 0x1000 + 3 * 8, tables | 7U);
    guest.put<std::uint64_t>(tables + 511 * 8, (tables + 0x1000) | 7U);
    guest.put<std::uint64_t>(tables + 0x1000 + 511 * 8, frame | 7U | global);
    guest.put<std::uint64_t>(table, (frame + 0x1000) | 7U | global);
    guest.load(frame + 0xfff, {0xe9});  // jmp …
    guest.put<std::uint32_t>(frame + 0x1000, small_function - 4);
    guest.put<std::uint32_t>(frame + 0x2000, small_function + 0x1000 - 4);
    place(small_function, 1);
    place(small_function + 0x1000, 2);
    // nop, for another place in the jump table; mov ecx, 100; l: call ebx; dec ecx; jnz l; mov
    // [esi], edx; invlpg [edi]; call ebx; hlt
    guest.load(Guest::code, {0x90, 0xb9, 100,  0,    0,    0,    0xff, 0xd3, 0xff, 0xc9,
                             0x75, 0xfa, 0x89, 0x16, 0x0f, 0x01, 0x3f, 0xff, 0xd3, 0xf4});
    guest.state().seg[Cs].l = 0;
    guest.state().seg[Cs].db = 1;
    guest.reg(Rbx) = last_page + 0xfff;
    guest.reg(Rsi) = table;
    guest.reg(Rdx) = (frame + 0x2000) | 7U | global;
    guest.reg(Rdi) = 0;
    guest.vcpu->state_changed();
    EXPECT_EQ(guest.run(), Reason::Halt);
    EXPECT_EQ(guest.reg(Rax), 2U);
}

/// Two address spaces, each with a PCID, whose users have different code: what it adds to R12 is 1
/// in the one and 100 in the other.
class TwoSpaces : public testing::Test {
protected:
    static constexpr std::uint64_t user_code = 0x5'0000;
    static constexpr std::uint64_t other_code = 0x5'8000;
    static constexpr std::uint64_t other_tables = 0x9'0000;
    static constexpr std::uint64_t other_entry = other_tables + 0x3000 + other_code / 4096 * 8;
    static constexpr std::uint64_t no_flush = std::uint64_t{1} << 63U;

    TwoSpaces()
    {
        guest.long_mode();
        std::memcpy(guest.ram.at(other_tables), guest.ram.at(Guest::tables), 4 * 4096);
        for (std::uint64_t level = 0; level < 3; ++level) {
            const std::uint64_t next = other_tables + (level + 1) * 0x1000;
            guest.put<std::uint64_t>(other_tables + level * 0x1000, next | 7U);
        }
        map_other(1);
        for (const auto& [at, value] : {std::pair{user_code, 1}, std::pair{user_code + 0x1000, 100},
                                        std::pair{user_code + 0x2000, 10'000}}) {
            // mov ebx, value; add r12, rbx; jmp to the next page …
            guest.load(at, {0xbb, static_cast<std::uint8_t>(value),
                            static_cast<std::uint8_t>(value >> 8), 0, 0, 0x49, 0x01, 0xdc});
            guest.load(at + 8, {0xe9, 0xf3, 0x2f, 0x00, 0x00});
        }
        for (const std::uint64_t at : {user_code, other_code}) {
            guest.load(at + 0x3000, {0x0f, 0x05});  // … where there is a SYSCALL.
        }
    }

    /// The other space's code is what lies `pages` behind the first one's.
    void map_other(std::uint64_t pages)
    {
        guest.put<std::uint64_t>(other_entry, (user_code + pages * 0x1000) | 7U);
    }

    /// Users run in turn until R15 is 0; the system does `between` whenever it changes CR3.
    void run(std::initializer_list<std::uint8_t> between,
             std::uint64_t rounds,
             std::uint64_t other = other_code)
    {
        // xchg r14, r13; mov cr3, r13; `between`; xchg r8, r9; mov rcx, r8; dec r15; jz l; sysretq;
        // l: hlt
        guest.load(Guest::code, {0x4d, 0x87, 0xee, 0x41, 0x0f, 0x22, 0xdd});
        const std::uint64_t rest = Guest::code + 7 + between.size();
        guest.load(Guest::code + 7, between);
        guest.load(rest, {0x4d, 0x87, 0xc8, 0x4c, 0x89, 0xc1, 0x49, 0xff, 0xcf, 0x74, 0x03, 0x48,
                          0x0f, 0x07, 0xf4});
        CpuState& state = guest.state();
        Guest::long_mode(*guest.vcpu);
        state.cr4 |= std::uint64_t{1} << 17U;  // PCIDE
        state.cr3 = Guest::tables | 1U;
        state.star = (std::uint64_t{0x10} << 48U) | (std::uint64_t{8} << 32U);
        state.lstar = Guest::code;
        state.fmask = 0;
        state.gpr[R8] = user_code;
        state.gpr[R9] = other;
        state.gpr[R11] = 2;
        state.gpr[R12] = 0;
        state.gpr[R13] = Guest::tables | 1U | no_flush;
        state.gpr[R14] = other_tables | 2U | no_flush;
        state.gpr[R15] = rounds + 1;
        guest.vcpu->state_changed();
        ASSERT_EQ(guest.run_to_halt(), Reason::Halt);
    }

    Guest guest;
};

TEST_F(TwoSpaces, HaveTheirOwnCode)
{
    run({}, 1000);
    EXPECT_EQ(guest.reg(R12), 500U * 101);
    // At the same address.
    guest.put<std::uint64_t>(other_tables + 0x3000 + user_code / 4096 * 8,
                             (user_code + 0x1000) | 7U);
    run({}, 1000, user_code);
    EXPECT_EQ(guest.reg(R12), 500U * 101);
}

/// The mapping changes behind the 500th round; INVPCID of one page, of the PCID, of all.
TEST_F(TwoSpaces, AreForgottenByInvpcid)
{
    for (const std::uint8_t type : {std::uint8_t{0}, std::uint8_t{1}, std::uint8_t{2}}) {
        map_other(1);
        guest.put<std::uint64_t>(Guest::data, 2);
        guest.put<std::uint64_t>(Guest::data + 8, other_code);
        guest.reg(Rsi) = other_entry;
        guest.reg(Rdx) = (user_code + 0x2000) | 7U;
        guest.reg(Rdi) = Guest::data;
        guest.reg(Rax) = type;
        // cmp r15d, 502; jne l; mov [rsi], rdx; invpcid rax, [rdi]; l:
        run({0x41, 0x81, 0xff, 0xf6, 0x01, 0x00, 0x00, 0x75, 0x08, 0x48, 0x89, 0x16, 0x66, 0x0f,
             0x38, 0x82, 0x07},
            1000);
        EXPECT_EQ(guest.reg(R12), 500U * 1 + 250 * 100 + 250 * 10'000) << unsigned{type};
    }
}

TEST_F(TwoSpaces, AreForgottenByAWriteOfCr3)
{
    guest.reg(Rsi) = other_entry;
    guest.reg(Rdx) = (user_code + 0x2000) | 7U;
    // cmp r15d, 502; jne l; mov [rsi], rdx; btr r14, 63; l:
    run({0x41, 0x81, 0xff, 0xf6, 0x01, 0x00, 0x00, 0x75, 0x08, 0x48, 0x89, 0x16, 0x49, 0x0f, 0xba,
         0xf6, 0x3f},
        1000);
    EXPECT_EQ(guest.reg(R12), 500U * 1 + 250 * 100 + 250 * 10'000);
}

/// More PCIDs than are remembered.
TEST_F(TwoSpaces, BesideMany)
{
    // lea r14d, [r14 + 2]: the PCID goes on, its top bit comes back: bts r14, 63; and r14, ~0x800
    run({0x45, 0x8d, 0x76, 0x02, 0x49, 0x0f, 0xba, 0xee, 0x3f, 0x49, 0x0f, 0xba, 0xf6, 0x0b}, 1000);
    EXPECT_EQ(guest.reg(R12), 500U * 101);
}

/// The interrupt's handler lies in the page of the jump that it came behind.
TEST(GuestCodeChange, AJumpDoesNotLeadToTheInterruptThatCameBehindIt)
{
    Guest guest;
    guest.long_mode();
    constexpr std::uint64_t handler = Guest::code + 0x80;
    constexpr std::uint64_t vector = 0x30;
    // mov al, [rbx]; jmp +2; (hlt hlt); inc ecx; hlt
    guest.load(Guest::code, {0x8a, 0x03, 0xeb, 0x02, 0xf4, 0xf4, 0xff, 0xc1, 0xf4});
    guest.load(handler, {0xff, 0xc2, 0x48, 0xcf});  // inc edx; iretq
    guest.put<std::uint64_t>(Guest::idt + vector * 16,
                             0x8e00'0008'0000U | (handler & 0xffffU) | ((handler >> 16U) << 48U));
    guest.host.on_mmio_read = [&](std::uint64_t, std::span<std::byte> data) {
        data[0] = std::byte{};
        guest.vcpu->request_exit();
        return true;
    };
    guest.reg(Rbx) = Guest::mmio;
    guest.reg(Rcx) = 0;
    guest.reg(Rdx) = 0;
    ASSERT_EQ(guest.run(), Reason::Interrupted);
    ASSERT_EQ(guest.state().rip, Guest::code + 6);
    guest.state().inject = Event{EventKind::ExternalInterrupt, vector};
    ASSERT_EQ(guest.run(), Reason::Halt);
    for (std::uint64_t i = 2; i < 5; ++i) {
        guest.state().rip = Guest::code;
        ASSERT_EQ(guest.run_to_halt(), Reason::Halt);
        EXPECT_EQ(guest.reg(Rcx), i);
        EXPECT_EQ(guest.reg(Rdx), 1U);
    }
}

}  // namespace
}  // namespace vmm::x86::soft::test
