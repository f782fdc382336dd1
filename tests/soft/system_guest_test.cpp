// SPDX-License-Identifier: Apache-2.0

/// A guest that goes the whole way: real mode, protected mode, long mode, user mode, and into the
/// system by SYSCALL, INT, page fault and #GP.  And single steps, which only the run loop can show.

#include <gtest/gtest.h>

#include "soft/guest_harness.hpp"

// The code is loaded at Guest::code (0x10000) and entered in real mode with CS at it.
asm(R"(
    .pushsection .rodata
    .balign 4096
    .globl vmm_system_guest, vmm_system_guest_end
vmm_system_guest:
    .code16
    cli
    lgdtl %cs:(9f - vmm_system_guest)
    mov %cr0, %eax
    or $1, %eax
    mov %eax, %cr0
    ljmpl $0x08, $(0x10000 + (1f - vmm_system_guest))

    .code32
1:  mov $0x10, %ax
    mov %ax, %ds
    mov %ax, %es
    mov %ax, %ss
    mov $0x40000, %esp
    movl $0x2007, 0x1000
    movl $0x3007, 0x2000
    movl $0x0087, 0x3000
    mov $0x1000, %eax
    mov %eax, %cr3
    mov %cr4, %eax
    or $0x20, %eax
    mov %eax, %cr4
    mov $0xc0000080, %ecx
    rdmsr
    or $0x101, %eax
    wrmsr
    mov %cr0, %eax
    or $0x80000000, %eax
    mov %eax, %cr0
    ljmp $0x18, $(0x10000 + (2f - vmm_system_guest))

    .code64
2:  movl $0x48000, 0x6004           # RSP0
    mov $0x30, %ax
    ltr %ax
    lidt 0x10000 + (8f - vmm_system_guest)

    mov $(0x10000 + (5f - vmm_system_guest)), %eax
    mov $0xee, %edx
    mov $0x80, %ecx
    call 3f
    mov $(0x10000 + (6f - vmm_system_guest)), %eax
    mov $0x8e, %edx
    mov $14, %ecx
    call 3f
    mov $(0x10000 + (7f - vmm_system_guest)), %eax
    mov $13, %ecx
    call 3f
    mov $0xc0000081, %ecx           # STAR
    xor %eax, %eax
    mov $0x00180018, %edx
    wrmsr
    inc %ecx                        # LSTAR
    mov $(0x10000 + (4f - vmm_system_guest)), %eax
    xor %edx, %edx
    wrmsr
    mov $0xc0000084, %ecx           # FMASK: IF
    mov $0x200, %eax
    wrmsr
    xor %r12d, %r12d
    xor %r13d, %r13d
    push $(0x20 | 3)
    push $0x50000
    push $0x2
    push $(0x28 | 3)
    push $(0x10000 + (11f - vmm_system_guest))
    iretq

3:  shl $4, %ecx                    # Gate ECX to EAX, access EDX.
    mov %ax, 0x9000(%rcx)
    movw $0x18, 0x9002(%rcx)
    movb $0, 0x9004(%rcx)
    mov %dl, 0x9005(%rcx)
    shr $16, %eax
    mov %ax, 0x9006(%rcx)
    movq $0, 0x9008(%rcx)
    ret

4:  inc %r12                        # SYSCALL
    sysretq
5:  inc %r13                        # INT 80h
    iretq
6:  mov %cr2, %r14                  # Page fault: over the instruction of 2 bytes.
    pop %r15
    addq $2, (%rsp)
    iretq
7:  pop %rbp                        # #GP: the end.
    mov (%rsp), %rdi
    hlt

    .balign 4096                    # Users have pages of their own.
11: mov 0x7000, %rbx                # User: as often as 0x7000 says.
    test %rbx, %rbx
    jz 13f
12: syscall
    dec %rbx
    jnz 12b
13: mov 0x7008, %rbx
    test %rbx, %rbx
    jz 15f
14: int $0x80
    dec %rbx
    jnz 14b
15: mov $0x12345678, %esi
    mov (%rsi), %al
16: hlt

8:  .word 0xfff
    .quad 0x9000
    .balign 8
10: .quad 0
    .quad 0x00cf9b000000ffff        # 08: 32-bit code
    .quad 0x00cf93000000ffff        # 10: data
    .quad 0x00af9b000000ffff        # 18: 64-bit code
    .quad 0x00cff3000000ffff        # 20: user data
    .quad 0x00affb000000ffff        # 28: user 64-bit code
    .quad 0x0000890060000067        # 30: TSS
    .quad 0
9:  .word 0x3f
    .long 0x10000 + (10b - vmm_system_guest)
vmm_system_guest_end:
    .popsection
    .code64
)");

