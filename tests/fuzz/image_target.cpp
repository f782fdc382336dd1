// SPDX-License-Identifier: Apache-2.0

// Kernel images of any contents: loaded or refused, and nothing written outside of RAM.

#include <string>
#include <vector>

#include "boot/fake_memory.hpp"
#include "boot/images.hpp"
#include "fuzz/target.hpp"
#include "vmm/boot/linux.hpp"
#include "vmm/boot/raw_image.hpp"

namespace vmm::fuzz {
namespace {

/// RAM that takes all writes within and forgets them; images may claim gigabytes.
class Ram final : public boot::ImageWriter {
public:
    explicit Ram(std::vector<boot::RamRange> ranges) : ranges_{std::move(ranges)} {}

    Result<void> write(Gpa target, std::span<const std::byte> bytes) override
    {
        return check(target, bytes.size());
    }
    Result<void> zero(Gpa target, std::uint64_t size) override { return check(target, size); }

    unsigned refused{};

private:
    Result<void> check(Gpa target, std::uint64_t size)
    {
        for (const boot::RamRange& range : ranges_) {
            const std::uint64_t offset = target.value() - range.first.value();
            if (target >= range.first && offset <= range.size && range.size - offset >= size) {
                return success;
            }
        }
        if (size != 0) {
            ++refused;
        }
        return Error{std::errc::bad_address, "not RAM"};
    }

    std::vector<boot::RamRange> ranges_;
};

void check_loaded(const boot::LoadedKernel& loaded, const boot::LinuxBoot& boot, const Ram& ram)
{
    FUZZ_CHECK(ram.refused == 0);
    FUZZ_CHECK(loaded.kernel_end >= loaded.kernel.value());
    if (!boot.initrd.empty()) {
        const std::uint64_t end = loaded.initrd.value() + boot.initrd.size();
        FUZZ_CHECK(end <= loaded.kernel.value() || loaded.initrd.value() >= loaded.kernel_end);
    }
}

void place_others(Input& input, std::span<const std::byte> image, std::uint64_t memory_bytes)
{
    const auto ranges = boot::ram_ranges(memory_bytes);
    if (!ranges) {
        return;
    }
    Ram ram{*ranges};
    boot::FlatBoot flat;
    flat.image = image;
    flat.target = Gpa{input.number()};
    flat.memory_bytes = memory_bytes;
    if (boot::load_flat(ram, flat)) {
        FUZZ_CHECK(ram.refused == 0);
    }
    const std::uint64_t rom_bytes = input.number();
    if (const auto bios = boot::place_bios(rom_bytes)) {
        FUZZ_CHECK(bios->rom.value() + bios->rom_bytes == 0x1'0000'0000);
        FUZZ_CHECK(bios->shadow_offset + bios->shadow_bytes == rom_bytes);
    }
}

}  // namespace

void image(Input& input)
{
    constexpr std::array entries{boot::KernelEntry::Automatic, boot::KernelEntry::Protected32,
                                 boot::KernelEntry::Long64, boot::KernelEntry::Pvh,
                                 boot::KernelEntry::Elf};
    boot::LinuxBoot boot;
    boot.entry = input.pick(entries);
    boot.memory_bytes = input.flag() ? (std::uint64_t{input.u16()} << 20U) : input.number();
    boot.command_line = std::string(input.flag() ? input.u16() : input.u8(), 'x');
    const std::vector<std::byte> initrd(input.flag() ? input.u16() : 0);
    boot.initrd = initrd;
    if (input.flag()) {
        boot.rsdp = Gpa{input.number()};
    }
    place_others(input, initrd, boot.memory_bytes);
    boot.kernel = std::as_bytes(input.rest());
    const auto ranges = boot::ram_ranges(boot.memory_bytes);
    Ram ram{ranges ? *ranges : std::vector<boot::RamRange>{}};
    if (const auto loaded = boot::load_linux(ram, boot)) {
        FUZZ_CHECK(ranges.has_value());
        check_loaded(*loaded, boot, ram);
    }
    static_cast<void>(boot::load_bzimage(ram, boot));
    static_cast<void>(boot::load_elf(ram, boot));
}

Seeds image_seeds()
{
    Seeds seeds;
    const auto add = [&](const boot::ByteTable& image, std::initializer_list<unsigned> entries) {
        for (const unsigned entry : entries) {
            Seed seed;
            seed.u8(entry).u8(1).u16(256).u8(0).u8(20).u8(1).u16(4096).u8(1).number(0xe'0000);
            seed.number(0x7c00).number(0x2'0000);
            // The payload is of no interest; short inputs are mutated better.
            const auto bytes = image.bytes();
            seed.bytes(bytes.first(std::min<std::size_t>(bytes.size(), 0x600)));
            seeds.push_back(seed.data());
        }
    };
    auto bzimage = boot::make_bzimage();
    bzimage.put<std::uint32_t>(boot::zero_page::syssize, (0x600 - boot::image_setup_bytes) / 16);
    add(bzimage, {0, 1, 2});
    add(boot::make_elf64(boot::PvhNote::Present), {0, 3, 4});
    add(boot::make_elf64(boot::PvhNote::Absent), {0});
    add(boot::make_elf32(), {0, 4});
    return seeds;
}

}  // namespace vmm::fuzz
