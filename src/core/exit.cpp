// SPDX-License-Identifier: Apache-2.0

#include "vmm/exit.hpp"

#include "core/vcpu_core.hpp"

namespace vmm {

const char* Exit::name() const noexcept
{
    return visit(Overloaded{
        [](const PortRead&) { return "port read"; }, [](const PortWrite&) { return "port write"; },
        [](const MmioRead&) { return "mmio read"; }, [](const MmioWrite&) { return "mmio write"; },
        [](const MsrRead&) { return "msr read"; }, [](const MsrWrite&) { return "msr write"; },
        [](const Halt&) { return "halt"; }, [](const Shutdown&) { return "shutdown"; },
        [](const Interrupted&) { return "interrupted"; },
        [](const IrqWindow&) { return "irq window"; },
        [](const IoapicEoi&) { return "I/O APIC EOI"; },
        [](const DirtyRingFull&) { return "dirty ring full"; },
        [](const Hypercall&) { return "hypercall"; }, [](const TprAccess&) { return "TPR access"; },
        [](const Debug&) { return "debug"; }, [](const InternalError&) { return "internal error"; },
        [](const EntryFailure&) { return "entry failure"; },
        [](const Difference&) { return "difference"; }});
}

bool Exit::complete() const noexcept
{
    return vcpu_->complete_pending();
}

}  // namespace vmm
