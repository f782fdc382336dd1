// SPDX-License-Identifier: Apache-2.0

#include "x86/soft/code_memory.hpp"

#include <string>
#include <utility>

#include <sys/mman.h>
#include <unistd.h>

#include <fmt/format.h>

#include "vmm/unique_fd.hpp"

namespace vmm::x86::soft {

namespace {

Error refused(const std::string& call)
{
    const Error cause = Error::from_errno(call);
    return {static_cast<std::errc>(cause.errno_value()),
            fmt::format("the software engine needs executable memory for vector and x87 "
                        "instructions, refused by {}; allow it (SELinux: execmem; systemd: "
                        "MemoryDenyWriteExecute=no; seccomp: memfd_create and mmap with "
                        "PROT_EXEC; sysctl vm.memfd_noexec below 2)",
                        cause.message())};
}

}  // namespace

Result<CodeMemory> CodeMemory::create(std::size_t size)
{
    const UniqueFd file{::memfd_create("vmm-native", MFD_CLOEXEC)};
    if (!file) {
        return refused("memfd_create");
    }
    if (::ftruncate(file.get(), static_cast<::off_t>(size)) != 0) {
        return refused("ftruncate");
    }
    void* const writable = ::mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED, file.get(), 0);
    if (writable == MAP_FAILED) {
        return refused("mmap");
    }
    void* const executable =
        ::mmap(nullptr, size, PROT_READ | PROT_EXEC, MAP_SHARED, file.get(), 0);
    if (executable == MAP_FAILED) {
        const Error error = refused("mmap with PROT_EXEC");
        ::munmap(writable, size);
        return error;
    }
    CodeMemory made;
    made.writable_ = static_cast<std::uint8_t*>(writable);
    made.executable_ = static_cast<const std::uint8_t*>(executable);
    made.size_ = size;
    return made;
}

CodeMemory::~CodeMemory()
{
    if (writable_ != nullptr) {
        ::munmap(writable_, size_);
        ::munmap(const_cast<std::uint8_t*>(executable_), size_);
    }
}

CodeMemory::CodeMemory(CodeMemory&& other) noexcept
    : writable_(std::exchange(other.writable_, nullptr)),
      executable_(std::exchange(other.executable_, nullptr)),
      size_(std::exchange(other.size_, 0))
{
}

CodeMemory& CodeMemory::operator=(CodeMemory&& other) noexcept
{
    std::swap(writable_, other.writable_);
    std::swap(executable_, other.executable_);
    std::swap(size_, other.size_);
    return *this;
}

}  // namespace vmm::x86::soft
