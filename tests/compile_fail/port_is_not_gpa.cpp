// expect: (could not convert|cannot convert|no viable conversion|no matching)
#include "vmm/bus/io_bus.hpp"

using Mmio = vmm::bus::IoBus<vmm::Gpa, vmm::bus::DeviceBase*>;

bool f(const Mmio& bus, std::span<std::byte> data) { return bus.read(vmm::Port{0x80}, data); }
