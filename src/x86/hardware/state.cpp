// SPDX-License-Identifier: Apache-2.0

/// @file
/// `CpuState` to the area shared with the helper and back, group by group, when somebody asks: what
/// is the same on both vendors' hardware.

#include <algorithm>
#include <cstring>

#include "x86/cpuid_answer.hpp"
#include "x86/exception_payload.hpp"
#include "x86/hardware/fields.hpp"
#include "x86/hardware/vcpu.hpp"

namespace vmm::x86::hardware {
namespace {

bool has(StateGroup groups, StateGroup one) noexcept
{
    return (groups & one) != StateGroup::None;
}

}  // namespace

vmm_segment to_field(const Segment& segment) noexcept
{
    using A = SegmentAttributes;
    const bool present = segment.present != 0 && segment.unusable == 0;
    const auto attributes = A{0}.with(A::type, segment.type & 15U)
                                .with(A::s, segment.s != 0)
                                .with(A::dpl, segment.dpl & 3U)
                                .with(A::present, present)
                                .with(A::avl, segment.avl != 0)
                                .with(A::l, segment.l != 0)
                                .with(A::db, segment.db != 0)
                                .with(A::g, segment.g != 0);
    return {segment.selector, static_cast<std::uint16_t>(attributes.raw()), segment.limit,
            segment.base};
}

vmm_segment to_field(const DescriptorTable& table) noexcept
{
    return {0, 0, table.limit, table.base};
}

Segment segment_of(const vmm_segment& field) noexcept
{
    using A = SegmentAttributes;
    const A attributes{field.attributes};
    Segment segment;
    segment.base = field.base;
    segment.limit = field.limit;
    segment.selector = field.selector;
    segment.type = static_cast<std::uint8_t>(attributes.get(A::type));
    segment.s = attributes.get(A::s) ? 1 : 0;
    segment.dpl = static_cast<std::uint8_t>(attributes.get(A::dpl));
    segment.present = attributes.get(A::present) ? 1 : 0;
    segment.avl = attributes.get(A::avl) ? 1 : 0;
    segment.l = attributes.get(A::l) ? 1 : 0;
    segment.db = attributes.get(A::db) ? 1 : 0;
    // The bit is not kept for every segment; limits beyond 1 MiB have it.
    segment.g = attributes.get(A::g) || field.limit > 0xf'ffffU ? 1 : 0;
    segment.unusable = segment.present == 0 ? 1 : 0;
    return segment;
}

DescriptorTable table_of(const vmm_segment& field) noexcept
{
    DescriptorTable table;
    table.base = field.base;
    table.limit = static_cast<std::uint16_t>(field.limit);
    return table;
}

CpuState& HardwareVcpu::fetch_state(StateGroup wanted) noexcept
{
    const StateGroup missing = wanted - current();
    set_current(current() | wanted);
    if (has(missing, StateGroup::Registers)) {
        load_registers();
    }
    if (missing == StateGroup::Registers) [[likely]] {
        return state_;
    }
    if (has(missing, StateGroup::Segments)) {
        load_segments();
    }
    if (has(missing, StateGroup::Fpu)) {
        fpu_.load(state_.fpu);
    }
    if (has(missing, StateGroup::Debug)) {
        load_debug();
    }
    if (has(missing, StateGroup::Msrs)) {
        load_msrs();
    }
    return state_;
}

void HardwareVcpu::state_changed(StateGroup changed) noexcept
{
    changed_ = changed_ | changed;
    may_change_cpuid_ = true;
    emulator_->state_changed();
}

// --- From the area.

void HardwareVcpu::load_registers() noexcept
{
    std::memcpy(state_.gpr.data(), area_->gpr, sizeof area_->gpr);
    state_.rip = area_->rip;
    state_.rflags = area_->rflags;
    load_shadows();
    if (state_.inject || held_event_ || EventField{words_.event}.get(EventField::valid)) {
        load_event();
    }
}

void HardwareVcpu::load_event() noexcept
{
    using F = EventField;
    const F field{words_.event};
    state_.inject.reset();
    held_event_.reset();
    if (field.get(F::valid)) {
        Event event{};
        event.vector = static_cast<std::uint8_t>(field.get(F::vector));
        switch (field.get(F::type)) {
        case F::external_interrupt: event.kind = EventKind::ExternalInterrupt; break;
        case F::nmi:
            event.kind = EventKind::Nmi;
            event.vector = static_cast<std::uint8_t>(Vector::NMI);
            break;
        case F::software_interrupt: event.kind = EventKind::SoftwareInterrupt; break;
        default:
            event.kind = EventKind::HardwareException;
            event.has_error_code = field.get(F::has_error_code);
            event.error_code = event.has_error_code ? words_.error : 0;
            if (event.vector == static_cast<std::uint8_t>(Vector::PF)) {
                event.payload = words_.cr2;
            }
            break;
        }
        state_.inject = held_event_ = event;
    }
}

// --- To the area.

/// All but the registers.
void HardwareVcpu::store_groups() noexcept
{
    if (has(changed_, StateGroup::Segments)) {
        store_segments();
    }
    if (has(changed_, StateGroup::Fpu)) {
        fpu_.store(state_.fpu);
    }
    if (has(changed_, StateGroup::Debug)) {
        store_debug();
    }
    if (has(changed_, StateGroup::Msrs)) {
        store_msrs();
    }
}

/// The helper's answers to CPUID, where the leaves, or what they follow, have changed.  XCR0 and
/// the bits of CR4 change by the emulator alone, so they are current whatever groups are.
void HardwareVcpu::store_cpuid() noexcept
{
    constexpr std::uint64_t bits = Cr4::OSXSAVE.mask | Cr4::PKE.mask;
    may_change_cpuid_ = false;
    const CpuidKey key{state_.cr4 & bits, state_.xcr0, state_.xss, host_.apic_base()};
    if (key == cpuid_key_ && !cpuid_changed_) {
        return;
    }
    cpuid_key_ = key;
    cpuid_changed_ = false;
    const auto entries = state_.cpuid.entries().first(cpuid_leaves_.size());
    std::transform(entries.begin(), entries.end(), cpuid_leaves_.begin(), [&](const auto& entry) {
        const CpuidEntry now = answer_cpuid(state_, key.apic_base, entry.function, entry.index);
        const bool is_indexed = (entry.flags & CpuidEntry::significant_index) != 0;
        return vmm_cpuid_leaf{entry.function,
                              entry.index,
                              is_indexed ? VMM_CPUID_INDEXED : 0U,
                              now.eax,
                              now.ebx,
                              now.ecx,
                              now.edx,
                              0};
    });
    vmm_cpuid table{};
    table.count = static_cast<std::uint32_t>(cpuid_leaves_.size());
    // SAFETY: an address as the helper wants it, an integer.
    table.leaves = reinterpret_cast<std::uintptr_t>(cpuid_leaves_.data());
    if (helper_ioctl(fd_.get(), VMM_SET_CPUID, &table) != 0) {
        // Better none than those of before: the emulator answers.
        table.count = 0;
        static_cast<void>(helper_ioctl(fd_.get(), VMM_SET_CPUID, &table));
    }
}

void HardwareVcpu::store_registers() noexcept
{
    std::memcpy(area_->gpr, state_.gpr.data(), sizeof area_->gpr);
    store_position();
}

void HardwareVcpu::store_event() noexcept
{
    using F = EventField;
    F field{0};
    // What it does to the shadows goes in with the registers.
    changed_ = changed_ | StateGroup::Registers;
    const Event& event = *state_.inject;
    std::uint64_t type = F::external_interrupt;
    if (event.kind == EventKind::Nmi) {
        type = F::nmi;
        state_.nmi_blocked = true;
    } else if (event.kind == EventKind::HardwareException) {
        type = F::exception;
    }
    field = field.with(F::valid, true).with(F::type, type).with(F::vector, event.vector);
    field = field.with(F::has_error_code, event.has_error_code);
    words_.error = event.error_code;
    // Hardware injects what it is told to; the exception's registers are the software's.
    const StateGroup group = state_.inject != held_event_ ? payload_group(event) : StateGroup::None;
    if (group != StateGroup::None) {
        apply_payload(state(group), event);
        changed_ = changed_ | group;
    }
    words_.event = static_cast<std::uint32_t>(field.raw());
}

void HardwareVcpu::ask_msr_filter(std::span<const std::uint32_t> passed) noexcept
{
    msr_filters_seen_ = vm_->msr_filters();
    passes_msrs_ = std::all_of(passed.begin(), passed.end(), [&](std::uint32_t each) {
        return host_.allows_msr(each, false) && host_.allows_msr(each, true);
    });
}

}  // namespace vmm::x86::hardware
