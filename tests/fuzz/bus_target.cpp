// SPDX-License-Identifier: Apache-2.0

// The tables behind a guest's I/O: bus ranges, ioeventfds, coalesced zones and their ring, against
// plain lists.

#include <algorithm>
#include <vector>

#include "fuzz/target.hpp"
#include "vmm/bus/coalesced.hpp"
#include "vmm/bus/io_bus.hpp"
#include "vmm/bus/ioeventfd.hpp"

namespace vmm::fuzz {
namespace {

struct Recorder {
    std::uint64_t offset{};
    unsigned calls{};

    void read(std::uint64_t at, std::span<std::byte> data) noexcept
    {
        offset = at;
        ++calls;
        std::fill(data.begin(), data.end(), std::byte{0x5a});
    }
    void write(std::uint64_t at, std::span<const std::byte> /*data*/) noexcept
    {
        offset = at;
        ++calls;
    }
};

struct Signal {
    unsigned* count{};

    void signal() const noexcept { ++*count; }
    [[nodiscard]] bool is_same(const Signal& other) const noexcept { return count == other.count; }
};

class Tables {
public:
    void step(Input& input)
    {
        switch (input.below(8)) {
        case 0: add_range(input); break;
        case 1: remove_range(input); break;
        case 2: read(input); break;
        case 3: add_event(input); break;
        case 4: remove_event(input); break;
        case 5: write(input); break;
        case 6: change_zone(input); break;
        default: take_ring(input); break;
        }
    }

private:
    using Range = GpaRange;

    /// Few places, so that they meet; the ends of the address space among them.
    static Gpa address(Input& input)
    {
        const std::uint8_t at = input.u8();
        return Gpa{at < 0xf0 ? std::uint64_t{at} : ~std::uint64_t{0} - (at & 0xfU)};
    }
    static std::optional<Range> range(Input& input)
    {
        const Gpa first = address(input);
        return Range::make(first, input.flag() ? input.number() : input.below(32));
    }

    void add_range(Input& input)
    {
        const auto wanted = range(input);
        if (!wanted) {
            return;
        }
        auto device = std::make_shared<Recorder>();
        const bool free = std::none_of(ranges_.begin(), ranges_.end(), [&](const auto& each) {
            return each.first.overlaps(*wanted);
        });
        FUZZ_CHECK(bus_.add(*wanted, device).has_value() == free);
        if (free) {
            ranges_.emplace_back(*wanted, device);
        }
    }

    void remove_range(Input& input)
    {
        const auto wanted = range(input);
        if (!wanted) {
            return;
        }
        const auto found = std::find_if(ranges_.begin(), ranges_.end(),
                                        [&](const auto& each) { return each.first == *wanted; });
        FUZZ_CHECK(bus_.remove(*wanted).has_value() == (found != ranges_.end()));
        if (found != ranges_.end()) {
            FUZZ_CHECK(found->second.use_count() == 1);
            ranges_.erase(found);
        }
    }

    void read(Input& input)
    {
        const Gpa at = address(input);
        std::array<std::byte, 8> data{};
        const std::size_t size = std::size_t{1} << (input.u8() & 3U);
        const auto access = Range::make(at, size);
        const auto found = std::find_if(ranges_.begin(), ranges_.end(), [&](const auto& each) {
            return access && each.first.contains(*access);
        });
        FUZZ_CHECK(bus_.read(at, std::span{data}.first(size)) == (found != ranges_.end()));
        if (found != ranges_.end()) {
            FUZZ_CHECK(found->second->offset == at.value() - found->first.first().value());
            FUZZ_CHECK(data[size - 1] == std::byte{0x5a});
        }
    }

    static bus::IoEvent<Gpa> event(Input& input)
    {
        bus::IoEvent<Gpa> event;
        event.address = address(input);
        event.length = input.u8() % 10U;
        if (input.flag()) {
            event.datamatch = input.below(4);
        }
        return event;
    }

    void add_event(Input& input)
    {
        const bus::IoEvent<Gpa> wanted = event(input);
        const std::size_t signal = input.below(counts_.size());
        if (events_.add(wanted, Signal{&counts_[signal]}).has_value()) {
            added_.push_back({wanted, signal});
        }
        FUZZ_CHECK(events_.size() == added_.size());
    }

    void remove_event(Input& input)
    {
        const bus::IoEvent<Gpa> wanted = event(input);
        const std::size_t signal = input.below(counts_.size());
        const auto found = std::find_if(added_.begin(), added_.end(), [&](const auto& each) {
            return each.event == wanted && each.signal == signal;
        });
        FUZZ_CHECK(events_.remove(wanted, Signal{&counts_[signal]}).has_value() ==
                   (found != added_.end()));
        if (found != added_.end()) {
            added_.erase(found);
        }
    }

