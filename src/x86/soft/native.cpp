// SPDX-License-Identifier: Apache-2.0

#include "x86/soft/native.hpp"

#include <algorithm>
#include <map>
#include <mutex>
#include <utility>
#include <vector>

#include <unistd.h>

#include <xbyak/xbyak.h>

#include "x86/soft/code_memory.hpp"
#include "x86/soft/native_operand.hpp"

namespace vmm::x86::soft {

namespace {

constexpr std::size_t chunk_size = std::size_t{256} * 1024;
constexpr std::size_t max_chunks = 1024;  // Far above what all canonical forms take.
constexpr std::size_t max_thunk_size = 256;

/// Memory for thunks, which are never freed.
class ThunkMemory {
public:
    /// Copies code there and answers where it can be called.
    [[nodiscard]] Result<const void*> add(const std::uint8_t* code, std::size_t size)
    {
        const std::size_t rounded = (size + 15U) & ~std::size_t{15};
        // A chunk is shared with a parent process after fork(): each writes to its own ones only.
        if (chunks_.empty() || used_ + rounded > chunk_size || owner_ != ::getpid()) {
            VMM_TRY_VOID(grow());
        }
        const CodeMemory& chunk = chunks_.back();
        std::memcpy(chunk.writable() + used_, code, size);
        const void* const entry = chunk.executable() + used_;
        used_ += rounded;
        return entry;
    }

private:
    [[nodiscard]] Result<void> grow()
    {
        if (chunks_.size() == max_chunks) {
            return Error{std::errc::not_enough_memory, "native code memory: the limit is reached"};
        }
        VMM_TRY(CodeMemory chunk, CodeMemory::create(chunk_size));
        chunks_.push_back(std::move(chunk));
        used_ = 0;
        owner_ = ::getpid();
        return success;
    }

    std::vector<CodeMemory> chunks_;
    std::size_t used_{};
    ::pid_t owner_{};
};

/// Host registers of a thunk: reg is xmm1/mm1/rax, rm xmm2/mm2/rcx or [rsi], vvvv xmm3/r8, the
/// fourth operand xmm4, implicit XMM0 xmm0.  Arguments come in rdi, rsi, rdx, rcx, r8.
class Emitter : public Xbyak::CodeGenerator {
public:
    explicit Emitter(std::array<std::uint8_t, max_thunk_size>& buffer)
        : CodeGenerator{buffer.size(), buffer.data()}
    {
    }

    void emit(const ThunkSpec& spec)
    {
        if (spec.flags_in) {
            mov(eax, r8d);
            add(al, 0x7f);  // OF, the only one that SAHF leaves alone.
            sahf();
        }
        if (uses_general(spec)) {
            mov(r10, rdx);
            mov(r11, rcx);
        }
        load_operands(spec);
        emit_instruction(spec);
        store_operands(spec);
        if (spec.flags_out) {
            lahf();
            seto(al);
            movzx(eax, ax);
        }
        if (spec.reg == Slot::Mmx || spec.rm == Slot::Mmx) {
            emms();
        }
        if (spec.vex && spec.long_vector) {
            vzeroupper();
        }
        ret();
    }

private:
    static bool uses_general(const ThunkSpec& spec)
    {
        return spec.reg == Slot::General || spec.rm == Slot::General ||
               spec.rm == Slot::GeneralByte || spec.vvvv == Slot::General ||
               (spec.kind != ThunkKind::Plain && spec.kind != ThunkKind::X87);
    }

    static std::size_t xmm0_offset() { return vector_offset(0); }

    void load_vector(const ThunkSpec& spec, int number, const Xbyak::Reg64& from)
    {
        if (!spec.vex) {
            movaps(Xbyak::Xmm(number), ptr[from]);
        } else if (spec.long_vector) {
            vmovdqu(Xbyak::Ymm(number), ptr[from]);
        } else {
            vmovdqu(Xbyak::Xmm(number), ptr[from]);
        }
    }

