// SPDX-License-Identifier: Apache-2.0

// Memory slots set, moved, re-flagged and deleted, their dirty logs, and memory seen through them,
// against a plain list.

#include <algorithm>
#include <array>
#include <map>
#include <vector>

#include "fuzz/target.hpp"
#include "vmm/memory/guest_memory.hpp"
#include "vmm/memory/memslots.hpp"

namespace vmm::fuzz {
namespace {

using memory::MemoryFlags;
using memory::MemoryRegion;
using memory::page_size;

constexpr std::size_t host_pages = 32;
alignas(4096) std::array<std::byte, host_pages * page_size> host_memory;

class Slots {
public:
    void step(Input& input)
    {
        switch (input.below(6)) {
        case 0:
        case 1: set(input); break;
        case 2: log(input); break;
        case 3: clear_log(input); break;
        case 4: write(input); break;
        default: check_all(); break;
        }
    }

private:
    struct Model {
        MemoryRegion region;
        std::vector<std::uint64_t> dirty;
    };

    static MemoryRegion region(Input& input)
    {
        MemoryRegion region;
        region.slot =
            static_cast<std::uint32_t>(input.u8() % 16U == 0 ? input.number() : input.below(5));
        region.address_space = static_cast<std::uint16_t>(input.u8() % 8U == 0 ? input.u8() : 0U);
        region.flags = input.u8() % 8U == 0 ? input.u32() : input.u8() & MemoryFlags::all;
        region.guest_phys_addr =
            Gpa{input.u8() % 8U == 0 ? input.number() : input.below(40) * page_size};
        const std::size_t first = input.below(host_pages);
        region.host = host_memory.data() + first * page_size;
        // What the caller owns: the size may be anything only where no page is looked at.
        region.size_bytes = input.u8() % 8U == 0 ? input.number() & 0x1fffU
                                                 : input.below(host_pages - first + 1) * page_size;
        region.size_bytes =
            std::min<std::uint64_t>(region.size_bytes, (host_pages - first) * page_size);
        return region;
    }

    void set(Input& input)
    {
        const MemoryRegion wanted = region(input);
        const std::uint64_t before = table_.read().generation();
        if (!table_.set(wanted)) {
            FUZZ_CHECK(table_.read().generation() == before);
            return;
        }
        FUZZ_CHECK(wanted.slot < memory::max_slots && wanted.address_space < 2);
        const auto key = std::pair{wanted.address_space, wanted.slot};
        if (wanted.size_bytes == 0) {
            FUZZ_CHECK(models_.erase(key) == 1);
            return;
        }
        FUZZ_CHECK(wanted.size_bytes % page_size == 0);
        for (const auto& [other, model] : models_) {
            FUZZ_CHECK(other == key || other.first != key.first || !meet(model.region, wanted));
        }
        Model& model = models_[key];
        const bool logs = (wanted.flags & MemoryFlags::log_dirty) != 0;
        const std::size_t words = (wanted.size_bytes / page_size + 63U) / 64U;
        if (!logs) {
            model.dirty.clear();
        } else if (model.dirty.size() != words) {
            model.dirty.assign(words, 0);
        }
        model.region = wanted;
    }

    static bool meet(const MemoryRegion& a, const MemoryRegion& b)
    {
        const std::uint64_t first = std::max(a.guest_phys_addr.value(), b.guest_phys_addr.value());
        return first - a.guest_phys_addr.value() < a.size_bytes &&
               first - b.guest_phys_addr.value() < b.size_bytes;
    }

    void log(Input& input)
    {
        const auto slot = static_cast<std::uint32_t>(input.below(6));
        const auto found = models_.find({std::uint16_t{0}, slot});
        const bool logs = found != models_.end() && !found->second.dirty.empty();
        const bool peek = input.flag();
        const auto bitmap = peek ? table_.peek_dirty_log(slot) : table_.dirty_log(slot);
        FUZZ_CHECK(bitmap.has_value() == logs);
        if (logs) {
            FUZZ_CHECK(*bitmap == found->second.dirty);
            if (!peek) {
                std::fill(found->second.dirty.begin(), found->second.dirty.end(), 0);
            }
        }
    }

