// expect: (could not convert|cannot convert|no viable conversion)
#include "vmm/memory/memslots.hpp"

vmm::memory::MemoryRegion region{.guest_phys_addr = 0x1000};
