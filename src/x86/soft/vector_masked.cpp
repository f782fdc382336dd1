// SPDX-License-Identifier: Apache-2.0

/// @file
/// Instructions that touch only some elements of their memory operand: gathers and masked moves.
/// Elements that are not selected cause no fault and no access, so these work element by element,
/// except where the whole operand is known to be plain memory.

#include <array>
#include <bit>
#include <cstring>

#include "x86/soft/dispatch.hpp"
#include "x86/soft/native_operand.hpp"
#include "x86/soft/x87.hpp"

namespace vmm::x86::soft {

namespace {

constexpr std::size_t vector_bytes = 32;

template <typename T>
T element(const std::byte* vector, std::size_t number) noexcept
{
    T value;
    std::memcpy(&value, vector + number * sizeof(T), sizeof(T));
    return value;
}

template <typename T>
void set_element(std::byte* vector, std::size_t number, T value) noexcept
{
    std::memcpy(vector + number * sizeof(T), &value, sizeof(T));
}

/// Bit i: the sign of element i of `size` bytes.
unsigned sign_mask(const std::byte* vector, std::size_t count, std::size_t size) noexcept
{
    unsigned mask = 0;
    for (std::size_t i = 0; i < count; ++i) {
        const auto top = static_cast<unsigned>(vector[i * size + size - 1]);
        mask |= (top >> 7U) << i;
    }
    return mask;
}

// --- VMASKMOVPS/PD, VPMASKMOVD/Q.

/// The linear address of the element at `offset` into the operand.
std::uint64_t element_address(Cpu& cpu,
                              const Op& op,
                              std::uint64_t offset,
                              std::size_t size,
                              Access access)
{
    std::uint64_t address = effective_address(cpu, op) + offset;
    if (op.address_kind == AddressKind::Segmented || op.address_kind == AddressKind::Flat32) {
        address &= op.address_size == 2 ? 0xffffU : 0xffff'ffffU;
        return segmented_address(cpu, static_cast<SegmentIndex>(op.segment), address, size, access);
    }
    if (op.address_size == 4) {
        address &= 0xffff'ffffU;
    }
    return op.address_kind == AddressKind::Based64 ? address + cpu.seg[op.segment].base : address;
}

/// Op::extra: bit 0 64-bit elements, bit 1 store, bit 2 256-bit.
template <typename T, bool store>
void move_masked(Cpu& cpu, const Op* op, std::size_t count)
{
    const Operands operands = Operands::of(*op);
    const auto segment = static_cast<SegmentIndex>(op->segment);
    std::byte* const reg = register_at(cpu, operands.reg);
    const unsigned mask = sign_mask(register_at(cpu, operands.vvvv), count, sizeof(T));
    if constexpr (store) {
        for (std::size_t i = 0; i < count; ++i) {
            if ((mask >> i & 1U) != 0) {
                const std::uint64_t linear =
                    element_address(cpu, *op, i * sizeof(T), sizeof(T), Access::Write);
                if (quick_pointer<true>(cpu, linear, sizeof(T)) == nullptr) {
                    probe_write(cpu, segment, linear, sizeof(T));
                }
            }
        }
        for (std::size_t i = 0; i < count; ++i) {
            if ((mask >> i & 1U) != 0) {
                const std::uint64_t linear =
                    element_address(cpu, *op, i * sizeof(T), sizeof(T), Access::Write);
                soft::store<T>(cpu, segment, linear, element<T>(reg, i));
            }
        }
    } else {
        alignas(32) std::array<std::byte, vector_bytes> result{};
        for (std::size_t i = 0; i < count; ++i) {
            if ((mask >> i & 1U) != 0) {
                const std::uint64_t linear =
                    element_address(cpu, *op, i * sizeof(T), sizeof(T), Access::Read);
                set_element<T>(result.data(), i, load<T>(cpu, segment, linear));
            }
        }
        std::memcpy(reg, result.data(), result.size());
    }
}

[[gnu::noinline]] void masked_move(Cpu& cpu, const Op* op)
{
    check_unit<Unit::Avx>(cpu);
    const WithoutAlignmentCheck unchecked{cpu};
    const bool wide = (op->extra & 1U) != 0;
    const std::size_t bytes = (op->extra & 4U) != 0 ? 32 : 16;
    if ((op->extra & 2U) != 0) {
        if (wide) {
            move_masked<std::uint64_t, true>(cpu, op, bytes / 8);
        } else {
            move_masked<std::uint32_t, true>(cpu, op, bytes / 4);
        }
    } else if (wide) {
        move_masked<std::uint64_t, false>(cpu, op, bytes / 8);
    } else {
        move_masked<std::uint32_t, false>(cpu, op, bytes / 4);
    }
}

// --- MASKMOVDQU, MASKMOVQ: bytes to DS:rDI.

void store_bytes(Cpu& cpu,
                 const Op* op,
                 const std::byte* data,
                 const std::byte* mask,
                 std::size_t count)
{
    const auto segment = static_cast<SegmentIndex>(op->segment);
    const unsigned selected = sign_mask(mask, count, 1);
    for (const bool probe : {true, false}) {
        for (std::size_t i = 0; i < count; ++i) {
            if ((selected >> i & 1U) == 0) {
                continue;
            }
            const std::uint64_t linear = element_address(cpu, *op, i, 1, Access::Write);
            if (!probe) {
                store<std::uint8_t>(cpu, segment, linear, std::to_integer<std::uint8_t>(data[i]));
            } else if (quick_pointer<true>(cpu, linear, 1) == nullptr) {
                probe_write(cpu, segment, linear, 1);
            }
        }
    }
}

const Op* maskmovdqu(Cpu& cpu, const Op* op)
{
    if (op->extra != 0) {
        check_unit<Unit::Avx>(cpu);
    } else {
        check_unit<Unit::Sse>(cpu);
    }
    const Operands operands = Operands::of(*op);
    store_bytes(cpu, op, register_at(cpu, operands.reg), register_at(cpu, operands.rm), 16);
    return next(cpu, op);
}

[[gnu::noinline]] void maskmovq(Cpu& cpu, const Op* op)
{
    using namespace native_detail;
    if ((cpu.cr0 & cr0_em) != 0) {
        raise(Vector::UD);
    }
    if ((cpu.cr0 & cr0_ts) != 0) {
        raise(Vector::NM);
    }
    fpu_release(cpu);
    if (x87_pending(cpu)) {
        raise(Vector::MF);
    }
    FpuRegisters after = cpu.fpu;
    mmx_enter(after);
    // The registers' places in the image of a state with TOP = 0.
    const Operands operands = Operands::of(*op);
    const std::byte* const image = reinterpret_cast<const std::byte*>(&after);
    store_bytes(cpu, op, image + (operands.reg - fpu_offset()),
                image + (operands.rm - fpu_offset()), 8);
    cpu.fpu = after;
}

// --- Gathers.

/// Where the elements of a gather are, packed into Operands::extra.
struct GatherShape {
    bool wide_index;
    bool wide_element;
    bool long_vector;
    unsigned scale;

