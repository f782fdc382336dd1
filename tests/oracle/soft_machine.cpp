// SPDX-License-Identifier: Apache-2.0

#include "oracle/soft_machine.hpp"

#include <algorithm>
#include <cstring>
#include <stdexcept>

#include "vmm/x86/control_registers.hpp"
#include "x86/cpuid.hpp"
#include "x86/soft/engine.hpp"
#include "x86/soft/x87.hpp"
#include "x86/tsc.hpp"

namespace vmm::oracle {

using namespace x86;

namespace {

/// Guest-physical pages.
enum Frame : std::uint64_t {
    Pml4,
    PdptLow,
    PdptHigh,
    DirectoryLow,
    DirectoryHigh,
    CodeTable,
    DataTable,
    ExitTable,
    KernelTable,
    HandlerPage,
    GdtPage,
    IdtPage,
    TaskPage,
    StackPage,
    ExitPage,
    ArenaPages,
    FrameCount = ArenaPages + arena_bytes / 4096,
};

// Supervisor pages in the upper half, as an operating system has them.
constexpr std::uint64_t kernel_base = 0xffff'ffff'8000'0000;
constexpr std::uint64_t handlers = kernel_base;
constexpr std::uint64_t gdt = kernel_base + 0x1000;
constexpr std::uint64_t idt = kernel_base + 0x2000;
constexpr std::uint64_t task = kernel_base + 0x3000;
constexpr std::uint64_t kernel_stack = kernel_base + 0x4000;
constexpr std::uint64_t kernel_stack_top = kernel_stack + 0x1000;
constexpr std::uint64_t return_frame = kernel_stack_top - 40;

// One handler for each vector, then those of SYSCALL and SYSENTER: HLT, IRETQ.
constexpr std::uint64_t handler_stride = 8;
constexpr std::uint64_t syscall_number = 256;
constexpr std::uint64_t sysenter_number = 257;
constexpr std::uint64_t handler_count = 258;
constexpr std::uint64_t iretq = handlers + 1;
constexpr std::uint8_t exit_vector = 0x80;

// SDM Vol. 3A "4-Level Paging".
constexpr std::uint64_t present = 1;
constexpr std::uint64_t writable = 2;
constexpr std::uint64_t user = 4;
constexpr std::uint64_t accessed_dirty = 0x60;
constexpr std::uint64_t no_execute = std::uint64_t{1} << 63U;

constexpr std::uint16_t kernel_code = 0x10;
constexpr std::uint16_t task_selector = 0x40;

/// Descriptors as Linux has them: user code finds them with LAR, LSL, VERR and VERW, and by
/// loading them.
constexpr std::array<std::uint64_t, 16> descriptors{
    0,
    0x00cf'9b00'0000'ffff,  // 32-bit kernel code
    0x00af'9b00'0000'ffff,  // 64-bit kernel code
    0x00cf'9300'0000'ffff,  // kernel data
    0x00cf'fb00'0000'ffff,  // 32-bit user code
    0x00cf'f300'0000'ffff,  // user data
    0x00af'fb00'0000'ffff,  // 64-bit user code
    0,
    0x0000'8b00'0000'0067,  // The task; its base follows.
    0,
    0,
    0,
    0,
    0,
    0,
    0x0040'f500'0000'0001,  // The number of the CPU, as a limit.
};

Segment flat_segment(std::uint16_t selector, std::uint8_t type, std::uint8_t dpl, bool is_64)
{
    Segment segment{};
    segment.selector = selector;
    segment.limit = 0xffff'ffff;
    segment.type = type;
    segment.present = 1;
    segment.dpl = dpl;
    segment.s = 1;
    segment.g = 1;
    segment.db = is_64 ? 0 : 1;
    segment.l = is_64 ? 1 : 0;
    return segment;
}

Segment null_segment(std::uint16_t selector)
{
    Segment segment{};
    segment.selector = selector;
    segment.unusable = 1;
    return segment;
}

Segment data_segment(std::uint16_t selector)
{
    return (selector & ~3U) == 0 ? null_segment(selector) : flat_segment(selector, 3, 3, false);
}

}  // namespace

class SoftMachine::Memory final : public PhysicalMemory {
public:
    [[nodiscard]] Page page(std::uint64_t gfn) noexcept override
    {
        return gfn < FrameCount ? Page{ram->data() + gfn * 4096, true, false} : Page{};
    }
    void mark_dirty(std::uint64_t) noexcept override {}

