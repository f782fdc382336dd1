// expect: Attachable
// An int can neither be read nor written.
#include "vmm/bus/io_bus.hpp"

vmm::bus::IoBus<vmm::Port, int> bus;
