// SPDX-License-Identifier: Apache-2.0

#include "disturber.hpp"

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <future>
#include <memory>
#include <utility>

#include <fmt/format.h>

namespace endure {
namespace {

using vmm::Gpa;
using vmm::memory::MemoryFlags;
using vmm::memory::MemoryRegion;

constexpr std::uint64_t page_size = 4096;
constexpr std::uint32_t msr_tsc = 0x10;
constexpr std::uint32_t msr_tsc_deadline = 0x6e0;

std::uint64_t below(std::mt19937_64& random, std::uint64_t bound)
{
    return random() % bound;
}

/// Of a vCPU that is at rest.
struct State {
    vmm::x86::Regs regs;
    vmm::x86::Sregs sregs;
    vmm::x86::Xsave xsave;
    vmm::x86::Fpu fpu;
    std::uint64_t xcr0;
    std::vector<std::pair<std::uint32_t, std::uint64_t>> msrs;
    vmm::x86::DebugRegs debug;
    vmm::x86::MpState mp;
    vmm::x86::VcpuEvents events;
    /// When that was.  A TSC that is written back within a second stays in step with the others'
    /// (KVM's rule); later it would go back by that time, which is no error of the library.
    std::chrono::steady_clock::time_point taken{std::chrono::steady_clock::now()};

    State(vmm::Vcpu& vcpu, const std::vector<std::uint32_t>& indices)
        : regs{vcpu.regs()},
          sregs{vcpu.sregs()},
          xsave{vcpu.xsave()},
          fpu{vcpu.fpu()},
          xcr0{vcpu.xcr0()},
          debug{vcpu.debug_regs()},
          mp{vcpu.mp_state()},
          events{vcpu.events()}
    {
        for (const std::uint32_t index : indices) {
            if (const auto value = vcpu.msr(index)) {
                msrs.emplace_back(index, *value);
            }
        }
    }

    /// The first thing that it refuses, or nothing.
    [[nodiscard]] vmm::Result<void> write_to(vmm::Vcpu& vcpu) const
    {
        vcpu.set_regs(regs);
        VMM_TRY_VOID(vcpu.set_sregs(sregs));
        VMM_TRY_VOID(vcpu.set_xcr0(xcr0));
        vcpu.set_fpu(fpu);
        VMM_TRY_VOID(vcpu.set_xsave(xsave));
        for (const auto& [index, value] : msrs) {
            const auto age = std::chrono::steady_clock::now() - taken;
            if (index != msr_tsc || age < std::chrono::milliseconds{500}) {
                VMM_TRY_VOID(vcpu.set_msr(index, value));
            }
        }
        VMM_TRY_VOID(vcpu.set_debug_regs(debug));
        VMM_TRY_VOID(vcpu.set_mp_state(mp));
        return vcpu.set_events(events);
    }

