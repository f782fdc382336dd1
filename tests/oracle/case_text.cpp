// SPDX-License-Identifier: Apache-2.0

#include "oracle/case_text.hpp"

#include <algorithm>
#include <cstring>
#include <span>
#include <sstream>
#include <stdexcept>
#include <vector>

#include <fmt/format.h>

#include "x86/cpu_state.hpp"

namespace vmm::oracle {

namespace {

constexpr std::array<const char*, 16> names{"rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi",
                                            "r8",  "r9",  "r10", "r11", "r12", "r13", "r14", "r15"};
constexpr std::array<const char*, 6> segment_names{"es", "cs", "ss", "ds", "fs", "gs"};

std::string hex(std::span<const std::uint8_t> bytes)
{
    std::string text;
    for (const std::uint8_t each : bytes) {
        text += fmt::format("{:02x}", each);
    }
    return text;
}

std::vector<std::uint8_t> from_hex(const std::string& text)
{
    if (text.size() % 2 != 0) {
        throw std::invalid_argument("an odd number of hexadecimal digits: " + text);
    }
    std::vector<std::uint8_t> bytes;
    for (std::size_t at = 0; at < text.size(); at += 2) {
        bytes.push_back(static_cast<std::uint8_t>(std::stoul(text.substr(at, 2), nullptr, 16)));
    }
    return bytes;
}

void copy_hex(const std::string& text, std::uint8_t* to, std::size_t size)
{
    const std::vector<std::uint8_t> bytes = from_hex(text);
    if (bytes.size() > size) {
        throw std::invalid_argument("too many bytes: " + text);
    }
    std::copy(bytes.begin(), bytes.end(), to);
}

std::uint32_t offset_of(std::uint64_t linear)
{
    if (linear >= code_base && linear < code_base + code_bytes) {
        return static_cast<std::uint32_t>(linear - code_base);
    }
    if (linear >= data_base && linear < data_base + data_bytes) {
        return code_bytes + static_cast<std::uint32_t>(linear - data_base);
    }
    throw std::invalid_argument(fmt::format("{:#x} is no address of a case's memory", linear));
}

/// Sets what `key` names; false: it names nothing here.
bool set_register(State& in, const std::string& key, const std::string& value)
{
    const auto number = [&] { return std::stoull(value, nullptr, 0); };
    for (std::size_t i = 0; i < names.size(); ++i) {
        if (key == names.at(i)) {
            in.gpr.at(i) = number();
            return true;
        }
    }
    for (std::size_t i = 0; i < segment_names.size(); ++i) {
        if (key == segment_names.at(i)) {
            in.selector.at(i) = static_cast<std::uint16_t>(number());
            return true;
        }
    }
    if (key == "flags") {
        in.rflags = number();
    } else if (key == "fsbase") {
        in.fs_base = number();
    } else if (key == "gsbase") {
        in.gs_base = number();
    } else if (key == "mxcsr") {
        in.mxcsr = static_cast<std::uint32_t>(number());
    } else if (key == "x87") {
        copy_hex(value, in.x87.data(), 32);
    } else if (key.rfind("st", 0) == 0) {
        copy_hex(value, in.x87.data() + 32 + 16 * (std::stoul(key.substr(2)) & 7U), 10);
    } else if (key.rfind("ymm", 0) == 0) {
        copy_hex(value, in.ymm.at(std::stoul(key.substr(3))).data(), 32);
    } else {
        return false;
    }
    return true;
}

}  // namespace

Case plain_case()
{
    Case each;
    each.in.gpr[x86::Rsp] = data_base + 0x800;
    each.in.rflags = 0x202;
    each.in.selector = {user_data, 0, 0, user_data, 0, 0};
    each.in.mxcsr = 0x1f80;
    each.in.x87[0] = 0x7f;
    each.in.x87[1] = 0x03;
    each.code_offset = 0x100;
    return each;
}

Arena plain_image()
{
    Arena image{};
    std::fill_n(image.begin(), code_bytes, std::uint8_t{0xcc});
    return image;
}

std::string to_text(const Case& each, const Arena& image)
{
    const Case plain = plain_case();
    const State& in = each.in;
    std::string text = "code=" + hex({each.code.data(), each.code_size});
    const auto number = [&](const char* name, std::uint64_t value, std::uint64_t usual) {
        if (value != usual) {
            text += fmt::format(" {}={:#x}", name, value);
        }
    };
    if (each.is_32) {
        text += " bits=32";
    }
    if (each.is_sequence) {
        text += " sequence=1";
    }
    number("at", each.code_offset, plain.code_offset);
    for (std::size_t i = 0; i < names.size(); ++i) {
        number(names.at(i), in.gpr.at(i), plain.in.gpr.at(i));
    }
    number("flags", in.rflags, plain.in.rflags);
    for (std::size_t i = 0; i < segment_names.size(); ++i) {
        number(segment_names.at(i), in.selector.at(i), plain.in.selector.at(i));
    }
    number("fsbase", in.fs_base, 0);
    number("gsbase", in.gs_base, 0);
    number("mxcsr", in.mxcsr, plain.in.mxcsr);
    if (std::memcmp(in.x87.data(), plain.in.x87.data(), 32) != 0) {
        text += " x87=" + hex({in.x87.data(), 24});
    }
    for (std::size_t i = 0; i < 8; ++i) {
        const std::span<const std::uint8_t> st{in.x87.data() + 32 + 16 * i, 10};
        if (std::any_of(st.begin(), st.end(), [](std::uint8_t byte) { return byte != 0; })) {
            text += fmt::format(" st{}={}", i, hex(st));
        }
    }
    for (std::size_t i = 0; i < 16; ++i) {
        if (in.ymm.at(i) != plain.in.ymm.at(i)) {
            text += fmt::format(" ymm{}={}", i, hex(in.ymm.at(i)));
        }
    }
    const Arena usual = plain_image();
    for (std::uint32_t at = 0; at < arena_bytes; at += 64) {
        if (std::memcmp(image.data() + at, usual.data() + at, 64) != 0) {
            text += fmt::format(" mem:{:#x}={}", linear_of(at), hex({image.data() + at, 64}));
        }
    }
    for (const Patch& patch : each.patches) {
        if (patch.size != 0) {
            text += fmt::format(" patch:{:#x}={}", linear_of(patch.offset),
                                hex({patch.bytes.data(), patch.size}));
        }
    }
    return text;
}

void from_text(const std::string& text, Case& each, Arena& image)
{
    each = plain_case();
    image = plain_image();
    std::istringstream words{text};
    std::size_t patches = 0;
    for (std::string word; words >> word;) {
        const std::size_t sign = word.find('=');
        if (sign == std::string::npos) {
            throw std::invalid_argument("no '=' in " + word);
        }
        const std::string key = word.substr(0, sign);
        const std::string value = word.substr(sign + 1);
        if (key == "code") {
            copy_hex(value, each.code.data(), each.code.size());
            each.code_size = static_cast<std::uint32_t>(value.size() / 2);
        } else if (key == "bits") {
            each.is_32 = value == "32";
        } else if (key == "sequence") {
            each.is_sequence = true;
        } else if (key == "at") {
            each.code_offset = static_cast<std::uint32_t>(std::stoul(value, nullptr, 0));
        } else if (key.rfind("mem:", 0) == 0) {
            const std::uint32_t offset = offset_of(std::stoull(key.substr(4), nullptr, 0));
            copy_hex(value, image.data() + offset, arena_bytes - offset);
        } else if (key.rfind("patch:", 0) == 0) {
            Patch& patch = each.patches.at(patches++);
            patch.offset = offset_of(std::stoull(key.substr(6), nullptr, 0));
            patch.size = static_cast<std::uint32_t>(value.size() / 2);
            copy_hex(value, patch.bytes.data(), patch.bytes.size());
        } else if (!set_register(each.in, key, value)) {
            throw std::invalid_argument("'" + key + "' is nothing of a case");
        }
    }
}

}  // namespace vmm::oracle