    void clear_log(Input& input)
    {
        const auto slot = static_cast<std::uint32_t>(input.below(6));
        const std::uint64_t first = input.flag() ? 0 : input.number();
        const std::uint64_t count = input.flag() ? input.below(host_pages + 2) : input.number();
        const std::array<std::uint64_t, 2> bitmap{input.u64(), input.u64()};
        const auto cleared =
            table_.clear_dirty_log(slot, first, count, std::span{bitmap}.first(input.below(3)));
        if (cleared.has_value()) {
            const auto found = models_.find({std::uint16_t{0}, slot});
            FUZZ_CHECK(found != models_.end() && !found->second.dirty.empty());
            FUZZ_CHECK(first % 64U == 0);
            for (std::uint64_t page = 0; page < count; ++page) {
                if (((bitmap[page / 64U] >> (page % 64U)) & 1U) != 0) {
                    found->second.dirty.at((first + page) / 64U) &=
                        ~(std::uint64_t{1} << ((first + page) % 64U));
                }
            }
        }
    }

    [[nodiscard]] Model* model_at(std::uint64_t gpa)
    {
        for (auto& [key, model] : models_) {
            if (key.first == 0 && gpa >= model.region.guest_phys_addr.value() &&
                gpa - model.region.guest_phys_addr.value() < model.region.size_bytes) {
                return &model;
            }
        }
        return nullptr;
    }

    void write(Input& input)
    {
        const std::uint64_t gpa = input.u8() % 8U == 0
                                      ? input.number()
                                      : input.below(42) * page_size + input.u16() % page_size;
        const std::size_t size = input.flag() ? input.below(9) : input.u16() % 9000U;
        const std::vector<std::byte> bytes(size, std::byte{input.u8()});
        bool backed = gpa + size >= gpa || size == 0;
        for (std::uint64_t i = 0; i < size && backed; ++i) {
            backed = model_at(gpa + i) != nullptr;
        }
        const memory::GuestMemory guest{table_};
        FUZZ_CHECK(guest.copy_in(Gpa{gpa}, bytes) == backed);
        if (!backed) {
            return;
        }
        for (std::uint64_t i = 0; i < size; ++i) {
            Model& model = *model_at(gpa + i);
            const std::uint64_t page = (gpa + i - model.region.guest_phys_addr.value()) / page_size;
            if (!model.dirty.empty()) {
                model.dirty.at(page / 64U) |= std::uint64_t{1} << (page % 64U);
            }
        }
        std::vector<std::byte> back(size);
        FUZZ_CHECK(guest.copy_out(Gpa{gpa}, back));
        // Two slots may be the same host memory; a byte written is one read all the same, unless
        // this write covered it twice with equal bytes.
        FUZZ_CHECK(back == bytes);
    }

    void check_all()
    {
        const auto reader = table_.read();
        for (std::uint64_t gfn = 0; gfn < 80; ++gfn) {
            const Model* const model = model_at(gfn * page_size);
            const memory::Memslot* const slot = reader.find(gfn);
            FUZZ_CHECK((model == nullptr) == (slot == nullptr));
            if (slot != nullptr) {
                FUZZ_CHECK(slot->host_page(gfn) == model->region.host + gfn * page_size -
                                                       model->region.guest_phys_addr.value());
                FUZZ_CHECK(slot->logs_dirty() == !model->dirty.empty());
            }
        }
    }

    memory::MemslotTable<> table_;
    std::map<std::pair<std::uint16_t, std::uint32_t>, Model> models_;
};

}  // namespace

void memslots(Input& input)
{
    Slots slots;
    for (unsigned steps = 0; steps < 200 && !input.is_empty(); ++steps) {
        slots.step(input);
    }
}

Seeds memslots_seeds()
{
    const auto set = [](Seed& seed, unsigned slot, unsigned flags, unsigned page, unsigned host,
                        unsigned pages) {
        seed.u8(0).u8(1).u8(slot).u8(1).u8(1).u8(flags).u8(1).u8(page).u8(host).u8(1).u8(pages);
    };
    Seed seed;
    set(seed, 0, 1, 0, 0, 4);
    set(seed, 1, 0, 4, 4, 8);
    seed.u8(4).u8(1).u8(1).u16(8).u8(1).u8(8).u8(7).u8(5);
    seed.u8(2).u8(0).u8(1).u8(3).u8(0).u8(1).u8(1).u8(4).u64(~std::uint64_t{0}).u64(0).u8(1);
    set(seed, 0, 1, 20, 0, 4);
    set(seed, 0, 0, 20, 0, 4);
    set(seed, 1, 2, 4, 4, 8);
    seed.u8(2).u8(0).u8(0).u8(5);
    set(seed, 1, 0, 0, 0, 0);
    seed.u8(5);
    return {seed.data()};
}

}  // namespace vmm::fuzz
