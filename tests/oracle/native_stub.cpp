// SPDX-License-Identifier: Apache-2.0

#include "oracle/native_stub.hpp"

#include <cstddef>
#include <new>

#include <sys/mman.h>
#include <sys/syscall.h>

#include <xbyak/xbyak.h>

namespace vmm::oracle {

namespace {

constexpr std::uint64_t code_page = exit_64;
constexpr std::size_t code_page_bytes = 0x1000;

class Assembler : public Xbyak::CodeGenerator {
public:
    // SAFETY: the page is mapped, writable.
    Assembler() : CodeGenerator(code_page_bytes, reinterpret_cast<void*>(code_page)) {}

    void assemble(Stub& stub)
    {
        exits();
        align(16);
        stub.run_case = getCurr<std::uint64_t (*)()>();
        run_case();
        align(16);
        stub.on_signal = address_here();
        on_signal();
        align(16);
        stub.restorer = address_here();
        mov(eax, SYS_rt_sigreturn);
        syscall();
        stub.after_syscall[0] = address_here();
        align(16);
        stub.system_call = getCurr<std::int64_t (*)(std::int64_t, std::uint64_t, std::uint64_t,
                                                    std::uint64_t, std::uint64_t)>();
        mov(rax, rdi);
        mov(rdi, rsi);
        mov(rsi, rdx);
        mov(rdx, rcx);
        mov(r10, r8);
        syscall();
        stub.after_syscall[1] = address_here();
        ret();
    }

private:
    [[nodiscard]] std::uint64_t address_here() const
    {
        return reinterpret_cast<std::uint64_t>(getCurr());
    }

    static Xbyak::Address at(std::size_t offset)
    {
        return Xbyak::util::ptr[reinterpret_cast<void*>(context_base + offset)];
    }
    static Xbyak::Address at16(std::size_t offset)
    {
        return Xbyak::util::word[reinterpret_cast<void*>(context_base + offset)];
    }

    /// An instruction with REX.W and an operand at an absolute address: `group` is ModRM.reg.
    void absolute(std::initializer_list<int> opcode, unsigned group, std::size_t offset)
    {
        for (const int each : opcode) {
            db(each);
        }
        db(static_cast<int>(0x04U | (group << 3U)));
        db(0x25);
        dd(static_cast<std::uint32_t>(context_base + offset));
    }
    void xrstor64(std::size_t offset) { absolute({0x48, 0x0f, 0xae}, 5, offset); }
    void xsave64(std::size_t offset) { absolute({0x48, 0x0f, 0xae}, 4, offset); }
    /// RDFSBASE, RDGSBASE, WRFSBASE, WRGSBASE of RAX by their number.
    void base_of_segment(unsigned number)
    {
        for (const unsigned each : {0xf3U, 0x48U, 0x0fU, 0xaeU, 0xc0U | (number << 3U)}) {
            db(static_cast<int>(each));
        }
    }

    void components()
    {
        mov(eax, 7);
        xor_(edx, edx);
    }

    void exits()
    {
        // Reached from 64-bit code.
        for (int number = 0; number < 16; ++number) {
            mov(at(offsetof(Context, out.gpr) + 8 * static_cast<std::size_t>(number)),
                Xbyak::Reg64(number));
        }
        jmp("saved", T_NEAR);
        // Reached from 32-bit code.
        while (getSize() < exit_32 - exit_64) {
            int3();
        }
        db(0xea);
        dd(static_cast<std::uint32_t>(exit_64));
        dw(user_code_64);

        L("saved");
        mov(rsp, context_base + offsetof(Context, scratch) + 128);
        pushfq();
        pop(rax);
        mov(at(offsetof(Context, out.rflags)), rax);
        push(2);
        popfq();
        components();
        xsave64(offsetof(Context, out_fpu));
        leave(0);
    }

