// SPDX-License-Identifier: Apache-2.0

// Random operations on the slot table and on guest memory, each compared with a model that has no
// cleverness: maps, sets and loops over pages.  VMM_PROPERTY_OPS says how many.

#include <algorithm>
#include <array>
#include <cerrno>
#include <map>
#include <optional>
#include <random>
#include <set>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "effort.hpp"
#include "memory/pages.hpp"
#include "vmm/memory/guest_memory.hpp"
#include "vmm/memory/memslots.hpp"

namespace vmm::memory {
namespace {

constexpr std::size_t host_pages = 96;
constexpr std::uint64_t guest_pages = 64;  // Where slots are put, mostly.

/// KVM's rules in the order in which KVM checks them.
class Model {
public:
    struct Slot {
        std::uint32_t flags;
        std::uint64_t gfn;
        std::uint64_t pages;
        std::byte* host;
        std::set<std::uint64_t> dirty;
    };

    int set(const MemoryRegion& region)
    {
        const std::uint64_t gpa = region.guest_phys_addr.value();
        const std::uint64_t gfn = gpa / 4096;
        const std::uint64_t pages = region.size_bytes / 4096;
        if (region.flags > 3 || region.size_bytes % 4096 != 0 || gpa % 4096 != 0 ||
            reinterpret_cast<std::uintptr_t>(region.host) % 4096 != 0 || region.address_space > 1 ||
            region.slot >= 32764 || gpa + region.size_bytes < gpa || pages > 0x7fff'ffff) {
            return EINVAL;
        }
        const auto found = slots.find({region.address_space, region.slot});
        if (pages == 0) {
            if (found == slots.end()) {
                return EINVAL;
            }
            slots.erase(found);
            return 0;
        }
        std::set<std::uint64_t> dirty;
        if (found != slots.end()) {
            const Slot& old = found->second;
            if (old.host != region.host || old.pages != pages ||
                ((old.flags ^ region.flags) & 2U) != 0) {
                return EINVAL;
            }
            if ((region.flags & 1U) != 0 && (old.flags & 1U) != 0) {
                dirty = old.dirty;
            }
        }
        if (gfn + pages > std::uint64_t{1} << 40U) {
            return EINVAL;
        }
        for (const auto& [key, other] : slots) {
            if (key.first == region.address_space && key.second != region.slot &&
                gfn < other.gfn + other.pages && other.gfn < gfn + pages) {
                return EEXIST;
            }
        }
        slots[{region.address_space, region.slot}] = {region.flags, gfn, pages, region.host, dirty};
        return 0;
    }

    /// The slot that has a page, if one has.
    Slot* at(std::uint16_t space, std::uint64_t gfn, std::uint32_t* id = nullptr)
    {
        for (auto& [key, slot] : slots) {
            if (key.first == space && slot.gfn <= gfn && gfn < slot.gfn + slot.pages) {
                if (id != nullptr) {
                    *id = key.second;
                }
                return &slot;
            }
        }
        return nullptr;
    }

    /// For each byte its host address, or nothing if one has none or may not be written.
    std::optional<std::vector<std::byte*>> bytes(std::uint16_t space,
                                                 std::uint64_t gpa,
                                                 std::size_t size,
                                                 bool guest_write)
    {
        std::vector<std::byte*> result;
        for (std::size_t i = 0; i < size; ++i) {
            Slot* slot = at(space, (gpa + i) / 4096);
            if (slot == nullptr || (guest_write && (slot->flags & 2U) != 0)) {
                return std::nullopt;
            }
            result.push_back(slot->host + (gpa + i - slot->gfn * 4096));
        }
        return result;
    }

    void mark(std::uint16_t space, std::uint64_t gpa, std::size_t size)
    {
        for (std::uint64_t gfn = gpa / 4096; size != 0 && gfn <= (gpa + size - 1) / 4096; ++gfn) {
            Slot* slot = at(space, gfn);
            if (slot != nullptr && (slot->flags & 1U) != 0) {
                slot->dirty.insert(gfn - slot->gfn);
            }
        }
    }