    [[nodiscard]] std::byte* at(std::uint64_t frame) { return ram->data() + frame * 4096; }
    [[nodiscard]] std::uint8_t* arena() { return reinterpret_cast<std::uint8_t*>(at(ArenaPages)); }
    template <typename T>
    void put(std::uint64_t frame, std::uint64_t offset, T value)
    {
        std::memcpy(at(frame) + offset, &value, sizeof(T));
    }
    template <typename T>
    [[nodiscard]] T get(std::uint64_t frame, std::uint64_t offset)
    {
        T value;
        std::memcpy(&value, at(frame) + offset, sizeof(T));
        return value;
    }
    void fill_exit_page(std::uint8_t filler)
    {
        std::memset(at(ExitPage), filler, 4096);
        for (const std::uint64_t exit : {exit_64, exit_32}) {
            put(ExitPage, exit & 0xfffU, std::uint16_t{0x80cd});  // INT 80h
        }
    }

private:
    struct alignas(4096) Ram : std::array<std::byte, FrameCount * 4096> {};
    std::unique_ptr<Ram> ram = std::make_unique<Ram>();
};

/// Nothing is attached: user code can reach no device.
class SoftMachine::Host final : public VcpuHost {
public:
    bool mmio_read(Gpa, std::span<std::byte>) noexcept override { return false; }
    bool mmio_write(Gpa, std::span<const std::byte>) noexcept override { return false; }
    bool port_read(Port, std::span<std::byte>) noexcept override { return false; }
    bool port_write(Port, std::span<const std::byte>) noexcept override { return false; }
    MsrResult read_msr(std::uint32_t, std::uint64_t&) noexcept override { return MsrResult::Fault; }
    MsrResult write_msr(std::uint32_t, std::uint64_t) noexcept override { return MsrResult::Fault; }
    void write_cr8(std::uint64_t) noexcept override {}
    std::uint64_t read_cr8() noexcept override { return 0; }
    std::uint64_t guest_tsc() noexcept override { return read_host_tsc(); }
    void hypercall(CpuState&) noexcept override {}
};

SoftMachine::SoftMachine(soft::TranslationMode mode)
    : mode_{mode},
      memory_{std::make_unique<Memory>()},
      host_{std::make_unique<Host>()}
{
    build_tables();
    Result<std::unique_ptr<EngineVm>> vm = soft::create_soft_vm(*memory_, mode);
    if (!vm) {
        throw std::runtime_error(vm.error().message());
    }
    vm_ = std::move(vm).value();
    vcpu_ = vm_->create_vcpu(*host_, 0).value();
    CpuState& state = vcpu_->state();
    state.cpuid = Cpuid{supported_cpuid(host_tsc_khz())};
    state.cr0 = mask_of(Cr0::PE, Cr0::MP, Cr0::ET, Cr0::NE, Cr0::WP, Cr0::AM, Cr0::PG);
    state.cr3 = Pml4 * 4096;
    state.cr4 =
        mask_of(Cr4::PAE, Cr4::PGE, Cr4::OSFXSR, Cr4::OSXMMEXCPT, Cr4::OSXSAVE, Cr4::FSGSBASE);
    state.efer = mask_of(Efer::SCE, Efer::LME, Efer::LMA, Efer::NXE);
    state.xcr0 = 7;
    state.gdt = {gdt, sizeof descriptors + 0x0f, {}};
    state.idt = {idt, 0xfff, {}};
    state.tr = flat_segment(task_selector, 11, 0, false);
    state.tr.base = task;
    state.tr.limit = 0x67;
    state.tr.s = 0;
    state.tr.g = 0;
    state.tr.db = 0;
    state.ldt = null_segment(0);
    state.star = (std::uint64_t{user_code_32} << 48U) | (std::uint64_t{kernel_code} << 32U);
    state.lstar = handlers + syscall_number * handler_stride;
    state.cstar = state.lstar;
    state.fmask = 0x4'7700;  // TF among them: no trap in the handler.
    state.sysenter_cs = kernel_code;
    state.sysenter_eip = handlers + sysenter_number * handler_stride;
    state.sysenter_esp = kernel_stack_top;
    enter_kernel();
}

SoftMachine::~SoftMachine() = default;

void SoftMachine::build_tables()
{
    const auto entry = [](std::uint64_t frame, std::uint64_t bits) {
        return frame * 4096 | present | accessed_dirty | bits;
    };
    constexpr std::uint64_t table = user | writable;
    const auto index = [](std::uint64_t linear, unsigned shift) {
        return ((linear >> shift) & 0x1ffU) * 8;
    };
    Memory& memory = *memory_;
    memory.put(Pml4, 0, entry(PdptLow, table));
    memory.put(Pml4, index(kernel_base, 39), entry(PdptHigh, table));
    memory.put(PdptLow, 0, entry(DirectoryLow, table));
    memory.put(PdptHigh, index(kernel_base, 30), entry(DirectoryHigh, table));
    memory.put(DirectoryLow, index(code_base, 21), entry(CodeTable, table));
    memory.put(DirectoryLow, index(data_base, 21), entry(DataTable, table));
    memory.put(DirectoryLow, index(exit_64, 21), entry(ExitTable, table));
    memory.put(DirectoryHigh, index(kernel_base, 21), entry(KernelTable, table));
    for (std::uint32_t at = 0; at < arena_bytes; at += 4096) {
        const std::uint64_t linear = linear_of(at);
        const bool is_code = at < code_bytes;
        const std::uint64_t bits =
            user | (at < arena_writable_bytes ? writable : 0) | (is_code ? 0 : no_execute);
        memory.put(is_code ? CodeTable : DataTable, index(linear, 12),
                   entry(ArenaPages + at / 4096, bits));
    }
    memory.put(ExitTable, index(exit_64, 12), entry(ExitPage, user));
    for (std::uint64_t page = 0; page < 5; ++page) {
        memory.put(KernelTable, page * 8, entry(HandlerPage + page, writable));
    }
    for (std::uint64_t number = 0; number < handler_count; ++number) {
        memory.put(HandlerPage, number * handler_stride, std::uint32_t{0x00cf'48f4});
    }
    memory.fill_exit_page(exit_filler);
    auto table_of_descriptors = descriptors;
    table_of_descriptors[8] |= ((task & 0xff'ffffU) << 16U) | ((task & 0xff00'0000U) << 32U);
    table_of_descriptors[9] = task >> 32U;
    memory.put(GdtPage, 0, table_of_descriptors);
    memory.put(TaskPage, 4, kernel_stack_top);
    memory.put(TaskPage, 0x66, std::uint16_t{0x68});
    for (std::uint64_t number = 0; number < 256; ++number) {
        const std::uint64_t target = handlers + number * handler_stride;
        const bool is_open = number == 3 || number == 4 || number == exit_vector;
        memory.put(IdtPage, number * 16,
                   (target & 0xffffU) | (std::uint64_t{kernel_code} << 16U) |
                       (std::uint64_t{is_open ? 0xeeU : 0x8eU} << 40U) |
                       ((target & 0xffff'0000U) << 32U));
        memory.put(IdtPage, number * 16 + 8, target >> 32U);
    }
}

/// As at the end of a handler.
void SoftMachine::enter_kernel()
{
    CpuState& state = vcpu_->state();
    state.seg[Cs] = flat_segment(kernel_code, 11, 0, true);
    state.seg[Ss] = null_segment(0);
    for (const SegmentIndex each : {Ds, Es}) {
        state.seg[each] = data_segment(user_data);
    }
    for (const SegmentIndex each : {Fs, Gs}) {
        state.seg[each] = null_segment(0);
    }
    state.rflags = 2;
    state.pending_debug = 0;
    state.inject.reset();
    state.sti_shadow = false;
    state.mov_ss_shadow = false;
    vcpu_->state_changed();
}

void SoftMachine::set_image(const Arena& image)
{
    image_ = image;
    before_ = image;
    code_size_ = 0;
    std::memcpy(memory_->arena(), image.data(), arena_bytes);
    code_written();
}

void SoftMachine::fill_exit_page(std::uint8_t filler)
{
    memory_->fill_exit_page(filler);
    vm_->memory_written(Gpa{ExitPage * 4096}, 4096);
}

void SoftMachine::code_written()
{
    vm_->memory_written(Gpa{ArenaPages * 4096}, code_bytes);
}

void SoftMachine::patch(std::uint32_t offset, const std::uint8_t* bytes, std::uint32_t size)
{
    std::memcpy(memory_->arena() + offset, bytes, size);
    std::memcpy(before_.data() + offset, bytes, size);
}

void SoftMachine::write_code(const Case& each)
{
    // Back to back the same code needs no new decoding.
    const bool is_same =
        code_offset_ == each.code_offset && code_size_ == each.code_size &&
        std::memcmp(before_.data() + code_offset_, each.code.data(), code_size_) == 0;
    if (is_same) {
        return;
    }
    patch(code_offset_, image_.data() + code_offset_, code_size_);
    patch(each.code_offset, each.code.data(), each.code_size);
    code_offset_ = each.code_offset;
    code_size_ = each.code_size;
    code_written();
}

void SoftMachine::load_segments(const State& in)
{
    CpuState& state = vcpu_->state();
    bool changed = false;
    for (const SegmentIndex each : {Es, Ds, Fs, Gs}) {
        Segment wanted = data_segment(in.selector[each]);
        if (each == Fs || each == Gs) {
            wanted.base = each == Fs ? in.fs_base : in.gs_base;
        }
        if (!(state.seg[each] == wanted)) {
            state.seg[each] = wanted;
            changed = true;
        }
    }
    if (changed) {
        vcpu_->state_changed();
    }
}

void SoftMachine::load(const Case& each)
{
    CpuState& state = vcpu_->state();
    load_segments(each.in);
    std::copy(each.in.gpr.begin(), each.in.gpr.end(), state.gpr.begin());
    std::memcpy(state.fpu.x87.data(), each.in.x87.data(), each.in.x87.size());
    std::memcpy(state.fpu.ymm.data(), each.in.ymm.data(), sizeof each.in.ymm);
    state.fpu.mxcsr = each.in.mxcsr;
    const std::array<std::uint64_t, 5> frame{linear_of(each.code_offset),
                                             each.is_32 ? user_code_32 : user_code_64,
                                             each.in.rflags, each.in.gpr[Rsp], user_data};
    memory_->put(StackPage, return_frame - kernel_stack, frame);
    state.gpr[Rsp] = return_frame;
    state.rip = iretq;
}

void SoftMachine::run(const Case& each, Outcome& outcome)
{
    for (const Patch& one : each.patches) {
        patch(one.offset, one.bytes.data(), one.size);
    }
    write_code(each);
    load(each);
    outcome.in_32 = false;
    outcome.error_code = 0;
    outcome.address = 0;
    collect(vcpu_->enter(), outcome);
    const bool code_changed = take_changes(memory_->arena(), before_.data(), outcome);
    if (code_changed) {
        code_written();
    }
    for (const Patch& one : each.patches) {
        patch(one.offset, image_.data() + one.offset, one.size);
    }
}

/// After the HLT of a handler, the stack says where from.
void SoftMachine::collect(const EngineExit& exit, Outcome& outcome)
{
    CpuState& state = vcpu_->state();
    State& out = outcome.out;
    std::copy_n(state.gpr.begin(), out.gpr.size(), out.gpr.begin());
    std::memcpy(out.x87.data(), state.fpu.x87.data(), out.x87.size());
    std::memset(out.x87.data() + 24, 0, 8);
    // As the host's XSAVE shows it.
    if ((out.x87[2] & 0x80U) == 0 && soft::x87_hides_pointers(state.cpuid)) {
        std::memset(out.x87.data() + 6, 0, 18);
    }
    std::memcpy(out.ymm.data(), state.fpu.ymm.data(), sizeof out.ymm);
    out.mxcsr = state.fpu.mxcsr;
    for (const SegmentIndex each : {Es, Ds, Fs, Gs}) {
        out.selector[each] = state.seg[each].selector;
    }
    out.fs_base = state.seg[Fs].base;
    out.gs_base = state.seg[Gs].base;
    const std::uint64_t number = (state.rip - 1 - handlers) / handler_stride;
    if (exit.reason != EngineExit::Reason::Halt || number >= handler_count) {
        outcome.ending = exit.reason == EngineExit::Reason::Interrupted ? TimedOut : Died;
        enter_kernel();
        return;
    }
    if (number == syscall_number || number == sysenter_number) {
        outcome.ending = SystemCall;
        enter_kernel();
        return;
    }
    std::uint64_t at = state.gpr[Rsp] - kernel_stack;
    const std::uint64_t pushed = 0x1000 - at;
    if (pushed != 40 && pushed != 48) {
        outcome.ending = Died;  // An exception in the kernel itself.
        enter_kernel();
        return;
    }
    outcome.ending = static_cast<std::uint16_t>(number);
    if (pushed == 48) {
        outcome.error_code = memory_->get<std::uint32_t>(StackPage, at);
        at += 8;
    }
    if (number == static_cast<std::uint64_t>(Vector::PF)) {
        outcome.address = state.cr2;
    }
    const auto frame = memory_->get<std::array<std::uint64_t, 5>>(StackPage, at);
    out.rip = frame[0];
    out.selector[Cs] = static_cast<std::uint16_t>(frame[1]);
    out.rflags = frame[2];
    out.gpr[Rsp] = frame[3];
    out.selector[Ss] = static_cast<std::uint16_t>(frame[4]);
    if (number == exit_vector) {
        const bool is_64 = out.rip == exit_64 + 2;
        const bool is_exit = is_64 || out.rip == exit_32 + 2;
        const bool fits = is_64 == (out.selector[Cs] == user_code_64);
        outcome.in_32 = !is_64;
        outcome.ending = !is_exit ? SystemCall : (fits ? ReachedExit : ReachedOther);
        out.rip = 0;
        out.selector[Cs] = 0;
    }
}

}  // namespace vmm::oracle
