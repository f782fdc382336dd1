// SPDX-License-Identifier: Apache-2.0

#include "fuzz/machine.hpp"

#include <algorithm>
#include <cstring>

#include "fuzz/watchdog.hpp"

namespace vmm::fuzz {
namespace {

constexpr std::uint64_t rflags_settable = 0x3f'7fd7;

/// Zeros where tables and stacks are, HLT everywhere else, so that a guest that runs away stops.
/// Page-aligned, as a slot's memory must be.
std::byte* fresh_memory()
{
    using Layout = Machine::Layout;
    alignas(4096) static std::array<std::byte, Machine::memory_size> memory;
    memory.fill(std::byte{0xf4});
    std::fill_n(memory.begin(), Machine::code_at, std::byte{});
    std::fill(memory.begin() + Layout::gdt, memory.begin() + Layout::data_end, std::byte{});
    std::fill(memory.begin() + Layout::tables, memory.end(), std::byte{});
    return memory.data();
}

/// Opened once: it probes the engine, and its event loop lives as long as a VM does.
Kvm& the_kvm()
{
    static Kvm kvm = Kvm::open({Engine::Soft}).value();
    static const Vm keeper = kvm.create_vm().value();
    return kvm;
}

Vcpu make_vcpu(Kvm& kvm, Vm& vm, std::byte* memory, Machine::Irqchip irqchip)
{
    vm.set_user_memory_region(
          {.guest_phys_addr = Gpa{0}, .size_bytes = Machine::memory_size, .host = memory})
        .value();
    if (irqchip == Machine::Irqchip::Present) {
        vm.create_irqchip().value();
        vm.create_pit().value();
    }
    Vcpu vcpu = vm.create_vcpu(0).value();
    static const std::vector<x86::CpuidEntry> cpuid = kvm.supported_cpuid();
    vcpu.set_cpuid(cpuid).value();
    return vcpu;
}

x86::Segment flat(std::uint16_t selector, std::uint8_t type, Mode mode)
{
    x86::Segment s;
    s.limit = mode == Mode::Real ? 0xffff : 0xffff'ffff;
    s.selector = selector;
    s.type = type;
    s.present = 1;
    s.s = 1;
    const bool is_64 = mode == Mode::Long && type == 11;
    s.g = mode == Mode::Real ? 0 : 1;
    s.db = mode == Mode::Real || is_64 ? 0 : 1;
    s.l = is_64 ? 1 : 0;
    return s;
}

bool is_long(Mode mode)
{
    return mode == Mode::Long || mode == Mode::Compatibility;
}

class Scratch final : public bus::DeviceBase {
public:
    void read(std::uint64_t offset, std::span<std::byte> data) noexcept override
    {
        std::fill(data.begin(), data.end(), static_cast<std::byte>(offset));
    }
    void write(std::uint64_t /*offset*/, std::span<const std::byte> /*data*/) noexcept override {}
};

}  // namespace

Machine::Machine(Irqchip irqchip)
    : irqchip_{irqchip},
      memory_{fresh_memory()},
      kvm_{the_kvm()},
      vm_{kvm_.create_vm().value()},
      vcpu_{make_vcpu(kvm_, vm_, memory_, irqchip)}
{
}

void Machine::put(std::uint64_t at, std::uint64_t value, std::size_t size) noexcept
{
    std::memcpy(memory_ + at, &value, size);
}

/// Code, data, user code and data, a TSS, a call gate; 64-bit code at 0x18 in long mode.
void Machine::place_descriptors(Mode mode)
{
    constexpr std::uint64_t g = Layout::gdt;
    put(g + 0x08, 0x00cf'9b00'0000'ffff);
    put(g + 0x10, 0x00cf'9300'0000'ffff);
    put(g + 0x18, is_long(mode) ? 0x00af'9b00'0000'ffff : 0x008f'9b00'0000'ffff);
    put(g + 0x20, 0x00cf'f300'0000'ffff);
    put(g + 0x28, is_long(mode) ? 0x00af'fb00'0000'ffff : 0x00cf'fb00'0000'ffff);
    put(g + 0x30, 0x0000'8900'0000'0068 | Layout::tss << 16U);
    put(g + 0x40,
        (is_long(mode) ? 0x0000'ec00'0018'0000 : 0x0000'ec00'0008'0000) | Layout::handlers);
    put(g + 0x50, 0x0000'8900'0000'0068 | (Layout::tss + 0x100) << 16U);
    put(g + 0x60, 0x0000'e500'0050'0000);  // A task gate to the second TSS.
    for (const std::uint64_t tss : {Layout::tss, Layout::tss + 0x100}) {
        put(tss + 4, is_long(mode) ? 0x8000 : 0x10'0000'8000, 8);  // RSP0, or ESP0 and SS0.
        put(tss + 0x20, code_at, 4);
        put(tss + 0x24, 2, 4);
        put(tss + 0x38, 0x7000, 4);
        put(tss + 0x48, 0x10'0000'0010, 8);
        put(tss + 0x4c, 8, 4);
        put(tss + 0x50, 0x10'0000'0010, 8);
        put(tss + 0x66, 0x68, 2);
    }
}

/// Every vector to a handler of its own, which returns.
void Machine::place_gates(Mode mode)
{
    for (std::uint64_t vector = 0; vector < 64; ++vector) {
        const std::uint64_t handler = Layout::handlers + 8 * vector;
        const std::uint64_t at = Layout::idt;
        if (mode == Mode::Real) {
            put(4 * vector, handler, 4);
        } else if (is_long(mode)) {
            put(at + 16 * vector, 0x0000'8e00'0018'0000 | handler);
        } else {
            put(at + 8 * vector, 0x0000'ee00'0008'0000 | handler);
        }
        constexpr std::uint64_t iret = 0xcf;
        constexpr std::uint64_t iretq = 0xcf48;
        put(handler, is_long(mode) ? iretq : iret);
        if (vector == 6 || vector == 13 || vector == 14) {
            put(handler, 0xf4);  // HLT: the guest has gone wrong.
        }
    }
}

/// The first megabytes to themselves, also at the top of the canonical half.
void Machine::place_page_tables(Mode mode)
{
    constexpr std::uint64_t t = Layout::tables;
    if (mode == Mode::Paged) {
        for (std::uint64_t i = 0; i < 4; ++i) {
            put(t + 4 * i, i << 22U | 0x87U, 4);
        }
        return;
    }
    const bool pae = mode == Mode::Pae;
    put(t, (t + 0x1000) | (pae ? 1U : 7U));
    put(t + 0xff8, (t + 0x1000) | 7U);
    put(t + 0x1000, pae ? 0x87 : (t + 0x2000) | 7U);
    put(t + 0x2000, (t + 0x3000) | 7U);
    put(t + 0x2008, 0x20'0087);
    for (std::uint64_t page = 0; page < 128; ++page) {
        put(t + 0x3000 + 8 * page, page << 12U | 7U);
    }
}

void Machine::enter(Mode mode)
{
    place_gates(mode);
    x86::Sregs sregs = vcpu_.sregs();
    sregs.cs = flat(is_long(mode) && mode != Mode::Compatibility ? 0x18 : 8, 11, mode);
    for (x86::Segment* s : {&sregs.ds, &sregs.es, &sregs.fs, &sregs.gs, &sregs.ss}) {
        *s = flat(0x10, 3, mode);
    }
    if (mode == Mode::Real) {
        for (x86::Segment* s : {&sregs.cs, &sregs.ds, &sregs.es, &sregs.fs, &sregs.gs, &sregs.ss}) {
            s->selector = 0;
        }
        sregs.idt = {0, 0x3ff};
    } else {
        place_descriptors(mode);
        sregs.cr0 |= 0x33;  // PE, MP, NE.
        sregs.gdt = {Layout::gdt, 0x7f};
        sregs.idt = {Layout::idt, 0x3ff};
        sregs.tr.base = Layout::tss;
        sregs.tr.selector = 0x30;
        sregs.tr.limit = 0x68;
        sregs.tr.type = 11;
        sregs.tr.present = 1;
        sregs.tr.s = 0;
    }
    sregs.cr4 |= 0x600;  // OSFXSR, OSXMMEXCPT.
    if (mode == Mode::Paged || mode == Mode::Pae || is_long(mode)) {
        place_page_tables(mode);
        sregs.cr0 |= 0x8000'0000;
        sregs.cr4 |= mode == Mode::Paged ? 0x10 : 0x20;
        sregs.cr3 = Layout::tables;
    }
    if (is_long(mode)) {
        sregs.efer = 0xd01;  // SCE, LME, LMA, NXE.
    }
    vcpu_.set_sregs(sregs).value();
    vcpu_.set_regs({.rax = 0x1234,
                    .rcx = 4,
                    .rdx = 0x3f8,
                    .rsi = 0x9000,
                    .rdi = 0xa000,
                    .rsp = 0x8000,
                    .rbp = 0x8000,
                    .rip = code_at,
                    .rflags = 0x202});
}

// --- State from outside.

void Machine::change_registers(Input& input)
{
    x86::Regs regs = vcpu_.regs();
    if (input.flag()) {
        input.fill(regs);
    }
    regs.rip = input.flag() ? code_at : input.number();
    regs.rflags = input.u32();
    vcpu_.set_regs(regs);
    x86::Regs expected = regs;
    expected.rflags = (regs.rflags & rflags_settable) | 2U;
    FUZZ_CHECK(vcpu_.regs() == expected);
}

void Machine::change_system_registers(Input& input)
{
    x86::Sregs sregs = vcpu_.sregs();
    const x86::Sregs before = sregs;
    for (std::size_t count = 1 + input.below(4); count != 0; --count) {
        x86::Segment* const segments[] = {&sregs.cs, &sregs.ds, &sregs.es, &sregs.fs,
                                          &sregs.gs, &sregs.ss, &sregs.tr, &sregs.ldt};
        std::uint64_t* const registers[] = {&sregs.cr0, &sregs.cr2,  &sregs.cr3,      &sregs.cr4,
                                            &sregs.cr8, &sregs.efer, &sregs.apic_base};
        switch (input.below(4)) {
        case 0: input.fill(*segments[input.below(8)]); break;
        case 1: *registers[input.below(7)] = input.number(); break;
        case 2: *registers[input.below(7)] ^= std::uint64_t{1} << (input.u8() & 63U); break;
        default: {
            x86::DescriptorTable& table = input.flag() ? sregs.gdt : sregs.idt;
            table.base = input.number();
            table.limit = input.u16();
            break;
        }
        }
    }
    const auto set = vcpu_.set_sregs(sregs);
    const x86::Sregs now = vcpu_.sregs();
    if (!set) {
        FUZZ_CHECK(now == before);
        return;
    }
    FUZZ_CHECK(now.cr0 == (sregs.cr0 | x86::Cr0::ET.mask));
    FUZZ_CHECK(now.cr2 == sregs.cr2 && now.cr3 == sregs.cr3 && now.cr4 == sregs.cr4);
    FUZZ_CHECK(now.cr8 == sregs.cr8 && now.efer == sregs.efer);
    FUZZ_CHECK(now.apic_base == sregs.apic_base);
    FUZZ_CHECK(now.cs.base == sregs.cs.base && now.cs.limit == sregs.cs.limit);
    FUZZ_CHECK(now.cs.selector == sregs.cs.selector && now.gdt.base == sregs.gdt.base);
    // What one saves is what one can set, and then has.
    FUZZ_CHECK(vcpu_.set_sregs(now).has_value());
    FUZZ_CHECK(vcpu_.sregs() == now);
}

void Machine::change_fpu(Input& input)
{
    switch (input.below(4)) {
    case 0: {
        x86::Fpu fpu = vcpu_.fpu();
        input.fill(fpu);
        vcpu_.set_fpu(fpu);
        const x86::Fpu saved = vcpu_.fpu();
        FUZZ_CHECK(saved.xmm == fpu.xmm);
        vcpu_.set_fpu(saved);
        FUZZ_CHECK(vcpu_.fpu() == saved);
        break;
    }
    case 1: {
        x86::Xsave xsave = vcpu_.xsave();
        const auto bytes = input.bytes(input.below(256));
        const std::size_t at = std::min<std::size_t>(input.u16() & 0xfffU, 4096 - bytes.size());
        std::memcpy(xsave.region.data() + at, bytes.data(), bytes.size());
        const x86::Xsave before = vcpu_.xsave();
        if (!vcpu_.set_xsave(xsave)) {
            FUZZ_CHECK(vcpu_.xsave() == before);
        }
        const x86::Xsave saved = vcpu_.xsave();
        FUZZ_CHECK(vcpu_.set_xsave(saved).has_value());
        FUZZ_CHECK(vcpu_.xsave() == saved);
        break;
    }
    case 2: {
        const std::uint64_t value = input.number();
        if (vcpu_.set_xcr0(value)) {
            FUZZ_CHECK(vcpu_.xcr0() == value);
        }
        break;
    }
    default: {
        x86::DebugRegs regs = vcpu_.debug_regs();
        for (std::uint64_t& each : regs.db) {
            each = input.flag() ? code_at + input.u8() : input.number();
        }
        regs.dr6 = input.number();
        regs.dr7 = input.number();
        if (vcpu_.set_debug_regs(regs)) {
            FUZZ_CHECK(vcpu_.debug_regs().db == regs.db);
            FUZZ_CHECK(vcpu_.debug_regs().dr7 == (regs.dr7 | x86::Dr7::reset));
        }
        break;
    }
    }
}

void Machine::change_events(Input& input)
{
    x86::VcpuEvents events = vcpu_.events();
    if (input.flag()) {
        input.fill(events);
    } else {
        events.exception.injected = input.u8() & 1U;
        events.exception.nr = input.u8() & 31U;
        events.exception.has_error_code = input.u8() & 1U;
        events.interrupt.injected = input.u8() & 1U;
        events.interrupt.nr = input.u8();
        events.interrupt.shadow = input.u8() & 3U;
        events.nmi.pending = input.u8() & 1U;
        events.nmi.masked = input.u8() & 1U;
    }
    if (vcpu_.set_events(events)) {
        const x86::VcpuEvents saved = vcpu_.events();
        FUZZ_CHECK(vcpu_.set_events(saved).has_value());
        FUZZ_CHECK(vcpu_.events() == saved);
    }
    const auto wanted = static_cast<x86::MpState>(input.below(6));
    if (input.flag() && vcpu_.set_mp_state(wanted)) {
        FUZZ_CHECK(vcpu_.mp_state() == wanted || wanted == x86::MpState::SipiReceived);
    }
}

void Machine::change_msr(Input& input)
{
    constexpr std::array<std::uint32_t, 6> first{0, 0x174, 0x200, 0x800, 0xc000'0080, 0x4b56'4d00};
    static const std::vector<std::uint32_t> known = kvm_.msr_index_list();
    const std::uint32_t index =
        input.flag() ? known[input.u8() % known.size()] : input.pick(first) + input.u8();
    const std::uint64_t value = input.number();
    const auto before = vcpu_.msr(index);
    if (vcpu_.set_msr(index, value)) {
        // Write-only ones (EOI, ICR's effects, wall clock …) answer something else or nothing.
        const auto now = vcpu_.msr(index);
        constexpr std::uint32_t efer = 0xc000'0080;  // Keeps LMA.
        const bool is_plain =
            (index > efer && index < 0xc000'0200) || (index >= 0x174 && index <= 0x176);
        FUZZ_CHECK(!is_plain || (now.has_value() && *now == value));
    } else if (before) {
        const bool moves = index == 0x10;  // The time-stamp counter.
        FUZZ_CHECK(moves || *vcpu_.msr(index) == *before);
    }
}

void Machine::change_cpuid(Input& input)
{
    static const std::vector<x86::CpuidEntry> supported = kvm_.supported_cpuid();
    std::vector<x86::CpuidEntry> entries = supported;
    for (std::size_t count = input.below(6); count != 0; --count) {
        x86::CpuidEntry& entry = entries[input.u8() % entries.size()];
        std::uint32_t* const registers[] = {&entry.eax, &entry.ebx,      &entry.ecx,
                                            &entry.edx, &entry.function, &entry.index};
        std::uint32_t& chosen = *registers[input.below(6)];
        chosen = input.flag() ? chosen ^ 1U << (input.u8() & 31U) : input.u32();
    }
    if (input.u8() % 8U == 0) {
        entries.resize(input.u16() % 300U);
    }
    if (vcpu_.set_cpuid(entries)) {
        FUZZ_CHECK(vcpu_.cpuid() == entries);
    }
}

void Machine::change_interrupts(Input& input)
{
    const auto gsi =
        static_cast<std::uint32_t>(input.u8() % 8U == 0 ? input.u32() : input.below(24));
    switch (input.below(9)) {
    case 0: FUZZ_CHECK(vm_.set_irq_line(gsi, input.flag()).has_value() == has_irqchip()); break;
    case 1: static_cast<void>(vm_.signal_msi(Gpa{0xfee0'0000U + input.u16()}, input.u32())); break;
    case 2: static_cast<void>(vcpu_.interrupt(input.u8())); break;
    case 3: vcpu_.request_irq_window(input.flag()); break;
    case 4: vcpu_.nmi(); break;
    case 5: {
        const auto lapic = vcpu_.lapic();
        FUZZ_CHECK(lapic.has_value() == has_irqchip());
        if (lapic) {
            x86::irqchip::LapicState state = *lapic;
            for (std::size_t count = input.below(8); count != 0; --count) {
                state.set(static_cast<x86::irqchip::LapicRegister>((input.u8() & 0x3fU) << 4U),
                          input.u32());
            }
            static_cast<void>(vcpu_.set_lapic(state));
        }
        break;
    }
    case 6: {
        std::vector<x86::irqchip::GsiRoute> routes;
        for (std::size_t count = input.below(4); count != 0; --count) {
            routes.push_back(
                x86::irqchip::msi_route(input.u8(), Gpa{input.number(0xfee0'0000)}, input.u32()));
        }
        FUZZ_CHECK(vm_.set_gsi_routing(routes).has_value() || !has_irqchip() || !routes.empty());
        break;
    }
    case 7: vm_.set_clock_ns(input.number()); break;
    default: vcpu_.kicker().kick(); break;
    }
}

void Machine::change_memory(Input& input)
{
    switch (input.below(4)) {
    case 0: {
        // Another slot over the upper half of the same memory, or none.
        const memory::MemoryRegion region{.slot = 1,
                                          .flags = input.u8() & 3U,
                                          .guest_phys_addr =
                                              Gpa{memory_size + 0x1000 * input.below(4)},
                                          .size_bytes = 0x1000 * input.below(memory_size / 0x2000),
                                          .host = memory_ + memory_size / 2};
        static_cast<void>(vm_.set_user_memory_region(region));
        break;
    }
    case 1: {
        // The first slot's log, on and off.
        const memory::MemoryRegion region{.slot = 0,
                                          .flags = input.u8() & 1U,
                                          .guest_phys_addr = Gpa{0},
                                          .size_bytes = memory_size,
                                          .host = memory_};
        FUZZ_CHECK(vm_.set_user_memory_region(region).has_value());
        FUZZ_CHECK(vm_.dirty_log(0).has_value() == (region.flags == 1));
        break;
    }
    case 2: {
        const Gpa at{input.flag() ? code_at + input.u8() : input.number()};
        const auto bytes = std::as_bytes(input.bytes(input.below(32)));
        if (vm_.memory().write(at, bytes)) {
            std::array<std::byte, 32> back{};
            FUZZ_CHECK(vm_.memory().read(at, std::span{back}.first(bytes.size())));
            FUZZ_CHECK(std::equal(bytes.begin(), bytes.end(), back.begin()));
        }
        break;
    }
    default: static_cast<void>(vcpu_.translate(Gva{input.number()})); break;
    }
}

void Machine::change_buses(Input& input)
{
    const bool attach = input.flag();
    if (input.flag()) {
        const auto ports = PortRange::make(Port{input.u16()}, input.u8());
        if (ports) {
            static_cast<void>(attach ? vm_.attach(*ports, std::make_shared<Scratch>())
                                     : vm_.detach(*ports));
        }
        return;
    }
    const auto range = GpaRange::make(Gpa{input.number(memory_size)}, input.u16());
    if (range) {
        static_cast<void>(attach ? vm_.attach(*range, std::make_shared<Scratch>())
                                 : vm_.detach(*range));
    }
}

void Machine::change_state(Input& input)
{
    constexpr std::array<void (Machine::*)(Input&), 9> changes{
        &Machine::change_registers,  &Machine::change_system_registers,
        &Machine::change_fpu,        &Machine::change_events,
        &Machine::change_msr,        &Machine::change_cpuid,
        &Machine::change_interrupts, &Machine::change_memory,
        &Machine::change_buses,
    };
    (this->*input.pick(changes))(input);
}

// --- Running.

void Machine::answer(Input& input, const Exit& exit)
{
    if (const auto* port = exit.get_if<PortRead>()) {
        FUZZ_CHECK(port->width == 1 || port->width == 2 || port->width == 4);
        FUZZ_CHECK(!port->data.empty() && port->data.size() <= 4096);
        FUZZ_CHECK(port->data.size() % port->width == 0);
        input.fill(port->data.data(), port->data.size());
    } else if (const auto* out = exit.get_if<PortWrite>()) {
        FUZZ_CHECK(!out->data.empty() && out->data.size() <= 4096);
        FUZZ_CHECK(out->data.size() % out->width == 0);
    } else if (const auto* read = exit.get_if<MmioRead>()) {
        FUZZ_CHECK(!read->data.empty() && read->data.size() <= 8);
        input.fill(read->data.data(), read->data.size());
    } else if (const auto* write = exit.get_if<MmioWrite>()) {
        FUZZ_CHECK(!write->data.empty() && write->data.size() <= 8);
    } else if (const auto* error = exit.get_if<InternalError>()) {
        FUZZ_CHECK(error->instruction.size() <= 15);
    }
    FUZZ_CHECK(exit.name() != nullptr && !exit.is<EntryFailure>());
}

void Machine::run(Input& input, unsigned most_exits)
{
    const Watchdog watchdog{vcpu_.kicker()};
    bool kicked = false;
    for (unsigned exits = 0; exits < most_exits && !kicked; ++exits) {
        const Result<Exit> exit = vcpu_.run();
        FUZZ_CHECK(exit.has_value());
        answer(input, *exit);
        kicked = exit->is<Interrupted>();
        const std::uint8_t then = input.u8();
        if ((then & 1U) != 0) {
            exit->complete();
        }
        if ((then & 6U) == 2U) {
            change_state(input);
        }
        if ((then & 8U) != 0) {
            exit->complete();
        }
        const bool stuck = exit->is<Shutdown>() || exit->is<InternalError>();
        if (stuck && input.is_empty()) {
            return;
        }
    }
}

}  // namespace vmm::fuzz
