// SPDX-License-Identifier: Apache-2.0

/// @file
/// What does it cost to find the range that an address is in?  The components' look-up beside the
/// obvious choices, at several sizes, and what readers notice of writers.
///
/// Each row looks up keys that were drawn beforehand.  `random`: each key in another range.
/// `repeated`: sixteen keys in one range, then another range, which is how guests access memory
/// and devices.  `even`: ranges of one size side by side; `ragged`: sizes and gaps of many
/// magnitudes, as a PC's memory map has.  One iteration is one look-up.

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include <benchmark/benchmark.h>
#include <boost/icl/interval_map.hpp>

#include "vmm/bus/io_bus.hpp"
#include "vmm/memory/memslots.hpp"
#include "vmm/memory/range_map.hpp"

namespace vmm {
namespace {

struct Range {
    std::uint64_t first;
    std::uint64_t last;
};

enum class Layout { Even, Ragged };

std::vector<Range> make_ranges(std::size_t count, Layout layout)
{
    std::mt19937_64 random{count};
    std::vector<Range> ranges;
    std::uint64_t at = 0x100;
    for (std::size_t i = 0; i < count; ++i) {
        if (layout == Layout::Even) {
            ranges.push_back({at, at + 0x1ff});
            at += 0x200;
        } else {
            at += std::uint64_t{1} << (random() % 16U);
            const std::uint64_t size = std::uint64_t{1} << (random() % 16U);
            ranges.push_back({at, at + size - 1});
            at += size;
        }
    }
    return ranges;
}

constexpr std::size_t max_count = 32764;
constexpr std::size_t key_count = std::size_t{1} << 16U;

enum class Access { Random, Repeated };

std::vector<std::uint64_t> make_keys(const std::vector<Range>& ranges, Access access)
{
    std::mt19937_64 random{7};
    std::vector<std::uint64_t> keys(key_count);
    const Range* range = nullptr;
    for (std::size_t i = 0; i < key_count; ++i) {
        if (access == Access::Random || i % 16 == 0) {
            range = &ranges[random() % ranges.size()];
        }
        keys[i] = range->first + random() % (range->last - range->first + 1);
    }
    return keys;
}

/// What a look-up leads to.
struct Target {
    std::uint64_t id{};
};

// The candidates.  Each is built from ranges and returns the target of a key, or null.

class Ours {
public:
    Ours(const std::vector<Range>& ranges, const std::vector<Target>& targets)
    {
        std::vector<memory::RangeMap<const Target*>::Entry> entries;
        for (std::size_t i = 0; i < ranges.size(); ++i) {
            entries.push_back({ranges[i].first, ranges[i].last, &targets[i]});
        }
        map_ = memory::RangeMap<const Target*>{std::move(entries)};
    }
    const Target* find(std::uint64_t key) const
    {
        const auto* entry = map_.find(key);
        return entry != nullptr ? entry->value : nullptr;
    }

protected:
    memory::RangeMap<const Target*> map_;
};

class OursWithHint : public Ours {
public:
    using Ours::Ours;
    const Target* find(std::uint64_t key)
    {
        const auto* entry = map_.find(key, hint_);
        return entry != nullptr ? entry->value : nullptr;
    }

private:
    memory::RangeMap<const Target*>::Hint hint_;
};

class StdMap {
public:
    StdMap(const std::vector<Range>& ranges, const std::vector<Target>& targets)
    {
        for (std::size_t i = 0; i < ranges.size(); ++i) {
            map_.emplace(ranges[i].last, std::pair{ranges[i].first, &targets[i]});
        }
    }
    const Target* find(std::uint64_t key) const
    {
        const auto found = map_.lower_bound(key);
        return found != map_.end() && found->second.first <= key ? found->second.second : nullptr;
    }

private:
    std::map<std::uint64_t, std::pair<std::uint64_t, const Target*>> map_;
};

class SortedVector {
public:
    SortedVector(const std::vector<Range>& ranges, const std::vector<Target>& targets)
    {
        for (std::size_t i = 0; i < ranges.size(); ++i) {
            entries_.push_back({ranges[i].first, ranges[i].last, &targets[i]});
        }
    }
    const Target* find(std::uint64_t key) const
    {
        const auto found = std::lower_bound(
            entries_.begin(), entries_.end(), key,
            [](const Entry& entry, std::uint64_t wanted) { return entry.last < wanted; });
        return found != entries_.end() && found->first <= key ? found->target : nullptr;
    }

private:
    struct Entry {
        std::uint64_t first;
        std::uint64_t last;
        const Target* target;
    };
    std::vector<Entry> entries_;
};

class IclMap {
public:
    IclMap(const std::vector<Range>& ranges, const std::vector<Target>& targets)
    {
        for (std::size_t i = 0; i < ranges.size(); ++i) {
            map_.set({boost::icl::interval<std::uint64_t>::closed(ranges[i].first, ranges[i].last),
                      &targets[i]});
        }
    }
    const Target* find(std::uint64_t key) const
    {
        const auto found = map_.find(key);
        return found != map_.end() ? found->second : nullptr;
    }

private:
    boost::icl::interval_map<std::uint64_t, const Target*> map_;
};

/// What `make` made for this size and layout: once, since a large table takes longer to be filled
/// than to be measured.
template <typename Made, typename Make>
Made& made_once(std::size_t count, Layout layout, const Make& make)
{
    static std::map<std::pair<std::size_t, Layout>, std::unique_ptr<Made>> all;
    std::unique_ptr<Made>& one = all[{count, layout}];
    if (one == nullptr) {
        one = make();
    }
    return *one;
}

template <typename Candidate>
void look_up(benchmark::State& state, std::size_t count, Layout layout, Access access)
{
    const auto ranges = make_ranges(count, layout);
    static const std::vector<Target> targets(max_count);
    Candidate& candidate = made_once<Candidate>(
        count, layout, [&] { return std::make_unique<Candidate>(ranges, targets); });
    const auto keys = make_keys(ranges, access);
    for (const std::uint64_t key : keys) {
        if (candidate.find(key) == nullptr) {
            state.SkipWithError("a key was not found");
            return;
        }
    }
    std::size_t i = 0;
    for (auto _ : state) {
        benchmark::DoNotOptimize(candidate.find(keys[i]));
        i = (i + 1) % key_count;
    }
}

// The whole components: with an epoch entered for each look-up.

void look_up_slot(benchmark::State& state, std::size_t count, Layout layout, Access access)
{
    const auto ranges = make_ranges(count, layout);
    static std::byte* const host = static_cast<std::byte*>(std::aligned_alloc(4096, 4096));
    auto& table = made_once<memory::MemslotTable<>>(count, layout, [&] {
        auto made = std::make_unique<memory::MemslotTable<>>();
        for (std::size_t i = 0; i < count; ++i) {
            made->set({.slot = static_cast<std::uint32_t>(i),
                       .guest_phys_addr = Gpa{ranges[i].first << memory::page_bits},
                       .size_bytes = (ranges[i].last - ranges[i].first + 1) << memory::page_bits,
                       .host = host})
                .value();
        }
        return made;
    });
    const auto keys = make_keys(ranges, access);
    memory::MemslotTable<>::Hint hint;
    std::size_t i = 0;
    for (auto _ : state) {
        benchmark::DoNotOptimize(table.read(0).find(keys[i], hint));
        i = (i + 1) % key_count;
    }
}

class NullDevice {
public:
    void read(std::uint64_t offset, std::span<std::byte> data) noexcept
    {
        data[0] = static_cast<std::byte>(offset);
    }
    void write(std::uint64_t /*offset*/, std::span<const std::byte> /*data*/) noexcept {}
};

void read_bus(benchmark::State& state, std::size_t count, Layout layout, Access access)
{
    const auto ranges = make_ranges(count, layout);
    bus::IoBus<Gpa, NullDevice> bus;
    for (const Range& range : ranges) {
        bus.add(*GpaRange::make(Gpa{range.first}, range.last - range.first + 1), {}).value();
    }
    const auto keys = make_keys(ranges, access);
    bus::IoBus<Gpa, NullDevice>::Hint hint;
    std::array<std::byte, 1> data{};
    std::size_t i = 0;
    for (auto _ : state) {
        benchmark::DoNotOptimize(bus.read(Gpa{keys[i]}, data, hint));
        i = (i + 1) % key_count;
    }
}

/// One reader's look-ups while another thread adds and deletes a slot without pause, or does not.
void look_up_beside_a_writer(benchmark::State& state, bool writing)
{
    static std::byte* const host = static_cast<std::byte*>(std::aligned_alloc(4096, 4096));
    memory::MemslotTable<> table;
    const auto set = [&](std::uint32_t slot, std::uint64_t pages) {
        table
            .set({.slot = slot,
                  .guest_phys_addr = Gpa{std::uint64_t{slot} << 20U},
                  .size_bytes = pages << memory::page_bits,
                  .host = pages == 0 ? nullptr : host})
            .value();
    };
    for (std::uint32_t slot = 0; slot < 64; ++slot) {
        set(slot, 1);
    }
    std::uint64_t publications = 0;
    std::jthread writer{[&](const std::stop_token& stop) {
        while (writing && !stop.stop_requested()) {
            set(64, 1);
            set(64, 0);
            publications += 2;
        }
    }};
    std::uint64_t slot = 0;
    for (auto _ : state) {
        benchmark::DoNotOptimize(table.read(0).find(slot << 8U));
        slot = (slot + 1) % 64;
    }
    writer.request_stop();
    writer.join();
    state.counters["publications"] =
        benchmark::Counter(static_cast<double>(publications), benchmark::Counter::kIsRate);
}

void register_all()
{
    constexpr std::array<std::pair<const char*, Access>, 2> accesses{
        {{"random", Access::Random}, {"repeated", Access::Repeated}}};
    constexpr std::array<std::pair<const char*, Layout>, 2> layouts{
        {{"even", Layout::Even}, {"ragged", Layout::Ragged}}};
    constexpr std::array<std::size_t, 5> sizes{1, 8, 64, 512, max_count};
    for (const auto& [layout_name, layout] : layouts) {
        for (const auto& [access_name, access] : accesses) {
            for (const std::size_t size : sizes) {
                // Named anew: Clang 14 captures no structured bindings by reference.
                const std::string prefix = std::string{"find/"} + layout_name + '/' + access_name +
                                           '/' + std::to_string(size) + '/';
                const auto add = [&, layout = layout, access = access](const char* who, auto run) {
                    const std::string name = prefix + who;
                    benchmark::RegisterBenchmark(name.c_str(), run, size, layout, access);
                };
                add("range_map", look_up<Ours>);
                add("range_map_hint", look_up<OursWithHint>);
                add("std_map", look_up<StdMap>);
                add("sorted_vector", look_up<SortedVector>);
                add("icl_interval_map", look_up<IclMap>);
                add("memslot_table_with_epoch", look_up_slot);
                if (size <= bus::IoBus<Gpa, NullDevice>::max_ranges) {
                    add("io_bus_read_with_epoch", read_bus);
                }
            }
        }
    }
    benchmark::RegisterBenchmark("reader/alone", look_up_beside_a_writer, false)->UseRealTime();
    benchmark::RegisterBenchmark("reader/beside_a_writer", look_up_beside_a_writer, true)
        ->UseRealTime();
}

}  // namespace
}  // namespace vmm

int main(int argc, char** argv)
{
    benchmark::Initialize(&argc, argv);
    vmm::register_all();
    benchmark::RunSpecifiedBenchmarks();
    return 0;
}