    /// What differs; empty if nothing does but what time changes.
    [[nodiscard]] std::string difference(const State& other) const
    {
        if (!(regs == other.regs)) {
            return "registers";
        }
        if (!(sregs == other.sregs)) {
            return "segments and control registers";
        }
        if (!(xsave == other.xsave) || !(fpu == other.fpu) || xcr0 != other.xcr0) {
            return "FPU state";
        }
        for (std::size_t i = 0; i < msrs.size(); ++i) {
            if (msrs[i] != other.msrs[i] && msrs[i].first != msr_tsc &&
                msrs[i].first != msr_tsc_deadline) {
                return fmt::format("MSR {:#x}: {:#x}, then {:#x}", msrs[i].first, msrs[i].second,
                                   other.msrs[i].second);
            }
        }
        if (!(debug == other.debug)) {
            return "debug registers";
        }
        if (!(events.exception == other.events.exception) ||
            !(events.interrupt == other.events.interrupt) || !(events.smi == other.events.smi) ||
            events.nmi.injected != other.events.nmi.injected) {
            return "events";
        }
        return {};
    }
};

}  // namespace

const char* name(Deed deed) noexcept
{
    switch (deed) {
    case Deed::Kick: return "kicks";
    case Deed::VcpuState: return "vCPU states rewritten";
    case Deed::Pause: return "pauses";
    case Deed::Chips: return "irqchip, PIT and clock rewritten";
    case Deed::DirtyCheck: return "dirty logs compared";
    case Deed::DirtyPage: return "dirty pages";
    case Deed::Layout: return "layouts of RAM";
    case Deed::LogToggle: return "logs turned off and on";
    case Deed::Slot: return "other slots changed";
    case Deed::Route: return "routing tables set";
    }
    return "?";
}

Disturber::Disturber(vmm_linux::Machine& machine,
                     const vmm::Kvm& kvm,
                     std::uint64_t seed,
                     std::uint64_t wanted)
    : machine_{machine},
      msrs_{kvm.msr_index_list()},
      seed_{seed},
      wanted_{wanted},
      ram_{machine.ram().begin(), machine.ram().end()}
{
}

void Disturber::start()
{
    const auto begin = [this](Deed deed, void (Disturber::*work)()) {
        if (wants(deed)) {
            threads_.emplace_back([this, work] { (this->*work)(); });
        }
    };
    begin(Deed::Kick, &Disturber::kick_at_random);
    begin(Deed::Slot, &Disturber::change_slots);
    begin(Deed::Route, &Disturber::change_routes);
    begin(Deed::Pause, &Disturber::stop_the_world);
}

void Disturber::stop()
{
    stopping_.store(true);
    for (std::thread& thread : threads_) {
        thread.join();
    }
    threads_.clear();
}

void Disturber::wrong(const std::string& sentence)
{
    machine_.stop({vmm_linux::Outcome::Kind::Stuck, 0, sentence});
}

bool Disturber::rest(Random& random, unsigned longest_us)
{
    std::this_thread::sleep_for(std::chrono::microseconds{below(random, longest_us)});
    return !stopping_.load() && !machine_.has_stopped();
}

void Disturber::kick_at_random()
{
    Random random{seed_};
    while (rest(random, 4'000)) {
        const auto vcpus = machine_.vcpus();
        vcpus[below(random, vcpus.size())].kicker().kick();
        note(Deed::Kick);
    }
}

void Disturber::between_runs(vmm::Vcpu& vcpu)
{
    thread_local Random random{seed_ + 100U + vcpu.id()};
    if (wants(Deed::VcpuState) && below(random, 4) == 0U) {
        rewrite_vcpu(vcpu);
    }
    std::unique_lock lock{mutex_};
    if (pause_wanted_) {
        ++parked_;
        changed_.notify_all();
        changed_.wait(lock, [&] { return !pause_wanted_; });
        --parked_;
        changed_.notify_all();
    }
}

void Disturber::rewrite_vcpu(vmm::Vcpu& vcpu)
{
    const State before{vcpu, msrs_};
    if (const auto written = before.write_to(vcpu); !written) {
        return wrong(fmt::format("vCPU {}: its own state is refused: {}", vcpu.id(),
                                 written.error().message()));
    }
    if (const std::string what = before.difference(State{vcpu, msrs_}); !what.empty()) {
        return wrong(
            fmt::format("vCPU {}: written back and read again, this differs: {}", vcpu.id(), what));
    }
    note(Deed::VcpuState);
}

// --- Beside the guest.

void Disturber::change_routes()
{
    Random random{seed_ + 1U};
    while (rest(random, 20'000)) {
        auto routes = vmm_linux::Machine::routing();
        constexpr std::uint32_t first_other_gsi = 24;
        const std::uint64_t others = below(random, 40);
        for (std::uint32_t i = 0; i < others; ++i) {
            routes.push_back(vmm::x86::irqchip::msi_route(
                first_other_gsi + i, Gpa{0xfee0'0000 | below(random, 4) << 12U}, 0xe0));
        }
        std::shuffle(routes.begin(), routes.end(), random);
        if (const auto set = machine_.vm().set_gsi_routing(routes); !set) {
            return wrong(set.error().message());
        }
        note(Deed::Route);
    }
}

void Disturber::change_slots()
{
    constexpr std::size_t slots = 8;
    constexpr std::uint32_t first_slot = 100;
    constexpr std::uint64_t size = 16 * page_size;
    // The guest reads the first place of all: this, or ones where nothing is.
    constexpr std::uint32_t stamp = 0x5107'5107;
    constexpr std::array<std::uint64_t, 2> areas{0xd000'0000, 0x2'0000'0000};
    const auto at = [&](std::uint64_t place) {
        return Gpa{areas[place % areas.size()] + place / areas.size() * size};
    };
    constexpr std::uint64_t places = 2 * slots;
    std::vector<std::uint32_t> words(slots * size / sizeof stamp, stamp);
    const std::unique_ptr<std::byte, decltype(&std::free)> memory{
        static_cast<std::byte*>(std::aligned_alloc(page_size, slots * size)), &std::free};
    std::memcpy(memory.get(), words.data(), slots * size);

    Random random{seed_ + 2U};
    std::array<MemoryRegion, slots> regions{};
    std::array<std::uint64_t, slots> where{};
    where.fill(places);  // That is: not there.
    for (std::size_t slot = 0; slot < slots; ++slot) {
        regions[slot].slot = first_slot + static_cast<std::uint32_t>(slot);
        regions[slot].host = memory.get() + slot * size;
    }
    vmm::Vm& vm = machine_.vm();
    const auto take_away = [&](std::size_t slot) {
        regions[slot].size_bytes = 0;
        where[slot] = places;
        return vm.set_user_memory_region(regions[slot]);
    };
    while (rest(random, 50'000)) {
        const std::size_t slot = below(random, slots);
        const std::uint64_t place = below(random, places);
        MemoryRegion& region = regions[slot];
        auto done = vmm::Result<void>{vmm::success};
        if (where[slot] != places && below(random, 3) == 0U) {
            done = take_away(slot);
        } else if (where[slot] != places && below(random, 3) == 0U) {
            region.flags ^= MemoryFlags::log_dirty;
            done = vm.set_user_memory_region(region);
        } else if (std::find(where.begin(), where.end(), place) == where.end()) {
            // Adds it, or moves it: which KVM does only with the flags that it has.
            if (where[slot] == places) {
                region.flags = static_cast<std::uint32_t>(below(random, MemoryFlags::all + 1U));
            }
            region.guest_phys_addr = at(place);
            region.size_bytes = size;
            where[slot] = place;
            done = vm.set_user_memory_region(region);
        }
        if (!done) {
            return wrong(done.error().message());
        }
        note(Deed::Slot);
        for (std::uint64_t i = 0; i < places; ++i) {
            const bool there = std::find(where.begin(), where.end(), i) != where.end();
            const auto word = vm.memory().read<std::uint32_t>(at(i));
            if (word != (there ? std::optional{stamp} : std::nullopt)) {
                return wrong(fmt::format("guest address {:#x} is {}", at(i).value(),
                                         there ? "not what its slot has" : "in no slot and there"));
            }
        }
    }
    for (std::size_t slot = 0; slot < slots; ++slot) {
        if (where[slot] != places) {
            take_away(slot).value();
        }
    }
}

// --- With all vCPUs stopped.

bool Disturber::while_paused(const std::function<void()>& action)
{
    const auto vcpus = machine_.vcpus();
    std::unique_lock lock{mutex_};
    pause_wanted_ = true;
    const auto begin = std::chrono::steady_clock::now();
    bool all = false;
    while (!all && !machine_.has_stopped()) {
        lock.unlock();
        for (vmm::Vcpu& vcpu : vcpus) {
            vcpu.kicker().kick();
        }
        lock.lock();
        all = changed_.wait_for(lock, std::chrono::milliseconds{100},
                                [&] { return parked_ == vcpus.size(); });
        if (!all && std::chrono::steady_clock::now() - begin > std::chrono::seconds{120}) {
            wrong(fmt::format("{} of {} vCPUs do not leave the guest in two minutes",
                              vcpus.size() - parked_, vcpus.size()));
        }
    }
    if (all) {
        action();
        note(Deed::Pause);
    }
    pause_wanted_ = false;
    changed_.notify_all();
    changed_.wait(lock, [&] { return parked_ == 0; });
    return all;
}

void Disturber::stop_the_world()
{
    Random random{seed_ + 3U};
    log_ram(true);
    bool goes_on = while_paused([&] { forget_changes(); });
    while (goes_on && rest(random, 300'000)) {
        constexpr std::array often{Deed::DirtyCheck, Deed::DirtyCheck, Deed::DirtyCheck,
                                   Deed::Layout,     Deed::LogToggle,  Deed::VcpuState,
                                   Deed::Chips,      Deed::Chips};
        const Deed deed = often[below(random, often.size())];
        if (!wants(deed)) {
            continue;
        }
        if (deed == Deed::LogToggle) {
            log_ram(false);
            static_cast<void>(rest(random, 20'000));
            log_ram(true);
        }
        goes_on = while_paused([&] { do_while_paused(deed, random); });
    }
}

void Disturber::do_while_paused(Deed deed, Random& random)
{
    switch (deed) {
    case Deed::DirtyCheck: compare_dirty_log(random); break;
    case Deed::Layout: lay_out_ram(random); break;
    case Deed::LogToggle:
        forget_changes();
        note(deed);
        break;
    case Deed::VcpuState:
        for (vmm::Vcpu& vcpu : machine_.vcpus()) {
            rewrite_vcpu(vcpu);
        }
        break;
    case Deed::Chips: {
        // On the thread that timers and devices interrupt from: nothing comes between.
        std::promise<void> written;
        machine_.vm().event_loop().post([&] {
            rewrite_chips();
            written.set_value();
        });
        written.get_future().wait();
        break;
    }
    default: break;
    }
}

void Disturber::rewrite_chips()
{
    namespace irqchip = vmm::x86::irqchip;
    vmm::Vm& vm = machine_.vm();
    const auto write = [&]() -> vmm::Result<void> {
        for (vmm::Vcpu& vcpu : machine_.vcpus()) {
            // A timer that expires in between would be set anew by its deadline: read that first.
            VMM_TRY(const std::uint64_t deadline, vcpu.msr(msr_tsc_deadline));
            VMM_TRY(const irqchip::LapicState lapic, vcpu.lapic());
            VMM_TRY_VOID(vcpu.set_lapic(lapic));
            VMM_TRY_VOID(vcpu.set_msr(msr_tsc_deadline, deadline));
        }
        for (const irqchip::ChipId chip : {irqchip::ChipId::PicMaster, irqchip::ChipId::PicSlave}) {
            VMM_TRY(const irqchip::PicState pic, vm.pic(chip));
            VMM_TRY_VOID(vm.set_pic(chip, pic));
        }
        VMM_TRY(const irqchip::IoApicState io_apic, vm.io_apic());
        VMM_TRY_VOID(vm.set_io_apic(io_apic));
        VMM_TRY(const irqchip::PitState pit, vm.pit());
        VMM_TRY_VOID(vm.set_pit(pit));
        const auto begin = std::chrono::steady_clock::now();
        const std::uint64_t clock = vm.clock_ns();
        if (std::chrono::steady_clock::now() - begin < std::chrono::milliseconds{10}) {
            vm.set_clock_ns(clock);  // Else this process was stopped, and the clock would go back.
        }
        return vmm::success;
    };
    if (const auto written = write(); !written) {
        return wrong(written.error().message());
    }
    note(Deed::Chips);
}

void Disturber::log_ram(bool logs)
{
    for (MemoryRegion& region : ram_) {
        region.flags = logs ? MemoryFlags::log_dirty : 0U;
        if (const auto set = machine_.vm().set_user_memory_region(region); !set) {
            wrong(set.error().message());
        }
    }
}

void Disturber::lay_out_ram(Random& random)
{
    vmm::Vm& vm = machine_.vm();
    std::vector<MemoryRegion> wanted;
    for (const MemoryRegion& whole : machine_.ram()) {
        std::uint64_t done = 0;
        while (done < whole.size_bytes) {
            const std::uint64_t left = (whole.size_bytes - done) / page_size;
            const std::uint64_t pages = below(random, 2) == 0U ? left : 1 + below(random, left);
            MemoryRegion part;
            part.slot = static_cast<std::uint32_t>(wanted.size());
            part.guest_phys_addr = Gpa{whole.guest_phys_addr.value() + done};
            part.size_bytes = pages * page_size;
            part.host = whole.host + done;
            part.flags = MemoryFlags::log_dirty;
            wanted.push_back(part);
            done += part.size_bytes;
        }
    }
    const auto lay_out = [&]() -> vmm::Result<void> {
        for (MemoryRegion region : std::exchange(ram_, wanted)) {
            region.size_bytes = 0;
            VMM_TRY_VOID(vm.set_user_memory_region(region));
        }
        for (MemoryRegion region : ram_) {
            if (below(random, 4) == 0U) {
                region.flags |= MemoryFlags::read_only;
                VMM_TRY_VOID(vm.set_user_memory_region(region));
                const std::uint64_t size = std::exchange(region.size_bytes, 0);
                VMM_TRY_VOID(vm.set_user_memory_region(region));
                region.size_bytes = size;
                region.flags = MemoryFlags::log_dirty;
            }
            VMM_TRY_VOID(vm.set_user_memory_region(region));
        }
        return vmm::success;
    };
    if (const auto done = lay_out(); !done) {
        return wrong(done.error().message());
    }
    forget_changes();
    note(Deed::Layout);
}

/// What is in memory now is what it is compared with later.
void Disturber::forget_changes()
{
    Random none{0};
    before_.resize(ram_.size());
    for (std::size_t i = 0; i < ram_.size(); ++i) {
        const MemoryRegion& region = ram_[i];
        static_cast<void>(take_dirty_log(region, none));
        before_[i].resize(region.size_bytes);
        std::memcpy(before_[i].data(), region.host, region.size_bytes);
    }
}

std::vector<std::uint64_t> Disturber::take_dirty_log(const MemoryRegion& region, Random& random)
{
    vmm::Vm& vm = machine_.vm();
    const std::uint64_t pages = region.size_bytes / page_size;
    constexpr std::uint64_t unit = 64;
    const auto take = [&]() -> vmm::Result<std::vector<std::uint64_t>> {
        if (below(random, 2) == 0U) {
            return vm.dirty_log(region.slot);
        }
        VMM_TRY(auto log, vm.peek_dirty_log(region.slot));
        for (std::uint64_t first = 0; first < pages;) {
            const std::uint64_t count =
                std::min(pages - first, unit * (1U + below(random, pages / unit + 1U)));
            VMM_TRY_VOID(vm.clear_dirty_log(region.slot, first, count,
                                            std::span{log}.subspan(first / unit)));
            first += count;
        }
        return log;
    };
    auto log = take();
    if (!log) {
        wrong(log.error().message());
        return std::vector<std::uint64_t>((pages + unit - 1U) / unit);
    }
    return std::move(*log);
}

void Disturber::compare_dirty_log(Random& random)
{
    constexpr std::uint64_t bits = 64;
    for (std::size_t i = 0; i < ram_.size(); ++i) {
        const MemoryRegion& region = ram_[i];
        const auto log = take_dirty_log(region, random);
        for (std::uint64_t page = 0; page < region.size_bytes / page_size; ++page) {
            const std::byte* const now = region.host + page * page_size;
            std::byte* const before = before_[i].data() + page * page_size;
            if ((log[page / bits] >> page % bits & 1U) != 0U) {
                std::memcpy(before, now, page_size);
                note(Deed::DirtyPage);
            } else if (std::memcmp(before, now, page_size) != 0) {
                return wrong(
                    fmt::format("the page at {:#x} has changed and is not in the dirty log",
                                region.guest_phys_addr.value() + page * page_size));
            }
        }
    }
    note(Deed::DirtyCheck);
}

}  // namespace endure
