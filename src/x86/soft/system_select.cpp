// SPDX-License-Identifier: Apache-2.0

#include <array>

#include "x86/soft/system_handlers.hpp"

namespace vmm::x86::soft {

const Op* undefined_instruction(Cpu& /*cpu*/, const Op* /*op*/)
{
    raise(Vector::UD);
}

Handler select_system(const Insn& insn, const SelectContext& context, Op& op)
{
    if (insn.vex || (insn.map != OpcodeMap::Primary && insn.map != OpcodeMap::Map0F &&
                     insn.map != OpcodeMap::Map0F38)) {
        return nullptr;
    }
    constexpr std::array selectors{
        select_segment_instruction, select_descriptor_instruction, select_transfer_instruction,
        select_control_instruction, select_processor_instruction,
    };
    for (const auto select : selectors) {
        if (const Handler handler = select(insn, context, op)) {
            return handler;
        }
    }
    return nullptr;
}

}  // namespace vmm::x86::soft
