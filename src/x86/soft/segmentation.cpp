// SPDX-License-Identifier: Apache-2.0

#include <algorithm>
#include <cstring>

#include "x86/soft/descriptor.hpp"
#include "x86/soft/system.hpp"

namespace vmm::x86::soft {

namespace {

/// Accesses made by the processor itself to the descriptor tables have supervisor rights, whatever
/// the guest's privilege is.
class SupervisorRights {
public:
    explicit SupervisorRights(Cpu& cpu) noexcept
        : cpu_(cpu),
          tlb_(cpu.tlb),
          rflags_(cpu.rflags),
          cpl_(cpu.cpl),
          alignment_check_(cpu.alignment_check)
    {
        cpu.cpl = 0;
        cpu.rflags &= ~Rflags::AC.mask;
        cpu.alignment_check = false;
        cpu.tlb = &cpu.tlbs[static_cast<std::size_t>(TlbContext::Supervisor)];
    }
    ~SupervisorRights()
    {
        cpu_.cpl = cpl_;
        cpu_.rflags = rflags_;
        cpu_.alignment_check = alignment_check_;
        cpu_.tlb = tlb_;
    }
    SupervisorRights(const SupervisorRights&) = delete;
    SupervisorRights& operator=(const SupervisorRights&) = delete;
    SupervisorRights(SupervisorRights&&) = delete;
    SupervisorRights& operator=(SupervisorRights&&) = delete;

private:
    Cpu& cpu_;
    Tlb* tlb_;
    std::uint64_t rflags_;
    std::uint8_t cpl_;
    bool alignment_check_;
};

/// Where the type bits of a descriptor are.
constexpr std::uint64_t type_byte = 5;
constexpr std::uint8_t busy_bit = 2;

struct ByteChange {
    std::uint8_t set{};
    std::uint8_t clear{};
};

void change_type_byte(Cpu& cpu, std::uint64_t descriptor, ByteChange change)
{
    const SupervisorRights rights{cpu};
    const std::uint64_t linear = table_address(cpu, descriptor + type_byte);
    if (std::byte* const at = direct(cpu, Ds, linear, 1, Access::ReadWrite)) {
        // SAFETY: a byte of guest memory; an atomic byte has its representation.
        auto* const byte = reinterpret_cast<std::uint8_t*>(at);
        if (change.set != 0U) {
            __atomic_fetch_or(byte, change.set, __ATOMIC_SEQ_CST);
        } else {
            __atomic_fetch_and(byte, static_cast<std::uint8_t>(~change.clear), __ATOMIC_SEQ_CST);
        }
        return;
    }
    locked_slow(
        cpu, Ds, linear, 1,
        [](std::byte* bytes, void* context) {
            const auto& wanted = *static_cast<const ByteChange*>(context);
            *bytes = (*bytes & ~std::byte{wanted.clear}) | std::byte{wanted.set};
        },
        &change);
}

[[noreturn]] void raise_limit(SegmentIndex segment)
{
    raise(segment == Ss ? Vector::SS : Vector::GP, 0);
}

/// Whether [first, last] lies in the segment.
bool is_within_limit(const Segment& segment, std::uint64_t first, std::uint64_t last) noexcept
{
    const bool expands_down = segment.s != 0U && (segment.type & segment_type::code) == 0U &&
                              (segment.type & segment_type::expand_down) != 0U;
    if (!expands_down) [[likely]] {
        return last <= segment.limit;
    }
    const std::uint64_t top = segment.db != 0U ? 0xffff'ffffU : 0xffffU;
    return first > segment.limit && last <= top;
}

void load_real_mode_segment(Cpu& cpu, SegmentIndex segment, std::uint16_t selector)
{
    if (cpu.protected_mode()) {
        cpu.seg[segment] = virtual_8086_segment(selector);
        return;
    }
    Segment& target = cpu.seg[segment];
    if (target.unusable != 0U || target.present == 0U) {
        // A null selector from protected mode: the load makes it usable, with real mode's limit.
        target = virtual_8086_segment(selector);
        target.dpl = 0;
    }
    target.selector = selector;
    target.base = std::uint64_t{selector} << 4U;
}

void load_null(Cpu& cpu, SegmentIndex segment, std::uint16_t selector)
{
    const std::uint64_t base = cpu.seg[segment].base;
    cpu.seg[segment] = null_segment(selector);
    // APM Vol. 2 "Null Selectors" of 64-bit mode: base and limit of FS and GS stay as they are,
    // unless the processor says that it clears them.  Intel's clear the base.
    constexpr CpuidFeature null_clears_base{0x8000'0021, 0, CpuidRegister::Eax, 6};
    if ((segment == Fs || segment == Gs) && cpu.long_mode() && !cpu.cpuid.is_intel() &&
        !cpu.cpuid.has(null_clears_base)) {
        cpu.seg[segment].base = base;
    }
}

}  // namespace

Segment make_segment(const Descriptor& descriptor, std::uint16_t selector) noexcept
{
    Segment segment{};
    segment.base = descriptor.base();
    segment.limit = descriptor.limit();
    segment.selector = selector;
    segment.type = static_cast<std::uint8_t>(descriptor.type());
    segment.present = descriptor.present() ? 1 : 0;
    segment.dpl = static_cast<std::uint8_t>(descriptor.dpl());
    segment.db = descriptor.big() ? 1 : 0;
    segment.s = descriptor.is_segment() ? 1 : 0;
    segment.l = descriptor.long_code() ? 1 : 0;
    segment.g = descriptor.granular() ? 1 : 0;
    segment.avl = descriptor.avl() ? 1 : 0;
    return segment;
}

Segment null_segment(std::uint16_t selector, unsigned dpl) noexcept
{
    Segment segment{};
    segment.selector = selector;
    segment.dpl = static_cast<std::uint8_t>(dpl);
    segment.unusable = 1;
    return segment;
}

Segment virtual_8086_segment(std::uint16_t selector) noexcept
{
    Segment segment{};
    segment.base = std::uint64_t{selector} << 4U;
    segment.limit = 0xffff;
    segment.selector = selector;
    segment.type = segment_type::writable | segment_type::accessed;
    segment.present = 1;
    segment.dpl = 3;
    segment.s = 1;
    return segment;
}

Segment real_mode_code(const Segment& now, std::uint16_t selector) noexcept
{
    Segment segment = now;
    segment.selector = selector;
    segment.base = std::uint64_t{selector} << 4U;
    segment.type = segment_type::writable | segment_type::accessed;
    segment.present = 1;
    segment.dpl = 0;
    segment.s = 1;
    segment.l = 0;
    segment.unusable = 0;
    return segment;
}

std::optional<Descriptor> find_descriptor(Cpu& cpu, std::uint16_t selector)
{
    std::uint64_t base = cpu.gdt.base;
    std::uint32_t limit = cpu.gdt.limit;
    if (is_local(selector)) {
        if (cpu.ldt.unusable != 0U || cpu.ldt.present == 0U) {
            return std::nullopt;
        }
        base = cpu.ldt.base;
        limit = cpu.ldt.limit;
    }
    const std::uint32_t offset = selector & 0xfff8U;
    if (offset + 7U > limit) {
        return std::nullopt;
    }
    Descriptor descriptor{};
    descriptor.linear = table_address(cpu, base + offset);
    descriptor.low = load_system<std::uint64_t>(cpu, descriptor.linear);
    return descriptor;
}

Descriptor read_descriptor(Cpu& cpu, std::uint16_t selector, Vector vector, std::uint32_t ext)
{
    const std::optional<Descriptor> descriptor = find_descriptor(cpu, selector);
    if (!descriptor) {
        raise(vector, selector_error(selector, ext));
    }
    return *descriptor;
}

void read_upper_half(Cpu& cpu,
                     Descriptor& descriptor,
                     std::uint16_t selector,
                     Vector vector,
                     std::uint32_t ext)
{
    const std::uint32_t limit = is_local(selector) ? cpu.ldt.limit : cpu.gdt.limit;
    if ((selector & 0xfff8U) + 15U > limit) {
        raise(vector, selector_error(selector, ext));
    }
    descriptor.high = load_system<std::uint64_t>(cpu, table_address(cpu, descriptor.linear + 8U));
    if (((descriptor.high >> 40U) & 0x1fU) != 0U) {
        raise(vector, selector_error(selector, ext));
    }
}

void set_type_bits(Cpu& cpu, Descriptor& descriptor, unsigned bits)
{
    change_type_byte(cpu, descriptor.linear, {static_cast<std::uint8_t>(bits), 0});
    descriptor.low |= std::uint64_t{bits} << 40U;
}

void set_busy(Cpu& cpu, const Descriptor& descriptor, bool busy)
{
    change_type_byte(cpu, descriptor.linear,
                     busy ? ByteChange{busy_bit, 0} : ByteChange{0, busy_bit});
}

Segment load_code_segment(Cpu& cpu, Descriptor& descriptor, std::uint16_t selector, unsigned level)
{
    if ((descriptor.type() & segment_type::accessed) == 0U) {
        set_type_bits(cpu, descriptor, segment_type::accessed);
    }
    return make_segment(descriptor, with_rpl(selector, level));
}

Segment load_stack_segment(Cpu& cpu,
                           std::uint16_t selector,
                           unsigned level,
                           Vector vector,
                           std::uint32_t ext)
{
    Descriptor descriptor = read_descriptor(cpu, selector, vector, ext);
    if (rpl(selector) != level || !descriptor.is_writable_data() || descriptor.dpl() != level) {
        raise(vector, selector_error(selector, ext));
    }
    if (!descriptor.present()) {
        raise(Vector::SS, selector_error(selector, ext));
    }
    if ((descriptor.type() & segment_type::accessed) == 0U) {
        set_type_bits(cpu, descriptor, segment_type::accessed);
    }
    return make_segment(descriptor, selector);
}

void load_segment(Cpu& cpu, SegmentIndex segment, std::uint16_t selector)
{
    if (!cpu.protected_mode() || cpu.virtual_8086()) {
        load_real_mode_segment(cpu, segment, selector);
        return;
    }
    if (segment == Ss) {
        if (!is_null(selector)) {
            cpu.seg[Ss] = load_stack_segment(cpu, selector, cpu.cpl, Vector::GP);
        } else if (cpu.code_64() && cpu.cpl != 3U && rpl(selector) == cpu.cpl) {
            cpu.seg[Ss] = null_segment(selector, cpu.cpl);
        } else {
            raise(Vector::GP, 0);
        }
        return;
    }
    if (is_null(selector)) {
        load_null(cpu, segment, selector);
        return;
    }
    Descriptor descriptor = read_descriptor(cpu, selector, Vector::GP);
    const bool is_privileged = !descriptor.is_conforming() &&
                               std::max(rpl(selector), unsigned{cpu.cpl}) > descriptor.dpl();
    if (!descriptor.is_readable() || is_privileged) {
        raise(Vector::GP, selector_error(selector));
    }
    if (!descriptor.present()) {
        raise(Vector::NP, selector_error(selector));
    }
    if ((descriptor.type() & segment_type::accessed) == 0U) {
        set_type_bits(cpu, descriptor, segment_type::accessed);
    }
    cpu.seg[segment] = make_segment(descriptor, selector);
}

void drop_inner_segments(Cpu& cpu, unsigned level) noexcept
{
    for (const SegmentIndex index : {Es, Ds, Fs, Gs}) {
        Segment& segment = cpu.seg[index];
        const bool is_conforming = (segment.type & segment_type::code) != 0U &&
                                   (segment.type & segment_type::conforming) != 0U;
        if (segment.unusable == 0U && !is_conforming && segment.dpl < level) {
            // The base stays, as on the processors: 64-bit code uses it for FS and GS.
            const std::uint64_t base = segment.base;
            segment = null_segment(0);
            segment.base = base;
        } else if (segment.unusable != 0U) {
            segment.selector = 0;
        }
    }
}

std::uint64_t segmented_address(Cpu& cpu,
                                SegmentIndex segment,
                                std::uint64_t offset,
                                std::size_t size,
                                Access access)
{
    const Segment& used = cpu.seg[segment];
    if (used.unusable != 0U) [[unlikely]] {
        raise_limit(segment);
    }
    if (cpu.protected_mode() && !cpu.virtual_8086()) {
        const bool is_code = (used.type & segment_type::code) != 0U;
        const bool writes = access == Access::Write || access == Access::ReadWrite;
        // Data can always be read; bit 1 is "writable" for data and "readable" for code.
        const bool allowed = writes ? !is_code && (used.type & segment_type::writable) != 0U
                                    : !is_code || access == Access::Execute ||
                                          (used.type & segment_type::readable) != 0U;
        if (!allowed) [[unlikely]] {
            raise_limit(segment);
        }
    }
    if (!is_within_limit(used, offset, offset + (size == 0U ? 0U : size - 1U))) [[unlikely]] {
        raise_limit(segment);
    }
    return (used.base + offset) & 0xffff'ffffU;
}

bool is_flat(const Cpu& cpu) noexcept
{
    if (cpu.code_size != CodeSize::Bits32 || !cpu.protected_mode() || cpu.virtual_8086()) {
        return false;
    }
    const auto has_all = [](const Segment& segment) {
        return segment.unusable == 0U && segment.base == 0U && segment.limit == 0xffff'ffffU;
    };
    const auto is_plain = [&](const Segment& segment) {
        constexpr auto kind =
            segment_type::code | segment_type::writable | segment_type::expand_down;
        return has_all(segment) && (segment.type & kind) == segment_type::writable;
    };
    return has_all(cpu.seg[Cs]) && is_plain(cpu.seg[Ds]) && is_plain(cpu.seg[Es]) &&
           is_plain(cpu.seg[Ss]) && cpu.seg[Ss].db != 0U;
}

StackPointer task_stack(Cpu& cpu, unsigned level, std::uint32_t ext)
{
    const Segment& task = cpu.tr;
    const bool is_32 =
        task.type == system_type::tss_busy || task.type == system_type::tss_available;
    const std::uint32_t offset = is_32 ? level * 8U + 4U : level * 4U + 2U;
    if (task.unusable != 0U || offset + (is_32 ? 5U : 3U) > task.limit) {
        raise(Vector::TS, selector_error(task.selector, ext));
    }
    StackPointer stack{};
    if (is_32) {
        stack.pointer = load_system<std::uint32_t>(cpu, table_address(cpu, task.base + offset));
        stack.selector =
            load_system<std::uint16_t>(cpu, table_address(cpu, task.base + offset + 4U));
    } else {
        stack.pointer = load_system<std::uint16_t>(cpu, table_address(cpu, task.base + offset));
        stack.selector =
            load_system<std::uint16_t>(cpu, table_address(cpu, task.base + offset + 2U));
    }
    return stack;
}

std::uint64_t task_stack64(Cpu& cpu, unsigned level, unsigned ist, std::uint32_t ext)
{
    const Segment& task = cpu.tr;
    const std::uint32_t offset = ist != 0U ? 0x1cU + 8U * ist : 4U + 8U * level;
    if (task.unusable != 0U || offset + 7U > task.limit) [[unlikely]] {
        raise(Vector::TS, selector_error(task.selector, ext));
    }
    const auto pointer = load_system<std::uint64_t>(cpu, task.base + offset);
    if (!is_canonical48(pointer)) [[unlikely]] {
        raise(Vector::SS, ext);
    }
    return pointer;
}

// --- Stacks of transfers

std::uint64_t FrameWriter::below(std::uint64_t by) const noexcept
{
    if (is_64_) {
        return pointer_ - by;
    }
    return (pointer_ - by) & (stack_.db != 0U ? 0xffff'ffffU : 0xffffU);
}

void FrameWriter::check_room(unsigned value_size) const
{
    for (std::size_t i = 1; i <= count_; ++i) {
        const std::uint64_t first = below(i * value_size);
        if (stack_.unusable != 0U || !is_within_limit(stack_, first, first + value_size - 1U)) {
            raise(Vector::SS, error_);
        }
    }
}

void FrameWriter::write(unsigned value_size)
{
    if (!is_64_) {
        check_room(value_size);
    }
    const std::uint64_t size = count_ * value_size;
    const std::uint64_t bottom = below(size);
    const std::uint64_t linear = is_64_ ? bottom : (stack_.base + bottom) & 0xffff'ffffU;
    const bool is_wrapping = !is_64_ && bottom + size - 1U > 0xffffU && stack_.db == 0U;
    if ((linear & page_mask) + size <= page_mask + 1U && !is_wrapping) [[likely]] {
        // In one page: one write, lowest address first.
        std::array<std::byte, capacity * 8> bytes;  // NOLINT: the first `size` are set below.
        for (std::size_t i = 0; i < count_; ++i) {
            std::memcpy(bytes.data() + (count_ - 1U - i) * value_size, &values_[i], value_size);
        }
        const Tlb& tlb = cpu_.tlbs[static_cast<std::size_t>(TlbContext::Supervisor)];
        const TlbEntry& entry = tlb.entries[(linear >> 12U) % Tlb::entry_count];
        if (privilege_ != 3U && value_size == 8U && entry.write_tag == (linear & ~page_mask)) {
            // SAFETY: the entry maps this page of guest memory (see `TlbEntry::addend`).
            auto* const to = reinterpret_cast<std::byte*>(linear + entry.addend);
            for (std::size_t i = 0; i < count_; ++i) {
                store_host<std::uint64_t>(to + (count_ - 1U - i) * 8U, values_[i]);
            }
        } else {
            // The processor pushes from the top: a page fault names that address.
            probe_stack(cpu_, linear + size - value_size, value_size, privilege_);
            write_stack(cpu_, linear, bytes.data(), size, privilege_);
        }
    } else {
        // Each as the processor pushes it, so that a page fault names the address it does.
        for (std::size_t i = 0; i < count_; ++i) {
            const std::uint64_t at = below((i + 1U) * value_size);
            write_stack(cpu_, is_64_ ? at : (stack_.base + at) & 0xffff'ffffU, &values_[i],
                        value_size, privilege_);
        }
    }
    pointer_ = merged_stack_pointer(pointer_, bottom, is_64_, stack_);
    count_ = 0;
}

std::uint64_t FrameReader::advanced(std::uint64_t by) const noexcept
{
    return merged_stack_pointer(pointer_, pointer_ + by, cpu_.code_64(), cpu_.seg[Ss]);
}

std::uint16_t FrameReader::pop_selector(unsigned value_size)
{
    const std::uint64_t next = advanced(value_size);
    const auto selector = static_cast<std::uint16_t>(pop(sizeof(std::uint16_t)));
    pointer_ = next;
    return selector;
}

std::uint64_t FrameReader::pop(unsigned value_size)
{
    std::uint64_t linear = pointer_;
    if (!cpu_.code_64()) {
        const std::uint64_t mask = cpu_.seg[Ss].db != 0U ? 0xffff'ffffU : 0xffffU;
        linear = segmented_address(cpu_, Ss, pointer_ & mask, value_size, Access::Read);
    }
    std::uint64_t value = 0;
    if (value_size == 8U) {
        value = load<std::uint64_t>(cpu_, Ss, linear);
    } else if (value_size == 4U) {
        value = load<std::uint32_t>(cpu_, Ss, linear);
    } else {
        value = load<std::uint16_t>(cpu_, Ss, linear);
    }
    pointer_ = advanced(value_size);
    return value;
}

}  // namespace vmm::x86::soft
