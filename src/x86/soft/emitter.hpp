// SPDX-License-Identifier: Apache-2.0

/// @file
/// From a decoded block to host code.
///
/// Where guest state is while translated code runs:
/// - r15 points to `Cpu`; rsp is the host's stack: below what it was when the code was entered are
///   notes of the guest's calls (`CallNote`).
/// - Guest registers are in host registers (`host_register`), the others stay in `CpuState::gpr`.
/// - Arithmetic flags are in the host's flags (*native*), or in ax as LAHF and SETO leave them
///   (*parked*: what `Cpu::arithmetic_flags` has), or both: known at each place.  At the start of a
///   block they are parked.
/// - r10 and r11 are free between instructions.
/// - YMM registers are in the host's once `TranslatedState::vectors` says so.
/// - RIP is known as an offset in the page; `TranslatedState::code_page` has the page.
///
/// An instruction that cannot go on before it has changed anything (its address is not in the TLB,
/// a division would overflow …) *exits*: all state goes back to `Cpu`, and the interpreter executes
/// it, from its start.  The operation behind it enters translated code again.  Translated code has
/// the signature of a `Handler` and leaves by a jump to another: it is never on the stack when
/// something throws.

#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <optional>
#include <span>
#include <vector>

#include <xbyak/xbyak.h>

#include "x86/soft/block.hpp"
#include "x86/soft/cpu.hpp"
#include "x86/soft/insn.hpp"

namespace vmm::x86::soft {

/// Where translated code finds the parts of `Cpu`: distances in bytes.
struct CpuLayout {
    explicit CpuLayout(const Cpu& cpu) noexcept;

    std::size_t rip;
    std::size_t block_rip;
    std::size_t flags;
    std::size_t rflags;
    std::size_t current;
    std::size_t tlb;
    std::size_t requests;
    std::size_t table;
    std::size_t generation;
    std::size_t code_page;
    std::size_t vectors;
    std::size_t pauses_left;
    std::size_t notes;
    std::size_t notes_end;
    std::size_t spare;
    std::size_t windows;
    std::size_t cr0;
    std::size_t cr4;
    std::size_t xcr0;
    std::size_t ymm;
    std::size_t mxcsr;
    std::size_t host_mxcsr;
    std::size_t mxcsr_live;
    std::size_t x87;
    std::size_t x87_live;
    std::array<std::size_t, 6> segment_base{};
};

/// A jump to another block of the same page, which leads there once that is translated.
struct JumpSite {
    std::uint8_t* jump{};  ///< Its `jmp rel32`, in writable memory.
    std::uint64_t gfn{};
};

/// What a direct branch to another page has found in the jump table.
struct FarSite {
    // It counts for a branch in this page, for as long as `Chain::generation` is this.
    std::uint64_t page{};
    std::uint64_t generation{};
    std::uint64_t target_page{};  ///< `TranslatedState::code_page` there.
    const void* code{};
};

/// Code that all blocks share, in writable memory.
struct SharedCode {
    const std::uint8_t* enter{};  ///< From C++; r11: where to go on.
    const std::uint8_t* exit{};   ///< r11: the operation, r10: offset of its block in the page.
    const std::uint8_t* edge{};   ///< r11: `JumpSite` or 0, r10: offset of the target.
    const std::uint8_t* untranslated{};  ///< `CpuState::rip` is the target.
    /// r11: code of a block that has been dropped, r10: its offset in the page.
    const std::uint8_t* moved{};
    /// r11: `FarSite` to fill, r10: the branch's target; answers ZF: done.
    const std::uint8_t* fill_site{};
    const std::uint8_t* load_vectors{};  ///< r10: level wanted; answers ZF.
};

struct EmitterContext {
    CpuLayout layout;
    SharedCode shared{};
    std::deque<JumpSite> sites{};
    std::deque<FarSite> far_sites{};
    bool bmi2{};
    bool avx{};
    bool predicts_returns{};  ///< By `CallNote`s.
};

/// What a guest's CALL leaves on the host's stack, by CALL itself, so that its RET is one of the
/// host's too, which the CPU predicts.  All notes are gone once translated code is left: while one
/// is there no mapping has changed, and no block has been dropped.
struct CallNote {
    std::uint64_t code;           ///< The host's return address.
    std::uint64_t rip;            ///< The guest's.
    std::uint64_t stack_pointer;  ///< Where in the guest's stack that is.

