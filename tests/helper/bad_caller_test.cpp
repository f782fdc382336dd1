// SPDX-License-Identifier: Apache-2.0

// The helper against callers that mean it harm: what counts is that the kernel goes on, and says
// nothing in its log (tests/hardware.sh looks).  VMM_HELPER_CALLS and VMM_HELPER_KILLS say how
// much.

#include <atomic>
#include <csignal>
#include <ctime>
#include <iostream>
#include <random>
#include <thread>
#include <vector>

#include <sys/wait.h>
#include <unistd.h>

#include "effort.hpp"
#include "helper/caller.hpp"

namespace vmm {
namespace {

using test::call;
using test::Caller;

class HelperBadCaller : public test::HelperTest {};

using Random = std::mt19937_64;

std::uint32_t word(Random& random)
{
    return static_cast<std::uint32_t>(random());
}

// QEMU 7.2 does not restore the host's CR0 when a guest with EFER.LME and without CR4.PAE leaves
// (cpu_x86_update_cr0 returns early), which is the end of the machine; so does each entry that
// the CPU refuses, which the helper does not let happen.

/// EFER and CR4 in the area, as words.
bool is_long_mode_word(std::uint64_t at_word)
{
    constexpr std::uint64_t svm_at = offsetof(vmm_vcpu_area, svm);
    return at_word / 2 == (svm_at + offsetof(vmm_svm, efer)) / 8 ||
           at_word / 2 == (svm_at + offsetof(vmm_svm, cr4)) / 8;
}

void spare_qemu(vmm_svm& svm)
{
    if ((svm.efer & 0x100U) != 0) {
        svm.cr4 |= 0x20U;
    }
}

/// What another thread does to a VM that runs.
void disturb(Caller& c, Random& random)
{
    std::byte* const at = c.memory + 0x20'0000;
    switch (random() % 9U) {
    case 0: ::madvise(c.memory + random() % 0x400U * 0x1000U, 0x1000, MADV_DONTNEED); break;
    case 1:
        ::mprotect(at, 0x8'0000, random() % 2U != 0 ? PROT_READ : PROT_READ | PROT_WRITE);
        break;
    case 2: ::munmap(at + 0x10'0000, 0x1000); break;
    case 3:
        ::mmap(at + 0x10'0000, 0x1000, PROT_READ | PROT_WRITE,
               MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
        break;
    case 4: {
        vmm_region region = c.whole();
        region.slot = static_cast<std::uint32_t>(random() % 4U);
        region.flags = static_cast<std::uint32_t>(random() % 8U);
        region.guest_address = random() % 4U * Caller::memory_size;
        region.size = random() % 2U * Caller::memory_size;
        static_cast<void>(call(c.vm, VMM_SET_REGION, &region));
        static_cast<void>(c.add_memory(VMM_REGION_LOG_DIRTY));
        break;
    }
    case 5: {
        std::vector<std::uint64_t> bits(Caller::memory_size / 4096 / 64);
        vmm_dirty dirty{};
        dirty.slot = static_cast<std::uint32_t>(random() % 4U);
        dirty.bitmap = reinterpret_cast<std::uintptr_t>(bits.data());
        dirty.first = random() % 20U;
        dirty.words = random() % 20U;
        static_cast<void>(call(c.vm, VMM_TAKE_DIRTY, &dirty));
        break;
    }
    case 6:
        // Random code may well be an endless loop.
        __atomic_store_n(&c.area->immediate_exit, 1U, __ATOMIC_SEQ_CST);
        static_cast<void>(call(c.vcpu, VMM_KICK));
        break;
    case 7: static_cast<void>(call(c.vcpu, VMM_RUN)); break;
    default:
        if (const std::uint64_t at_word = random() % 1024U;
            c.is_vmx() || !is_long_mode_word(at_word)) {
            reinterpret_cast<volatile std::uint32_t*>(c.area)[at_word] = word(random);
        }
        break;
    }
}

void mutate_controls(vmm_svm& svm, Random& random)
{
    svm.intercepts[random() % 6U] = word(random);
}

void mutate_controls(vmm_vmx& vmx, Random& random)
{
    std::uint32_t* const controls[] = {&vmx.primary, &vmx.secondary, &vmx.exceptions};
    *controls[random() % 3U] ^= 1U << (random() % 32U);
    vmx.cr0_mask ^= 1ULL << (random() % 64U);
    vmx.small_exits = random();
}

/// Valid state with some of it spoilt.
template <typename Vendor>
void mutate(vmm_vcpu_area& area, Vendor& vendor, Random& random)
{
    auto* const bytes = reinterpret_cast<unsigned char*>(&area);
    switch (random() % 8U) {
    case 0: bytes[random() % 0x2a0U] ^= static_cast<unsigned char>(1U << (random() % 8U)); break;
    case 1: area.rip = random() % 0x1'0000U; break;
    case 2: area.gpr[random() % 16U] = random(); break;
    case 3: vendor.event_inj = 0x8000'0000U | (word(random) & 0xfffU); break;
    case 4: mutate_controls(vendor, random); break;
    case 5:
        vendor.cr0 = word(random);
        vendor.cr3 = random() % Caller::memory_size;
        vendor.cr4 = word(random) & 0x37'07ffU;
        vendor.efer = word(random) & 0xd01U;
        break;
    case 6: area.rflags = word(random); break;
    default: vendor.dr7 = word(random); break;
    }
}

int random_call(Caller& c, Random& random)
{
    static constexpr unsigned long requests[] = {
        VMM_GET_INFO, VMM_CREATE_VM, VMM_CREATE_VCPU, VMM_SET_REGION, VMM_TAKE_DIRTY,
        VMM_RUN,      VMM_KICK,      VMM_FETCH,       VMM_SET_CPUID,  0};
    const UniqueFd* const descriptors[] = {&c.device, &c.vm, &c.vcpu};
    std::uint32_t buffer[16];
    for (std::uint32_t& each : buffer) {
        each = random() % 2U != 0 ? word(random) % 0x100U : word(random);
    }
    void* const argument =
        random() % 16U == 0 ? reinterpret_cast<void*>(random()) : static_cast<void*>(buffer);
    const unsigned long request = requests[random() % std::size(requests)];
    const int result = call(*descriptors[random() % 3U], request, argument);
    if (result > 2 && (request == VMM_CREATE_VM || request == VMM_CREATE_VCPU)) {
        const UniqueFd made{result};
    }
    return result;
}

/// Returns how many runs entered the guest.
std::uint64_t misbehave(std::uint64_t seed, std::uint64_t calls)
{
    Random random{seed};
    Caller c;
    static_cast<void>(c.add_memory(VMM_REGION_LOG_DIRTY));
    for (std::size_t i = 0; i < Caller::memory_size; i += 8) {
        const std::uint64_t value = random();
        std::memcpy(c.memory + i, &value, sizeof value);
    }
    std::atomic<bool> stop{};
    std::thread other{[&] {
        Random its{seed + 1};
        while (!stop) {
            disturb(c, its);
        }
    }};
    std::uint64_t entered = 0;
    for (std::uint64_t i = 0; i < calls; ++i) {
        if (random() % 4U == 0) {
            static_cast<void>(random_call(c, random));
            continue;
        }
        c.reset();
        for (std::uint64_t n = random() % 3U; n != 0; --n) {
            if (c.is_vmx()) {
                mutate(*c.area, c.area->vmx, random);
            } else {
                mutate(*c.area, c.area->svm, random);
                spare_qemu(c.area->svm);
            }
        }
        c.area->immediate_exit = random() % 8U == 0 ? 1 : 0;
        if (call(c.vcpu, VMM_RUN) == 0) {
            entered += c.area->exit_kind == VMM_EXIT_HARDWARE ? 1U : 0U;
        }
    }
    stop = true;
    other.join();
    return entered;
}

TEST_F(HelperBadCaller, RandomCallsAndStatesHarmNobody)
{
    const std::uint64_t calls = test::effort("VMM_HELPER_CALLS", 20'000);
    const std::uint64_t entered = misbehave(test::effort("VMM_HELPER_SEED", 1), calls);
    RecordProperty("entered", std::to_string(entered));
    std::cout << calls << " calls, of which " << entered << " ended in an exit of the guest\n";
    EXPECT_GT(entered, 0U) << "all of it is refused: this tests little";
}

TEST_F(HelperBadCaller, KilledAtAnyMomentLeavesNothingBehind)
{
    const std::uint64_t kills = test::effort("VMM_HELPER_KILLS", 20);
    for (std::uint64_t i = 0; i < kills; ++i) {
        const pid_t child = ::fork();
        if (child == 0) {
            misbehave(i * 7919 + 3, ~std::uint64_t{0});
            ::_exit(0);
        }
        const timespec some{0, static_cast<long>(20 + i * 37 % 200) * 1'000'000};
        ::nanosleep(&some, nullptr);
        ::kill(child, SIGKILL);
        int status = 0;
        ASSERT_EQ(::waitpid(child, &status, 0), child);
        EXPECT_EQ(WTERMSIG(status), SIGKILL);
    }
    Caller c;
    ASSERT_EQ(c.add_memory(), 0);
    c.place(Caller::code_at, {0xf4});
    EXPECT_EQ(c.run(), 0);
    EXPECT_EQ(c.ended(), Caller::Ended::Hlt);
}

}  // namespace
}  // namespace vmm
