// expect: GuestCopyable
// Its bytes in guest memory would be a pointer into the host.
#include "vmm/memory/guest_memory.hpp"

auto f(const vmm::memory::GuestMemory<>& memory) { return memory.read<std::string>(vmm::Gpa{0}); }
