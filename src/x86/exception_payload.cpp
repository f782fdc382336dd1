// SPDX-License-Identifier: Apache-2.0

#include "x86/exception_payload.hpp"

#include "vmm/x86/control_registers.hpp"

namespace vmm::x86 {
namespace {

constexpr auto page_fault = static_cast<std::uint8_t>(Vector::PF);
constexpr auto debug = static_cast<std::uint8_t>(Vector::DB);

}  // namespace

StateGroup payload_group(const Event& event) noexcept
{
    if (event.kind != EventKind::HardwareException) {
        return StateGroup::None;
    }
    return event.vector == page_fault ? StateGroup::Segments
           : event.vector == debug    ? StateGroup::Debug
                                      : StateGroup::None;
}

void apply_payload(CpuState& cpu, const Event& event) noexcept
{
    switch (payload_group(event)) {
    case StateGroup::Segments: cpu.cr2 = event.payload; return;
    case StateGroup::Debug: {
        constexpr std::uint64_t breakpoints = 0xf;
        if (event.payload != 0U) {
            cpu.dr6 = (cpu.dr6 & ~breakpoints) | Dr6::reset | event.payload;
        }
        cpu.dr7 &= ~Dr7::GD.mask;
        return;
    }
    default: return;
    }
}

}  // namespace vmm::x86