    std::map<std::pair<std::uint16_t, std::uint32_t>, Slot> slots;
};

class MemslotProperty : public testing::Test {
protected:
    std::uint64_t below(std::uint64_t limit) { return random_() % limit; }
    bool one_in(std::uint64_t n) { return below(n) == 0; }
    std::uint16_t space() { return static_cast<std::uint16_t>(one_in(4) ? 1 : 0); }
    std::uint32_t id() { return static_cast<std::uint32_t>(below(12)); }

    template <typename R>
    static int error_of(const R& result)
    {
        return result ? 0 : result.error().errno_value();
    }

    /// Mostly sensible, sometimes wrong in one way, often about a slot that exists.
    MemoryRegion random_region()
    {
        MemoryRegion region{.slot = id(),
                            .address_space = space(),
                            .flags = static_cast<std::uint32_t>(below(4)),
                            .guest_phys_addr = Gpa{below(guest_pages) * 4096},
                            .size_bytes = below(10) * 4096,
                            .host = memory_.page(below(host_pages - 10))};
        const auto found = model_.slots.find({region.address_space, region.slot});
        if (found != model_.slots.end() && !one_in(4)) {
            region.size_bytes = one_in(4) ? 0 : found->second.pages * 4096;
            region.host = found->second.host;
            region.flags = one_in(2) ? found->second.flags : found->second.flags ^ 1U;
            if (one_in(2)) {
                region.guest_phys_addr = Gpa{found->second.gfn * 4096};
            }
        }
        switch (below(40)) {
        case 0: region.flags = 4; break;
        case 1: region.size_bytes += 1 + below(4095); break;
        case 2:
            region.guest_phys_addr = Gpa{region.guest_phys_addr.value() + 1 + below(4095)};
            break;
        case 3: region.host += 1 + below(4095); break;
        case 4: region.address_space = 2; break;
        case 5: region.slot = 32764 + static_cast<std::uint32_t>(below(3)); break;
        case 6: region.guest_phys_addr = Gpa{std::uint64_t{0} - below(12) * 4096}; break;
        case 7: region.guest_phys_addr = Gpa{((std::uint64_t{1} << 40U) - below(12)) * 4096}; break;
        case 8: region.size_bytes = (std::uint64_t{1} << 43U) + 4096 * below(3); break;
        default: break;
        }
        return region;
    }

    void set()
    {
        const MemoryRegion region = random_region();
        ASSERT_EQ(error_of(table_.set(region)), model_.set(region));
    }

    void look_up()
    {
        const std::uint16_t where = space();
        const std::uint64_t gfn = below(guest_pages + 10);
        std::uint32_t expected_id = 0;
        const Model::Slot* expected = model_.at(where, gfn, &expected_id);
        const auto view = table_.read();
        for (const Memslot* slot : {view.find(gfn, where), view.find(gfn, hint_, where)}) {
            ASSERT_EQ(slot != nullptr, expected != nullptr);
            if (slot != nullptr) {
                ASSERT_EQ(slot->id, expected_id);
                ASSERT_EQ(slot->address_space, where);
                ASSERT_EQ(slot->flags, expected->flags);
                ASSERT_EQ(slot->host_page(gfn), expected->host + (gfn - expected->gfn) * 4096);
            }
        }
    }

    void copy()
    {
        const std::uint16_t where = space();
        const std::uint64_t gpa = below((guest_pages + 4) * 4096);
        std::vector<std::byte> data(one_in(8) ? below(3 * 4096) : below(20));
        const GuestMemory guest{table_, where};
        const std::uint64_t kind = below(3);
        if (kind == 0) {
            const auto expected = model_.bytes(where, gpa, data.size(), false);
            ASSERT_EQ(guest.copy_out(Gpa{gpa}, data), expected.has_value());
            for (std::size_t i = 0; expected && i < data.size(); ++i) {
                ASSERT_EQ(data[i], *(*expected)[i]);
            }
            return;
        }
        for (std::byte& byte : data) {
            byte = static_cast<std::byte>(random_());
        }
        const auto expected = model_.bytes(where, gpa, data.size(), kind == 1);
        std::map<std::byte*, std::byte> after;  // Slots may share host memory: the last wins.
        for (std::size_t i = 0; expected && i < data.size(); ++i) {
            after[(*expected)[i]] = data[i];
        }
        ASSERT_EQ(kind == 1 ? guest.guest_copy_in(Gpa{gpa}, data) : guest.copy_in(Gpa{gpa}, data),
                  expected.has_value());
        for (const auto& [host, byte] : after) {
            ASSERT_EQ(*host, byte);
        }
        if (expected) {
            model_.mark(where, gpa, data.size());
        }
    }