    void write(Input& input)
    {
        const Gpa at = address(input);
        std::array<std::byte, 8> data{};
        data[0] = std::byte{static_cast<std::uint8_t>(input.below(4))};
        const std::size_t size = input.below(9);
        const auto bytes = std::span<const std::byte>{data}.first(size);
        const std::uint64_t value = size == 0 ? 0 : std::to_integer<std::uint64_t>(data[0]);
        std::vector<std::size_t> expected;
        for (const Added& each : added_) {
            if (each.event.address == at &&
                (each.event.length == 0 ||
                 (each.event.length == size &&
                  (!each.event.datamatch || *each.event.datamatch == value)))) {
                expected.push_back(each.signal);
            }
        }
        FUZZ_CHECK(expected.size() <= 1);  // Others are refused as they are added.
        const auto before = counts_;
        FUZZ_CHECK(events_.write(at, bytes) == !expected.empty());
        for (std::size_t i = 0; i < counts_.size(); ++i) {
            const bool rang = !expected.empty() && expected[0] == i;
            FUZZ_CHECK(counts_[i] == before[i] + (rang ? 1U : 0U));
        }
        put_aside(at, bytes);
    }

    void put_aside(Gpa at, std::span<const std::byte> bytes)
    {
        const auto access = Range::make(at, bytes.size());
        const bool covered = access && std::any_of(zones_.begin(), zones_.end(), [&](Range zone) {
                                 return zone.contains(*access);
                             });
        FUZZ_CHECK(coalesced_.covers(at, bytes.size()) == covered);
        const bool full = waiting_.size() >= bus::CoalescedPage::entry_count - 1U;
        const bool taken = coalesced_.write(at, bytes, ring_);
        if (!broken_) {
            FUZZ_CHECK(taken == (covered && !full));
            if (taken) {
                waiting_.push_back(at.value());
            }
        }
    }

    void change_zone(Input& input)
    {
        const auto wanted = range(input);
        if (!wanted) {
            return;
        }
        if (input.flag()) {
            FUZZ_CHECK(coalesced_.add(*wanted).has_value());
            zones_.push_back(*wanted);
        } else {
            FUZZ_CHECK(coalesced_.remove(*wanted).has_value());
            std::erase_if(zones_, [&](Range zone) { return zone.contains(*wanted); });
        }
    }

    void take_ring(Input& input)
    {
        if (input.u8() % 8U == 0) {
            // The other process that shares the page writes what it likes.
            page_.first = static_cast<std::uint32_t>(input.number());
            page_.last = static_cast<std::uint32_t>(input.number());
            broken_ = true;
        }
        const std::size_t taken = ring_.drain([&](const bus::CoalescedEntry& entry) {
            if (!broken_) {
                FUZZ_CHECK(!waiting_.empty() && waiting_.front() == entry.phys_addr);
                FUZZ_CHECK(entry.len <= 8);
                waiting_.erase(waiting_.begin());
            }
        });
        FUZZ_CHECK(taken <= bus::CoalescedPage::entry_count);
        FUZZ_CHECK(broken_ || waiting_.empty());
    }

    struct Added {
        bus::IoEvent<Gpa> event;
        std::size_t signal;
    };

    std::vector<std::pair<Range, std::shared_ptr<Recorder>>> ranges_;
    std::array<unsigned, 3> counts_{};
    std::vector<Added> added_;
    std::vector<Range> zones_;
    std::vector<std::uint64_t> waiting_;  // What the ring must hold.
    bool broken_{};                       // The ring's page was written from outside.
    bus::IoBus<Gpa, std::shared_ptr<Recorder>> bus_;
    bus::IoEventTable<Gpa, Signal> events_;
    bus::CoalescedZones<Gpa> coalesced_{bus::CoalescedKind::Mmio};
    bus::CoalescedPage page_{};
    bus::CoalescedRing ring_{page_};
};

}  // namespace

void bus(Input& input)
{
    Tables tables;
    for (unsigned steps = 0; steps < 400 && !input.is_empty(); ++steps) {
        tables.step(input);
    }
}

Seeds bus_seeds()
{
    Seed ranges;
    ranges.u8(0).u8(0x10).u8(0).u8(8).u8(0).u8(0x18).u8(0).u8(8);
    ranges.u8(2).u8(0x14).u8(2).u8(2).u8(0x16).u8(3).u8(1).u8(0x10).u8(0).u8(8);
    Seed events;
    events.u8(3).u8(0x10).u8(4).u8(1).u8(2).u8(0).u8(3).u8(0x10).u8(0).u8(0).u8(1);
    events.u8(5).u8(0x10).u8(2).u8(4).u8(5).u8(0x10).u8(1).u8(4);
    events.u8(4).u8(0x10).u8(4).u8(1).u8(2).u8(0);
    Seed ring;
    ring.u8(6).u8(0x20).u8(0).u8(16).u8(1);
    for (unsigned i = 0; i < 180; ++i) {
        ring.u8(5).u8(0x20 + i % 16).u8(0).u8(1);
    }
    ring.u8(7).u8(1).u8(5).u8(0x20).u8(0).u8(1).u8(7).u8(0).u8(6).u32(170).u8(6).u32(5).u8(7).u8(1);
    return {ranges.data(), events.data(), ring.data()};
}

}  // namespace vmm::fuzz
