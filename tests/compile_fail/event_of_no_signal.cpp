// expect: EventSignal
// It can be signalled, but nobody could name it to take it away.
#include "vmm/bus/ioeventfd.hpp"

struct Nameless {
    void signal() const noexcept;
};
vmm::bus::IoEventTable<vmm::Gpa, Nameless> events;