    /// What KVM says to a question about the log of a slot, before it looks at more.
    int log_error(std::uint16_t where, std::uint32_t slot)
    {
        if (where > 1 || slot >= 32764) {
            return EINVAL;
        }
        const auto found = model_.slots.find({where, slot});
        return found == model_.slots.end() || (found->second.flags & 1U) == 0 ? ENOENT : 0;
    }

    void collect()
    {
        const auto where = static_cast<std::uint16_t>(one_in(20) ? 2 : space());
        const std::uint32_t slot = one_in(20) ? 32764 : id();
        const bool take = one_in(2);
        const auto log = take ? table_.dirty_log(slot, where) : table_.peek_dirty_log(slot, where);
        ASSERT_EQ(error_of(log), log_error(where, slot));
        if (!log) {
            return;
        }
        Model::Slot& expected = model_.slots.at({where, slot});
        ASSERT_EQ(log->size(), (expected.pages + 63) / 64);
        for (std::uint64_t page = 0; page < log->size() * 64; ++page) {
            ASSERT_EQ((((*log)[page / 64] >> (page % 64)) & 1U) != 0,
                      expected.dirty.contains(page));
        }
        if (take) {
            expected.dirty.clear();
        }
    }

    void clear()
    {
        const std::uint16_t where = space();
        const std::uint32_t slot = id();
        const std::uint64_t first = one_in(2) ? 0 : below(3) * 32;
        const std::uint64_t count = below(12);
        const std::array<std::uint64_t, 1> bits{random_()};
        int expected = log_error(where, slot);
        if (first % 64 != 0) {
            expected = EINVAL;
        }
        if (expected == 0) {
            Model::Slot& found = model_.slots.at({where, slot});
            if (first + count > found.pages || (first + count < found.pages && count % 64 != 0)) {
                expected = EINVAL;
            } else {
                for (std::uint64_t page = 0; page < 64; ++page) {
                    if (count != 0 && ((bits[0] >> page) & 1U) != 0) {
                        found.dirty.erase(first + page);
                    }
                }
            }
        }
        ASSERT_EQ(error_of(table_.clear_dirty_log(slot, first, count, bits, where)), expected);
    }

    std::mt19937_64 random_{2024};
    test::Pages<host_pages> memory_;
    MemslotTable<> table_;
    MemslotTable<>::Hint hint_;
    Model model_;
};

TEST_F(MemslotProperty, AgreesWithAPlainModel)
{
    for (std::uint64_t n = 0; n < test::property_ops(); ++n) {
        SCOPED_TRACE(n);
        switch (below(8)) {
        case 0:
        case 1: set(); break;
        case 2:
        case 3:
        case 4: look_up(); break;
        case 5: copy(); break;
        case 6: collect(); break;
        default: clear(); break;
        }
        if (HasFatalFailure()) {
            return;
        }
    }
    EXPECT_FALSE(model_.slots.empty());
}

TEST_F(MemslotProperty, EverySlotIdAtOnce)
{
    // As many as VMM_PROPERTY_OPS allows; all 32,764 from that number on.
    const auto count =
        static_cast<std::uint32_t>(std::min<std::uint64_t>(max_slots, test::property_ops(3000)));
    for (std::uint32_t slot = 0; slot < count; ++slot) {
        // In an order in which neighbours are added late.
        const std::uint64_t place = (std::uint64_t{slot} * 20'011) % max_slots;
        ASSERT_TRUE(table_.set({.slot = slot,
                                .guest_phys_addr = Gpa{place * 8192},
                                .size_bytes = 4096,
                                .host = memory_.page()}));
    }
    const auto view = table_.read();
    for (std::uint32_t slot = 0; slot < count; ++slot) {
        const std::uint64_t place = (std::uint64_t{slot} * 20'011) % max_slots;
        ASSERT_NE(view.find(place * 2), nullptr);
        ASSERT_EQ(view.find(place * 2)->id, slot);
        ASSERT_EQ(view.find(place * 2 + 1), nullptr);
    }
}

}  // namespace
}  // namespace vmm::memory
