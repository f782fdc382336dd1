// SPDX-License-Identifier: Apache-2.0

#include "options.hpp"

#include <algorithm>
#include <charconv>
#include <optional>
#include <string_view>

#include <fmt/format.h>

namespace vmm_linux {

const char* const usage =
    "usage: vmm-linux --kernel FILE [--initrd FILE] [--append STRING] [--memory SIZE] [--cpus N]\n"
    "                 [--engine auto|soft|kvm|svm|vmx] [--lockstep ENGINE,ENGINE] [--statistics]\n"
    "                 [--irqchip library|kernel] [--no-reboot] [--pv +BIT,-BIT,...]\n"
    "\n"
    "Boots a Linux kernel (bzImage, ELF vmlinux or PVH) with its console on this terminal.\n"
    "  --append   kernel command line (default: console=ttyS0)\n"
    "  --memory   RAM, with suffix K, M or G (default: 512M)\n"
    "  --cpus     1 to 255 (default: 1)\n"
    "  --engine   vmm-info lists them; soft:interpreter is soft without its translator\n"
    "  --lockstep E,F   the engines E and F run the guest and are compared; the first difference "
    "ends it\n"
    "  --irqchip  who has the interrupt controllers (default: library); kernel is the kernel's "
    "KVM,\n"
    "             with --engine kvm alone\n"
    "  --statistics  says at the end what each virtual CPU has counted\n"
    "  --no-reboot   a guest that resets ends the program, with status 0\n"
    "  --pv       KVM's paravirtual features that the guest is offered more (+) or less (-), by "
    "bit\n"
    "             of CPUID 0x40000001.EAX: +7 is paravirtual spinlocks, -6 no silent EOI\n"
    "Ctrl-A x quits, Ctrl-A h lists the other keys.\n"
    "\n"
    "Exit status: 0 power-off; what the guest wrote to port 0xf4; 1 it cannot run; 2 wrong usage;\n"
    "124 the guest triple-faulted; 125 the guest panicked; 126 the guest met something that the\n"
    "engine cannot execute; 130 quit from the keyboard.\n";

namespace {

using vmm::Error;
using vmm::Result;

Error wrong(std::string sentence)
{
    return {std::errc::invalid_argument, std::move(sentence)};
}

/// "512M" and the like; nothing if it is no size or does not fit 64 bits.
std::optional<std::uint64_t> parse_size(std::string_view text)
{
    unsigned shift = 0;
    if (!text.empty()) {
        switch (text.back()) {
        case 'k':
        case 'K': shift = 10; break;
        case 'm':
        case 'M': shift = 20; break;
        case 'g':
        case 'G': shift = 30; break;
        default: break;
        }
    }
    if (shift != 0) {
        text.remove_suffix(1);
    }
    std::uint64_t number = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
    if (error != std::errc{} || end != text.data() + text.size() ||
        number > (~std::uint64_t{0} >> shift)) {
        return std::nullopt;
    }
    return number << shift;
}

Result<void> set_memory(Options& options, std::string_view value)
{
    constexpr std::uint64_t smallest = 1U << 20U;
    constexpr std::uint64_t page = 4096;
    const auto size = parse_size(value);
    if (!size || *size < smallest || *size % page != 0) {
        return wrong(fmt::format("--memory {}: give a size in whole pages of 4096 bytes, at least "
                                 "1M, for example 512M or 2G",
                                 value));
    }
    options.memory_bytes = *size;
    return vmm::success;
}

Result<void> set_cpus(Options& options, std::string_view value)
{
    constexpr std::uint64_t most = 255;
    const auto count = parse_size(value);
    if (!count || *count < 1 || *count > most) {
        return wrong(fmt::format("--cpus {}: give a number from 1 to {}", value, most));
    }
    options.cpus = static_cast<std::uint32_t>(*count);
    return vmm::success;
}

struct EngineChoice {
    vmm::Engine engine{};
    std::optional<vmm::SoftMode> mode{};
};

/// "kvm", "soft", "soft:interpreter" …
std::optional<EngineChoice> parse_engine(std::string_view text)
{
    const std::size_t colon = text.find(':');
    const auto engine = vmm::engine_from_name(text.substr(0, colon));
    if (!engine) {
        return std::nullopt;
    }
    EngineChoice choice{*engine};
    if (colon != std::string_view::npos) {
        choice.mode = vmm::soft_mode_from_name(text.substr(colon + 1));
        if (!choice.mode || choice.engine != vmm::Engine::Soft) {
            return std::nullopt;
        }
    }
    return choice;
}

Result<void> set_engine(Options& options, std::string_view value)
{
    const auto choice = parse_engine(value);
    if (!choice) {
        return wrong(
            fmt::format("--engine {}: there is no such engine; auto, soft, kvm, svm and "
                        "vmx are known, and vmm-info says which work here; soft:translator, "
                        "soft:interpreter and soft:stress are soft in one of its modes",
                        value));
    }
    options.engine = choice->engine;
    options.soft_mode = choice->mode.value_or(options.soft_mode);
    return vmm::success;
}

Result<void> set_lockstep(Options& options, std::string_view value)
{
    const std::size_t comma = value.find(',');
    const auto first = parse_engine(value.substr(0, comma));
    const auto second =
        comma == std::string_view::npos ? std::nullopt : parse_engine(value.substr(comma + 1));
    if (!first || !second || first->engine == vmm::Engine::Auto ||
        second->engine == vmm::Engine::Auto) {
        return wrong(fmt::format("--lockstep {}: give two engines by name, for example soft,kvm or "
                                 "soft,soft:interpreter",
                                 value));
    }
    options.engine = first->engine;
    options.soft_mode = first->mode.value_or(options.soft_mode);
    options.lockstep = second->engine;
    options.lockstep_soft_mode = second->mode;
    return vmm::success;
}

Result<void> set_irqchip(Options& options, std::string_view value)
{
    const auto place = vmm::irqchip_place_from_name(value);
    if (!place) {
        return wrong(fmt::format("--irqchip {}: give library or kernel", value));
    }
    options.irqchip = *place;
    return vmm::success;
}

/// "+7,-6".
Result<void> set_pv(Options& options, std::string_view value)
{
    constexpr unsigned bits = 32;
    std::string_view rest = value;
    while (!rest.empty()) {
        const std::string_view one = rest.substr(0, rest.find(','));
        rest.remove_prefix(std::min(rest.size(), one.size() + 1));
        const bool adds = !one.empty() && one.front() == '+';
        const auto bit = parse_size(one.substr(one.empty() ? 0 : 1));
        if ((!adds && (one.empty() || one.front() != '-')) || !bit || *bit >= bits) {
            return wrong(fmt::format("--pv {}: give bits from 0 to 31, each with + or -, for "
                                     "example +7,-6",
                                     value));
        }
        (adds ? options.pv_added : options.pv_removed) |= std::uint32_t{1} << *bit;
    }
    return vmm::success;
}

Result<void> set_option(Options& options, std::string_view name, std::string_view value)
{
    if (name == "--kernel") {
        options.kernel = value;
    } else if (name == "--initrd") {
        options.initrd = value;
    } else if (name == "--append") {
        options.append = value;
    } else if (name == "--memory") {
        return set_memory(options, value);
    } else if (name == "--cpus") {
        return set_cpus(options, value);
    } else if (name == "--engine") {
        return set_engine(options, value);
    } else if (name == "--lockstep") {
        return set_lockstep(options, value);
    } else if (name == "--irqchip") {
        return set_irqchip(options, value);
    } else if (name == "--pv") {
        return set_pv(options, value);
    } else {
        return wrong(fmt::format("{}: there is no such option; try --help", name));
    }
    return vmm::success;
}

}  // namespace

Result<Options> parse_options(int argc, char** argv)
{
    Options options;
    for (int i = 1; i < argc; ++i) {
        const std::string_view argument{argv[i]};
        if (argument == "--help" || argument == "-h") {
            options.help = true;
            return options;
        }
        if (argument == "--no-reboot") {
            options.reboot = false;
            continue;
        }
        if (argument == "--statistics") {
            options.statistics = true;
            continue;
        }
        const std::size_t equals = argument.find('=');
        const bool attached = argument.substr(0, 2) == "--" && equals != std::string_view::npos;
        if (!attached && i + 1 >= argc) {
            return wrong(fmt::format("{}: give it a value, or try --help", argument));
        }
        const std::string_view value = attached ? argument.substr(equals + 1) : argv[++i];
        VMM_TRY_VOID(set_option(options, attached ? argument.substr(0, equals) : argument, value));
    }
    if (options.kernel.empty()) {
        return wrong("no kernel: give one with --kernel FILE, a bzImage or vmlinux");
    }
    return options;
}

}  // namespace vmm_linux
