// SPDX-License-Identifier: Apache-2.0

#include "x86/soft/native.hpp"

namespace vmm::x86::soft {

bool vex_wide(const Insn& insn) noexcept
{
    // VEX follows segment and address-size prefixes only, none of which looks like C4 or C5.
    for (std::size_t at = 0; at + 2 < insn.length; ++at) {
        if (insn.bytes[at] == 0xc4) {
            return (insn.bytes[at + 2] & 0x80U) != 0;
        }
        if (insn.bytes[at] == 0xc5) {
            return false;
        }
    }
    return false;
}

Handler select_native(const Insn& insn, const SelectContext& context, Op& op)
{
    Handler handler = nullptr;
    for (const auto select :
         {&select_x87, &select_state, &select_bits, &select_masked, &select_vector}) {
        handler = select(insn, context, op);
        if (handler != nullptr) {
            break;
        }
    }
    // VEX is for protected mode.  SDM Vol. 2A "AVX Instruction Exception Specification".
    if (handler != nullptr && insn.vex && !context.protected_mode) {
        return &undefined;
    }
    return handler;
}

}  // namespace vmm::x86::soft
