// SPDX-License-Identifier: Apache-2.0

// Random operations on the components of a bus, each compared with a plain model.
// VMM_PROPERTY_OPS says how many.

#include <algorithm>
#include <array>
#include <cerrno>
#include <deque>
#include <optional>
#include <random>
#include <vector>

#include <gtest/gtest.h>

#include "effort.hpp"
#include "vmm/bus/coalesced.hpp"
#include "vmm/bus/io_bus.hpp"
#include "vmm/bus/ioeventfd.hpp"

namespace vmm::bus {
namespace {

class Random {
public:
    std::uint64_t below(std::uint64_t limit) { return engine_() % limit; }
    bool one_in(std::uint64_t n) { return below(n) == 0; }
    std::uint64_t bits() { return engine_(); }

private:
    std::mt19937_64 engine_{2024};
};

template <typename R>
int error_of(const R& result)
{
    return result ? 0 : result.error().errno_value();
}

/// What a device was asked last.
struct Asked {
    std::uint64_t device;
    std::uint64_t offset;
    std::size_t size;
    bool write;
    friend bool operator==(const Asked&, const Asked&) = default;
};

class Reporter {
public:
    Reporter(std::uint64_t number, std::optional<Asked>& asked) : number_{number}, asked_{&asked} {}
    void read(std::uint64_t offset, std::span<std::byte> data) noexcept
    {
        *asked_ = Asked{number_, offset, data.size(), false};
    }
    void write(std::uint64_t offset, std::span<const std::byte> data) noexcept
    {
        *asked_ = Asked{number_, offset, data.size(), true};
    }

private:
    std::uint64_t number_;
    std::optional<Asked>* asked_;
};

class IoBusProperty : public testing::Test {
protected:
    struct Range {
        std::uint64_t first;
        std::uint64_t last;
        Match match;
        std::uint64_t device;
    };

    void add()
    {
        const auto first = static_cast<std::uint16_t>(random_.bits());
        const auto size =
            static_cast<std::uint16_t>(1 + random_.below(random_.one_in(50) ? 4000 : 12));
        const auto range = PortRange::make(Port{first}, size);
        if (!range) {
            return;
        }
        const Match match = random_.one_in(4) ? Match::Exact : Match::Covering;
        const Range wanted{range->first().value(), range->last().value(), match, ++devices_};
        int expected = ranges_.size() >= 1000 ? ENOSPC : 0;
        for (const Range& other : ranges_) {
            if (wanted.first <= other.last && other.first <= wanted.last) {
                expected = EEXIST;
            }
        }
        ASSERT_EQ(error_of(bus_.add(*range, Reporter{wanted.device, asked_}, match)), expected);
        if (expected == 0) {
            ranges_.push_back(wanted);
        }
    }

    void remove()
    {
        if (ranges_.empty() || random_.one_in(4)) {
            const auto range = PortRange::make(Port{static_cast<std::uint16_t>(random_.bits())}, 1);
            const auto found =
                std::find_if(ranges_.begin(), ranges_.end(), [&](const Range& other) {
                    return other.first == range->first().value() && other.last == other.first;
                });
            ASSERT_EQ(error_of(bus_.remove(*range)), found != ranges_.end() ? 0 : ENOENT);
            if (found != ranges_.end()) {
                ranges_.erase(found);
            }
            return;
        }
        const std::size_t at = random_.below(ranges_.size());
        const Range gone = ranges_[at];
        ranges_.erase(ranges_.begin() + static_cast<std::ptrdiff_t>(at));
        const auto size = static_cast<std::uint16_t>(gone.last - gone.first + 1);
        const Port first{static_cast<std::uint16_t>(gone.first)};
        if (size > 1) {
            ASSERT_EQ(error_of(bus_.remove(*PortRange::make(first, size - 1))), ENOENT);
        }
        ASSERT_EQ(error_of(bus_.remove(*PortRange::make(first, size))), 0);
    }