    /// How many there are at most: about as many as CPUs remember.
    static constexpr std::size_t most = 32;
};

inline constexpr std::uint8_t spilled = 0xff;
/// RAX makes room for parked flags, RSP for the host's; what is left goes by how seldom compilers
/// use a register.
inline constexpr std::array<std::uint8_t, 16> host_register{
    8, 1, 2, 3, 9, 5, 6, 7, spilled, spilled, spilled, spilled, 12, 13, 14, spilled};
inline const Xbyak::Reg64 guest_rax{host_register[Rax]};
inline const Xbyak::Reg64 guest_rdx{host_register[Rdx]};
inline const Xbyak::Reg64 guest_rsp{host_register[Rsp]};
inline const Xbyak::Reg64 guest_rbp{host_register[Rbp]};
inline const Xbyak::Reg64 guest_rsi{host_register[Rsi]};
inline const Xbyak::Reg64 guest_rdi{host_register[Rdi]};

/// What a conditional jump asks, as its opcode has it.  SDM Vol. 2D "Opcode Map", Jcc.
enum class Condition : std::uint8_t {
    Below = 2,
    AboveOrEqual,
    Equal,
    NotEqual,
    BelowOrEqual,
    Above,
    Sign,
};

/// A place in the code of a block.  The displacements of jumps that lead there before it is known
/// hold where the one before is: a list.
struct Place {
    static constexpr std::uint32_t none = ~std::uint32_t{0};

    std::uint32_t at{none};
    std::uint32_t last_jump{none};  ///< Offset of its displacement.
};

/// How an instruction uses an operand.
enum class Use : std::uint8_t { None, Read, Write, ReadWrite };

[[nodiscard]] constexpr bool reads(Use use) noexcept
{
    return use == Use::Read || use == Use::ReadWrite;
}
[[nodiscard]] constexpr bool writes(Use use) noexcept
{
    return use == Use::Write || use == Use::ReadWrite;
}

/// What an instruction does that is executed as itself, with other registers (emit_form.cpp).
struct Form {
    Use reg{};
    Use rm{};
    Use vvvv{};
    std::uint8_t reg_width{};  ///< In bytes; 0: a vector register.
    std::uint8_t rm_width{};   ///< The same for a register; memory: bytes accessed.
    std::uint8_t immediate_size{};
    bool flags_read{};
    bool flags_written{};      ///< Those not written keep their value, if `flags_read` is set.
    bool needs_register{};     ///< With rm in memory the instruction would do something else.
    std::uint8_t vectors{};    ///< `TranslatedState::vectors` needed.
    std::uint8_t alignment{};  ///< Mask: an address with these bits is left to the interpreter.
};

/// The form of `insn`, if it has one.
[[nodiscard]] bool find_form(const Insn& insn, Form& form) noexcept;
/// The same for vector instructions (emit_vector.cpp).
[[nodiscard]] bool find_vector_form(const Insn& insn, Form& form) noexcept;

/// Bytes at a distance from a general register.
struct MemoryAccess {
    std::uint8_t base{};
    std::int32_t distance{};
    std::uint8_t size{};
    bool write{};
};

/// What an instruction does to registers and near them (emit_window.cpp).
struct Effects {
    static constexpr std::uint8_t none = 0xff;

    bool is_known{};              ///< Else it may do anything.
    bool may_leave{};             ///< What follows may not be executed.
    std::uint16_t writes{};       ///< General registers, a bit for each.
    std::uint8_t adjusted{none};  ///< One of those, to which a constant is added.
    std::int32_t adjustment{};
    std::array<MemoryAccess, 2> accesses{};
    std::size_t access_count{};
};

/// Whether the memory operand is near one register, without a segment's base.
[[nodiscard]] bool is_fixed_distance(const Insn& insn) noexcept;
/// @param form  of `insn`, or null.
[[nodiscard]] Effects effects_of(const Insn& insn, const Form* form) noexcept;

/// Emits code that all blocks share.
class SharedEmitter : public Xbyak::CodeGenerator {
public:
    SharedEmitter(const EmitterContext& context, std::uint8_t* at, std::size_t size)
        : CodeGenerator{size, at},
          context_(context)
    {
    }
    /// `take_edge`: a function like a handler, with a `JumpSite*` in place of the operation.
    [[nodiscard]] SharedCode emit(const void* take_edge);

private:
    void emit_enter(const Xbyak::Label& no_note);
    void find_jump_entry();
    void emit_fill_site(const Xbyak::Label& untranslated);
    void emit_moved(const Xbyak::Label& leave);
    void store_state();
    void save_vectors();
    void restore_host();
    void emit_load_vectors();

    const EmitterContext& context_;
};

/// Emits blocks, one at a time, anywhere in code memory.
class BlockEmitter : public Xbyak::CodeGenerator {
public:
    BlockEmitter(EmitterContext& context, std::uint8_t* memory, std::size_t size)
        : CodeGenerator{size, memory},
          context_(context),
          layout_(context.layout)
    {
    }

    /// @param at  where its code begins: an offset in the memory.
    /// @param bytes  of the block, and what follows in its page.
    /// @param cpu  whose CPUID says which instructions exist.
    void emit(std::size_t at,
              const Block& block,
              std::span<const std::byte> bytes,
              const Cpu& cpu,
              CodeSize code_size);

