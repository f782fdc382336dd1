// SPDX-License-Identifier: Apache-2.0

/// @file
/// Runs a program that was written for /dev/kvm on this library.

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include <sys/stat.h>
#include <unistd.h>

#include <fmt/format.h>

#include "elf_kind.hpp"
#include "vmm/kvm.hpp"

namespace {

namespace fs = std::filesystem;

constexpr int status_cannot = 1;
constexpr int status_usage = 2;

constexpr const char* usage =
    R"(Runs a program that was written for /dev/kvm, unchanged, on this library.

    vmm-kvm [OPTION…] [--] PROGRAM [ARGUMENT…]

    --engine NAME   what runs guests: auto (the default), soft, kvm
    --log LEVEL     what is said on standard error: error, warning (the default), debug: why a call was refused,
                    trace: every call
    --raw           serve PROGRAM's system calls although it is linked dynamically: for one that goes past the C library
    --help

Example:

    vmm-kvm --engine soft -- qemu-system-x86_64 -accel kvm -M q35 -m 512M -nographic -kernel VMLINUZ -append console=ttyS0

PROGRAM's calls of the C library are hooked if it is linked dynamically; its system calls are served if it is linked
statically, or with --raw, which costs more for each call.  VMM_KVM_PATCH=0 in the environment
leaves the text of such a program as it is, so that each ioctl costs over a microsecond.  The exit status is that of PROGRAM; 1 if it could not be started, 2 for wrong usage.
)";

struct Options {
    std::string engine{"auto"};
    std::string log{"warning"};
    bool raw{};
    std::vector<char*> command;
};

[[noreturn]] void die(int status, const std::string& message)
{
    fmt::print(stderr, "vmm-kvm: {}\n", message);
    std::exit(status);
}

Options parse(int argc, char** argv)
{
    Options options;
    int at = 1;
    for (; at < argc && argv[at][0] == '-'; ++at) {
        const std::string_view option = argv[at];
        if (option == "--") {
            ++at;
            break;
        }
        if (option == "--help") {
            std::fputs(usage, stdout);
            std::exit(0);
        }
        if (option == "--raw") {
            options.raw = true;
            continue;
        }
        if (option != "--engine" && option != "--log") {
            die(status_usage, fmt::format("there is no option {}; --help lists them", option));
        }
        if (at + 1 == argc) {
            die(status_usage, fmt::format("{} needs a value", option));
        }
        (option == "--engine" ? options.engine : options.log) = argv[++at];
    }
    if (!vmm::engine_from_name(options.engine)) {
        die(status_usage,
            fmt::format("'{}' is no engine; auto, soft and kvm would work", options.engine));
    }
    if (options.log != "error" && options.log != "warning" && options.log != "debug" &&
        options.log != "trace") {
        die(status_usage, fmt::format("'{}' is no log level; error, warning, debug and trace would "
                                      "work",
                                      options.log));
    }
    options.command.assign(argv + at, argv + argc);
    if (options.command.empty()) {
        die(status_usage, "no program named; --help says how");
    }
    options.command.push_back(nullptr);
    return options;
}

/// As execvp(3) looks for it.
std::optional<fs::path> find_program(const std::string& name)
{
    if (name.find('/') != std::string::npos) {
        return name;
    }
    const char* const path = std::getenv("PATH");
    std::string_view rest = path != nullptr ? path : "/usr/bin:/bin";
    for (;;) {
        const std::size_t colon = rest.find(':');
        const fs::path candidate = fs::path{rest.substr(0, colon)} / name;
        if (::access(candidate.c_str(), X_OK) == 0) {
            return candidate;
        }
        if (colon == std::string_view::npos) {
            return std::nullopt;
        }
        rest.remove_prefix(colon + 1);
    }
}

/// Stands at the same distance from this program in the build tree and where it is installed.
fs::path companion(const char* name)
{
    const fs::path self = fs::read_symlink("/proc/self/exe");
    const fs::path file = (self.parent_path() / VMM_KVM_FOLDER / name).lexically_normal();
    if (::access(file.c_str(), R_OK) != 0) {
        die(status_cannot,
            fmt::format("{} is not there; it belongs to this program", file.string()));
    }
    return file;
}

/// Whether system calls are to be served, since a preload library would not be called.
bool is_raw(const fs::path& program, bool wanted)
{
    const ElfKind kind = elf_kind(program);
    switch (kind) {
    case ElfKind::Dynamic: return wanted;
    case ElfKind::Static: return true;
    case ElfKind::NotElf:
        if (wanted) {
            die(status_cannot, fmt::format("{} is no ELF program: start its interpreter with --raw",
                                           program.string()));
        }
        return false;  // A script's interpreter is a program of its own.
    case ElfKind::Foreign:
        die(status_cannot, fmt::format("{} is no program for x86-64", program.string()));
    case ElfKind::Unreadable:
        die(status_cannot, fmt::format("read {}: {}", program.string(), std::strerror(errno)));
    }
    return false;
}

/// A program that takes another user's rights when the kernel starts it: neither way leaves it
/// them.
void refuse_privilege(const fs::path& program)
{
    struct stat status {};
    if (::stat(program.c_str(), &status) != 0) {
        return;  // Said when it is read.
    }
    if (((status.st_mode & S_ISUID) != 0 && status.st_uid != ::geteuid()) ||
        ((status.st_mode & S_ISGID) != 0 && status.st_gid != ::getegid())) {
        die(status_cannot,
            fmt::format("{} is set-user-ID or set-group-ID: start it as that user, or "
                        "use a copy",
                        program.string()));
    }
}

[[noreturn]] void start(const fs::path& program, std::vector<char*>& command)
{
    ::execv(program.c_str(), command.data());
    die(status_cannot, fmt::format("start {}: {}", program.string(), std::strerror(errno)));
}

void set(const char* name, const std::string& value)
{
    ::setenv(name, value.c_str(), 1);
}

}  // namespace

int main(int argc, char** argv)
{
    Options options = parse(argc, argv);
    const auto program = find_program(options.command.front());
    if (!program) {
        die(status_cannot, fmt::format("there is no {} in PATH", options.command.front()));
    }
    refuse_privilege(*program);
    set("VMM_KVM_ENGINE", options.engine);
    set("VMM_KVM_LOG", options.log);
    if (is_raw(*program, options.raw)) {
        std::string name = "vmm-kvm-raw";
        std::string path = *program;
        options.command.insert(options.command.begin(), {name.data(), path.data()});
        start(companion("vmm-kvm-raw"), options.command);
    }
    std::string preload = companion("vmm-kvm-preload.so");
    if (const char* const others = std::getenv("LD_PRELOAD"); others != nullptr && *others != 0) {
        preload += std::string{":"} + others;
    }
    set("LD_PRELOAD", preload);
    start(*program, options.command);
}
