// SPDX-License-Identifier: Apache-2.0

/// @file
/// Guest code on the software engine: load bytes, set registers and mode, run to HLT.
///
///     Guest guest;
///     guest.long_mode();
///     guest.load(Guest::code, {0x48, 0xff, 0xc0, 0xf4});   // inc rax; hlt
///     EXPECT_EQ(guest.run(), Reason::Halt);

#pragma once

#include <algorithm>
#include <array>
#include <atomic>
#include <cstring>
#include <functional>
#include <initializer_list>
#include <map>
#include <memory>
#include <span>
#include <string_view>
#include <vector>

#include <sys/mman.h>

#include "vmm/x86/control_registers.hpp"
#include "x86/cpuid.hpp"
#include "x86/engine.hpp"
#include "x86/soft/engine.hpp"

namespace vmm::x86::soft::test {

using Reason = EngineExit::Reason;

/// RAM from 0 on; everything beyond is MMIO.
class GuestRam final : public PhysicalMemory {
public:
    explicit GuestRam(std::size_t size) : size_(size)
    {
        void* const memory = ::mmap(nullptr, size, PROT_READ | PROT_WRITE,
                                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        bytes_ = memory == MAP_FAILED ? nullptr : static_cast<std::byte*>(memory);
    }
    ~GuestRam() override { ::munmap(bytes_, size_); }
    GuestRam(const GuestRam&) = delete;
    GuestRam& operator=(const GuestRam&) = delete;
    GuestRam(GuestRam&&) = delete;
    GuestRam& operator=(GuestRam&&) = delete;

    [[nodiscard]] Page page(std::uint64_t gfn) noexcept override
    {
        if (gfn >= size_ / 4096 || (gfn >= hole_first && gfn <= hole_last)) {
            return {};
        }
        return {bytes_ + gfn * 4096, true, false};
    }
    void mark_dirty(std::uint64_t /*gfn*/) noexcept override {}

    [[nodiscard]] std::byte* at(std::uint64_t gpa) noexcept { return bytes_ + gpa; }
    [[nodiscard]] std::size_t size() const noexcept { return size_; }

    std::uint64_t hole_first{~std::uint64_t{0}};  ///< Frames without memory: MMIO.
    std::uint64_t hole_last{};

private:
    std::byte* bytes_{};
    std::size_t size_;
};

/// Answers nothing unless told.
class GuestHost final : public VcpuHost {
public:
    bool mmio_read(Gpa gpa, std::span<std::byte> data) noexcept override
    {
        return on_mmio_read && on_mmio_read(gpa.value(), data);
    }
    bool mmio_write(Gpa gpa, std::span<const std::byte> data) noexcept override
    {
        return on_mmio_write && on_mmio_write(gpa.value(), data);
    }
    bool port_read(Port port, std::span<std::byte> data) noexcept override
    {
        return on_port_read && on_port_read(port.value(), data);
    }
    bool port_write(Port port, std::span<const std::byte> data) noexcept override
    {
        return on_port_write && on_port_write(port.value(), data);
    }
    MsrResult read_msr(std::uint32_t, std::uint64_t&) noexcept override { return MsrResult::Fault; }
    MsrResult write_msr(std::uint32_t, std::uint64_t) noexcept override { return MsrResult::Fault; }
    void write_cr8(std::uint64_t value) noexcept override { cr8 = value; }
    std::uint64_t read_cr8() noexcept override { return cr8; }
    std::uint64_t guest_tsc() noexcept override { return ++tsc; }
    void hypercall(CpuState& /*state*/) noexcept override {}

    std::function<bool(std::uint64_t, std::span<std::byte>)> on_mmio_read{};
    std::function<bool(std::uint64_t, std::span<const std::byte>)> on_mmio_write{};
    std::function<bool(std::uint16_t, std::span<std::byte>)> on_port_read{};
    std::function<bool(std::uint16_t, std::span<const std::byte>)> on_port_write{};
    std::uint64_t cr8{};
    std::uint64_t tsc{};
};

/// A VM with one vCPU, more on demand, and tables at fixed places.
class Guest {
public:
    static constexpr std::uint64_t tables = 0x1000;  ///< Paging structures, five pages.
    static constexpr std::uint64_t gdt = 0x8000;
    static constexpr std::uint64_t idt = 0x9000;  ///< Handlers: `hlt` at idt_code + vector.
    static constexpr std::uint64_t tss = 0xa000;  ///< 64-bit, RSP0 = `stack`, no I/O bitmap.
    static constexpr std::uint64_t idt_code = 0xb000;
    static constexpr std::uint64_t code = 0x10000;
    static constexpr std::uint64_t data = 0x20000;
    static constexpr std::uint64_t stack = 0x40000;     ///< Grows down from here.
    static constexpr std::uint64_t mmio = 0x3000'0000;  ///< No memory.

