// expect: (could not convert|cannot convert|no viable conversion|no matching)
#include "vmm/memory/guest_memory.hpp"

bool f(const vmm::memory::GuestMemory<>& memory, std::span<std::byte> to)
{
    return memory.copy_out(vmm::Gva{0x1000}, to);
}