    /// Notes the segments, takes the host's back, and returns `result` from `run_case`.
    void leave(int result)
    {
        constexpr std::size_t selectors = offsetof(Context, out.selector);
        mov(eax, es);
        mov(at16(selectors), ax);
        mov(eax, ss);
        mov(at16(selectors + 4), ax);
        mov(eax, ds);
        mov(at16(selectors + 6), ax);
        mov(eax, fs);
        mov(at16(selectors + 8), ax);
        mov(eax, gs);
        mov(at16(selectors + 10), ax);
        base_of_segment(0);
        mov(at(offsetof(Context, out.fs_base)), rax);
        base_of_segment(1);
        mov(at(offsetof(Context, out.gs_base)), rax);
        mov(rax, at(offsetof(Context, host_fs)));
        base_of_segment(2);
        mov(rax, at(offsetof(Context, host_gs)));
        base_of_segment(3);
        mov(rsp, at(offsetof(Context, host_rsp)));
        xor_(eax, eax);
        mov(at(offsetof(Context, in_case)), rax);
        if (result != 0) {
            inc(eax);
        }
        pop(r15);
        pop(r14);
        pop(r13);
        pop(r12);
        pop(rbp);
        pop(rbx);
        ret();
    }

    void run_case()
    {
        for (const Xbyak::Reg64& each : {rbx, rbp, r12, r13, r14, r15}) {
            push(each);
        }
        mov(at(offsetof(Context, host_rsp)), rsp);
        base_of_segment(0);
        mov(at(offsetof(Context, host_fs)), rax);
        base_of_segment(1);
        mov(at(offsetof(Context, host_gs)), rax);
        mov(eax, 1);
        mov(at(offsetof(Context, in_case)), rax);
        components();
        xrstor64(offsetof(Context, in_fpu));
        constexpr std::size_t selectors = offsetof(Context, in.selector);
        mov(ax, at16(selectors));
        mov(es, eax);
        mov(ax, at16(selectors + 6));
        mov(ds, eax);
        mov(ax, at16(selectors + 8));
        mov(fs, eax);
        mov(ax, at16(selectors + 10));
        mov(gs, eax);
        mov(rax, at(offsetof(Context, in.fs_base)));
        base_of_segment(2);
        mov(rax, at(offsetof(Context, in.gs_base)));
        base_of_segment(3);
        mov(rsp, context_base + offsetof(Context, frame));
        for (int number = 0; number < 16; ++number) {
            if (number != rsp.getIdx()) {
                mov(Xbyak::Reg64(number),
                    at(offsetof(Context, in.gpr) + 8 * static_cast<std::size_t>(number)));
            }
        }
        db(0x48);  // IRETQ: RIP, CS and RFLAGS with TF at once.
        db(0xcf);
    }

    /// RDI is the signal's number, RDX its ucontext_t; FS and GS are still the case's.
    void on_signal()
    {
        constexpr int virtual_alarm = 26;
        mov(rcx, at(offsetof(Context, in_case)));
        jrcxz("not_ours");
        cmp(edi, virtual_alarm);
        jne("ended", T_NEAR);
        mov(rcx, at(offsetof(Context, case_number)));
        cmp(rcx, at(offsetof(Context, tick_case)));
        mov(at(offsetof(Context, tick_case)), rcx);
        je("ended", T_NEAR);
        L("not_ours");
        ret();
        L("ended");
        mov(at(offsetof(Context, signal)), rdi);
        mov(at(offsetof(Context, signal_context)), rdx);
        push(2);
        popfq();
        leave(1);
    }
};

bool map_at(std::uint64_t address, std::size_t size)
{
    // SAFETY: NOREPLACE: nothing that is there can be lost.
    void* const wanted = reinterpret_cast<void*>(address);
    return ::mmap(wanted, size, PROT_READ | PROT_WRITE,
                  MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE | MAP_POPULATE, -1,
                  0) == wanted;
}

}  // namespace

bool map_stub(Stub& stub)
{
    if (!map_at(code_page, code_page_bytes) || !map_at(context_base, sizeof(Context)) ||
        !map_at(signal_stack_base, signal_stack_bytes)) {
        return false;
    }
    new (reinterpret_cast<void*>(context_base)) Context{};
    Assembler assembler;
    assembler.assemble(stub);
    return ::mprotect(reinterpret_cast<void*>(code_page), code_page_bytes, PROT_READ | PROT_EXEC) ==
           0;
}

}  // namespace vmm::oracle