    /// VEX instructions clear what lies above their result: storing all of YMM does the same.
    void store_vector(const ThunkSpec& spec, int number, const Xbyak::Reg64& to)
    {
        if (spec.vex) {
            vmovdqu(ptr[to], Xbyak::Ymm(number));
        } else {
            movaps(ptr[to], Xbyak::Xmm(number));
        }
    }

    void load_operands(const ThunkSpec& spec)
    {
        if (spec.implicit_xmm0) {
            movaps(xmm0, ptr[rcx + xmm0_offset()]);
        }
        if (spec.is4) {
            load_vector(spec, 4, r8);
        }
        if (spec.load_reg) {
            switch (spec.reg) {
            case Slot::Vector: load_vector(spec, 1, rdi); break;
            case Slot::Mmx: movq(mm1, ptr[rdi]); break;
            case Slot::General: mov(rax, ptr[rdi]); break;
            case Slot::None:
            case Slot::GeneralByte:
            case Slot::Memory: break;
            }
        }
        switch (spec.rm) {
        case Slot::Vector: load_vector(spec, 2, rsi); break;
        case Slot::Mmx: movq(mm2, ptr[rsi]); break;
        case Slot::General: mov(rcx, ptr[rsi]); break;
        case Slot::GeneralByte: movzx(ecx, byte[rsi]); break;
        case Slot::None:
        case Slot::Memory: break;
        }
        if (spec.load_vvvv && spec.vvvv == Slot::Vector) {
            load_vector(spec, 3, rdx);
        } else if (spec.load_vvvv && spec.vvvv == Slot::General) {
            mov(r8, ptr[r10]);
        }
        switch (spec.kind) {
        case ThunkKind::Mulx: mov(rdx, ptr[r11 + 8 * Rdx]); break;
        case ThunkKind::StringIndex:
        case ThunkKind::StringMask:
            mov(rax, ptr[r11 + 8 * Rax]);
            mov(rdx, ptr[r11 + 8 * Rdx]);
            break;
        case ThunkKind::Plain:
        case ThunkKind::X87: break;
        }
    }

    void emit_instruction(const ThunkSpec& spec)
    {
        constexpr std::array<std::uint8_t, 4> prefixes{0, 0x66, 0xf3, 0xf2};
        const auto map = static_cast<unsigned>(spec.map);
        if (spec.kind == ThunkKind::X87) {
            db(spec.opcode);
            db(spec.modrm);
            return;
        }
        if (spec.vex) {
            const unsigned vvvv =
                spec.vvvv == Slot::Vector ? 3U : (spec.vvvv == Slot::General ? 8U : 0U);
            db(0xc4);
            db(static_cast<int>(0xe0U | map));
            db(static_cast<int>((spec.wide ? 0x80U : 0U) | ((~vvvv & 15U) << 3U) |
                                (spec.long_vector ? 4U : 0U) | spec.pp));
        } else {
            if (spec.operand16) {
                db(0x66);
            }
            if (spec.pp != 0) {
                db(prefixes[spec.pp & 3U]);
            }
            if (spec.wide) {
                db(0x48);
            }
            db(0x0f);
            if (spec.map == OpcodeMap::Map0F38) {
                db(0x38);
            } else if (spec.map == OpcodeMap::Map0F3A) {
                db(0x3a);
            }
        }
        db(spec.opcode);
        db(static_cast<int>(modrm(spec)));
        if (spec.has_immediate) {
            db(spec.is4 ? 0x40 : spec.immediate);
        }
    }

    static unsigned modrm(const ThunkSpec& spec)
    {
        unsigned reg = 0;
        switch (spec.reg) {
        case Slot::Vector:
        case Slot::Mmx: reg = 1; break;
        case Slot::None: reg = spec.modrm & 7U; break;
        case Slot::General:
        case Slot::GeneralByte:
        case Slot::Memory: break;
        }
        unsigned rm = 0x06;  // [rsi]
        switch (spec.rm) {
        case Slot::Vector:
        case Slot::Mmx: rm = 0xc2; break;
        case Slot::General:
        case Slot::GeneralByte: rm = 0xc1; break;
        case Slot::None:
        case Slot::Memory: break;
        }
        return rm | (reg << 3U);
    }

