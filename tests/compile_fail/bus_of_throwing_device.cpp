// expect: Attachable
// A device cannot fail: its functions must be noexcept.
#include "vmm/bus/io_bus.hpp"

struct Throwing {
    void read(std::uint64_t offset, std::span<std::byte> data);
    void write(std::uint64_t offset, std::span<const std::byte> data);
};
vmm::bus::IoBus<vmm::Port, Throwing> bus;