    // --- Results, as offsets in the memory; `getSize()` is the end.
    [[nodiscard]] std::size_t body() const noexcept { return body_; }
    /// Where C++ enters at operation `index`; 0 where it does not.
    [[nodiscard]] std::size_t entry(std::size_t index) const { return steps_[index].entry; }

private:
    struct Flags {
        bool native{};
        bool parked{};
    };
    /// Memory near a register that has been looked up: slot `TranslatedState::windows` has what
    /// makes its host address.
    struct Window {
        static constexpr std::uint8_t none = 0xff;

        std::uint8_t base{none};
        bool write{};
        std::int32_t low{};  ///< Bytes [low, high) from what `base` was then.
        std::int32_t high{};
        std::int32_t shift{};  ///< Added to `base` since.
        std::size_t last{};    ///< The last step with an access.
    };
    using Windows = std::array<Window, TranslatedState::window_count>;
    /// One operation.
    struct Step {
        Insn insn{};
        Form form{};
        bool is_offered{};  ///< There is an instruction.
        bool has_form{};
        Effects effects{};
        Windows windows{};  ///< At its start.
        Place exit{};
        Place body{};
        Flags flags{};           ///< At its start.
        std::uint8_t vectors{};  ///< The same.
        bool x87{};
        bool has_exit{};
        bool is_interpreted{};
        bool is_emitted{};
        std::size_t entry{};
    };
    /// An edge to another block of the page, out of line.
    struct Edge {
        Place place{};
        std::int32_t target{};
        Flags flags{};
        std::size_t step{};
        bool is_far{};
    };
    /// A branch to another page, whose site does not count.
    struct Unknown {
        Place place{};
        Place back{};
        std::int32_t target{};
        FarSite* site{};
        std::size_t step{};
    };
    struct Stub {
        Place place{};
        std::int32_t target{};
        JumpSite* site{};
    };
    /// RET without its note.
    struct Return {
        Place place{};
        std::size_t step{};
        std::uint64_t released{};
    };
    struct VectorLoad {
        Place place{};
        Place back{};
        std::uint8_t level{};
        std::size_t step{};
    };

    /// A host register, or memory at an address that host registers make.
    struct Operand {
        static constexpr std::uint8_t none = 0xff;

        bool memory{};
        std::uint8_t number{};  ///< The register, or the base of the address.
        std::int32_t displacement{};
        std::uint8_t index{none};  ///< Added to the base.
    };

    // emitter.cpp
    void decode_steps(std::span<const std::byte> bytes, const Cpu& cpu, CodeSize code_size);
    void emit_steps(const Cpu& cpu);
    [[nodiscard]] bool emit_step(const Step& step, const Op& op, const Cpu& cpu);
    [[nodiscard]] bool emit_legacy(const Insn& insn);
    void emit_cold();
    void emit_entries();
    void interpret();

    // Jumps within the block.
    void bind(Place& place);
    void jump(Place& place);
    void jump_if(Condition condition, Place& place);
    /// The displacement that ends an instruction.
    void distance_to(Place& place);
    void call_place(Place& place);
    /// To where the interpreter takes over.
    void exit_if(Condition condition);

    [[nodiscard]] Xbyak::Address state(std::size_t offset) { return ptr[r15 + offset]; }
    [[nodiscard]] Xbyak::Address state32(std::size_t offset) { return dword[r15 + offset]; }
    [[nodiscard]] Xbyak::Address slot(unsigned guest_register);
    /// Bytes of a stack slot, and of what an indirect branch reads.
    [[nodiscard]] unsigned word_size() const noexcept { return is_wide_ ? 8 : 4; }
    /// The register as wide as that: a 32-bit result clears the rest.
    [[nodiscard]] Xbyak::Reg sized(const Xbyak::Reg64& reg) const
    {
        return is_wide_ ? Xbyak::Reg{reg} : Xbyak::Reg{reg.cvt32()};
    }
    [[nodiscard]] Xbyak::Address word_at(const Xbyak::RegExp& address)
    {
        return is_wide_ ? qword[address] : dword[address];
    }
    /// `to` = `from` + `distance`, which is that wide.
    void add_to_word(const Xbyak::Reg64& to, const Xbyak::Reg64& from, std::int64_t distance);
    [[nodiscard]] Place& exit_place();
    /// The guest's register in a host register: its own, or `scratch`, loaded.
    [[nodiscard]] Xbyak::Reg64 load(unsigned guest_register, const Xbyak::Reg64& scratch);
    void store(unsigned guest_register, const Xbyak::Reg64& from);
    /// Flags are parked, and the host's may be overwritten.
    void park();
    void clobber();
    void unpark();
    void flags_written() noexcept { flags_ = {true, false}; }

