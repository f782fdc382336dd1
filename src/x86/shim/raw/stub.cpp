// SPDX-License-Identifier: Apache-2.0

#include "x86/shim/raw/stub.hpp"

#include <cstdlib>
#include <cstring>
#include <string_view>

#include <cpuid.h>
#include <sys/syscall.h>

#include "x86/shim/file.hpp"
#include "x86/shim/raw/actions.hpp"
#include "x86/shim/raw/sites.hpp"
#include "x86/shim/signals.hpp"

// NOLINTBEGIN(hicpp-no-assembler)

// Offsets are CrossingState's.
asm(R"(
    .text
    # From a stub: RCX the address behind the client's SYSCALL; all else is the client's.  RAX and R11
    # are free.  No flag changes, and RSP only with the last instruction.
    .globl vmm_raw_stub_avoid
vmm_raw_stub_avoid:
    mov $16, %eax
    lea -2(%rcx), %r11
    jmp *%r11                   # By its own SYSCALL.
    .p2align 6
    .globl vmm_raw_stub_enter, vmm_raw_stub_entering, vmm_raw_stub_inside
vmm_raw_stub_enter:
    rdfsbase %rax
    mov %rax, %gs:24
vmm_raw_stub_entering:
    mov %gs:16, %rax
    wrfsbase %rax
    movw $0x100, %gs:8          # Not in the client; by a stub.
    mov %rsp, %gs:96
    mov %gs:32, %rsp
vmm_raw_stub_inside:
    pushf
    cld
    push %rcx
    push %rdi
    push %rsi
    push %rdx
    push %r10
    push %r8
    push %r9
    push %rbx
    sub $8, %rsp
    mov %gs:0, %rbx
    # Not ours?
    mov 128(%rbx), %r11
    mov %edi, %eax
    cmp $0x100000, %eax         # FileTable::max_descriptors
    jae 6f
    cmpb $0, (%r11, %rax)
    je 6f
    # The client's vector and x87 registers are its own; the library finds them as a function does.
    mov 136(%rbx), %r8
    mov $0xe7, %eax
    mov %rdx, %rcx
    xor %edx, %edx
    xsavec64 (%r8)
    mov 512(%r8), %eax
    test $1, %al
    jz 1f
    fninit
1:  test $0xe4, %al
    jz 1f
    vzeroupper
1:  movl $0x1f80, 4(%rsp)
    ldmxcsr 4(%rsp)
    mov %rsi, %rdx
    mov %rdi, %rsi
    mov %rbx, %rdi
    call vmm_raw_serve_stub
    mov %rax, %rcx
    mov %rdx, %r9
    mov 136(%rbx), %r8
    mov $0xe7, %eax
    xor %edx, %edx
    xrstor64 (%r8)
    test %r9, %r9
    jz 6f
    mov %rcx, 104(%rbx)
    mov 64(%rsp), %rax
    mov %rax, 144(%rbx)
    mov %rax, 152(%rbx)
    jmp 8f
    # The kernel does it.
6:  mov 16(%rsp), %rax
    mov %rax, 88(%rbx)
    mov 24(%rsp), %rax
    mov %rax, 80(%rbx)
    mov 32(%rsp), %rax
    mov %rax, 72(%rbx)
    mov 40(%rsp), %rax
    mov %rax, 64(%rbx)
    mov 48(%rsp), %rax
    mov %rax, 56(%rbx)
    mov 56(%rsp), %rax
    mov %rax, 48(%rbx)
    mov 64(%rsp), %rax
    mov %rax, 40(%rbx)
    movq $16, 104(%rbx)
    sub $2, %rax
    mov %rax, 144(%rbx)
    lea vmm_raw_pass(%rip), %rax
    mov %rax, 152(%rbx)

    # To the client.  A signal that comes before `leaving` has this begun again.
8:
    .globl vmm_raw_stub_leave, vmm_raw_stub_leaving, vmm_raw_stub_end
vmm_raw_stub_leave:
    mov %gs:32, %rsp
    lea -80(%rsp), %rsp
    cmpq $0, %gs:120
    jne 9f
    mov 8(%rsp), %rbx
    mov 16(%rsp), %r9
    mov 24(%rsp), %r8
    mov 32(%rsp), %r10
    mov 40(%rsp), %rdx
    mov 48(%rsp), %rsi
    mov 56(%rsp), %rdi
    mov 64(%rsp), %rcx
    push 72(%rsp)
    popf
    mov %gs:96, %rsp
vmm_raw_stub_leaving:
    mov %gs:24, %rax
    wrfsbase %rax
    movb $1, %gs:8
    mov %gs:104, %rax
    jmp *%gs:152
vmm_raw_stub_end:
    # A signal waits, and none but faults comes here.  The way back is by vmm_raw_unblock.
9:  mov 56(%rsp), %rax
    mov %rax, %gs:48
    mov 48(%rsp), %rax
    mov %rax, %gs:56
    mov 40(%rsp), %rax
    mov %rax, %gs:64
    mov 32(%rsp), %rax
    mov %rax, %gs:72
    mov 24(%rsp), %r8
    mov %r8, %gs:80
    mov 16(%rsp), %r9
    mov %r9, %gs:88
    mov %gs:144, %rax
    mov %rax, %gs:40
    mov 8(%rsp), %rbx
    mov 64(%rsp), %rcx
    mov $2, %edi                # SIG_SETMASK
    mov %gs:0, %rsi
    lea 112(%rsi), %rsi
    mov $0, %edx
    mov $8, %r10d
    push 72(%rsp)
    popf
    mov %gs:96, %rsp
    jmp vmm_raw_unblock
)");

