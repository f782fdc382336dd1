// SPDX-License-Identifier: Apache-2.0

/// @file
/// Decoded blocks, by where their bytes lie in guest-physical memory.

#pragma once

#include <cstdint>

namespace vmm::x86::soft {

struct Cpu;

/// The decoded code of one vCPU.  (The owner of block.cpp completes this class.)
class BlockCache {
public:
    BlockCache();
    ~BlockCache();
    BlockCache(const BlockCache&) = delete;
    BlockCache& operator=(const BlockCache&) = delete;
    BlockCache(BlockCache&&) = delete;
    BlockCache& operator=(BlockCache&&) = delete;

    /// Bytes of guest-physical memory changed: blocks that were decoded from them are dropped.
    /// The one being executed ends behind the current instruction.
    void invalidate(std::uint64_t gpa, std::uint64_t size) noexcept;
    /// The mapping of linear addresses to pages changed: forget where linear addresses led.
    void mapping_changed() noexcept;
    /// A TLB miss on code page `gfn` was filled: compare its blocks with memory before their next
    /// use (writes of the VMM that nobody reported).
    void revalidate(std::uint64_t gfn) noexcept;
    /// Drops everything.
    void clear() noexcept;
};

}  // namespace vmm::x86::soft
