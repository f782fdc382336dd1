// SPDX-License-Identifier: Apache-2.0

#include "x86/shim/raw/instruction_end.hpp"

#include <algorithm>
#include <array>

#include <Zydis/Zydis.h>

namespace vmm::shim::raw {

constexpr std::size_t longest_instruction = 15;

bool ends_with_instruction(std::span<const std::uint8_t> code, std::size_t length) noexcept
{
    if (code.size() < length) {
        return false;
    }
    ZydisDecoder decoder;
    ZydisDecoderInit(&decoder, ZYDIS_MACHINE_MODE_LONG_64, ZYDIS_STACK_WIDTH_64);
    constexpr std::size_t most = 256;
    const std::size_t end = std::min(code.size() - length, most);
    const std::uint8_t* const bytes = code.data() + (code.size() - length - end);
    // An instruction begins at one of any 15 bytes that follow each other.  Where all of them lead
    // to the last instruction, or to none at all, that one does.  Twice as many, since there may be
    // an instruction that Zydis does not know.
    constexpr std::size_t wanted = 2 * longest_instruction;
    std::array<bool, most + 1> leads{};
    leads[end] = true;
    std::size_t in_a_row = 0;
    for (std::size_t at = end; at-- > 0;) {
        ZydisDecodedInstruction insn;
        const bool is_one = ZYAN_SUCCESS(
            ZydisDecoderDecodeInstruction(&decoder, nullptr, bytes + at, end + length - at, &insn));
        leads[at] = !is_one || (at + insn.length <= end && leads[at + insn.length]);
        in_a_row = leads[at] ? in_a_row + 1 : 0;
        if (in_a_row == wanted) {
            return true;
        }
    }
    return false;
}

}  // namespace vmm::shim::raw