    void access()
    {
        std::uint64_t address = random_.below(0x10000);
        if (!ranges_.empty() && !random_.one_in(3)) {
            const Range& near = ranges_[random_.below(ranges_.size())];
            address = (near.first + random_.below(near.last - near.first + 3) - 1) & 0xffffU;
        }
        constexpr std::array<std::size_t, 5> sizes{0, 1, 2, 4, 8};
        const std::size_t size = sizes[random_.below(sizes.size())];
        const bool write = random_.one_in(2);
        std::optional<Asked> expected;
        for (const Range& range : ranges_) {
            const std::uint64_t last = address + (size == 0 ? 0 : size - 1);
            const bool inside = range.first <= address && last <= range.last;
            const bool same = address == range.first && (size == 0 || last == range.last);
            if (inside && (range.match == Match::Covering || same)) {
                expected = Asked{range.device, address - range.first, size, write};
            }
        }
        std::array<std::byte, 8> data{};
        const Port port{static_cast<std::uint16_t>(address)};
        const auto bytes = std::span{data}.first(size);
        asked_.reset();
        const bool handled = write ? bus_.write(port, bytes, hint_) : bus_.read(port, bytes, hint_);
        ASSERT_EQ(handled, expected.has_value());
        ASSERT_EQ(asked_, expected);
        asked_.reset();
        ASSERT_EQ(write ? bus_.write(port, bytes) : bus_.read(port, bytes), handled);
        ASSERT_EQ(asked_, expected);
        ASSERT_EQ(bus_.answers(port, size), handled);
    }