    [[nodiscard]] std::uint16_t packed() const noexcept
    {
        return static_cast<std::uint16_t>((wide_index ? 1U : 0U) | (wide_element ? 2U : 0U) |
                                          (long_vector ? 4U : 0U) | (scale << 4U));
    }
    [[nodiscard]] static GatherShape of(std::uint16_t packed) noexcept
    {
        return {(packed & 1U) != 0, (packed & 2U) != 0, (packed & 4U) != 0,
                (static_cast<unsigned>(packed) >> 4U) & 3U};
    }
};

template <typename T>
void gather_elements(Cpu& cpu, const Op* op, GatherShape shape)
{
    const Operands operands = Operands::of(*op);
    const auto segment = static_cast<SegmentIndex>(op->segment);
    const std::size_t index_size = shape.wide_index ? 8 : 4;
    const std::size_t vector_size = shape.long_vector ? 32 : 16;
    const std::size_t count = vector_size / std::max(index_size, sizeof(T));
    const std::byte* const indices = register_at(cpu, operands.rm);
    alignas(32) std::array<std::byte, vector_bytes> result{};
    alignas(32) std::array<std::byte, vector_bytes> mask{};
    std::memcpy(result.data(), register_at(cpu, operands.reg), vector_bytes);
    std::memcpy(mask.data(), register_at(cpu, operands.vvvv), vector_bytes);
    const auto commit = [&] {
        std::memcpy(register_at(cpu, operands.reg), result.data(), vector_bytes);
        std::memcpy(register_at(cpu, operands.vvvv), mask.data(), vector_bytes);
    };
    // The mask's elements become all ones or zeros, whether selected by an index or not.
    const std::size_t lanes = vector_size / sizeof(T);
    std::memset(mask.data() + vector_size, 0, vector_bytes - vector_size);
    const unsigned selected = sign_mask(mask.data(), lanes, sizeof(T));
    for (std::size_t i = 0; i < lanes; ++i) {
        set_element<T>(mask.data(), i, (selected >> i & 1U) != 0 ? static_cast<T>(~T{0}) : T{0});
    }
    bool gathered = false;
    try {
        for (std::size_t i = 0; i < count; ++i) {
            if ((selected >> i & 1U) != 0) {
                const std::uint64_t index =
                    shape.wide_index ? element<std::uint64_t>(indices, i)
                                     : static_cast<std::uint64_t>(
                                           std::int64_t{element<std::int32_t>(indices, i)});
                const std::uint64_t linear =
                    element_address(cpu, *op, index << shape.scale, sizeof(T), Access::Read);
                set_element<T>(result.data(), i, load<T>(cpu, segment, linear));
                gathered = true;
            }
            set_element<T>(mask.data(), i, 0);
        }
    } catch (const Fault&) {
        // What was gathered before the fault stays, with its mask cleared.
        if (gathered) {
            std::memset(result.data() + vector_size, 0, vector_bytes - vector_size);
        }
        commit();
        throw;
    }
    mask.fill(std::byte{0});
    std::memset(result.data() + count * sizeof(T), 0, vector_bytes - count * sizeof(T));
    commit();
}

[[gnu::noinline]] void gather(Cpu& cpu, const Op* op)
{
    check_unit<Unit::Avx>(cpu);
    const WithoutAlignmentCheck unchecked{cpu};
    const GatherShape shape = GatherShape::of(Operands::of(*op).extra);
    if (shape.wide_element) {
        gather_elements<std::uint64_t>(cpu, op, shape);
    } else {
        gather_elements<std::uint32_t>(cpu, op, shape);
    }
}

Handler select_gather(const Insn& insn, bool is_64, Op& op)
{
    // The vector index is in no field of Insn: C4, two bytes, opcode, ModRM, SIB.
    std::size_t at = 0;
    while (at < insn.length && insn.bytes[at] != 0xc4) {
        ++at;
    }
    if (at + 6 > insn.length || insn.mod == 3) {
        return nullptr;
    }
    const unsigned sib = insn.bytes[at + 5];
    unsigned index = (sib >> 3U) & 7U;
    if (is_64 && (insn.bytes[at + 1] & 0x40U) == 0) {
        index |= 8U;
    }
    if (insn.reg == index || insn.reg == insn.vvvv || index == insn.vvvv) {
        return &undefined;
    }
    const GatherShape shape{(insn.opcode & 1U) != 0, vex_wide(insn), insn.vex_l != 0, sib >> 6U};
    const Operands operands{vector_offset(insn.reg), vector_offset(index), vector_offset(insn.vvvv),
                            shape.packed()};
    op.immediate = operands.packed();
    op.index = zero_slot;
    op.scale = 0;
    return &body_then_next<&gather>;
}

Handler select_maskmov(const Insn& insn, const SelectContext& context, Op& op)
{
    if (insn.mod != 3) {
        return nullptr;
    }
    op.base = static_cast<std::uint8_t>(general_offset(Rdi));
    op.index = zero_slot;
    op.scale = 0;
    op.displacement = 0;
    op.segment = insn.segment;
    op.address_size = insn.address_size;
    if (context.code_size != CodeSize::Bits64) {
        op.address_kind = AddressKind::Segmented;
    } else {
        op.address_kind =
            insn.segment == Fs || insn.segment == Gs ? AddressKind::Based64 : AddressKind::Flat64;
    }
    Operands operands;
    if (insn.pp == 0) {
        operands.reg = mmx_offset(insn.reg);
        operands.rm = mmx_offset(insn.rm);
        op.immediate = operands.packed();
        return &body_then_next<&maskmovq>;
    }
    operands.reg = vector_offset(insn.reg);
    operands.rm = vector_offset(insn.rm);
    op.immediate = operands.packed();
    op.extra = insn.vex ? 1 : 0;
    return &maskmovdqu;
}

}  // namespace

Handler select_masked(const Insn& insn, const SelectContext& context, Op& op)
{
    if (insn.map == OpcodeMap::Map0F && insn.opcode == 0xf7 && insn.pp <= 1 &&
        (insn.isa == Isa::Mmx || insn.isa == Isa::Sse || insn.isa == Isa::Sse2 ||
         insn.isa == Isa::Avx)) {
        return select_maskmov(insn, context, op);
    }
    if (!insn.vex || insn.map != OpcodeMap::Map0F38 || insn.pp != 1 ||
        (insn.isa != Isa::Avx && insn.isa != Isa::Avx2)) {
        return nullptr;
    }
    const std::uint8_t opcode = insn.opcode;
    if (opcode >= 0x90 && opcode <= 0x93) {
        return select_gather(insn, context.code_size == CodeSize::Bits64, op);
    }
    const bool is_fp = opcode >= 0x2c && opcode <= 0x2f;
    const bool is_integer = opcode == 0x8c || opcode == 0x8e;
    if ((!is_fp && !is_integer) || insn.mod == 3) {
        return nullptr;
    }
    const bool wide = is_fp ? (opcode & 1U) != 0 : vex_wide(insn);
    const bool is_store = opcode == 0x2e || opcode == 0x2f || opcode == 0x8e;
    op.extra = static_cast<std::uint8_t>((wide ? 1U : 0U) | (is_store ? 2U : 0U) |
                                         (insn.vex_l != 0 ? 4U : 0U));
    const Operands operands{vector_offset(insn.reg), 0, vector_offset(insn.vvvv), 0};
    op.immediate = operands.packed();
    return &body_then_next<&masked_move>;
}

}  // namespace vmm::x86::soft
