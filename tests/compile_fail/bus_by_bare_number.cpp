// expect: BusAddress
// A bus is addressed by a type that says which bus it is.
#include "vmm/bus/io_bus.hpp"

vmm::bus::IoBus<std::uint64_t, vmm::bus::DeviceBase*> bus;