    Random random_;
    std::optional<Asked> asked_;
    std::vector<Range> ranges_;
    std::uint64_t devices_{};
    IoBus<Port, Reporter> bus_;
    IoBus<Port, Reporter>::Hint hint_;
};

TEST_F(IoBusProperty, AgreesWithAPlainModel)
{
    bool was_full = false;
    for (std::uint64_t n = 0; n < test::property_ops(); ++n) {
        SCOPED_TRACE(n);
        const bool growing = n / 8000 % 2 == 0;
        const std::uint64_t kind = random_.below(4);
        if (kind < 2) {
            access();
        } else if ((kind == 2) == growing || (growing && !random_.one_in(8))) {
            add();
        } else {
            remove();
        }
        ASSERT_EQ(bus_.size(), ranges_.size());
        was_full = was_full || ranges_.size() == 1000;
        if (HasFatalFailure()) {
            return;
        }
    }
    if (test::property_ops() >= 20'000) {
        EXPECT_TRUE(was_full);
    }
}

/// Counts its signals in a place that is its identity.
struct Bell {
    std::uint64_t* rings;
    void signal() const noexcept { ++*rings; }
    bool is_same(const Bell& other) const noexcept { return rings == other.rings; }
};

TEST(IoEventProperty, AgreesWithAPlainModel)
{
    struct Event {
        IoEvent<Gpa> event;
        std::size_t bell;
    };
    Random random;
    std::array<std::uint64_t, 3> rings{};
    std::vector<Event> events;
    IoEventTable<Gpa, Bell> table;
    IoEventTable<Gpa, Bell>::Hint hint;
    constexpr std::array<std::uint32_t, 7> lengths{0, 1, 2, 4, 8, 3, 16};

    for (std::uint64_t n = 0; n < test::property_ops(); ++n) {
        SCOPED_TRACE(n);
        IoEvent<Gpa> event{.address = Gpa{random.one_in(20) ? ~random.below(10) : random.below(24)},
                           .length = lengths[random.below(random.one_in(9) ? 7 : 5)]};
        if (random.one_in(2)) {
            event.datamatch = random.below(4);
        }
        const std::size_t bell = random.below(rings.size());
        switch (random.below(4)) {
        case 0: {
            const bool bad_length = event.length == 3 || event.length == 16;
            int expected = 0;
            if (bad_length || (event.length == 0 && event.datamatch) ||
                event.address.value() + event.length < event.address.value()) {
                expected = EINVAL;
            }
            for (const Event& other : events) {
                const auto& old = other.event;
                if (expected == 0 && old.address == event.address &&
                    (old.length == 0 || event.length == 0 ||
                     (old.length == event.length &&
                      (!old.datamatch || !event.datamatch || old.datamatch == event.datamatch)))) {
                    expected = EEXIST;
                }
            }
            ASSERT_EQ(error_of(table.add(event, Bell{&rings[bell]})), expected);
            if (expected == 0) {
                events.push_back({event, bell});
            }
            break;
        }
        case 1: {
            if (!events.empty() && random.one_in(2)) {
                event = events[random.below(events.size())].event;
            }
            const auto found = std::find_if(events.begin(), events.end(), [&](const Event& other) {
                return other.event == event && other.bell == bell;
            });
            ASSERT_EQ(error_of(table.remove(event, Bell{&rings[bell]})),
                      found != events.end() ? 0 : ENOENT);
            if (found != events.end()) {
                events.erase(found);
            }
            break;
        }
        default: {
            const std::size_t size = lengths[random.below(5)];
            const std::uint64_t value = random.one_in(3) ? random.bits() : random.below(4);
            std::array<std::byte, 8> data{};
            std::uint64_t written = 0;
            for (std::size_t i = 0; i < size; ++i) {
                data[i] = static_cast<std::byte>(value >> (8 * i));
                written |= std::to_integer<std::uint64_t>(data[i]) << (8 * i);
            }
            auto expected = rings;
            bool handled = false;
            for (const Event& other : events) {
                const auto& wanted = other.event;
                if (wanted.address == event.address &&
                    (wanted.length == 0 || (wanted.length == size &&
                                            (!wanted.datamatch || *wanted.datamatch == written)))) {
                    ++expected[other.bell];
                    handled = true;
                }
            }
            const auto bytes = std::span{data}.first(size);
            ASSERT_EQ(random.one_in(2) ? table.write(event.address, bytes, hint)
                                       : table.write(event.address, bytes),
                      handled);
            ASSERT_EQ(rings, expected);
            break;
        }
        }
        ASSERT_EQ(table.size(), events.size());
    }
}

TEST(CoalescedProperty, AgreesWithAPlainModel)
{
    struct Write {
        std::uint64_t address;
        std::vector<std::byte> data;
    };
    Random random;
    std::vector<GpaRange> ranges;
    std::deque<Write> kept;
    CoalescedPage page;
    CoalescedRing ring{page};
    CoalescedZones<Gpa> zones{CoalescedKind::Mmio};
    CoalescedZones<Gpa>::Hint hint;

    for (std::uint64_t n = 0; n < test::property_ops(); ++n) {
        SCOPED_TRACE(n);
        const auto range = *GpaRange::make(Gpa{random.below(256)}, 1 + random.below(24));
        switch (random.below(16)) {
        case 0:
            ASSERT_EQ(error_of(zones.add(range)), ranges.size() >= 1000 ? ENOSPC : 0);
            if (ranges.size() < 1000) {
                ranges.push_back(range);
            }
            break;
        case 1: {
            const auto gone = *GpaRange::make(range.first(), 1 + random.below(8));
            zones.remove(gone).value();
            std::erase_if(ranges, [&](GpaRange zone) { return zone.contains(gone); });
            break;
        }
        case 2:
        case 3: {
            const auto taken = ring.pop();
            ASSERT_EQ(taken.has_value(), !kept.empty());
            if (taken) {
                ASSERT_EQ(taken->phys_addr, kept.front().address);
                ASSERT_EQ(taken->len, kept.front().data.size());
                ASSERT_TRUE(std::equal(kept.front().data.begin(), kept.front().data.end(),
                                       taken->data.begin()));
                kept.pop_front();
            }
            break;
        }
        default: {
            std::vector<std::byte> data(random.below(10));
            for (std::byte& byte : data) {
                byte = static_cast<std::byte>(random.bits());
            }
            const std::uint64_t address = random.below(280);
            const bool inside = std::any_of(ranges.begin(), ranges.end(), [&](GpaRange zone) {
                return !data.empty() && zone.contains(*GpaRange::make(Gpa{address}, data.size()));
            });
            const bool expected = inside && data.size() <= 8 && kept.size() < 169;
            ASSERT_EQ(zones.covers(Gpa{address}, data.size()), inside);
            ASSERT_EQ(zones.write(Gpa{address}, data, ring, hint), expected);
            if (expected) {
                kept.push_back({address, data});
            }
            break;
        }
        }
    }
}

}  // namespace
}  // namespace vmm::bus
