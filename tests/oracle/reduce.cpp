// SPDX-License-Identifier: Apache-2.0

#include "oracle/reduce.hpp"

#include <algorithm>
#include <cstring>

#include "oracle/case_text.hpp"
#include "oracle/encoding.hpp"
#include "x86/soft/insn.hpp"

namespace vmm::oracle {

namespace {

class Reducer {
public:
    Reducer(const Case& each,
            const Arena& image,
            const std::function<std::string(const Case&, const Arena&)>& difference)
        : best_{each, image, difference(each, image)},
          difference_{difference}
    {
    }

    Reduced run()
    {
        for (unsigned round = 0; round < 3; ++round) {
            const std::string before = to_text(best_.smallest, best_.image);
            memory();
            registers();
            vectors();
            bytes();
            if (to_text(best_.smallest, best_.image) == before) {
                break;
            }
        }
        return best_;
    }

private:
    /// Whether it has become another instruction, whose differences are not the ones looked for.
    [[nodiscard]] bool is_other(const Case& each) const
    {
        if (each.is_sequence) {
            return false;
        }
        const auto first = [](const Case& of) {
            return parse({of.code.data(), of.code_size}, of.is_32);
        };
        const Encoding now = first(each);
        const Encoding before = first(best_.smallest);
        return now.kind != before.kind || now.map != before.map || now.opcode != before.opcode ||
               now.pp != before.pp;
    }

    /// Keeps what `change` makes of the best case, if it still differs.
    template <typename Change>
    bool try_change(const Change& change)
    {
        Case each = best_.smallest;
        Arena image = best_.image;
        change(each, image);
        if (to_text(each, image) == to_text(best_.smallest, best_.image) || is_other(each)) {
            return false;
        }
        std::string text = difference_(each, image);
        if (text.empty()) {
            return false;
        }
        best_ = {each, image, std::move(text)};
        return true;
    }

    void memory()
    {
        const Arena plain = plain_image();
        if (!try_change([&](Case&, Arena& image) { image = plain; })) {
            for (std::uint32_t at = 0; at < arena_bytes; at += 64) {
                try_change([&](Case&, Arena& image) {
                    std::memcpy(image.data() + at, plain.data() + at, 64);
                });
            }
        }
        for (std::size_t number = 0; number < best_.smallest.patches.size(); ++number) {
            try_change([&](Case& each, Arena&) { each.patches.at(number).size = 0; });
            for (std::size_t at = 0; at < 64; at += 8) {
                try_change([&](Case& each, Arena&) {
                    std::fill_n(each.patches.at(number).bytes.begin() + static_cast<long>(at), 8,
                                std::uint8_t{0});
                });
            }
        }
    }

    void registers()
    {
        const Case plain = plain_case();
        for (std::size_t number = 0; number < 16; ++number) {
            try_change(
                [&](Case& each, Arena&) { each.in.gpr.at(number) = plain.in.gpr.at(number); });
            for (const std::uint64_t mask :
                 {std::uint64_t{0xff}, std::uint64_t{0xffff}, std::uint64_t{0xffff'ffff}}) {
                try_change([&](Case& each, Arena&) { each.in.gpr.at(number) &= mask; });
            }
        }
        try_change([&](Case& each, Arena&) { each.in.rflags = plain.in.rflags; });
        for (unsigned flag = 0; flag < 22; ++flag) {
            try_change([&](Case& each, Arena&) {
                each.in.rflags = (each.in.rflags & ~(std::uint64_t{1} << flag)) | plain.in.rflags;
            });
        }
        try_change([&](Case& each, Arena&) { each.in.fs_base = 0; });
        try_change([&](Case& each, Arena&) { each.in.gs_base = 0; });
        try_change([&](Case& each, Arena&) { each.in.mxcsr = plain.in.mxcsr; });
        try_change([&](Case& each, Arena&) { each.code_offset = plain.code_offset; });
    }

    void vectors()
    {
        const Case plain = plain_case();
        for (std::size_t at = 0; at < 8; at += 2) {
            try_change([&](Case& each, Arena&) {
                std::copy_n(plain.in.x87.begin() + static_cast<long>(at), 2,
                            each.in.x87.begin() + static_cast<long>(at));
            });
        }
        for (std::size_t at = 32; at < 160; at += 16) {
            try_change([&](Case& each, Arena&) {
                std::fill_n(each.in.x87.begin() + static_cast<long>(at), 10, std::uint8_t{0});
            });
        }
        for (std::size_t number = 0; number < 16; ++number) {
            try_change([&](Case& each, Arena&) { each.in.ymm.at(number).fill(0); });
            for (std::size_t at = 0; at < 32; at += 4) {
                try_change([&](Case& each, Arena&) {
                    std::fill_n(each.in.ymm.at(number).begin() + static_cast<long>(at), 4,
                                std::uint8_t{0});
                });
            }
        }
    }

    /// Of several instructions: leaves out each, without moving what follows.
    void instructions()
    {
        std::uint32_t at = 0;
        while (at < best_.smallest.code_size) {
            Case& smallest = best_.smallest;
            const std::span<const std::uint8_t> code{smallest.code.data() + at,
                                                     smallest.code_size - at};
            x86::soft::Insn insn;
            const auto size =
                smallest.is_32 ? x86::soft::CodeSize::Bits32 : x86::soft::CodeSize::Bits64;
            if (decode(std::as_bytes(code), size, insn) != x86::soft::DecodeStatus::Ok) {
                return;
            }
            try_change([&](Case& each, Arena&) {
                std::fill_n(each.code.begin() + at, insn.length, std::uint8_t{0x90});
            });
            at += insn.length;
        }
    }

    /// Leaves out bytes, each alone.
    void bytes()
    {
        if (best_.smallest.is_sequence) {
            instructions();
            return;
        }
        for (std::uint32_t at = 0; at < best_.smallest.code_size;) {
            const bool left_out = try_change([&](Case& each, Arena&) {
                std::copy(each.code.begin() + at + 1, each.code.begin() + each.code_size,
                          each.code.begin() + at);
                --each.code_size;
            });
            at += left_out ? 0 : 1;
        }
    }

    Reduced best_;
    const std::function<std::string(const Case&, const Arena&)>& difference_;
};

}  // namespace

Reduced reduce(const Case& each,
               const Arena& image,
               const std::function<std::string(const Case&, const Arena&)>& difference)
{
    return Reducer{each, image, difference}.run();
}

}  // namespace vmm::oracle
