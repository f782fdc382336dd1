// SPDX-License-Identifier: Apache-2.0

/// Random descriptor tables, selectors and stacks: whatever a guest puts there, a transfer faults
/// and changes nothing, or ends in a state that a processor can be in.

#include <random>

#include "soft/system_fixture.hpp"

namespace vmm::x86::soft::test {
namespace {

using Random = std::mt19937_64;

/// A descriptor near a legal one, so that the later checks are reached.
std::uint64_t random_descriptor(Random& random)
{
    std::uint64_t value = random();
    if (random() % 8 != 0) {
        constexpr std::array<unsigned, 20> access{0x9b, 0x93, 0xfb, 0xf3, 0x9f, 0x97, 0x99,
                                                  0xbb, 0xb3, 0x89, 0x8b, 0x81, 0x82, 0x8c,
                                                  0xec, 0xe5, 0x8e, 0xee, 0xef, 0x86};
        value = descriptor(random() & 0x1'ffff, static_cast<std::uint32_t>(random()),
                           access[random() % access.size()],
                           static_cast<unsigned>(random() % 16) & ~1U);
    }
    return value;
}

std::uint16_t random_selector(Random& random)
{
    // Mostly in the tables, of any RPL and TI.
    return static_cast<std::uint16_t>(random() % 16 == 0 ? random() : random() % 0x140);
}

void fill(SystemMachine& machine, Random& random)
{
    for (std::uint64_t at = gdt_base; at < gdt_base + 0x200; at += 8) {
        machine.memory.put<std::uint64_t>(at, random_descriptor(random));
        machine.memory.put<std::uint64_t>(at + ldt_base - gdt_base, random_descriptor(random));
    }
    if (random() % 2 == 0) {
        machine.fill_tables();
    }
    for (std::uint64_t at = idt_base; at < idt_base + 0x1000; at += 8) {
        constexpr std::array<unsigned, 8> access{0x8e, 0xee, 0x8f, 0x85, 0xe5, 0x86, 0xe7, 0x0e};
        std::uint64_t value =
            gate_descriptor(random_selector(random), random() & 0x1'ffff,
                            access[random() % access.size()], static_cast<unsigned>(random() % 32));
        machine.memory.put<std::uint64_t>(at, random() % 8 == 0 ? random() : value);
    }
    for (std::uint64_t at = tss_base; at < tss_base + 0x800; at += 4) {
        const std::uint64_t value = random() % 4 == 0 ? random() : random() % 0x140;
        machine.memory.put<std::uint32_t>(at, static_cast<std::uint32_t>(value));
    }
    for (std::uint64_t at = stack_top - 0x100; at < stack_top + 0x100; at += 4) {
        const std::uint64_t value =
            random() % 3 == 0 ? random() & 0xfff'ffffU : random_selector(random);
        machine.memory.put<std::uint32_t>(at, static_cast<std::uint32_t>(value));
    }
}

void set_mode(SystemMachine& machine, Random& random)
{
    // The state to start from is a legal one, whatever the tables hold.
    std::array<std::uint64_t, 64> table{};
    for (std::size_t i = 0; i < table.size(); ++i) {
        table[i] = machine.memory.get<std::uint64_t>(gdt_base + 8 * i);
    }
    machine.fill_tables();
    switch (random() % 7) {
    case 0: machine.set_real(); break;
    case 1: machine.set_virtual_8086(static_cast<unsigned>(random() % 4)); break;
    case 2: machine.set_protected(0); break;
    case 3: machine.set_protected(random() % 2 == 0 ? 1 : 3); break;
    case 4: machine.set_long(0, random() % 4 == 0); break;
    case 5: machine.set_long(3, random() % 4 == 0); break;
    default:
        machine.set_protected(0);
        machine.cpu.seg[Ss] = machine.segment(data16_0);
        machine.cpu.seg[Ss].unusable = 0;
        machine.cpu.seg[Ss].dpl = 0;
        break;
    }
    for (std::size_t i = 0; i < table.size(); ++i) {
        machine.memory.put<std::uint64_t>(gdt_base + 8 * i, table[i]);
    }
    Cpu& cpu = machine.cpu;
    if (random() % 4 == 0) {
        cpu.set_flags(cpu.flags() | (random() & mask_of(Rflags::IF, Rflags::TF, Rflags::NT,
                                                        Rflags::RF, Rflags::AC, Rflags::VIP)));
    }
    if (random() % 4 == 0) {
        cpu.gpr[Rsp] = random() >> (random() % 64U);
    }
    if (random() % 8 == 0) {
        cpu.tr.limit = static_cast<std::uint32_t>(random() % 0x80);
        cpu.gdt.limit = static_cast<std::uint16_t>(random() % 0x200);
        cpu.idt.limit = static_cast<std::uint16_t>(random() % 0x1000);
    }
    if (random() % 4 == 0 && !cpu.long_mode()) {
        cpu.cr4 |= Cr4::VME.mask;
    }
    cpu.sysenter_cs = random_selector(random);
    cpu.mode_changed();
}

/// What holds in every state that a processor can be in.
void check_state(Cpu& cpu)
{
    const Snapshot now{cpu};
    const Tlb* const tlb = cpu.tlb;
    cpu.mode_changed();
    EXPECT_EQ(Snapshot{cpu}, now) << "what is derived from the state is right";
    EXPECT_EQ(cpu.tlb, tlb);
    const Segment& code = cpu.seg[Cs];
    if (!cpu.protected_mode()) {
        EXPECT_EQ(cpu.cpl, 0U);
        return;
    }
    if (cpu.virtual_8086()) {
        EXPECT_EQ(cpu.cpl, 3U);
        EXPECT_FALSE(cpu.long_mode());
        for (const Segment& each : cpu.seg) {
            EXPECT_EQ(each.base, std::uint64_t{each.selector} << 4U);
            EXPECT_EQ(each.limit, 0xffffU);
        }
        return;
    }
    EXPECT_NE(code.type & segment_type::code, 0U);
    EXPECT_EQ(code.present, 1U);
    EXPECT_EQ(code.unusable, 0U);
    EXPECT_EQ(rpl(code.selector), cpu.cpl);
    EXPECT_EQ(cpu.seg[Ss].dpl, cpu.cpl);
    if ((code.type & segment_type::conforming) == 0U) {
        EXPECT_EQ(code.dpl, cpu.cpl);
    } else {
        EXPECT_LE(code.dpl, cpu.cpl);
    }
    if (cpu.long_mode() && code.l != 0U) {
        EXPECT_EQ(code.db, 0U);
        EXPECT_TRUE(is_canonical48(cpu.rip));
    } else {
        EXPECT_LE(cpu.rip, code.limit);
    }
    EXPECT_EQ(cpu.flags() & ~Rflags::defined, 2U);
}

void transfer_at_random(Cpu& cpu, Random& random)
{
    constexpr std::array<unsigned, 3> sizes{2, 4, 8};
    const unsigned size = sizes[random() % (cpu.code_64() ? 3 : 2)];
    const std::uint16_t selector = random_selector(random);
    const std::uint64_t offset = random() >> (random() % 64U);
    switch (random() % 9) {
    case 0: far_jump(cpu, selector, offset, size, cpu.rip); break;
    case 1: far_call(cpu, selector, offset, size, cpu.rip); break;
    case 2: far_return(cpu, size, static_cast<std::uint16_t>(random() % 64)); break;
    case 3:
    case 4: interrupt_return(cpu, size, cpu.rip); break;
    case 5: {
        constexpr std::array<SegmentIndex, 5> loadable{Es, Ss, Ds, Fs, Gs};
        load_segment(cpu, loadable[random() % loadable.size()], selector);
        break;
    }
    case 6: sysenter(cpu); break;
    default: {
        Event event{};
        event.kind =
            random() % 2 == 0 ? EventKind::SoftwareInterrupt : EventKind::HardwareException;
        event.vector = static_cast<std::uint8_t>(random());
        event.has_error_code = event.kind == EventKind::HardwareException && random() % 2 == 0;
        deliver_once(cpu, event);
        break;
    }
    }
}

TEST(RandomTransfers, FaultAndChangeNothingOrEndInALegalState)
{
    SystemMachine machine;
    SystemMachine amd{false};
    Random random{20'26};
    unsigned passed = 0;
    unsigned refused = 0;
    unsigned late = 0;
    for (unsigned round = 0; round < 60'000 && !testing::Test::HasFailure(); ++round) {
        SystemMachine& used = round % 2 == 0 ? machine : amd;
        if (round % 16 < 2) {
            fill(used, random);
        }
        used.cpu.gdt.limit = gdt_limit;
        set_mode(used, random);
        Cpu& cpu = used.cpu;
        const Snapshot before{cpu};
        try {
            transfer_at_random(cpu, random);
            check_state(cpu);
            ++passed;
        } catch (const Fault& fault) {
            EXPECT_EQ(Snapshot{cpu}, before)
                << "#" << unsigned{static_cast<std::uint8_t>(fault.vector)} << " in round "
                << round;
            ++refused;
        } catch (const TaskFault&) {
            ++late;
        } catch (const LeaveForMmio&) {
            ADD_FAILURE() << "the host answers all MMIO";
        }
    }
    EXPECT_GT(passed, 5'000U);
    EXPECT_GT(refused, 5'000U);
    EXPECT_GT(late, 50U);
}

TEST(RandomTransfers, DeliveryEndsInAHandlerOrInShutdown)
{
    SystemMachine machine;
    Random random{4711};
    unsigned delivered = 0;
    unsigned shut_down = 0;
    for (unsigned round = 0; round < 30'000 && !testing::Test::HasFailure(); ++round) {
        if (round % 16 == 0) {
            fill(machine, random);
        }
        machine.cpu.gdt.limit = gdt_limit;
        set_mode(machine, random);
        constexpr std::array<Vector, 6> vectors{Vector::GP, Vector::PF, Vector::UD,
                                                Vector::DB, Vector::AC, Vector::DF};
        Fault fault{};
        fault.vector = vectors[random() % vectors.size()];
        fault.has_error_code = fault.vector != Vector::UD && fault.vector != Vector::DB;
        if (deliver_fault(machine.cpu, fault)) {
            check_state(machine.cpu);
            ++delivered;
        } else {
            ++shut_down;
        }
    }
    EXPECT_GT(delivered, 500U);
    EXPECT_GT(shut_down, 500U);
}

}  // namespace
}  // namespace vmm::x86::soft::test
