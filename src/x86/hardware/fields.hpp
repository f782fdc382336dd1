// SPDX-License-Identifier: Apache-2.0

/// @file
/// What AMD's VMCB and Intel's VMCS have alike, or the helper makes alike: events to inject, and
/// segments.

#pragma once

#include <cstdint>

#include "vmm/register.hpp"
#include "vmm/x86/state.hpp"
#include "x86/cpu_state.hpp"
#include "x86/helper/helper_abi.h"

namespace vmm::x86::hardware {

/// EVENTINJ and EXITINTINFO of APM Vol. 2 "Event Injection"; VM-entry, VM-exit and IDT-vectoring
/// information of SDM Vol. 3C.
class EventField final : public Register<EventField> {
public:
    using Register::Register;

    static constexpr Field<EventField, 7, 0> vector{};
    static constexpr Field<EventField, 10, 8> type{};
    static constexpr Field<EventField, 11> has_error_code{};
    static constexpr Field<EventField, 31> valid{};

    static constexpr std::uint64_t external_interrupt = 0;
    static constexpr std::uint64_t nmi = 2;
    static constexpr std::uint64_t exception = 3;
    static constexpr std::uint64_t software_interrupt = 4;
    static constexpr std::uint64_t privileged_software_exception = 5;  ///< Intel's.
};

/// A segment's attributes: descriptor bits 55:52 behind 47:40.
class SegmentAttributes final : public Register<SegmentAttributes> {
public:
    using Register::Register;

    static constexpr Field<SegmentAttributes, 3, 0> type{};
    static constexpr Field<SegmentAttributes, 4> s{};
    static constexpr Field<SegmentAttributes, 6, 5> dpl{};
    static constexpr Field<SegmentAttributes, 7> present{};
    static constexpr Field<SegmentAttributes, 8> avl{};
    static constexpr Field<SegmentAttributes, 9> l{};
    static constexpr Field<SegmentAttributes, 10> db{};
    static constexpr Field<SegmentAttributes, 11> g{};
};

[[nodiscard]] vmm_segment to_field(const Segment& segment) noexcept;
[[nodiscard]] vmm_segment to_field(const DescriptorTable& table) noexcept;
[[nodiscard]] Segment segment_of(const vmm_segment& field) noexcept;
[[nodiscard]] DescriptorTable table_of(const vmm_segment& field) noexcept;

/// Segments and descriptor tables from a vendor's part of the area, and to it.
template <typename Vendor>
void load_segment_fields(const Vendor& from, CpuState& state) noexcept
{
    state.seg[Es] = segment_of(from.es);
    state.seg[Cs] = segment_of(from.cs);
    state.seg[Ss] = segment_of(from.ss);
    state.seg[Ds] = segment_of(from.ds);
    state.seg[Fs] = segment_of(from.fs);
    state.seg[Gs] = segment_of(from.gs);
    state.ldt = segment_of(from.ldtr);
    state.tr = segment_of(from.tr);
    state.gdt = table_of(from.gdtr);
    state.idt = table_of(from.idtr);
}
template <typename Vendor>
void store_segment_fields(const CpuState& state, Vendor& to) noexcept
{
    to.es = to_field(state.seg[Es]);
    to.cs = to_field(state.seg[Cs]);
    to.ss = to_field(state.seg[Ss]);
    to.ds = to_field(state.seg[Ds]);
    to.fs = to_field(state.seg[Fs]);
    to.gs = to_field(state.seg[Gs]);
    to.ldtr = to_field(state.ldt);
    to.tr = to_field(state.tr);
    to.gdtr = to_field(state.gdt);
    to.idtr = to_field(state.idt);
}

/// With nested paging these would make the guest's memory uncached: hardware is not shown them.
inline constexpr std::uint64_t caching = Cr0::CD.mask | Cr0::NW.mask;

}  // namespace vmm::x86::hardware
