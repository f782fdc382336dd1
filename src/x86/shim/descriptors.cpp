// SPDX-License-Identifier: Apache-2.0

#include "x86/shim/descriptors.hpp"

#include <utility>

#include <sys/mman.h>
#include <unistd.h>

namespace vmm::shim {

static_assert(sizeof(kvm_run) <= shim_page_size);

Result<UniqueFd> make_memfd(const std::string& name, std::size_t size)
{
    UniqueFd fd{::memfd_create(name.c_str(), MFD_CLOEXEC)};
    if (!fd) {
        return Error::from_errno("make a descriptor for " + name);
    }
    if (::ftruncate(fd.get(), static_cast<off_t>(size)) != 0) {
        return Error::from_errno("give the descriptor for " + name + " its size");
    }
    return fd;
}

long install(UniqueFd fd, std::shared_ptr<File> file)
{
    if (!FileTable::instance().add(fd.get(), std::move(file))) {
        return -EMFILE;
    }
    return fd.release();
}

Result<SharedPages> SharedPages::map(const UniqueFd& memfd, std::size_t offset, std::size_t size)
{
    void* const at = ::mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED, memfd.get(),
                            static_cast<off_t>(offset));
    if (at == MAP_FAILED) {
        return Error::from_errno("map what a vCPU shares");
    }
    return SharedPages{static_cast<std::byte*>(at), size};
}

SharedPages::~SharedPages()
{
    if (base_ != nullptr) {
        ::munmap(base_, size_);
    }
}

Result<RunArea> RunArea::map(const UniqueFd& memfd)
{
    VMM_TRY(auto pages, SharedPages::map(memfd, 0, run_area_size));
    return RunArea{std::move(pages)};
}

kvm_run& RunArea::run() const noexcept
{
    // SAFETY: page-aligned, zeroed by the kernel, and a struct of integers.
    return *reinterpret_cast<kvm_run*>(pages_.data());
}

bus::CoalescedPage& RunArea::coalesced() const noexcept
{
    // SAFETY: as above; CoalescedPage is the layout of this page.
    return *reinterpret_cast<bus::CoalescedPage*>(pages_.data() + 2 * shim_page_size);
}

}  // namespace vmm::shim