    explicit Guest(std::size_t memory = std::size_t{16} << 20U,
                   TranslationMode translation = translation_mode().value())
        : ram(memory)
    {
        Result<std::unique_ptr<EngineVm>> made = create_soft_vm(ram, translation);
        vm = std::move(made).value();
        vcpu = add_vcpu(host);
    }

    std::unique_ptr<EngineVcpu> add_vcpu(VcpuHost& its_host)
    {
        std::unique_ptr<EngineVcpu> made = vm->create_vcpu(its_host, 0).value();
        reset_state(made->state(), false);
        const std::vector<CpuidEntry> leaves = supported_cpuid(1'000'000);
        made->state().cpuid = Cpuid{leaves};
        return made;
    }

    [[nodiscard]] CpuState& state() { return vcpu->state(); }
    [[nodiscard]] std::uint64_t& reg(Gpr number) { return state().gpr[number]; }

    void load(std::uint64_t gpa, std::span<const std::uint8_t> bytes)
    {
        std::ranges::copy(std::as_bytes(bytes), ram.at(gpa));
    }
    void load(std::uint64_t gpa, std::initializer_list<std::uint8_t> bytes)
    {
        load(gpa, std::span{bytes.begin(), bytes.size()});
    }
    template <typename T>
    void put(std::uint64_t gpa, T value)
    {
        std::memcpy(ram.at(gpa), &value, sizeof(T));
    }
    template <typename T>
    [[nodiscard]] T get(std::uint64_t gpa)
    {
        T value{};
        std::memcpy(&value, ram.at(gpa), sizeof(T));
        return value;
    }

    /// CS, DS, ES, SS at paragraph 0, IP = `code` & 0xffff with CS covering it.
    void real_mode()
    {
        CpuState& s = state();
        for (Segment& segment : s.seg) {
            segment = {};
            segment.limit = 0xffff;
            segment.type = 3;
            segment.present = 1;
            segment.s = 1;
        }
        s.seg[Cs].type = 11;
        s.seg[Cs].selector = code >> 4U;
        s.seg[Cs].base = code;
        s.seg[Ds].selector = data >> 4U;
        s.seg[Ds].base = data;
        s.seg[Es] = s.seg[Ds];
        s.rip = 0;
        s.gpr[Rsp] = 0x8000;
        s.rflags = 2;
        vcpu->state_changed();
    }

    /// Flat 32-bit segments, no paging, ring 0.
    void protected_mode()
    {
        CpuState& s = state();
        s.cr0 = 0x31;
        s.efer = 0;
        flat_segments(s, false);
        s.rip = code;
        s.gpr[Rsp] = stack;
        s.rflags = 2;
        write_gdt();
        write_idt(false);
        vcpu->state_changed();
    }

    /// 64-bit code; the first GiB mapped one to one by 2 MiB pages, `mmio` with it.
    void long_mode()
    {
        write_page_tables();
        write_gdt();
        write_idt(true);
        std::memset(ram.at(tss), 0, 0x68);
        put<std::uint64_t>(tss + 4, stack);
        put<std::uint16_t>(tss + 0x66, 0x68);
        long_mode(*vcpu);
    }
    /// Another vCPU like that.
    static void long_mode(EngineVcpu& which)
    {
        CpuState& s = which.state();
        s.cr0 = 0x8000'0033;
        s.cr3 = tables;
        s.cr4 = 0x6a0 | (1U << 9U);  // PAE, PGE, OSFXSR, OSXMMEXCPT
        s.efer = 0xd01;              // SCE, LME, LMA, NXE
        flat_segments(s, true);
        s.gdt = {gdt, 0x7f, {}};
        s.idt = {idt, 0xfff, {}};
        s.tr = {};
        s.tr.base = tss;
        s.tr.limit = 0x67;
        s.tr.selector = 0x28;
        s.tr.type = 11;
        s.tr.present = 1;
        s.rip = code;
        s.gpr[Rsp] = stack;
        s.rflags = 2;
        which.state_changed();
    }

