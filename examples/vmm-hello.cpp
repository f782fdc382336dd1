// SPDX-License-Identifier: Apache-2.0

// A real-mode guest that says hello on port 0xe9.

#include <array>
#include <cstdio>
#include <vector>

#include "vmm/vmm.hpp"

int main()
{
    // mov $message, %si; cld; 1: lodsb; test %al, %al; jz 2f; out %al, $0xe9; jmp 1b; 2: hlt
    constexpr unsigned char code[] = "\xbe\x0e\x10\xfc\xac\x84\xc0\x74\x04\xe6\xe9\xeb\xf7\xf4"
                                     "Hello from a guest!\n";
    alignas(4096) static std::array<std::byte, 0x10000> memory{};
    for (std::size_t i = 0; i < sizeof code; ++i) {
        memory[0x1000 + i] = std::byte{code[i]};
    }

    vmm::Kvm kvm = vmm::Kvm::open().value();
    vmm::Vm vm = kvm.create_vm().value();
    vm.set_user_memory_region(
          {.guest_phys_addr = vmm::Gpa{0}, .size_bytes = memory.size(), .host = memory.data()})
        .value();

    vmm::Vcpu vcpu = vm.create_vcpu(0).value();
    vmm::x86::Sregs sregs = vcpu.sregs();
    sregs.cs.base = 0;
    sregs.cs.selector = 0;
    vcpu.set_sregs(sregs).value();
    vcpu.set_regs({.rip = 0x1000, .rflags = 2});

    for (;;) {
        const vmm::Exit exit = vcpu.run().value();
        if (const auto* out = exit.get_if<vmm::PortWrite>()) {
            std::fwrite(out->data.data(), 1, out->data.size(), stdout);
        } else if (exit.is<vmm::Halt>()) {
            return 0;
        } else {
            std::fprintf(stderr, "unexpected exit: %s\n", exit.name());
            return 1;
        }
    }
}
