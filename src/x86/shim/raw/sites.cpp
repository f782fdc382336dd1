// SPDX-License-Identifier: Apache-2.0

#include "x86/shim/raw/sites.hpp"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <new>
#include <string>

#include <pthread.h>
#include <sys/mman.h>

#include "x86/shim/log.hpp"
#include "x86/shim/raw/call.hpp"
#include "x86/shim/raw/instruction_end.hpp"

namespace {

constexpr std::size_t max_stub_pages = 4;

}  // namespace

std::atomic<std::uint64_t> vmm_raw_stub_pages[max_stub_pages + 1];

// NOLINTNEXTLINE(hicpp-no-assembler)
asm(".globl vmm_raw_stub_pages_end\n.set vmm_raw_stub_pages_end, vmm_raw_stub_pages + 4 * 8");
static_assert(max_stub_pages == 4);

namespace vmm::shim::raw {
namespace {

// mov $16, %eax; syscall
constexpr std::array<std::uint8_t, 7> call_of_ioctl{0xb8, 0x10, 0, 0, 0, 0x0f, 0x05};
constexpr std::size_t mov_size = 5;
/// So many bytes are certainly read together.
constexpr std::uint64_t fetch_size = 16;

constexpr std::size_t stub_size = 16;
/// How far a jump goes, with some room for rounding.
constexpr std::uint64_t reach = (std::uint64_t{1} << 31U) - (std::uint64_t{1} << 16U);

std::uint64_t distance(std::uint64_t a, std::uint64_t b) noexcept
{
    return a < b ? b - a : a - b;
}

void put(std::uint8_t* at, std::uint64_t target, std::uint64_t from) noexcept
{
    const auto offset = static_cast<std::uint32_t>(target - from);
    std::memcpy(at, &offset, sizeof offset);
}

/// As long as it is written to it is not executable, and it is there at once.
bool replace_page(std::uint64_t at, std::span<const std::uint8_t> bytes) noexcept
{
    void* const made =
        ::mmap(nullptr, bytes.size(), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (made == MAP_FAILED) {
        return false;
    }
    std::memcpy(made, bytes.data(), bytes.size());
    // SAFETY: a page of the client's text, or one of ours, with the same contents but for the
    // change.
    if (::mprotect(made, bytes.size(), PROT_READ | PROT_EXEC) == 0 &&
        ::mremap(made, bytes.size(), bytes.size(), MREMAP_MAYMOVE | MREMAP_FIXED,
                 reinterpret_cast<void*>(at)) != MAP_FAILED) {
        return true;
    }
    ::munmap(made, bytes.size());
    std::uint8_t first = 0;
    if (!copy_in(first, UserAddress{at})) {
        std::abort();  // The old one is gone: the client cannot go on.
    }
    return false;
}

}  // namespace

Sites::Sites()
{
    ::pthread_atfork([] { instance().mutex_.lock(); }, [] { instance().mutex_.unlock(); },
                     [] { new (&instance().mutex_) std::mutex; });
}

Sites& Sites::instance()
{
    static Sites& one = *new Sites;
    return one;
}

void Sites::consider(std::uint64_t next) noexcept
{
    const std::size_t known = considered_count_.load(std::memory_order_acquire);
    for (std::size_t i = 0; i < known; ++i) {
        if (considered_[i].load(std::memory_order_relaxed) == next) {
            return;
        }
    }
    if (known == max_considered) {
        return;
    }
    try {
        const std::lock_guard lock{mutex_};
        const std::size_t count = considered_count_.load(std::memory_order_relaxed);
        const auto end = considered_.begin() + static_cast<std::ptrdiff_t>(count);
        if (count == max_considered ||
            std::any_of(considered_.begin(), end, [next](const auto& each) {
                return each.load(std::memory_order_relaxed) == next;
            })) {
            return;
        }
        considered_[count].store(next, std::memory_order_relaxed);
        considered_count_.store(count + 1, std::memory_order_release);
        const char* const obstacle = change(next);
        if (is_wanted(LogLevel::Debug)) {
            log(LogLevel::Debug,
                "the client's ioctl at " + hex(next - call_of_ioctl.size()) +
                    (obstacle == nullptr ? std::string{": goes by a stub from now on"}
                                         : std::string{": goes by SIGSYS, "} + obstacle));
        }
    } catch (const std::bad_alloc&) {
        return;
    }
}

std::vector<Sites::Mapping> Sites::mappings()
{
    std::vector<Mapping> all;
    std::ifstream maps{"/proc/self/maps"};
    std::string line;
    while (std::getline(maps, line)) {
        unsigned long first = 0;
        unsigned long end = 0;
        std::array<char, 5> rights{};
        unsigned long inode = 0;
        if (std::sscanf(line.c_str(), "%lx-%lx %4s %*x %*x:%*x %lu", &first, &end, rights.data(),
                        &inode) == 4) {
            all.push_back({first, end, std::strcmp(rights.data(), "r-xp") == 0, inode != 0});
        }
    }
    return all;
}

bool Sites::is_text(const Mapping& mapping) const noexcept
{
    if (!mapping.is_text || mapping.has_file) {
        return mapping.is_text;
    }
    // Code that the client has made is none of our business; what we have put there is.
    for (std::uint64_t at = mapping.first; at < mapping.end; at += page_size) {
        const auto found = text_.find(at);
        // SAFETY: executable, and so readable here.
        if (found == text_.end() ||
            std::memcmp(reinterpret_cast<const void*>(at), found->second.data(), page_size) != 0) {
            return false;
        }
    }
    return true;
}

const char* Sites::change(std::uint64_t next)
{
    const std::uint64_t site = next - call_of_ioctl.size();
    std::array<std::uint8_t, call_of_ioctl.size()> there{};
    if (!copy_in(there, UserAddress{site}) || there != call_of_ioctl) {
        return "since its number is not loaded right before";
    }
    const std::vector<Mapping> all = mappings();
    auto text = std::find_if(all.begin(), all.end(), [&](const Mapping& each) {
        return each.first <= site && site < each.end;
    });
    if (text == all.end() || !is_text(*text)) {
        return "since it is not in the text of a file";
    }
    const std::uint64_t in_page = site % page_size;
    if (in_page + mov_size > page_size) {
        return "since it is in two pages";
    }
    if (site % fetch_size + mov_size > fetch_size && !is_only_thread()) {
        return "since another thread might see half of the change";
    }
    std::uint64_t first = text->first;
    while (text != all.begin() && (text - 1)->end == first && is_text(*(text - 1))) {
        --text;
        first = text->first;
    }
    constexpr std::uint64_t enough = 256;
    first = std::max(first, site - std::min(site, enough));
    // SAFETY: executable, and so readable here.
    const std::span<const std::uint8_t> code{reinterpret_cast<const std::uint8_t*>(first),
                                             site + mov_size - first};
    if (!ends_with_instruction(code, mov_size)) {
        return "since what precedes it may be read in two ways";
    }
    const std::uint64_t stub = make_stub(next, all);
    if (stub == 0) {
        return "since there is no place for a stub";
    }
    const std::uint64_t at = site - in_page;
    Page page;
    std::memcpy(page.data(), reinterpret_cast<const void*>(at), page_size);
    page[in_page] = 0xe9;
    put(&page[in_page + 1], stub, site + mov_size);
    // Before the page is there: is_text() knows it by this.
    text_[at] = page;
    return replace_page(at, page) ? nullptr : "since its page cannot be replaced";
}

std::uint64_t Sites::make_stub(std::uint64_t next, const std::vector<Mapping>& all)
{
    const auto is_near = [next](std::uint64_t at) { return distance(at, next) < reach; };
    auto found = std::find_if(stubs_.begin(), stubs_.end(), [&](const auto& each) {
        return is_near(each.first) && each.second.used + stub_size <= page_size;
    });
    if (found == stubs_.end()) {
        if (stubs_.size() == max_stub_pages) {
            return 0;
        }
        // The ends of the gaps, those below first: above a program there is room that grows.
        std::vector<std::uint64_t> places;
        for (std::size_t i = 1; i < all.size(); ++i) {
            if (all[i].first - all[i - 1].end >= page_size) {
                places.push_back(all[i].first <= next ? all[i].first - page_size : all[i - 1].end);
            }
        }
        if (constexpr std::uint64_t least = 0x10000; all.front().first >= least + page_size) {
            places.push_back(all.front().first - page_size);
        }
        std::sort(places.begin(), places.end(), [next](std::uint64_t a, std::uint64_t b) {
            return std::pair{a > next, distance(a, next)} < std::pair{b > next, distance(b, next)};
        });
        for (const std::uint64_t place : places) {
            // SAFETY: nothing is there, or the kernel says so.
            if (is_near(place) &&
                ::mmap(reinterpret_cast<void*>(place), page_size, PROT_NONE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0) != MAP_FAILED) {
                found = stubs_.emplace(place, StubPage{}).first;
                found->second.bytes.fill(0xcc);
                vmm_raw_stub_pages[stubs_.size() - 1].store(place);
                break;
            }
        }
        if (found == stubs_.end()) {
            return 0;
        }
    }
    StubPage& page = found->second;
    const std::uint64_t at = found->first + page.used;
    // lea next(%rip), %rcx; jmp *%gs:stub_entry
    constexpr std::array<std::uint8_t, 3> lea{0x48, 0x8d, 0x0d};
    constexpr std::array<std::uint8_t, 4> jump{0x65, 0xff, 0x24, 0x25};
    constexpr std::size_t lea_size = 7;
    constexpr std::uint32_t entry = offsetof(CrossingState, stub_entry);
    std::uint8_t* const to = &page.bytes[page.used];
    std::copy(lea.begin(), lea.end(), to);
    put(to + lea.size(), next, at + lea_size);
    std::copy(jump.begin(), jump.end(), to + lea_size);
    std::memcpy(to + lea_size + jump.size(), &entry, sizeof entry);
    page.used += stub_size;
    return replace_page(found->first, page.bytes) ? at : 0;
}

}  // namespace vmm::shim::raw
