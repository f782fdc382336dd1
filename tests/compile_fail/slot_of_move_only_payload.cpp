// expect: SlotPayload
// A payload is copied when its slot changes.
#include "vmm/memory/memslots.hpp"

vmm::memory::MemslotTable<std::unique_ptr<int>> slots;