// NOLINTEND(hicpp-no-assembler)

namespace vmm::shim::raw {

static_assert(FileTable::max_descriptors == 0x100000 && sizeof(std::atomic<bool>) == 1);

namespace {

/// Of the registers' state at XSAVEC; 0: there are no stubs.
std::size_t vectors_size = 0;

constexpr std::size_t vectors_alignment = 64;

std::size_t find_vectors_size() noexcept
{
    constexpr unsigned extended_state = 0xd;
    constexpr unsigned has_xsavec = 1U << 1U;
    unsigned eax = 0;
    unsigned ebx = 0;
    unsigned ecx = 0;
    unsigned edx = 0;
    if (__get_cpuid_count(extended_state, 1, &eax, &ebx, &ecx, &edx) == 0 ||
        (eax & has_xsavec) == 0 ||
        __get_cpuid_count(extended_state, 0, &eax, &ebx, &ecx, &edx) == 0) {
        return 0;
    }
    // For all that is enabled, in the form that takes more room.
    return (ebx + vectors_alignment - 1) & ~(vectors_alignment - 1);
}

}  // namespace

void start_stubs() noexcept
{
    const char* const wanted = std::getenv("VMM_KVM_PATCH");
    if (wanted == nullptr || std::string_view{wanted} != "0") {
        vectors_size = find_vectors_size();
    }
}

bool make_stub_state(ClientThread& thread) noexcept
{
    avoid_stubs(thread);
    if (vectors_size == 0) {
        return true;
    }
    thread.vector_memory.reset(
        static_cast<std::byte*>(std::aligned_alloc(vectors_alignment, vectors_size)));
    if (thread.vector_memory == nullptr) {
        return false;
    }
    // XRSTOR wants zeros where XSAVEC does not write.
    std::memset(thread.vector_memory.get(), 0, vectors_size);
    thread.vectors = thread.vector_memory.get();
    thread.descriptors = FileTable::instance().hints();
    return true;
}

void consider_stub(std::uint64_t next) noexcept
{
    if (vectors_size != 0) {
        Sites::instance().consider(next);
    }
}

void choose_way(ClientThread& thread, const stack_t& alternate, std::uint64_t stack) noexcept
{
    const bool is_there = (static_cast<unsigned>(alternate.ss_flags) & SS_DISABLE) == 0;
    const std::uint64_t above = stack - reinterpret_cast<std::uint64_t>(alternate.ss_sp);
    thread.stub_entry = is_there && above <= alternate.ss_size ? address_of(vmm_raw_stub_avoid)
                                                               : address_of(vmm_raw_stub_enter);
}

void avoid_stubs(ClientThread& thread) noexcept
{
    thread.stub_entry = address_of(vmm_raw_stub_avoid);
}

void defer_signals(ClientThread& thread, int signal, ucontext_t& context) noexcept
{
    constexpr KernelSet all = ~faults;
    // First, so that no other one comes within this.
    const KernelSet blocked = all | set_of(signal);
    vmm_raw_syscall(SYS_rt_sigprocmask, SIG_BLOCK, reinterpret_cast<std::uint64_t>(&blocked), 0,
                    sizeof blocked);
    // One may have come before, in the handler of this one, whose mask is not the client's.
    KernelSet& mask = mask_of(context);
    if (thread.is_deferred == 0 || (mask & all) != all) {
        thread.client_mask = mask;
        std::memcpy(&thread.deferred_mask, &thread.client_mask, sizeof thread.client_mask);
        set_client_mask(&thread.deferred_mask);
    }
    thread.is_deferred = 1;
    mask |= blocked;
    const auto rip = static_cast<std::uint64_t>(context.uc_mcontext.gregs[REG_RIP]);
    if (rip >= address_of(vmm_raw_stub_leave) && rip < address_of(vmm_raw_stub_leaving)) {
        context.uc_mcontext.gregs[REG_RIP] = static_cast<greg_t>(address_of(vmm_raw_stub_leave));
    }
}

}  // namespace vmm::shim::raw

StubResult vmm_raw_serve_stub(vmm::shim::raw::ClientThread* thread,
                              std::uint64_t fd,
                              std::uint64_t request,
                              std::uint64_t argument) noexcept
{
    using namespace vmm::shim;
    // None, unless a signal has come already; one that comes later says so itself.
    set_client_mask(nullptr);
    std::atomic_signal_fence(std::memory_order_seq_cst);
    if (__atomic_load_n(&thread->is_deferred, __ATOMIC_RELAXED) != 0) {
        set_client_mask(&thread->deferred_mask);
    }
    const auto file = FileTable::instance().find(static_cast<int>(static_cast<unsigned>(fd)));
    if (file == nullptr) {
        return {0, 0};
    }
    return {file->ioctl(static_cast<unsigned>(request), argument), 1};
}