extern "C" const std::uint8_t vmm_system_guest[];
extern "C" const std::uint8_t vmm_system_guest_end[];

namespace vmm::x86::soft::test {
namespace {

struct SystemGuest : Guest {
    SystemGuest(std::uint64_t syscalls, std::uint64_t interrupts)
    {
        load(code, std::span{vmm_system_guest, vmm_system_guest_end});
        put<std::uint64_t>(0x7000, syscalls);
        put<std::uint64_t>(0x7008, interrupts);
        real_mode();
    }
};

TEST(SystemGuest, FromResetModeToUserModeAndIntoTheSystem)
{
    SystemGuest guest{1000, 500};
    ASSERT_EQ(guest.run_to_halt(), Reason::Halt);
    EXPECT_EQ(guest.reg(R12), 1000U) << "SYSCALL";
    EXPECT_EQ(guest.reg(R13), 500U) << "INT 80h";
    EXPECT_EQ(guest.reg(R14), 0x1234'5678U) << "CR2";
    EXPECT_EQ(guest.reg(R15), 4U) << "a user's read of a page that is not there";
    EXPECT_EQ(guest.reg(Rbp), 0U) << "#GP(0) for HLT in user mode";
    EXPECT_EQ(guest.get<std::uint8_t>(guest.reg(Rdi)), 0xf4U);
}

TEST(SystemGuest, SingleStep)
{
    Guest guest;
    guest.long_mode();
    guest.load(Guest::code, {0x90, 0x90, 0xf4});
    guest.state().rflags = 2 | Rflags::TF.mask;
    guest.vcpu->state_changed();
    ASSERT_EQ(guest.run_to_halt(), Reason::Halt);
    EXPECT_EQ(guest.halted_by_vector(), 1);
    EXPECT_EQ(guest.stack_word(0), Guest::code + 1);
    EXPECT_EQ(guest.stack_word(2) & Rflags::RF.mask, 0U) << "a trap";
    EXPECT_NE(guest.stack_word(2) & Rflags::TF.mask, 0U);
    EXPECT_EQ(guest.state().dr6, Dr6::reset | Dr6::BS.mask);
}

TEST(SystemGuest, NoStepIntoASoftwareInterrupt)
{
    Guest guest;
    guest.long_mode();
    guest.load(Guest::code, {0xcd, 0x40, 0xf4});
    guest.state().rflags = 2 | Rflags::TF.mask;
    guest.vcpu->state_changed();
    ASSERT_EQ(guest.run_to_halt(), Reason::Halt);
    EXPECT_EQ(guest.halted_by_vector(), 0x40) << "its handler, not #DB's";
    EXPECT_EQ(guest.stack_word(0), Guest::code + 2);
}

TEST(SystemGuest, MovSsHoldsTheStepBack)
{
    Guest guest;
    guest.long_mode();
    guest.load(Guest::code, {0x8e, 0xd0, 0x90, 0xf4});  // mov ss, ax; nop
    guest.reg(Rax) = 0x10;
    guest.state().rflags = 2 | Rflags::TF.mask;
    guest.vcpu->state_changed();
    ASSERT_EQ(guest.run_to_halt(), Reason::Halt);
    EXPECT_EQ(guest.halted_by_vector(), 1);
    EXPECT_EQ(guest.stack_word(0), Guest::code + 3);
}

// AMD and Intel alike: TF is looked at when SYSRET is over.
TEST(SystemGuest, ASysretThatSetsTfTrapsBeforeTheFirstInstruction)
{
    Guest guest;
    guest.long_mode();
    guest.load(Guest::code, {0x48, 0x0f, 0x07});  // sysretq
    guest.load(Guest::code + 0x100, {0x90, 0x90});
    guest.state().star = std::uint64_t{0x18} << 48U;
    guest.reg(Rcx) = Guest::code + 0x100;
    guest.reg(R11) = 0x102;
    guest.vcpu->state_changed();
    EXPECT_EQ(guest.run(), Reason::Halt);
    EXPECT_EQ(guest.halted_by_vector(), 1);
    EXPECT_EQ(guest.stack_word(0), Guest::code + 0x100);
    EXPECT_EQ(guest.state().dr6 & 0x4000U, 0x4000U);
}

TEST(SystemGuest, Int1TakesAlongTheTrapThatMovSsHeldBack)
{
    Guest guest;
    guest.long_mode();
    guest.load(Guest::code, {0x8e, 0x11, 0xf1, 0xf4});  // mov ss, [rcx]; int1; hlt
    guest.put<std::uint16_t>(Guest::data, 0x10);
    guest.reg(Rcx) = Guest::data;
    guest.state().dr[0] = Guest::data;
    guest.state().dr7 = 0x7'0402U | 0x3'0000U;  // 2 bytes, read or write.
    guest.vcpu->state_changed();
    EXPECT_EQ(guest.run(), Reason::Halt);
    EXPECT_EQ(guest.halted_by_vector(), 1);
    EXPECT_EQ(guest.stack_word(0), Guest::code + 3) << "behind INT1";
    EXPECT_EQ(guest.state().dr6 & 0xfU, 1U);
    EXPECT_EQ(guest.state().pending_debug, 0U) << "one #DB for both";
}

TEST(SystemGuest, ASegmentOfTheSystemLosesItsSelectorForUsersNotItsBase)
{
    Guest guest;
    guest.long_mode();
    guest.load(Guest::code, {0x48, 0xcf});                                        // iretq
    guest.load(Guest::code + 0x100, {0x65, 0x8a, 0x04, 0x25, 0, 0, 0, 0, 0xf4});  // mov al, gs:0
    guest.put<std::uint64_t>(Guest::gdt + 0x20, 0x00cf'f300'0000'ffff);
    guest.put<std::uint64_t>(Guest::gdt + 0x28, 0x00af'fb00'0000'ffff);
    std::uint64_t at = Guest::stack - 40;
    guest.reg(Rsp) = at;
    for (const std::uint64_t word : {Guest::code + 0x100, std::uint64_t{0x2b}, std::uint64_t{2},
                                     Guest::stack - 0x100, std::uint64_t{0x23}}) {
        guest.put<std::uint64_t>(at, word);
        at += 8;
    }
    guest.state().seg[Gs].base = Guest::data;
    guest.put<std::uint8_t>(Guest::data, 0x5a);
    guest.vcpu->state_changed();
    EXPECT_EQ(guest.run(), Reason::Halt);
    EXPECT_EQ(guest.halted_by_vector(), 13) << "HLT by a user";
    EXPECT_EQ(guest.reg(Rax) & 0xffU, 0x5aU);
    EXPECT_EQ(guest.state().seg[Gs].selector, 0U);
}

TEST(SystemGuest, DataBreakpointTrapsBehindTheInstruction)
{
    Guest guest;
    guest.long_mode();
    guest.load(Guest::code, {0x88, 0x03, 0x90, 0xf4});  // mov [rbx], al; nop
    guest.reg(Rbx) = Guest::data + 1;
    guest.state().dr[2] = Guest::data;
    guest.state().dr7 = Dr7::reset | (1U << 4U) | (0xdU << 24U);  // Four bytes, writes.
    guest.vcpu->state_changed();
    ASSERT_EQ(guest.run_to_halt(), Reason::Halt);
    EXPECT_EQ(guest.halted_by_vector(), 1);
    EXPECT_EQ(guest.stack_word(0), Guest::code + 2);
    EXPECT_EQ(guest.state().dr6, Dr6::reset | 4U);
}

TEST(SystemGuest, InstructionBreakpointFaultsAndRfGetsOver)
{
    Guest guest;
    guest.long_mode();
    guest.load(Guest::code, {0x90, 0x90, 0xf4});
    guest.state().dr[0] = Guest::code + 1;
    guest.state().dr7 = Dr7::reset | 1U;
    guest.vcpu->state_changed();
    ASSERT_EQ(guest.run_to_halt(), Reason::Halt);
    EXPECT_EQ(guest.halted_by_vector(), 1);
    EXPECT_EQ(guest.stack_word(0), Guest::code + 1) << "before the instruction";
    EXPECT_EQ(guest.state().dr6, Dr6::reset | 1U);
    guest.state().rip = Guest::code + 1;
    guest.state().rflags = 2 | Rflags::RF.mask;
    guest.vcpu->state_changed();
    ASSERT_EQ(guest.run_to_halt(), Reason::Halt);
    EXPECT_EQ(guest.state().rip, Guest::code + 3);
}

TEST(SystemGuest, TripleFaultShutsDown)
{
    Guest guest;
    guest.long_mode();
    guest.load(Guest::code, {0x0f, 0x0b});
    guest.state().idt.limit = 0;
    guest.vcpu->state_changed();
    EXPECT_EQ(guest.run(), Reason::Shutdown);
}

}  // namespace
}  // namespace vmm::x86::soft::test
