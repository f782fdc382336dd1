// SPDX-License-Identifier: Apache-2.0

/// @file
/// `/dev/kvm`: versions, capabilities, and making virtual machines.

#include "x86/shim/system_file.hpp"

#include <cstdlib>
#include <mutex>
#include <string>

#include <fcntl.h>
#include <linux/kvm.h>

#include "x86/shim/descriptors.hpp"
#include "x86/shim/library_scope.hpp"
#include "x86/shim/log.hpp"
#include "x86/shim/signals.hpp"
#include "x86/shim/vm_file.hpp"

namespace vmm::shim {
namespace {

long get_api_version(SystemFile& file, unsigned long argument)
{
    return argument == 0 ? file.kvm().api_version() : -EINVAL;
}

long create_vm(SystemFile& file, unsigned long type)
{
    if (type != 0) {
        return -EINVAL;
    }
    auto vm = file.kvm().create_vm();
    if (!vm) {
        return refused(vm.error());
    }
    auto fd = make_memfd("kvm-vm", 0);
    if (!fd) {
        return refused(fd.error());
    }
    return install(*std::move(fd), std::make_shared<VmFile>(file.shared_kvm(), *std::move(vm)));
}

long check_system_extension(SystemFile& file, unsigned long capability)
{
    return check_extension(file.kvm(), capability);
}

long get_vcpu_mmap_size(SystemFile& /*file*/, unsigned long argument)
{
    return argument == 0 ? static_cast<long>(run_area_size) : -EINVAL;
}

constexpr Row<SystemFile> rows[] = {
    {KVM_GET_API_VERSION, "KVM_GET_API_VERSION", get_api_version},
    {KVM_CREATE_VM, "KVM_CREATE_VM", create_vm},
    {KVM_CHECK_EXTENSION, "KVM_CHECK_EXTENSION", check_system_extension},
    {KVM_GET_VCPU_MMAP_SIZE, "KVM_GET_VCPU_MMAP_SIZE", get_vcpu_mmap_size},
};

/// The engine of this process, opened when first asked for.
std::shared_ptr<const Kvm> open_engine()
{
    static std::mutex mutex;
    static auto& opened = *new std::shared_ptr<const Kvm>;
    const std::lock_guard lock{mutex};
    if (opened != nullptr) {
        return opened;
    }
    const char* const name = std::getenv("VMM_KVM_ENGINE");
    const auto engine = engine_from_name(name != nullptr ? name : "auto");
    if (!engine) {
        log(LogLevel::Error,
            std::string{"VMM_KVM_ENGINE="} + name + " names no engine; auto, soft and kvm would");
        return nullptr;
    }
    auto kvm = Kvm::open({.engine = *engine});
    if (!kvm) {
        log(LogLevel::Error, "open /dev/kvm: " + kvm.error().message());
        return nullptr;
    }
    opened = std::make_shared<const Kvm>(*std::move(kvm));
    return opened;
}

}  // namespace

std::span<const Row<SystemFile>> system_rows() noexcept
{
    return rows;
}

long SystemFile::ioctl(unsigned request, unsigned long argument) noexcept
{
    static const auto& table =
        *new Table<SystemFile>{"/dev/kvm", EINVAL, {system_rows(), system_list_rows()}};
    const LibraryScope inside;
    return table.call(*this, request, argument);
}

long open_system(bool close_on_exec) noexcept
{
    try {
        const LibraryScope inside;
        auto kvm = open_engine();
        if (kvm == nullptr) {
            return -ENODEV;
        }
        own_signals();
        // A character device, as the client may look at what it has got.
        UniqueFd fd{::open("/dev/null", O_RDWR | (close_on_exec ? O_CLOEXEC : 0))};
        if (!fd) {
            return -errno;
        }
        return install(std::move(fd), std::make_shared<SystemFile>(std::move(kvm)));
    } catch (const std::bad_alloc&) {
        return -ENOMEM;
    }
}

}  // namespace vmm::shim