    /// Ring 3 in the current 64-bit mode.
    void user_mode()
    {
        CpuState& s = state();
        for (Segment& segment : s.seg) {
            segment.dpl = 3;
            segment.selector = static_cast<std::uint16_t>(segment.selector | 3U);
        }
        vcpu->state_changed();
    }

    /// Runs to the first exit; afterwards `exit` says more.
    Reason run()
    {
        exit = vcpu->enter();
        return exit.reason;
    }
    /// Continues over `Interrupted` exits too.
    Reason run_to_halt(unsigned most = 1000)
    {
        Reason reason = run();
        while (reason != Reason::Halt && reason != Reason::Shutdown && most-- > 0) {
            reason = run();
        }
        return reason;
    }

    /// After a halt: the vector whose handler (see `idt`) executed it, or -1.
    [[nodiscard]] int halted_by_vector()
    {
        const std::uint64_t rip = state().rip;
        return rip > idt_code && rip <= idt_code + 512 ? static_cast<int>((rip - 1 - idt_code) / 2)
                                                       : -1;
    }
    /// What an exception handler in 64-bit mode finds on its stack, from the top.
    [[nodiscard]] std::uint64_t stack_word(unsigned index)
    {
        return get<std::uint64_t>(reg(Rsp) + std::uint64_t{index} * 8);
    }

    GuestRam ram;
    GuestHost host;
    std::unique_ptr<EngineVm> vm;
    std::unique_ptr<EngineVcpu> vcpu;
    EngineExit exit{};

private:
    static void flat_segments(CpuState& s, bool wide)
    {
        for (Segment& segment : s.seg) {
            segment = {};
            segment.selector = 0x10;
            segment.limit = 0xffff'ffff;
            segment.type = 3;
            segment.present = 1;
            segment.s = 1;
            segment.db = 1;
            segment.g = 1;
        }
        s.seg[Cs].selector = 8;
        s.seg[Cs].type = 11;
        s.seg[Cs].l = wide ? 1 : 0;
        s.seg[Cs].db = wide ? 0 : 1;
        s.gdt = {gdt, 0x7f, {}};
        s.idt = {idt, wide ? std::uint16_t{0xfff} : std::uint16_t{0x7ff}, {}};
    }

    void write_page_tables()
    {
        std::memset(ram.at(tables), 0, 5 * 4096);
        put<std::uint64_t>(tables, (tables + 0x1000) | 7U);
        put<std::uint64_t>(tables + 0x1000, (tables + 0x2000) | 7U);
        for (std::uint64_t i = 0; i < 512; ++i) {
            put<std::uint64_t>(tables + 0x2000 + i * 8, (i << 21U) | 0x87U);
        }
        // The first 2 MiB by 4 KiB pages, so that tests can change single ones.
        put<std::uint64_t>(tables + 0x2000, (tables + 0x3000) | 7U);
        for (std::uint64_t i = 0; i < 512; ++i) {
            put<std::uint64_t>(tables + 0x3000 + i * 8, (i << 12U) | 7U);
        }
    }

    void write_gdt()
    {
        std::memset(ram.at(gdt), 0, 0x80);
        put<std::uint64_t>(gdt + 8, 0x00af'9b00'0000'ffff);     // 64-bit code; see write_idt().
        put<std::uint64_t>(gdt + 0x10, 0x00cf'9300'0000'ffff);  // data
        put<std::uint64_t>(gdt + 0x18, 0x00cf'9b00'0000'ffff);  // 32-bit code
    }

    void write_idt(bool wide)
    {
        std::memset(ram.at(idt), 0, 0x1000);
        for (std::uint64_t vector = 0; vector < 256; ++vector) {
            const std::uint64_t handler = idt_code + vector * 2;
            put<std::uint8_t>(handler, 0xf4);
            put<std::uint8_t>(handler + 1, 0xf4);
            if (wide) {
                put<std::uint64_t>(idt + vector * 16, 0x8e00'0008'0000U | (handler & 0xffffU));
            } else {
                put<std::uint64_t>(idt + vector * 8, 0x8e00'0018'0000U | (handler & 0xffffU));
            }
        }
    }
};

}  // namespace vmm::x86::soft::test
