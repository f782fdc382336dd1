// SPDX-License-Identifier: Apache-2.0

/// @file
/// What the vCPUs of one VM share in the software engine: guest memory, which pages hold decoded
/// code, and the means to make every vCPU drop something before a call returns.
///
/// A vCPU is *in the guest* from `enter_guest()` to `leave_guest()`: it may use host pointers to
/// guest memory and translations only then.  Whoever takes something away posts a request and waits
/// until each vCPU has taken it or is out of the guest; a vCPU takes its requests before it
/// executes guest code, and between two blocks while `Cpu::requests` is not 0.  A vCPU that waits
/// is out of the guest itself, so that two that wait for one another do not hang.
///
/// All host pointers that a vCPU holds (`direct()`, `fetch_page()`) are stale after a call of its
/// own that may wait: `mark_code_page()`, `exclusive()`, `OutOfGuest`.

#pragma once

#include <array>
#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory>
#include <mutex>
#include <vector>

#include "x86/engine.hpp"
#include "x86/soft/cpu.hpp"
#include "x86/soft/translation_mode.hpp"

namespace vmm::x86::soft {

/// For each page of guest-physical memory: how many block caches hold code from it, and which
/// 64-byte pieces the code lies in.  Reading is lock-free; tables are only ever added until
/// destruction.
class CodePages {
public:
    struct Entry {
        std::atomic<std::uint32_t> holders{};
        std::atomic<std::uint64_t> pieces{};
        /// Set once every vCPU has dropped its write translations since `holders` left 0.
        std::atomic<bool> guarded{};
    };
    static constexpr unsigned entry_bits = 12;   // A leaf covers 16 MiB of guest memory.
    static constexpr unsigned middle_bits = 14;  // A middle table covers 256 GiB.
    static constexpr unsigned root_bits = 14;    // 52-bit physical addresses.

    CodePages();
    ~CodePages();
    CodePages(const CodePages&) = delete;
    CodePages& operator=(const CodePages&) = delete;
    CodePages(CodePages&&) = delete;
    CodePages& operator=(CodePages&&) = delete;

    /// Null where no page near `gfn` ever held code.
    [[nodiscard]] Entry* find(std::uint64_t gfn) const noexcept;
    /// Null for a frame number beyond 52-bit physical addresses.  One caller at a time.
    [[nodiscard]] Entry* find_or_add(std::uint64_t gfn);

private:
    struct Leaf {
        std::array<Entry, std::size_t{1} << entry_bits> entries{};
    };
    struct Middle {
        std::array<std::atomic<Leaf*>, std::size_t{1} << middle_bits> leaves{};
    };
    std::unique_ptr<std::array<std::atomic<Middle*>, std::size_t{1} << root_bits>> root_;
};

class SoftVm {
public:
    explicit SoftVm(PhysicalMemory& memory, TranslationMode translation = TranslationMode::On);
    ~SoftVm();
    SoftVm(const SoftVm&) = delete;
    SoftVm& operator=(const SoftVm&) = delete;
    SoftVm(SoftVm&&) = delete;
    SoftVm& operator=(SoftVm&&) = delete;

    /// As `cpu` sees it.
    [[nodiscard]] PhysicalMemory& memory(const Cpu& cpu) const noexcept
    {
        return cpu.smm ? memory_.in_smm() : memory_;
    }
    [[nodiscard]] TranslationMode translation() const noexcept { return translation_; }

    // --- vCPUs.  `Cpu` adds and removes itself.  Any thread.
    void add(Cpu& cpu);
    void remove(Cpu& cpu) noexcept;

    // --- The protocol.  On the vCPU's own thread.
    /// Before guest code is executed, or an instruction completed: takes all requests but
    /// `request::exit`, and waits while another vCPU runs `exclusive()`.
    void enter_guest(Cpu& self) noexcept;
    void leave_guest(Cpu& self) noexcept;
    /// For the run loop, between two blocks, when `self.requests` is not 0: takes all but
    /// `request::exit`, which stays set for the caller.
    void take_requests(Cpu& self) noexcept;
    /// Drops blocks of `self` whose bytes others changed; part of `take_requests()`.
    void take_stale_code(Cpu& self) noexcept;

    /// Whether another vCPU is in the guest, or may be.
    [[nodiscard]] bool has_others_in_guest(const Cpu& self) noexcept;

    /// Sets `bits` for every vCPU but `self` and returns when each has taken them or is out of the
    /// guest.  Not for `request::exit` and `request::invalidate_code`, which nobody waits for.
    /// @pre `self` is the vCPU of the calling thread, or null on any other thread.
    void synchronise(std::uint32_t bits, Cpu* self) noexcept;

    /// Runs `function()` while no other vCPU executes guest code.  What it throws passes through.
    /// `self` may take TLB flushes before `function` starts: translate inside of it.
    template <typename Function>
    void exclusive(Cpu& self, Function&& function)
    {
        const Exclusion exclusion{*this, self};
        function();
    }

