// SPDX-License-Identifier: Apache-2.0

/// @file
/// What `/dev/kvm` is here.

#pragma once

#include <memory>
#include <span>

#include "vmm/kvm.hpp"
#include "x86/shim/dispatch.hpp"
#include "x86/shim/file.hpp"

namespace vmm::shim {

class SystemFile final : public File {
public:
    explicit SystemFile(std::shared_ptr<const Kvm> kvm) noexcept : kvm_{std::move(kvm)} {}

    [[nodiscard]] long ioctl(unsigned request, unsigned long argument) noexcept override;
    [[nodiscard]] std::string link_name() const override { return "/dev/kvm"; }

    [[nodiscard]] const Kvm& kvm() const noexcept { return *kvm_; }
    [[nodiscard]] const std::shared_ptr<const Kvm>& shared_kvm() const noexcept { return kvm_; }

private:
    std::shared_ptr<const Kvm> kvm_;
};

/// Opens `/dev/kvm`: on the engine that VMM_KVM_ENGINE in the environment names, else on `auto`.
///
/// @return a descriptor for the client, or a negative errno.
[[nodiscard]] long open_system(bool close_on_exec) noexcept;

/// KVM_CHECK_EXTENSION; 0 for what there is not.
[[nodiscard]] long check_extension(const Kvm& kvm, unsigned long capability) noexcept;

// --- Groups of ioctls.

[[nodiscard]] std::span<const Row<SystemFile>> system_rows() noexcept;
[[nodiscard]] std::span<const Row<SystemFile>> system_list_rows() noexcept;

}  // namespace vmm::shim