    void store_operands(const ThunkSpec& spec)
    {
        // First: where MULX names one register twice, `reg` wins.
        if (spec.store_vvvv && spec.vvvv == Slot::Vector) {
            store_vector(spec, 3, rdx);
        } else if (spec.store_vvvv && spec.vvvv == Slot::General) {
            mov(ptr[r10], r8);
        }
        if (spec.store_reg) {
            switch (spec.reg) {
            case Slot::Vector: store_vector(spec, 1, rdi); break;
            case Slot::Mmx: movq(ptr[rdi], mm1); break;
            case Slot::General: mov(ptr[rdi], rax); break;
            case Slot::None:
            case Slot::GeneralByte:
            case Slot::Memory: break;
            }
        }
        if (spec.store_rm) {
            switch (spec.rm) {
            case Slot::Vector: store_vector(spec, 2, rsi); break;
            case Slot::Mmx: movq(ptr[rsi], mm2); break;
            case Slot::General: mov(ptr[rsi], rcx); break;
            case Slot::None:
            case Slot::GeneralByte:
            case Slot::Memory: break;
            }
        }
        switch (spec.kind) {
        case ThunkKind::StringIndex: mov(ptr[r11 + 8 * Rcx], rcx); break;
        case ThunkKind::StringMask:
            if (spec.vex) {
                vmovdqu(ptr[r11 + xmm0_offset()], ymm0);
            } else {
                movaps(ptr[r11 + xmm0_offset()], xmm0);
            }
            break;
        case ThunkKind::Plain:
        case ThunkKind::Mulx:
        case ThunkKind::X87: break;
        }
    }
};

class ThunkCache {
public:
    /// The thunk as a pointer to its code.
    [[nodiscard]] Result<const void*> get(const ThunkSpec& spec)
    {
        const std::lock_guard lock{mutex_};
        const auto found = thunks_.find(spec);
        if (found != thunks_.end()) {
            return found->second;
        }
        std::array<std::uint8_t, max_thunk_size> buffer{};
        Emitter emitter{buffer};
        emitter.emit(spec);
        VMM_TRY(const void* const entry, memory_.add(buffer.data(), emitter.getSize()));
        thunks_.emplace(spec, entry);
        return entry;
    }

private:
    std::mutex mutex_;
    ThunkMemory memory_;                       // mutex_
    std::map<ThunkSpec, const void*> thunks_;  // mutex_
};

Thunk callable(const void* code) noexcept
{
    // SAFETY: it is code with the signature of Thunk, and stays for ever.
    return reinterpret_cast<Thunk>(reinterpret_cast<std::uintptr_t>(code));
}

/// Shared by the process, and never destroyed: vCPUs may outlive static destruction.
ThunkCache& thunk_cache()
{
    static ThunkCache& cache = *new ThunkCache;
    return cache;
}

}  // namespace

Thunk thunk_for(const ThunkSpec& spec)
{
    const Result<const void*> code = thunk_cache().get(spec);
    return code ? callable(*code) : nullptr;
}

Result<void> native_available()
{
    ThunkSpec probe;
    probe.kind = ThunkKind::X87;
    probe.opcode = 0xd9;  // FNOP
    probe.modrm = 0xd0;
    VMM_TRY(const void* const code, thunk_cache().get(probe));
    callable(code)(nullptr, nullptr, nullptr, nullptr, 0);
    return success;
}

const Op* no_thunk(Cpu& cpu, const Op* /*op*/)
{
    cpu.exit = EngineExit{};
    cpu.exit.reason = EngineExit::Reason::InternalError;
    cpu.exit_pending = true;
    cpu.rip = cpu.instruction_rip();
    return nullptr;
}

const Op* undefined(Cpu& /*cpu*/, const Op* /*op*/)
{
    raise(Vector::UD);
}

}  // namespace vmm::x86::soft
