// expect: Publishable
#include "vmm/memory/epoch.hpp"

extern vmm::memory::Published<int&> published;