    // --- Code pages.
    /// `self`'s block cache is going to hold code from page `gfn`; to be balanced by
    /// `unmark_code_page()`.  When it returns, each later write to the page by a vCPU reaches
    /// `code_written()`.  Read the bytes after it, through a pointer fetched after it.
    /// `whole`: every byte counts as code.  Clear: only those of `mark_code_bytes()`.
    void mark_code_page(Cpu& self, std::uint64_t gfn, bool whole = true);
    void unmark_code_page(std::uint64_t gfn) noexcept;
    /// `size` bytes at `gpa`, in one page that the caller has marked, are going to be decoded: call
    /// before reading them.  Writes to other 64-byte pieces of the page cost no invalidation.
    void mark_code_bytes(std::uint64_t gpa, std::size_t size) noexcept;
    [[nodiscard]] bool is_code_page(std::uint64_t gfn) const noexcept
    {
        const CodePages::Entry* const entry = code_pages_.find(gfn);
        return entry != nullptr && entry->holders.load(std::memory_order_seq_cst) != 0;
    }

    /// `self` has written `size` bytes at `gpa` to a code page: drops its own blocks at once, the
    /// other vCPUs' before their next block.  Does not wait.
    void code_written(Cpu& self, std::uint64_t gpa, std::size_t size) noexcept;
    /// Somebody outside has written guest memory.  Any thread, a vCPU's too.  Does not wait.
    void memory_written(std::uint64_t gpa, std::uint64_t size) noexcept;

    /// See `EngineVm`.  Not from a vCPU's thread while it is in the guest.
    void memory_changed() noexcept;
    void dirty_log_cleared() noexcept;

private:
    friend class OutOfGuest;

    struct Range {
        std::uint64_t gpa{};
        std::uint64_t size{};
    };
    static constexpr std::uint64_t everything = std::numeric_limits<std::uint64_t>::max();
    static constexpr std::size_t max_stale = 256;   // Then all code counts as stale.
    static constexpr std::size_t max_guarded = 16;  // Then all write translations go.

    struct Member {
        Cpu* cpu{};
        std::vector<Range> stale{};            // Guarded by mutex_.
        std::vector<std::uint64_t> guarded{};  // Frames to lose their write translations; mutex_.
    };

    struct Exclusion {
        Exclusion(SoftVm& vm, Cpu& self) noexcept;
        ~Exclusion();
        Exclusion(const Exclusion&) = delete;
        Exclusion& operator=(const Exclusion&) = delete;
        Exclusion(Exclusion&&) = delete;
        Exclusion& operator=(Exclusion&&) = delete;
        SoftVm& vm;
    };

    using Lock = std::unique_lock<std::mutex>;

    /// Back in the guest in the middle of an instruction: takes all but code invalidation, which
    /// waits for the end of the block (and `request::exit`).
    void resume(Cpu& self) noexcept;
    void take(Cpu& self, std::uint32_t mask) noexcept;
    void park(Lock& lock, Cpu& self) noexcept;
    [[nodiscard]] Member* member(const Cpu& cpu) noexcept;
    [[nodiscard]] bool others_out(std::uint32_t bits, const Cpu* self) const noexcept;
    void post_stale(Range range, const Cpu* except) noexcept;
    void guard(Cpu& self, std::uint64_t gfn) noexcept;
    [[nodiscard]] bool holds_code(std::uint64_t gpa, std::uint64_t size) noexcept;

    PhysicalMemory& memory_;
    TranslationMode translation_;
    CodePages code_pages_;
    std::mutex code_mutex_;            // Changes of code_pages_ counts.  Taken after mutex_.
    std::atomic<unsigned> barrier_{};  // Orders memory writes with code page look-ups.

    std::mutex mutex_;
    std::condition_variable changed_;
    std::atomic<unsigned> waiters_{};               // Who waits for vCPUs to leave the guest.
    std::vector<std::unique_ptr<Member>> members_;  // mutex_
    Cpu* exclusive_owner_{};                        // mutex_
};

/// While it lives, `self` is out of the guest: put one around callbacks into the core (MMIO, ports,
/// MSRs) that may take locks, so that nobody who holds such a lock waits for this vCPU.
class OutOfGuest {
public:
    OutOfGuest(SoftVm& vm, Cpu& self) noexcept;
    ~OutOfGuest();
    OutOfGuest(const OutOfGuest&) = delete;
    OutOfGuest& operator=(const OutOfGuest&) = delete;
    OutOfGuest(OutOfGuest&&) = delete;
    OutOfGuest& operator=(OutOfGuest&&) = delete;

private:
    SoftVm& vm_;
    Cpu& self_;
    bool was_in_guest_;
};

}  // namespace vmm::x86::soft
