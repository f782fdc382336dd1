// SPDX-License-Identifier: Apache-2.0

#include "x86/soft/integer.hpp"

namespace vmm::x86::soft {

Handler select_integer(const Insn& insn, const SelectContext& context, Op& op)
{
    if (insn.vex || insn.map == OpcodeMap::Map0F38 || insn.map == OpcodeMap::Map0F3A) {
        return nullptr;
    }
    for (const auto select : {select_arithmetic, select_move, select_branch, select_stack,
                              select_shift, select_bit_test, select_multiply, select_exchange,
                              select_flag, select_string, select_port_io}) {
        if (const Handler handler = select(insn, context, op)) {
            return handler;
        }
    }
    return nullptr;
}

}  // namespace vmm::x86::soft