    // Memory (emit_memory.cpp).
    [[nodiscard]] bool can_address(const Insn& insn) const noexcept;
    void effective_address(const Insn& insn, const Xbyak::Reg64& to);
    /// Where the memory operand is, by r10; or exit.
    [[nodiscard]] Operand host_address(const Insn& insn,
                                       std::size_t size,
                                       bool write,
                                       std::uint8_t alignment);
    /// r10 = host address of linear address r10, or exit.
    Operand look_up(std::size_t size, bool write);
    /// r11 = the entry of linear address r10, which becomes its offset in the page, or exit.
    void find_entry(std::size_t size, bool write);
    /// Where that is which is at the register plus `distance`, by r10; or exit.
    [[nodiscard]] Operand word_near(unsigned guest_register, std::int32_t distance, bool write);
    [[nodiscard]] static Xbyak::RegExp address_of(const Operand& memory);
    void ensure_vectors(std::uint8_t level);

    // Several accesses by one look-up (emit_window.cpp).
    [[nodiscard]] Operand access_near(const MemoryAccess& access);
    [[nodiscard]] Operand in_window(const MemoryAccess& access);
    [[nodiscard]] bool plan_window(const MemoryAccess& access, Window& window) const;
    void open_window(std::size_t number);
    void move_windows();

    // Instructions as themselves (emit_form.cpp).
    [[nodiscard]] bool emit_form(const Insn& insn, const Form& form);
    void encode(const Insn& insn, const Form& form, unsigned reg, Operand rm, unsigned vvvv);

    // Vector instructions without operands (emit_vector.cpp).
    [[nodiscard]] bool emit_vector_zero(const Insn& insn);

    // x87 (emit_x87.cpp).
    void check_x87();
    [[nodiscard]] bool emit_x87(const Insn& insn, const Op& op, unsigned rules);

    // Others (emit_integer.cpp).
    [[nodiscard]] bool emit_integer(const Insn& insn);
    [[nodiscard]] bool emit_push(const Insn& insn);
    [[nodiscard]] bool emit_pop(const Insn& insn);
    [[nodiscard]] bool emit_lea(const Insn& insn);
    [[nodiscard]] bool emit_move_immediate(const Insn& insn);
    [[nodiscard]] bool emit_convert(const Insn& insn);
    [[nodiscard]] bool emit_multiply(const Insn& insn);
    [[nodiscard]] bool emit_divide(const Insn& insn);
    [[nodiscard]] bool emit_compare_exchange(const Insn& insn);
    [[nodiscard]] bool emit_byte_swap(const Insn& insn);
    [[nodiscard]] bool emit_leave(const Insn& insn);
    [[nodiscard]] bool emit_string(const Insn& insn);  // emit_string.cpp
    [[nodiscard]] bool emit_accumulator(const Insn& insn);

    // Branches (emit_branch.cpp).
    [[nodiscard]] bool emit_branch(const Insn& insn, const Op& op);
    void emit_condition(const Insn& insn, std::int32_t target, bool is_near);
    void edge(std::int32_t target, bool is_call = false);
    void far_jump(std::int32_t target);
    void far_call(std::int32_t target);
    const FarSite& check_site(std::int32_t target);
    void enter_page();
    void load_target(std::int32_t target);
    void check_requests();
    void look_up_code();
    void jump_found();
    void call_found();
    void push_return_address();
    [[nodiscard]] bool is_noted() const;
    void note_call();
    void come_back();
    [[nodiscard]] bool indirect_target(const Insn& insn);
    [[nodiscard]] bool emit_return(const Insn& insn);
    void release_stack(std::uint64_t bytes);
    void return_unpredicted(const Return& from);
    void fall_out(const Op& op);

    EmitterContext& context_;
    const CpuLayout& layout_;
    const Block* block_{};
    std::span<const std::byte> bytes_;
    std::int32_t page_offset_{};
    bool is_wide_{};  ///< 64-bit code; else flat 32-bit code.
    std::vector<Step> steps_;
    std::size_t step_{};  ///< The one being emitted.
    const Op* op_{};
    Flags flags_{};
    std::uint8_t vectors_{};
    Windows windows_{};
    bool x87_{};    ///< `check_x87()` has been passed.
    bool ended_{};  ///< Nothing falls through to the next step.
    std::vector<Edge> edges_;
    std::vector<Stub> stubs_;
    std::vector<Unknown> unknown_;
    std::vector<Return> returns_;
    std::optional<Place> full_;  ///< No room for the note of the block's call: all are forgotten.
    Place noted_{};
    std::vector<VectorLoad> vector_loads_;
    Place start_{};
    std::size_t body_{};
};

}  // namespace vmm::x86::soft
